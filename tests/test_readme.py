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


def test_nothing_is_left_to_fill_in():
    prose = re.sub(r'`[^`]+`|```.*?```', '', README.read_text(), flags=re.S)
    assert not re.search(r'[A-Z]{3,}_[A-Z]+|TODO|XXX', prose)


def test_links_within_lead_to_a_heading():
    text = README.read_text()
    titles = re.findall(r'^#+ (.*)$', text, re.M)
    headings = {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}
    links = set(re.findall(r'\]\(#(.+?)\)', text))
    assert len(links) > 10 and links <= headings
