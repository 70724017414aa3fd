"""The READMEs: the worked example and the snippet are run as they stand, figures and links are there."""
import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / 'README.md', ROOT / 'net/README.md', ROOT / 'tests/README.md']
readmes = pytest.mark.parametrize('readme', READMES, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(path):
    return path.read_text(encoding='utf-8')


def headings(path):
    """The anchors that a page gives to its headings."""
    without_code = re.sub(r'```.*?```', '', text_of(path), flags=re.S)
    titles = re.findall(r'^#+ (.*)$', without_code, re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def test_the_example_on_sixteen_weights_prints_what_it_says():
    failed, attempted = doctest.testfile(str(ROOT / 'net/README.md'), module_relative=False, encoding='utf-8')
    assert failed == 0 and attempted > 20


def test_the_snippet_classifies_two_images(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    snippet, = re.findall(r'```python\n(.*?)```', text_of(ROOT / 'README.md'), re.S)
    exec(snippet, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r'[a-z]+ \d+\.\d %', line) for line in lines)


def test_the_readme_is_short():
    assert len(text_of(ROOT / 'README.md').splitlines()) <= 300


def test_eight_figures_are_shown_and_small():
    figures = {(path.parent / figure).resolve() for path in READMES
               for figure in re.findall(r'!\[[^]]+\]\((.+?\.png)\)', text_of(path))}
    assert len(figures) == 8
    assert all(figure.stat().st_size < 150_000 for figure in figures)


@readmes
def test_nothing_is_left_to_fill_in(readme):
    prose = re.sub(r'`[^`]+`|```.*?```', '', text_of(readme), flags=re.S)
    assert not re.search(r'[A-Z]{3,}_[A-Z]+|TODO|XXX', prose)


@readmes
def test_commands_can_be_pasted(readme):
    """A shell takes an angle bracket for a redirection."""
    commands = re.findall(r'```(?:bash|powershell)\n(.*?)```', text_of(readme), re.S)
    assert not any('<' in command or '>' in command for command in commands)


@readmes
def test_links_lead_to_a_file_or_a_heading(readme):
    links = set(re.findall(r'\]\((?!http)(.+?)\)', text_of(readme)))
    for link in links:
        file, _, anchor = link.partition('#')
        target = (readme.parent / file).resolve() if file else readme
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link
