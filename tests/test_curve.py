"""The measured points of the README's first figure."""
from net import figures

import curve
import pytest
from scripts import ROOT

POINTS = curve.read_points()
MADE = [point for point in POINTS if point['recipe'] != 'dense']


def test_the_bytes_are_those_of_the_networks_that_come_with_the_scripts():
    for recipe, name in ('ranking', 'smallest'), ('accurate', 'accurate'):
        n_bytes = (ROOT / f'net/compact/{name}.dcan').stat().st_size
        assert str(n_bytes) in [point['compact_bytes'] for point in MADE if point['recipe'] == recipe]
    n_bytes = sum(path.stat().st_size for path in (ROOT / 'tests/data/ranking').iterdir())
    assert str(n_bytes) in [point['bytes'] for point in MADE]


@pytest.mark.parametrize('layout', ['bytes', 'compact_bytes'])
def test_there_are_six_budgets_or_more_in_both_layouts(layout):
    assert len({point['weights'] for point in MADE if point[layout]}) >= 6


def test_all_points_are_drawn_and_lines_through_the_means_of_seeds(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, 'save', lambda figure, folder, name: drawn.append(figure))
    curve.draw(POINTS, 'figures')
    axes, = drawn[0].axes
    shown = {(x, y) for line in axes.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
    for point in MADE:
        assert (float(point['bytes']), float(point['accuracy'])) in shown
        if point['compact_bytes']:
            assert (float(point['compact_bytes']), float(point['compact_accuracy'])) in shown
    for n_bytes, accuracy in ('bytes', 'accuracy'), ('compact_bytes', 'compact_accuracy'):
        seeds = [point for point in MADE if point['recipe'] == 'accurate' and point['weights'] == '85000']
        mean = [sum(float(point[column]) for point in seeds) / 3 for column in (n_bytes, accuracy)]
        assert len(seeds) == 3 and any(point == pytest.approx(mean) for point in map(list, shown))
    assert set(curve.PUBLISHED.values()) <= shown and axes.get_xscale() == 'log'
