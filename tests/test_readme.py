"""The README's worked example is run as it stands, and its figures are there."""
import doctest
import re
from pathlib import Path

README = Path(__file__).parents[1] / 'README.md'


def test_the_example_on_sixteen_weights_prints_what_the_readme_says():
    failed, attempted = doctest.testfile(str(README), module_relative=False)
    assert failed == 0 and attempted > 20


def test_the_figures_are_there_and_small():
    figures = re.findall(r'!\[[^]]+\]\((.+?\.png)\)', README.read_text())
    assert len(figures) == 6
    for figure in figures:
        assert (README.parent / figure).stat().st_size < 150_000
