"""Figures of the three stages, as PNG files, drawn from what a run has measured."""
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from net.models import replace_file

# Okabe and Ito's colours, told apart by colour-blind readers; markers and dashes tell them apart in grey.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK, GREY = (
    '#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#000000', '#7f7f7f')
COLORS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK, GREY), 'os^Dvp*X'
WIDTH = 8  # inches, of all figures
DPI = 130


def save(figure, folder, name):
    """Write the figure to `<folder>/<name>.png`, in one piece; OSError, naming the file, if that fails."""
    path = Path(folder, f'{name}.png')
    with replace_file(path) as file:
        figure.savefig(file, format='png', dpi=DPI)
    print(f'Wrote {path}')


# ---- stage 1: pruning ------------------------------------------------------------------------------------------------

def draw_sensitivity(scan, images, folder):
    """Accuracy against the weights kept in each layer: `scan` is layer -> {percent kept: accuracy in percent}.

    `images` says what the accuracy was measured on (Han et al. 2015, Fig. 6, without retraining).
    """
    figure = Figure((WIDTH, 4.2), layout='constrained')
    axes = figure.subplots()
    for i, (name, accuracies) in enumerate(scan.items()):
        axes.plot(accuracies.keys(), accuracies.values(), '--' if name.startswith('fc') else '-', label=name,
                  color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], markersize=5)
    axes.set_xscale('log')
    axes.invert_xaxis()
    axes.set_xticks(list(next(iter(scan.values()))), minor=False)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.minorticks_off()
    axes.set_xlabel('weights kept in this layer, all others untouched, nothing retrained (logarithmic)')
    axes.set_ylabel(f'accuracy on {images} (%)')
    axes.set_title('How far each layer alone can be pruned before the accuracy falls')
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, title='layer')
    save(figure, folder, 'sensitivity')


def draw_history(history, images, folder):
    """Loss, accuracy and parameters alive against epochs; `history` is that of `net.checkpoint.Checkpoint`."""
    figure = Figure((WIDTH, 6), layout='constrained')
    all_axes = figure.subplots(3, sharex=True)
    epochs = np.arange(1, len(history) + 1)
    rows = [('loss', 'training loss (nats)', BLUE), ('accuracy', 'accuracy (%)', RED),
            ('alive', 'weights and biases\nthat are not zero', GREEN)]
    for axes, (key, label, color) in zip(all_axes, rows, strict=True):
        axes.plot(epochs, [np.nan if entry[key] is None else entry[key] for entry in history], color=color, marker='.',
                  markersize=4, linewidth=1)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    all_axes[2].set_yscale('log')
    all_axes[2].set_xlabel('epochs')
    phases = [entry['phase'] for entry in history]
    for phase in dict.fromkeys(phases):
        first, last = phases.index(phase) + 0.5, len(phases) - phases[::-1].index(phase) + 0.5
        for axes in all_axes:
            axes.axvline(last, color=BLACK, linewidth=0.8, linestyle=':')
        all_axes[0].text((first + last) / 2, 1.03, phase, ha='center', transform=all_axes[0].get_xaxis_transform())
    all_axes[0].set_xlim(0.5, len(history) + 0.5)
    figure.suptitle(f'Pruning costs accuracy, retraining brings it back (accuracy on {images})')
    save(figure, folder, 'history')
