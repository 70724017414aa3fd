"""Figures of the three stages, drawn from what a run has measured; each function returns the path of a PNG file."""
from pathlib import Path

from net.files import replace_file
from net.live import count_nonzeros, live_units
from net.statistics import PARTS

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

# Okabe and Ito's colours, told apart by colour-blind readers; markers and dashes tell them apart in grey.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK, GREY = (
    '#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#000000', '#7f7f7f')
COLORS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK, GREY), 'os^Dvp*X'
SCANNED_PERCENTS = 80, 60, 40, 30, 20, 10, 5, 2  # of the weights kept
WIDTH = 8  # inches, of all figures
DPI = 130


def save(figure, folder, name):
    """Write the figure to `<folder>/<name>.png`, in one piece, return the path; OSError, naming it, if that fails."""
    path = Path(folder, f'{name}.png')
    with replace_file(path) as file:
        figure.savefig(file, format='png', dpi=DPI)
    return path


# ---- stage 1: pruning ------------------------------------------------------------------------------------------------

def sensitivity_scan(model, accuracy):
    """Layer -> {percent of its weights kept: `accuracy(model)`}, each layer pruned alone (Han et al. 2015, Fig. 6)."""
    scan, dense = {}, accuracy(model)
    for name, layer in model.layers():
        weight = layer.weight.data.clone()
        scan[name] = {100: dense}
        for percent in tqdm(SCANNED_PERCENTS, f'Sensitivity of {name}', leave=False, disable=None):
            model._prune(layer, np.percentile(weight.abs().double().cpu().numpy(), 100 - percent))
            scan[name][percent] = accuracy(model)
            layer.weight.data.copy_(weight)
    return scan


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
    return save(figure, folder, 'sensitivity')


def draw_history(history, images, folder):
    """Loss, accuracy, parameters and units alive against epochs; `history` is that of `net.checkpoint.Checkpoint`."""
    figure = Figure((WIDTH, 7.5), layout='constrained')
    all_axes = figure.subplots(4, sharex=True)
    epochs = np.arange(1, len(history) + 1)
    rows = [('loss', 'training loss (nats)', BLUE), ('accuracy', f'accuracy (%) on\n{images}', RED),
            ('alive', 'weights and biases\nthat are not zero', GREEN), ('units', 'hidden units in use', PURPLE)]
    for axes, (key, label, color) in zip(all_axes, rows, strict=True):
        axes.plot(epochs, [np.nan if entry[key] is None else entry[key] for entry in history], color=color, marker='.',
                  markersize=4, linewidth=1)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.3)
    for axes in all_axes[2:]:
        axes.set_yscale('log')
    all_axes[3].set_xlabel('epochs')
    phases = [entry['phase'] for entry in history]
    for phase, shade in zip(dict.fromkeys(phases), ('1', '0.9', '0.8'), strict=False):
        first, last = phases.index(phase) + 0.5, len(phases) - phases[::-1].index(phase) + 0.5
        for axes in all_axes:
            axes.axvspan(first, last, facecolor=shade, edgecolor='0.5', linewidth=0.5, label=phase, zorder=0)
    all_axes[0].set_xlim(0.5, len(history) + 0.5)
    figure.legend(handles=all_axes[0].patches, ncols=3, loc='outside lower center')
    figure.suptitle('How the network learns while weights are taken away, and after')
    return save(figure, folder, 'history')


def draw_network(model, folder):
    """The whole network and what is left of it: units of each layer, and the weights that lead to them."""
    names, layers = zip(*model.layers(), strict=True)
    sizes = {'units': ([len(layer.weight) for layer in layers], [len(units) for units in live_units(model)[1:]]),
             'weights': ([layer.weight.numel() for layer in layers], [count_nonzeros(layer) for layer in layers])}
    figure = Figure((WIDTH, 4.2), layout='constrained')
    all_axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(layers))
    for axes, (kind, (whole, left)) in zip(all_axes, sizes.items(), strict=True):
        for shift, values, color, hatch, label in [(-0.2, whole, GREY, '', 'the whole AlexNet'),
                                                   (0.2, left, BLUE, '//', 'what is left')]:
            axes.barh(places + shift, values, 0.38, color=color, hatch=hatch, edgecolor='white', label=label)
            for place, value in zip(places, values, strict=True):
                axes.annotate(f' {value:,}', (max(value, 1), place + shift), va='center', fontsize=8)
        axes.set_xscale('log')
        axes.set_xlim(1, 300 * max(whole))
        axes.set_xlabel(f'{kind} (logarithmic)')
    all_axes[0].set_yticks(places, names)
    all_axes[0].invert_yaxis()
    figure.legend(*all_axes[0].get_legend_handles_labels(), ncols=2, loc='outside lower center')
    figure.suptitle('What is left of the network: units of each layer, and the weights that lead to them')
    return save(figure, folder, 'network')


# ---- stage 2: weight sharing -----------------------------------------------------------------------------------------

def draw_centroids(pruned, clustered, trained, folder):
    """Histogram of each layer's surviving weights, with the centroids before and after training.

    The weights before sharing, after k-means and after training are layer -> float32 array (Han et al. 2016, Fig. 4,
    right).
    """
    figure = Figure((WIDTH, 5), layout='constrained')
    for axes, (name, weights) in zip(figure.subplots(2, 4).flat, pruned.items(), strict=True):
        alive = weights != 0
        values = weights[alive].astype(float)
        heights, _, _ = axes.hist(values, 60, color=GREY, alpha=0.6, label='weights before sharing')
        top = max(heights.max(), 1)
        for shared, marker, color, height, label in [
                (clustered[name], 'o', BLUE, -0.08, 'centroids of k-means'),
                (trained[name], '^', RED, -0.19, 'centroids after training')]:
            centroids = np.unique(shared[alive])
            axes.plot(centroids, np.full(len(centroids), height * top), marker, color=color, markersize=3, label=label)
        axes.set_ylim(-0.27 * top, 1.05 * top)
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])  # below zero are only the centroids
        axes.set_title(f'{name}: {alive.sum():,} weights', fontsize=10)
        axes.set_xlabel('value of the weight', fontsize=9)
    figure.supylabel('number of weights')
    figure.suptitle('K-means puts centroids among the weights, and training moves them')
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3, loc='outside lower center')
    return save(figure, folder, 'centroids')


# ---- stage 3: Huffman coding -----------------------------------------------------------------------------------------

def draw_bytes(streams, biases, original, folder):
    """Where the bytes of the encoded model go, layer by layer, beside those of float32.

    `streams` is that of `net.statistics.read_streams`; `biases` and `original` are layer -> bytes.
    """
    layers = list(original)
    rows = {part: dict.fromkeys(layers, 0) for part in (*PARTS, 'codebooks', 'biases')}
    for stream in streams:
        layer = stream.parameter.split('.')[0]
        rows[stream.part][layer] += stream.data_bytes
        rows['codebooks'][layer] += stream.codebook_bytes
    rows['biases'] = biases
    figure = Figure((WIDTH, 4.2), layout='constrained')
    before, after = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.2))
    before.barh(layers, [original[layer] / 1e6 for layer in layers], color=GREY)
    before.set_xlabel('original, float32 (MB)')
    left = np.zeros(len(layers))
    for (part, n_bytes), color, hatch in zip(rows.items(), COLORS, ('', '', '', '', 'xx', '//'), strict=False):
        widths = np.array([n_bytes[layer] for layer in layers]) / 1e3
        after.barh(layers, widths, left=left, color=color, hatch=hatch, edgecolor='white', linewidth=0.3, label=part)
        left += widths
    for layer, total in zip(layers, left, strict=True):
        after.annotate(f' {total:,.1f} kB', (total, layer), va='center', fontsize=9)
    after.set_xlim(0, 1.18 * left.max())
    after.set_xlabel('encoded (kB)')
    after.legend(title='part', fontsize=9)
    before.invert_yaxis()
    total = sum(original.values())
    figure.suptitle(f'Where the bytes go: {total / 1e6:,.1f} MB become {left.sum():,.1f} kB')
    return save(figure, folder, 'bytes')
