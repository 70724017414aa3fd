"""python -m net.compact: a model becomes one small file, and comes back; its network classifies images."""
import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import weight_share
from net.compact import __main__ as compact
from net.compact import format as compact_format
from net.compact.__main__ import CIFAR10_CLASSES, EXAMPLES, SHIPPED, main
from net.data import load_photo, normalize
from net.files import one_run_per_folder
from net.models import COMPACT, AlexNet, load_model, save_model
from net.quantization import apply_weight_sharing

import pytest
import small
import torch
from PIL import Image
from scripts import DIGITS, ROOT, SMALLEST, error_of


@pytest.fixture
def small_format(small_runs, monkeypatch):
    """Files of a network with fewer units."""
    monkeypatch.setattr(compact_format, 'WIDTHS', small.WIDTHS)


def photo(name='photo.png', size=(64, 48)):
    Image.effect_noise(size, 80).convert('RGB').save(name)
    return name


def small_file(path, n_classes=10):
    model = AlexNet(n_classes)
    model.prune_to_budget(2000)
    apply_weight_sharing(model)
    Path(path).write_bytes(compact_format.compact_from_model(model))
    return path


def refused(arguments, capsys):
    """The line that ends a command whose arguments are wrong, and exit status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    return line


def same_parameters(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# ---- write and read --------------------------------------------------------------------------------------------------

def test_a_model_becomes_a_small_file_and_comes_back_bit_for_bit(small_format, capsys):
    small.sparse_model('pruned.ptmodel')
    weight_share.main([*DIGITS, '--compact', '--load-model-path', 'pruned.ptmodel', '--epochs', '1'])
    main(['write', COMPACT, 'digits.dcan'])
    n_bytes, original = Path('digits.dcan').stat().st_size, 4 * sum(p.numel() for p in load_model(COMPACT).parameters())
    assert (f'digits.dcan: {n_bytes} bytes of {original}, {original / n_bytes:.2f}x, every parameter came back bit for '
            'bit\n') in capsys.readouterr().out
    main(['read', 'digits.dcan', 'new folder/again.ptmodel'])
    assert capsys.readouterr().out == f'digits.dcan: {n_bytes} bytes, decoded\nWrote new folder/again.ptmodel\n'
    assert same_parameters(load_model('new folder/again.ptmodel'), load_model(COMPACT))


def not_shared():
    small.sparse_model('x')


def a_compact_file():
    shutil.copy(SMALLEST, 'x')


def a_model():
    save_model(AlexNet(), 'x')


def a_text():
    Path('x').write_text('PK and so on', encoding='utf-8')


def nothing():
    pass


REFUSED = [  # what x is, verb, what the line says
    (not_shared, 'write', r'^conv1 has \d+ distinct weights, at most 256 can be kept: share them with weight_share.py'),
    (a_compact_file, 'write', '^x: a compact file, expected a .ptmodel of an AlexNet: first make one of it: '
                              'python -m net.compact read x MODEL$'),
    (a_text, 'write', '^x: not a readable .ptmodel of an AlexNet'),
    (nothing, 'write', '^x: no such file, expected a .ptmodel of an AlexNet$'),
    (a_model, 'read', '^x: a .ptmodel, expected a compact file: python -m net.compact write x FILE makes one$'),
    (a_text, 'read', "^x: no compact file: it starts with b'PK a', expected b'DCAN'$"),
    (nothing, 'read', r'^x: cannot be read \(No such file or directory\)$'),
    (lambda: Path('x').mkdir(), 'read', r'^x: cannot be read \('),
]


@pytest.mark.parametrize('make, verb, message', REFUSED, ids=[f'{make.__name__}-{verb}' for make, verb, _ in REFUSED])
def test_what_cannot_be_converted_ends_in_one_line_and_the_old_file_stays(make, verb, message, small_runs):
    make()
    old = 'DCAN stays' if verb == 'write' else 'PK stays'
    Path('old').write_text(old, encoding='utf-8')
    before = set(os.listdir())
    assert re.search(message, error_of(main, [verb, 'x', 'old']))
    assert set(os.listdir()) == before and Path('old').read_text(encoding='utf-8') == old


@pytest.mark.parametrize('verb', ['write', 'read'])
def test_a_file_of_another_kind_is_not_replaced(verb, small_format):
    Path('my.py').write_bytes(b'mine')
    main(['read', small_file('x.dcan'), 'x.ptmodel'])
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    source, kind = ('x.ptmodel', 'compact file') if verb == 'write' else ('x.dcan', '.ptmodel')
    for target in source, 'my.py':
        assert error_of(main, [verb, source, target]) == (
            f'{target}: is there already, and is no {kind}: expected another name')
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_a_compact_file_that_loses_something_does_not_take_its_place(small_format, monkeypatch):
    model = AlexNet()
    for param in model.parameters():
        param.data.zero_()
    data = compact_format.compact_from_model(model)
    model.conv1.bias.data[3] = 1.5
    save_model(model, 'x.ptmodel')
    monkeypatch.setattr(compact, 'compact_from_model', lambda model: data)
    with pytest.raises(RuntimeError, match='conv1.bias differs after decoding'):
        main(['write', 'x.ptmodel', 'lossy.dcan'])
    assert os.listdir() == ['x.ptmodel']


@pytest.mark.parametrize('command', [['write', 'x.ptmodel', 'old'], ['read', 'x.dcan', 'old']])
def test_where_the_disk_is_full_the_old_file_stays(command, small_format, monkeypatch):
    main(['read', small_file('x.dcan'), 'x.ptmodel'])
    stays = 'DCAN' if command[0] == 'write' else 'PK'
    Path('old').write_text(stays, encoding='utf-8')
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    assert error_of(main, command) == 'old: cannot be written (No space left on device)'
    assert sorted(os.listdir()) == ['old', 'x.dcan', 'x.ptmodel']
    assert Path('old').read_text(encoding='utf-8') == stays


def test_nothing_is_written_into_saves_while_a_stage_is_at_work(small_format):
    small_file('x.dcan')
    main(['read', 'x.dcan', 'saves/x.ptmodel'])
    commands = [['read', 'x.dcan', 'saves/y'], ['write', 'saves/x.ptmodel', './saves/z']]
    with one_run_per_folder():
        for command in commands:
            assert error_of(main, command).startswith('another run is at work in ')
        main(['read', 'x.dcan', 'elsewhere.ptmodel'])
    assert os.listdir('saves') == ['x.ptmodel']
    for command in commands:
        main(command)


# ---- names -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('own, name, file, note', [
    (None, 'smallest', SHIPPED['smallest'], ''),
    ('smallest', 'smallest', SHIPPED['smallest'],
     'Note: smallest is the network that comes with the code; yours is ./smallest\n'),
    ('smallest.dcan', 'smallest', SHIPPED['smallest'],
     'Note: smallest is the network that comes with the code; yours is ./smallest.dcan\n'),
    ('smallest', './smallest', Path('smallest'), ''), ('smallest.dcan', 'smallest.dcan', Path('smallest.dcan'), '')])
def test_the_names_of_the_shipped_networks_win_and_an_own_file_of_that_name_is_pointed_to(
        own, name, file, note, capsys):
    if own:
        shutil.copy(SHIPPED['accurate'], own)
    main(['read', name, 'x.ptmodel'])
    assert capsys.readouterr().out == f'{note}{file}: {file.stat().st_size} bytes, decoded\nWrote x.ptmodel\n'


def test_a_shipped_network_taken_for_a_file_here_is_named():
    assert error_of(main, ['read', 'accurate.dcan', 'x.ptmodel']) == (
        'accurate.dcan: no such file; the network that comes with the code is called accurate')


def test_a_shipped_network_given_by_its_path_knows_what_it_was_trained_on():
    assert error_of(main, ['classify', '--network', str(SHIPPED['smallest']), '--data', 'digits']).startswith(
        'digits: the network knows airplane, automobile')


# ---- classify --------------------------------------------------------------------------------------------------------

def test_a_photo_is_classified_without_any_data(capsys):
    main(['classify', photo(), photo('grey.jpg')])
    decoded, classes, *lines = capsys.readouterr().out.splitlines()
    assert decoded == f'{SMALLEST}: {SMALLEST.stat().st_size} bytes, decoded'
    assert classes == f'Classes: {", ".join(CIFAR10_CLASSES)} (of CIFAR-10; others by --classes or --data)'
    for name, line in zip(['photo.png', 'grey.jpg'], lines, strict=True):
        found = re.findall(r'([a-z]+) ([\d.]+) %', line)
        assert line.startswith(f'{name}: ') and len(found) == 3
        assert {label for label, _ in found} <= set(CIFAR10_CLASSES)
        shares = [float(share) for _, share in found]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.1


def test_the_answer_is_that_of_the_network(capsys):
    main(['classify', photo()])
    model = compact_format.model_from_compact(SMALLEST.read_bytes()).eval()
    best = model(normalize(load_photo('photo.png'))).argmax().item()
    assert f'photo.png: {CIFAR10_CLASSES[best]} ' in capsys.readouterr().out


def test_folders_and_patterns_of_images_are_expanded(capsys):
    Path('photos').mkdir()
    for name in 'photos/2.png', 'photos/1.png', 'b.png', 'a.png', 'c.jpg':
        photo(name)
    main(['classify', 'c.jpg', '*.png', 'photos'])
    names = [line.split(':')[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [Path(name).as_posix() for name in names] == ['c.jpg', 'a.png', 'b.png', 'photos/1.png', 'photos/2.png']


def cifar10_folder():
    for split, name in itertools.product(('train', 'test'), CIFAR10_CLASSES):
        Path('images', split, name).mkdir(parents=True)
        photo(f'images/{split}/{name}/1.png')


def test_the_accuracy_is_measured_where_data_is_named(capsys):
    cifar10_folder()
    main(['classify', '--data', 'images'])
    assert re.search(r'^Test set: .* Accuracy: \d/10 ', capsys.readouterr().out, re.M)


@pytest.mark.parametrize('n_classes, flags, names, source', [
    (10, [], CIFAR10_CLASSES, 'of CIFAR-10; others by --classes or --data'),
    (10, ['--classes', ','.join('abcdefghij')], 'abcdefghij', '--classes'),
    (10, ['--data', 'digits'], '0123456789', '--data digits'),
    (10, ['--data', 'digits', '--classes', ','.join('abcdefghij')], 'abcdefghij', '--classes'),
    (3, [], '012', 'no names known; give --classes or --data'),
    (3, ['--classes', 'cat,dog,eel'], ['cat', 'dog', 'eel'], '--classes')])
def test_the_classes_of_an_own_file_are_called_as_said_or_by_the_names_of_cifar10(
        n_classes, flags, names, source, small_format, capsys):
    main(['classify', photo(), '--network', small_file('mine.dcan', n_classes), *flags])
    out = capsys.readouterr().out
    assert f'Classes: {", ".join(names)} ({source})\n' in out
    assert re.search(r'^photo.png: (.+) [\d.]+ %, (.+) [\d.]+ %, (.+) [\d.]+ %$', out, re.M)[1] in names


@pytest.mark.parametrize('arguments, message', [
    ([], 'classify needs images to look at, or --data FOLDER to measure the accuracy on, got neither'),
    (['x.png'], 'x.png: no such image or folder'),
    (['--data', 'digits'], f'digits: the network knows {", ".join(CIFAR10_CLASSES)}, '
                           f'the images are {", ".join("0123456789")}'),
    (['--data', 'half'], 'half: has test/ but no train/, expected images in both'),
    (['photo.png', '--classes', 'a,b'], 'the network tells 10 classes apart, --classes names 2'),
    (['photo.png', '--network', 'photo.png'],
     "photo.png: no compact file: it starts with b'\\x89PNG', expected b'DCAN'")])
def test_what_cannot_be_classified_ends_in_one_line(arguments, message, small_runs):
    photo()
    Path('half/test').mkdir(parents=True)
    assert error_of(main, ['classify', *arguments]) == message


def test_an_unreadable_image_is_named_before_anything_is_decoded(monkeypatch):
    Path('x.png').write_bytes(b'no image')
    monkeypatch.setattr(compact, 'decode', None)
    assert error_of(main, ['classify', photo(), 'x.png']).startswith('x.png: not a readable image')


# ---- the command line ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, message', [
    ([], 'the following arguments are required: VERB (see python -m net.compact --help)'),
    (['photo.png'], "argument VERB: invalid choice: 'photo.png' (choose from "),
    (['write', 'x.ptmodel'], 'the following arguments are required: FILE (see python -m net.compact write --help)'),
    (['read', 'smallest', '.'], 'argument MODEL: must be a file, got .'),
    (['write', 'x.ptmodel', 'missing/y'], 'argument FILE: must be a file in an existing folder, got missing/y'),
    (['classify', 'x.png', '--no-such-flag'], 'unrecognized arguments: --no-such-flag')])
def test_wrong_arguments_are_named_in_one_line(arguments, message, capsys):
    assert refused(arguments, capsys).startswith(f'error: {message}')


@pytest.mark.parametrize('verb', [None, *EXAMPLES])
def test_the_help_shows_an_example_of_each_verb_that_can_be_typed(verb, capsys):
    with pytest.raises(SystemExit, match='^0$'):
        main([verb, '--help'] if verb else ['--help'])
    text = capsys.readouterr().out
    shown = [line.split()[3:] for line in text.splitlines() if line.startswith('    python -m net.compact ')]
    assert [words[0] for words in shown] == ([verb] if verb else ['write', 'read', 'classify', 'export'])
    for words in shown:
        assert compact.parse_args([word.replace('.onnx', '.pt2') for word in words])  # which needs no more packages
    assert '(default: None)' not in text and (verb != 'classify' or '(default: smallest)' in text)


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, '-m', 'net.compact', 'classify', photo()], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.splitlines()[-1].startswith('Finished in ')


def test_nothing_that_is_handed_in_needs_this_folder():
    """The archive holds net/*.py; the scripts and util.py do without it as well."""
    sources = [*ROOT.glob('*.py'), *ROOT.glob('net/*.py')]
    assert len(sources) > 15
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding='utf-8'))):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [f'{node.module}.{alias.name}' for alias in node.names]
            assert not any(name.startswith('net.compact') for name in imported), source
