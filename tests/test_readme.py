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


def test_the_readme_is_short_and_airy():
    text = text_of(ROOT / 'README.md')
    assert len(text.splitlines()) <= 260
    cells = [cell for row in re.findall(r'^\|(.*)\|$', text, re.M) for cell in row.split('|')]
    shown = [re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', cell).replace('`', '').strip() for cell in cells]
    assert len(shown) > 50 and max(map(len, shown)) <= 60
    without_code = re.sub(r'```.*?```', '', text, flags=re.S)
    paragraphs = [part for part in without_code.split('\n\n') if not part.lstrip().startswith(('|', '-', '1.'))]
    assert max(len(part.strip().splitlines()) for part in paragraphs) <= 5


def test_the_table_of_todos_links_to_the_line_of_each_function():
    links = re.findall(r'\[`(\w+)`\]\(([\w/.]+)#L(\d+)\)', text_of(ROOT / 'README.md'))
    assert len(links) == 11  # of seven TODOs
    for name, file, line in links:
        assert text_of(ROOT / file).splitlines()[int(line) - 1].strip().startswith(f'def {name}('), name


def test_six_figures_are_shown_and_small():
    figures = {(path.parent / figure).resolve() for path in READMES
               for figure in re.findall(r'!\[[^]]+\]\((.+?\.png)\)', text_of(path))}
    assert len(figures) == 6
    assert all(figure.stat().st_size < 150_000 for figure in figures)


@readmes
def test_nothing_is_left_to_fill_in(readme):
    prose = re.sub(r'`[^`]+`|```.*?```', '', text_of(readme), flags=re.S)
    assert not re.search(r'[A-Z]{3,}_[A-Z]+|TODO:|XXX|@@', prose)


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
        assert not anchor or target.suffix == '.py' or anchor in headings(target), link
