"""Draw what each point of accuracy costs: `.github/curve.png`, from the measured points in `tests/data/curve.csv`.

    python tests/curve.py

A row of that file is one network: the recipe and seed of `pruning.py`, the weights and hidden units that are left,
minutes on two cores, and accuracy (percent of the 10,000 test images) and bytes in both layouts. Empty cells were not
measured.
"""
import csv
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from net import figures  # noqa: E402  (the path comes first)

POINTS = ROOT / 'tests/data/curve.csv'
WHOLE = 81_378_600  # bytes of the AlexNet as float32
PUBLISHED = {  # results on the original images in the homework's layout: bytes, accuracy
    "homework's example": (485_484, 56.42),
    'uuuChen/NTHU-Course-DataScience': (WHOLE / 144.27, 58.13),
    'Cathy-Kuo/NTHU-Data-Science': (WHOLE / 169.32, 58.19),
    'weiiii016/nthu-data-science-2026': (WHOLE / 269.73, 59.99),
}


def read_points():
    """One dictionary of texts for each row."""
    with open(POINTS, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def numbers(points, column):
    return [float(point[column]) for point in points]


def draw(points, folder):
    """Accuracy against bytes: the compressed networks in both layouts, the dense one as a line, published results."""
    figure = Figure((figures.WIDTH, 4.6), layout='constrained')
    axes = figure.subplots()
    dense = numbers([point for point in points if point['recipe'] == 'dense'], 'accuracy')
    mean = sum(dense) / len(dense)
    axes.axhline(mean, color=figures.GREY, linestyle='--', label=f'dense, 9.3 of 81 MB trained: {mean:.2f} %')
    pruned = sorted((point for point in points if point['recipe'] not in ('dense', 'paper')),
                    key=lambda point: int(point['weights']))
    for point in points:
        if point['recipe'] == 'paper':
            axes.plot(float(point['bytes']), float(point['accuracy']), 'P', color=figures.PURPLE,
                      label='as the slides ask')
    for n_bytes, accuracy, color, marker, label in [
            ('compact_bytes', 'compact_accuracy', figures.BLUE, 'o', 'compact file'),
            ('bytes', 'accuracy', figures.ORANGE, 's', "homework's layout")]:
        measured = [point for point in pruned if point[n_bytes]]
        alike = [list(seeds) for _, seeds in groupby(measured, lambda point: point['weights'])]  # they are in order
        line = [(np.mean(numbers(seeds, n_bytes)), np.mean(numbers(seeds, accuracy))) for seeds in alike]
        axes.plot(*zip(*line, strict=True), color=color, linewidth=1)
        axes.plot(numbers(measured, n_bytes), numbers(measured, accuracy), marker, color=color, label=label)
    for (name, point), marker in zip(PUBLISHED.items(), 'Xv^D', strict=True):
        axes.plot(*point, marker, color=figures.BLACK, label=name)
    axes.set_xscale('log')
    axes.set_xlabel('bytes on disk (logarithmic)')
    rates = axes.secondary_xaxis('top', functions=(lambda x: WHOLE / np.maximum(x, 1),) * 2)  # its own inverse
    rates.set_xlabel('compression rate')
    ticks = 20_000, 10_000, 5000, 2000, 1000, 500, 200, 100, 50, 20
    rates.set_xticks(ticks, [f'{rate:,}x' for rate in ticks])
    rates.minorticks_off()
    axes.set_ylabel('accuracy on the test images (%)')
    axes.set_title('What each point of accuracy costs')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3, fontsize=8)
    return figures.save(figure, folder, 'curve')


if __name__ == '__main__':
    print('Wrote', draw(read_points(), ROOT / '.github'))
