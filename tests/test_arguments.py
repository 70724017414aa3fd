"""Every flag of the three scripts, given something bad: one line that names it and what was expected, no traceback."""
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision.datasets.cifar
from hostile import RunsCommand
from PIL import Image
from scripts import DIGITS

import huffman_coding
import pruning
import weight_share
from net import command_line
from net.models import AlexNet, save_model

SCRIPTS = {'pruning': pruning, 'weight_share': weight_share, 'huffman_coding': huffman_coding}

pytestmark = pytest.mark.usefixtures('small_runs')

BAD_ARGUMENTS = [  # script (one of those that share the flag), arguments, what the line says
    ('pruning', '--log missing/log.txt', '--log: must be a file in an existing folder, got missing/log.txt'),
    ('pruning', '--log .', '--log: must be a file in an existing folder, got .'),
    ('pruning', '--figures a-file', '--figures: must be a folder, got a-file'),
    ('pruning', '--epoch-count 3', 'unrecognized arguments: --epoch-count 3'),
    ('pruning', '--dat digits', 'unrecognized arguments: --dat digits, did you mean --data?'),
    ('pruning', 'saves/model.ptmodel', 'unrecognized arguments: saves/model.ptmodel'),
    ('pruning', '--batch-size 0', '--batch-size: must be a whole number, at least 1, got 0'),
    ('pruning', '--batch-size many', '--batch-size: must be a whole number, at least 1, got many'),
    ('pruning', '--test-batch-size -5', '--test-batch-size: must be a whole number, at least 1, got -5'),
    ('pruning', '--test-batch-size 1e3', '--test-batch-size: must be a whole number, at least 1, got 1e3'),
    ('pruning', '--epochs 0', '--epochs: must be a whole number, at least 1, got 0'),
    ('weight_share', '--epochs -1', '--epochs: must be a whole number, at least 0, got -1'),
    ('weight_share', '--epochs 1.5', '--epochs: must be a whole number, at least 0, got 1.5'),
    ('pruning', '--lr -0.1', '--lr: must be a number, at least 0, got -0.1'),
    ('pruning', '--lr nan', '--lr: must be a number, at least 0, got nan'),
    ('pruning', '--lr inf', '--lr: must be a number, at least 0, got inf'),
    ('pruning', '--weight-decay -1', '--weight-decay: must be a number, at least 0, got -1'),
    ('pruning', '--seed -1', '--seed: must be a whole number from 0 to 9223372036854775807, got -1'),
    ('pruning', '--seed 9223372036854775808', '--seed: must be a whole number from 0 to 9223372036854775807, got 9223'),
    ('pruning', '--log-interval 0', '--log-interval: must be a whole number, at least 1, got 0'),
    ('pruning', '--validation 0', '--validation: must be a whole number, at least 1, got 0'),
    ('pruning', '--resume --restart', '--restart: not allowed with argument --resume'),
    ('pruning', '--keep 4,200', '--keep: must be a whole number, at least 1, got 4,200'),
    ('pruning', '--keep 4.2e3', '--keep: must be a whole number, at least 1, got 4.2e3'),
    ('pruning', '--keep 0', '--keep: must be a whole number, at least 1, got 0'),
    ('pruning', '--fc-cost 0', '--fc-cost: must be a number, at least 0.01, got 0'),
    ('pruning', '--prune-steps 0', '--prune-steps: must be a whole number, at least 1, got 0'),
    ('pruning', '--retrain-epochs 0', '--retrain-epochs: must be a whole number, at least 1, got 0'),
    ('pruning', '--retrain-lr inf', '--retrain-lr: must be a number, at least 0, got inf'),
    ('pruning', '--sensitivity -1', '--sensitivity: must be a number, at least 0, got -1'),
    ('pruning', '--rates fc9=9', "--rates: unknown layer 'fc9', expected one of conv1, conv2"),
    ('pruning', '--rates conv1=84%', '--rates: percent of conv1 must be a number from 0 to 100, got 84%'),
    ('pruning', '--rates fc1=101', '--rates: percent of fc1 must be a number from 0 to 100, got 101'),
    ('pruning', '--rates fc1', "--rates: must be LAYER=PERCENT,..., got 'fc1'"),
    ('pruning', '--rates fc1=x', '--rates: percent of fc1 must be a number from 0 to 100, got x'),
    ('pruning', '--rates fc1=9,fc2=9,fc1=8', '--rates: fc1 must be given once, got fc1=9,fc2=9,fc1=8'),
    ('pruning', '--prune percentile --sensitivity 1', '--sensitivity goes with --prune std, got --prune percentile'),
    ('pruning', '--prune std --rates fc1=9', '--rates goes with --prune percentile, got --prune std'),
    ('pruning', '--prune std --keep 4200', '--keep goes with --prune lamp, got --prune std'),
    ('pruning', '--prune percentile --keep 4200', '--keep goes with --prune lamp, got --prune percentile'),
    ('pruning', '--start-units 99 --load-model-path x', '--start-units goes with a first training, got --load-model'),
    ('pruning', '--dense-only --load-model-path x', '--dense-only goes with a first training, got --load-model-path'),
    ('pruning', '--dense-only --keep 9', '--keep goes with pruning, got --dense-only'),
    ('pruning', '--dense-only --crop first', '--crop goes with pruning, got --dense-only'),
    ('pruning', '--label-smoothing 1.5', '--label-smoothing: must be a number from 0 to 1, got 1.5'),
    ('pruning', '--distill -1', '--distill: must be a number from 0 to 1, got -1'),
    ('pruning', '--start-units 6', '--start-units: must be a whole number from 7 to 9344, got 6'),
    ('pruning', '--keep-units 6', '--keep-units: must be a whole number, at least 7, got 6'),
    ('pruning', '--prune-lr -1', '--prune-lr: must be a number, at least 0, got -1'),
    ('pruning', '--retrain-weight-decay -1', '--retrain-weight-decay: must be a number, at least 0, got -1'),
    ('pruning', '--prune lamp --rates fc1=9', '--rates goes with --prune percentile, got --prune lamp'),
    ('pruning', '--rates fc1=9 --fc-cost 6', '--fc-cost goes with --keep or --keep-units, got --prune percentile'),
    ('pruning', '--sensitivity 1 --fc-cost 6', '--fc-cost goes with --keep or --keep-units, got --prune std'),
    ('pruning', '--recipe paper --fc-cost 6', '--fc-cost goes with --keep or --keep-units, got --prune percentile'),
    ('pruning', '--recipe paper --prune lamp', '--prune lamp needs --keep, got --recipe paper without it'),
    ('pruning', '--prune std --prune-steps 40', '--prune std prunes once, got --prune-steps 40'),
    ('pruning', '--batch-norm --batch-size 1', '--batch-norm needs a --batch-size of at least 2, got 1'),
    ('pruning', '--rates fc1=9 --keep 9', '--keep: not allowed with argument --rates'),
    ('pruning', '--sensitivity 1 --rates fc1=9', '--rates: not allowed with argument --sensitivity'),
    ('weight_share', '--bits 0', '--bits: must be a whole number from 1 to 8, got 0'),
    ('weight_share', '--bits 9', '--bits: must be a whole number from 1 to 8, got 9'),
    ('weight_share', '--bits x', '--bits: must be a whole number from 1 to 8, got x'),
    ('weight_share', '--fc-bits 9', '--fc-bits: must be a whole number from 1 to 8, got 9'),
    ('weight_share', '--layer-bits conv1', "--layer-bits: must be LAYER=BITS,..., got 'conv1'"),
    ('weight_share', '--layer-bits conv1=9', '--layer-bits: bits of conv1 must be a whole number from 1 to 8, got 9'),
    ('weight_share', '--layer-bits conv9=5', "--layer-bits: unknown layer 'conv9', expected one of conv1, conv2"),
    ('weight_share', '--layer-bits fc1=4,fc1=5', '--layer-bits: fc1 must be given once, got fc1=4,fc1=5'),
    ('weight_share', '--bias-bits 0', '--bias-bits: must be a whole number from 1 to 8, got 0'),
    ('weight_share', '--moving --epochs 0', '--moving goes with a training of the shared values, got --epochs 0'),
    ('weight_share', '--epochs 0 --lr 1', '--lr goes with a training of the shared values, got --epochs 0'),
    ('weight_share', '--epochs 0 --crop always', '--crop goes with a training of the shared values, got --epochs 0'),
    ('huffman_coding', '--student-id ../../x', "--student-id: must be letters and digits, got '../../x'"),
    ('huffman_coding', '--student-id a.b', "--student-id: must be letters and digits, got 'a.b'"),
    ('huffman_coding', '--student-id=', "--student-id: must be letters and digits, got ''"),
    ('huffman_coding', '--student-id 學號', "--student-id: must be letters and digits, got '學號'"),
    ('huffman_coding', '--compact missing/z', '--compact: must be a file in an existing folder, got missing/z'),
    ('huffman_coding', '--from-compact x', 'goes with --save-model-path, --classify or --export, got none of them'),
    ('huffman_coding', '--save-model-path y', '--save-model-path goes with --from-compact, got only the first'),
    ('huffman_coding', '--from-compact x --save-model-path y --compact z', 'only decodes a compact file, got'),
    ('huffman_coding', '--from-compact x --save-model-path y --student-id x', 'only decodes a compact file, got'),
    ('huffman_coding', '--export network.txt', '--export: must end in .onnx or .pt2, got network.txt'),
    ('huffman_coding', '--classify x.png --figures figures', '--classify only decodes a compact file, got --figures'),
    ('huffman_coding', '--classify x.png --load-model-path y', 'only decodes a compact file, got --load-model-path'),
]


def status_and_line(script, arguments, capsys):
    """Run a script's main as from the command line -> exit status, and the one line that it ends with."""
    with pytest.raises(SystemExit) as stopped:
        command_line.run(lambda: SCRIPTS[script].main(arguments))
    error = capsys.readouterr().err + (f'{stopped.value.code}\n' if isinstance(stopped.value.code, str) else '')
    assert len(error.splitlines()) == 1
    return 1 if isinstance(stopped.value.code, str) else stopped.value.code, error


@pytest.mark.parametrize('script, arguments, message', BAD_ARGUMENTS)
def test_a_bad_argument_ends_in_one_line_and_status_2(script, arguments, message, capsys):
    Path('a-file').touch()
    status, line = status_and_line(script, arguments.split(), capsys)
    assert status == 2 and line.startswith('error: ')
    assert message in line or re.search(message, line)
    assert os.listdir() == ['a-file']


# Switches, paths that are looked at later, and choices.
CHECKED_BY_ARGPARSE_ALONE = set('''--data --no-cuda --load-model-path --recipe --optimizer --schedule --crop
    --no-batch-norm --sort-units --bfloat16 --moving --from-compact --save-model-path --classify'''.split())


def test_the_table_knows_every_flag_whose_value_is_checked(capsys):
    flags = set()
    for script in SCRIPTS.values():
        with pytest.raises(SystemExit):
            script.main(['--help'])
        flags |= set(re.findall(r'--[a-z][a-z0-9-]+', capsys.readouterr().out.split('\n\n')[0]))
    tried = {flag for _, arguments, _ in BAD_ARGUMENTS for flag in re.findall(r'--[a-z0-9-]+', arguments)}
    assert CHECKED_BY_ARGPARSE_ALONE < flags and flags - tried <= CHECKED_BY_ARGPARSE_ALONE


# ---- bad inputs ------------------------------------------------------------------------------------------------------

def no_images():
    for split in ('train', 'test'):
        Path('images', split, 'cat').mkdir(parents=True)


def one_unreadable_image():
    for split in ('train', 'test'):
        Path('images', split, 'cat').mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (32, 32), (i, 0, 0)).save(f'images/{split}/cat/{i}.png')
        os.truncate(f'images/{split}/cat/1.png', 50)


def only_other_classes():
    one_unreadable_image()
    Path('images/test/cat').rename('images/test/dog')


def state_dict():
    torch.save(AlexNet().state_dict(), 'model.ptmodel')


def other_classes():
    save_model(AlexNet(n_classes=3), 'model.ptmodel')


def truncated():
    save_model(AlexNet(), 'model.ptmodel')
    os.truncate('model.ptmodel', 3_000_000)


def one_byte_flipped():
    save_model(AlexNet(), 'model.ptmodel')
    data = bytearray(Path('model.ptmodel').read_bytes())
    data[3_000_000] ^= 1
    Path('model.ptmodel').write_bytes(data)


def good_model():
    save_model(AlexNet(), 'model.ptmodel')


IMAGES, MODEL = '--data images --load-model-path model.ptmodel', '--data digits --load-model-path model.ptmodel'
BAD_INPUTS = [  # script, what is there, arguments, what the line says
    ('pruning', [good_model, no_images], IMAGES, '^error: images: expected images in train/<class>/ and test/<class>/'),
    ('pruning', [good_model, one_unreadable_image], IMAGES,
     r'^error: images.(train|test).cat.1.png: not a readable image'),
    ('pruning', [good_model, only_other_classes], IMAGES,
     '^error: images: train/ and test/ must hold the same classes, only one has cat, dog'),
    ('pruning', [good_model], f'{MODEL} --validation 20',
     '^error: --validation must be less than the 20 training images of digits, got 20'),
    ('pruning', [good_model], f'{MODEL} --keep 99999999',
     '--keep must be at most the 1360576 weights of the network, got 99999999'),
    ('weight_share', [], MODEL, '^error: model.ptmodel: no such file, expected a .ptmodel of an AlexNet'),
    ('weight_share', [state_dict], MODEL,
     '^error: model.ptmodel: holds a OrderedDict, expected a whole net.models.AlexNet'),
    ('weight_share', [truncated], MODEL, r'^error: model.ptmodel: not a readable .ptmodel of an AlexNet \(truncated'),
    ('weight_share', [one_byte_flipped], MODEL,
     r'^error: model.ptmodel: not a readable .ptmodel of an AlexNet \(truncated, dam'),
    ('weight_share', [good_model], f'{MODEL} --resume',
     '^error: saves.checkpoint.pt: no such file, so there is nothing to'),
    ('weight_share', [good_model], f'{MODEL} --save-model-path model.ptmodel/x.ptmodel', "model.ptmodel'"),
    ('weight_share', [good_model], f'{MODEL} --save-model-path .', '--save-model-path must be a file, got'),
    ('huffman_coding', [other_classes], MODEL, '^error: the model tells 3 classes apart, the data has 10'),
    ('huffman_coding', [], '--from-compact x.dcan --save-model-path y', '^error: x.dcan: cannot be read'),
]


@pytest.mark.parametrize('script, files, arguments, message', BAD_INPUTS)
def test_a_bad_input_ends_in_one_line_and_status_1(script, files, arguments, message, capsys):
    for make in files:
        make()
    before = sorted(Path().rglob('*'))
    status, line = status_and_line(script, [*arguments.split(), '--no-cuda'], capsys)
    assert status == 1 and re.search(message, line)
    assert {path for path in Path().rglob('*') if path not in before} <= {Path('saves'), Path('.lock'), Path('log.txt')}


def test_a_missing_matplotlib_is_named_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command_line.importlib.util, 'find_spec', lambda name: None)
    status, line = status_and_line('pruning', [*DIGITS, '--figures', 'figures'], capsys)
    assert status == 2 and '--figures: needs matplotlib, which is not installed: pip install matplotlib' in line


def test_a_planted_batch_of_cifar10_is_not_unpickled(monkeypatch, capsys):
    """torchvision's CIFAR-10 is made of pickles: only those with the right checksums are read."""
    def no_network(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(torchvision.datasets.cifar, 'download_and_extract_archive', no_network)
    folder = Path('data/cifar-10-batches-py')
    folder.mkdir(parents=True)
    for name in ('batches.meta', 'test_batch', *(f'data_batch_{i}' for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(RunsCommand()))
    status, line = status_and_line('pruning', ['--no-cuda'], capsys)
    assert status == 1 and "CIFAR-10 is not in 'data' and cannot be downloaded (no route to host)" in line
    assert not Path('command-ran').exists()
