"""The flags and the recipes of the three scripts; every flag given something bad: one line that names it and what was
expected, no traceback.
"""
import importlib.util
import os
import pickle
import re
from pathlib import Path

import huffman_coding
import pruning
import weight_share
from net import stage
from net.arguments import RECIPES, arguments_of_run, parse_pruning, parse_sharing
from net.models import AlexNet, save_model

import pytest
import torch
import torchvision.datasets.cifar
from hostile import RunsCommand
from PIL import Image
from scripts import DIGITS
from small import sparse_model

SCRIPTS = {'pruning': pruning, 'weight_share': weight_share, 'huffman_coding': huffman_coding}

pytestmark = pytest.mark.usefixtures('small_runs')

BAD_ARGUMENTS = [  # script (one of those that share the flag), arguments, what the line says
    ('pruning', '--log missing/log.txt', '--log: must be a file in an existing folder, got missing/log.txt'),
    ('pruning', '--log .', '--log: must be a file, got .'),
    ('pruning', '--figures a-file', '--figures: must be a folder, got a-file'),
    ('pruning', '--batch-size 0', '--batch-size: must be a whole number from 1 to 1000000, got 0'),
    ('pruning', '--batch-size many', '--batch-size: must be a whole number from 1 to 1000000, got many'),
    ('pruning', '--test-batch-size -5', '--test-batch-size: must be a whole number from 1 to 1000000, got -5'),
    ('pruning', '--test-batch-size 1e3', '--test-batch-size: must be a whole number from 1 to 1000000, got 1e3'),
    ('pruning', '--epochs 0', '--epochs: must be a whole number, at least 1, got 0'),
    ('weight_share', '--epochs -1', '--epochs: must be a whole number, at least 0, got -1'),
    ('weight_share', '--epochs 1.5', '--epochs: must be a whole number, at least 0, got 1.5'),
    ('pruning', '--lr -0.1', '--lr: must be a number, at least 0, got -0.1'),
    ('pruning', '--lr nan', '--lr: must be a number, at least 0, got nan'),
    ('pruning', '--lr inf', '--lr: must be a number, at least 0, got inf'),
    ('pruning', '--seed -1', '--seed: must be a whole number from 0 to 9223372036854775807, got -1'),
    ('pruning', '--seed 9223372036854775808', '--seed: must be a whole number from 0 to 9223372036854775807, got 9223'),
    ('pruning', '--log-interval 0', '--log-interval: must be a whole number, at least 1, got 0'),
    ('pruning', '--validation 0', '--validation: must be a whole number, at least 1, got 0'),
    ('pruning', '--recipe best', "--recipe: invalid choice: 'best' (choose from "),
    ('pruning', '--resume --restart', '--restart: not allowed with argument --resume'),
    ('pruning', '--start-units 6', '--start-units: must be a whole number from 7 to 9344, got 6'),
    ('pruning', '--keep 4,200', '--keep: must be a whole number, at least 8, got 4,200'),
    ('pruning', '--keep 4.2e3', '--keep: must be a whole number, at least 8, got 4.2e3'),
    ('pruning', '--keep 7', '--keep: must be a whole number, at least 8, got 7'),
    ('pruning', '--keep-units 6', '--keep-units: must be a whole number, at least 7, got 6'),
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
    ('pruning', '--rates fc1=9 --keep 9', '--keep: not allowed with argument --rates'),
    ('pruning', '--sensitivity 1 --rates fc1=9', '--rates: not allowed with argument --sensitivity'),
    ('pruning', '--recipe ranking --rates conv1=50', '--rates prunes as the paper does, at --recipe paper, got '
                                                     '--recipe ranking'),
    ('pruning', '--recipe digits --sensitivity 1', '--sensitivity prunes as the paper does, at --recipe paper, got '
                                                   '--recipe digits'),
    ('pruning', '--recipe paper --keep 9', '--keep goes with a recipe that shares out a budget, got --recipe paper'),
    ('pruning', '--sensitivity 1 --prune-steps 40', '--prune-steps goes with several thresholds, got --sensitivity'),
    ('pruning', '--recipe accurate --batch-size 1', '--batch-size must be at least 2 with the batch normalisation of '
                                                    '--recipe accurate, got 1'),
    ('pruning', '--start-units 99 --load-model-path x', '--start-units goes with a first training, got --load-model'),
    ('pruning', '--dense-only --load-model-path x', '--dense-only goes with a first training, got --load-model-path'),
    ('pruning', '--dense-only --keep 9', '--keep goes with pruning, got --dense-only'),
    ('pruning', '--dense-only --figures f', '--figures goes with pruning, got --dense-only'),
    ('pruning', '--load-model-path=', "--load-model-path: must be a file, got ''"),
    ('pruning', '--figures=', "--figures: must be a folder, got ''"),
    ('weight_share', '--load-model-path=', "--load-model-path: must be a file, got ''"),
    ('weight_share', '--save-model-path=', "--save-model-path: must be a file, got ''"),
    ('huffman_coding', '--log an-archive', '--log: must be a text file, got an-archive, a .ptmodel or another archive'),
    ('weight_share', '--batch-size 1000001', '--batch-size: must be a whole number from 1 to 1000000, got 1000001'),
    ('pruning', '--test-batch-size 9' + 18 * '9', '--test-batch-size: must be a whole number from 1 to 1000000, got 9'),
    ('pruning', '--data=', "--data: must not be empty, got ''"),
    ('huffman_coding', '--data=', "--data: must not be empty, got ''"),
    ('weight_share', '--compact=1', "--compact: ignored explicit argument '1'"),
    ('weight_share', '--save-model-path .', '--save-model-path: must be a file, got .'),
    ('weight_share', '--load-model-path ..', '--load-model-path: must be a file, got ..'),
    ('huffman_coding', '--load-model-path=', "--load-model-path: must be a file, got ''"),
    ('weight_share', '--bits 0', '--bits: must be a whole number from 1 to 8, got 0'),
    ('weight_share', '--bits 9', '--bits: must be a whole number from 1 to 8, got 9'),
    ('weight_share', '--bits x', '--bits: must be a whole number from 1 to 8, got x'),
    ('weight_share', '--fc-bits 9', '--fc-bits: must be a whole number from 1 to 8, got 9'),
    ('weight_share', '--epochs 0 --lr 1', '--lr goes with a training of the shared values, got --epochs 0'),
    ('weight_share', '--recipe paper --batch-size=9', '--batch-size goes with a training of the shared values, got'),
    ('huffman_coding', '--student-id ../../x', "--student-id: must be letters and digits, got '../../x'"),
    ('huffman_coding', '--student-id a.b', "--student-id: must be letters and digits, got 'a.b'"),
    ('huffman_coding', '--student-id=', "--student-id: must be letters and digits, got ''"),
    ('huffman_coding', '--student-id 學號', "--student-id: must be letters and digits, got '學號'"),
]

UNKNOWN_ARGUMENTS = [  # script, argument, what the line says of it
    ('pruning', '--epoch-count 3', ', did you mean --epochs?'),
    ('pruning', 'saves/model.ptmodel', ''),
    ('pruning', '--dat digits', ', did you mean --data?'),  # there are no abbreviations
    ('pruning', '--learning-rate 0.1', ', did you mean --lr?'),
    ('weight_share', '--learning-rate=0.1', ', did you mean --lr?'),
    ('pruning', '--re-epochs 30', ', did you mean --retrain-epochs?'),  # of some years' scaffolds
    ('pruning', '--retrain-learning-rate 0.1', ', did you mean --retrain-lr?'),
    ('pruning', '--bits 5', ', which is a flag of weight_share.py'),
    ('pruning', '--compact', ', which is a flag of weight_share.py'),
    ('pruning', '--compact=1', ', which is a flag of weight_share.py'),
    ('pruning', '--student-id=x1', ', which is a flag of huffman_coding.py'),
    ('weight_share', '--prune-steps 3', ', which is a flag of pruning.py'),
    ('huffman_coding', '--validation 3', ', which is a flag of pruning.py'),
    ('pruning', '--fc-cost 6', ', which is a setting of the recipes in net/arguments.py'),
    ('pruning', '--batch-norm', ', which is a setting of the recipes in net/arguments.py'),
    ('weight_share', '--layer-bits conv1=5', ', which is a setting of the recipes in net/arguments.py'),
    ('huffman_coding', '--weight-decay 0', ', which is a setting of the recipes in net/arguments.py'),
    ('huffman_coding', '--compact x.dcan', ', now it is: python -m net.compact write MODEL FILE'),
    ('huffman_coding', '--from-compact x.dcan', ', now it is: python -m net.compact read FILE MODEL'),
    ('huffman_coding', '--save-model-path=x', ', now it is: python -m net.compact read FILE MODEL'),
    ('huffman_coding', '--classify photo.png', ', now it is: python -m net.compact classify IMAGE'),
    ('huffman_coding', '--export x.onnx', ', now it is: python -m net.compact export FILE'),
]


def status_and_line(script, arguments, capsys):
    """Run a script's main as from the command line -> exit status, and the one line that it ends with."""
    with pytest.raises(SystemExit) as stopped:
        stage.run(lambda: SCRIPTS[script].main(arguments))
    error = capsys.readouterr().err + (f'{stopped.value.code}\n' if isinstance(stopped.value.code, str) else '')
    assert len(error.splitlines()) == 1
    return 1 if isinstance(stopped.value.code, str) else stopped.value.code, error


@pytest.mark.parametrize('script, arguments, message', BAD_ARGUMENTS)
def test_a_bad_argument_ends_in_one_line_and_status_2(script, arguments, message, capsys):
    Path('a-file').touch()
    Path('an-archive').write_bytes(b'PK')
    status, line = status_and_line(script, arguments.split(), capsys)
    assert status == 2 and line.startswith('error: ')
    assert message in line
    assert sorted(os.listdir()) == ['a-file', 'an-archive']


@pytest.mark.parametrize('script, arguments, advice', UNKNOWN_ARGUMENTS)
def test_an_unknown_argument_is_named_with_what_could_be_meant(script, arguments, advice, capsys):
    status, line = status_and_line(script, arguments.split(), capsys)
    assert status == 2
    assert line == f'error: unrecognized arguments: {arguments}{advice} (see {script}.py --help)\n'


# Switches.
NOT_CHECKED = set('--help --no-cuda'.split())


def flags_of(script, capsys):
    """Those that its help describes."""
    with pytest.raises(SystemExit, match='^0$'):
        SCRIPTS[script].main(['--help'])
    return set(re.findall(r'^  (?:-h, )?(--[a-z-]+)', capsys.readouterr().out, re.M))


def test_help_is_shown_beside_what_is_wrong(capsys):
    with pytest.raises(SystemExit, match='^0$'):
        SCRIPTS['pruning'].main(['--help', '--foo'])
    assert '(default: 2300)' in capsys.readouterr().out


def test_the_table_knows_every_flag_whose_value_is_checked(capsys):
    flags = set.union(*(flags_of(script, capsys) for script in SCRIPTS))
    tried = {flag for _, arguments, _ in BAD_ARGUMENTS for flag in re.findall(r'--[a-z0-9-]+', arguments)}
    assert NOT_CHECKED < flags and flags - tried <= NOT_CHECKED


SCAFFOLD = {  # the flags that the homework's own scripts have
    'pruning': '--batch-size --test-batch-size --epochs --lr --no-cuda --seed --log-interval --log --sensitivity',
    'weight_share': '--load-model-path --save-model-path --no-cuda',
    'huffman_coding': '--load-model-path --no-cuda --log',
}


@pytest.mark.parametrize('script, at_most', [('pruning', 25), ('weight_share', 20), ('huffman_coding', 9)])
def test_each_script_has_the_flags_of_the_scaffold_and_few_others(script, at_most, capsys):
    flags = flags_of(script, capsys)
    assert set(SCAFFOLD[script].split()) < flags and len(flags) <= at_most


# ---- recipes ---------------------------------------------------------------------------------------------------------

def settings(args, names):
    return {name: getattr(args, name) for name in names}


PRUNING_RECIPES = [  # the flags, the recipe that gives the other values
    ('', 'ranking'), ('--data digits', 'digits'), ('--data=digits', 'digits'), ('--data my-images', 'ranking'),
    ('--recipe accurate', 'accurate'), ('--recipe=accurate --data digits', 'accurate'), ('--keep 9000', 'ranking'),
    ('--rates conv1=50', 'paper'), ('--rates=conv1=50 --data digits', 'paper'), ('--sensitivity 1', 'paper'),
    ('--sensitivity 1 --recipe paper', 'paper'), ('--data digits --keep-units 90', 'digits'),
]


@pytest.mark.parametrize('arguments, recipe', PRUNING_RECIPES)
def test_the_recipe_of_pruning_follows_from_the_flags_and_gives_the_other_values(arguments, recipe):
    args = parse_pruning(arguments.split())
    given = {part.split('=')[0].removeprefix('--').replace('-', '_') for part in arguments.split()}
    expected = {name: value for name, value in RECIPES[recipe]['pruning'].items() if name not in given}
    assert args.recipe == recipe and settings(args, expected) == expected


SHARING_RECIPES = [  # the flags, the recipe, which of its parts
    ('', 'ranking', 'sharing'), ('--compact', 'ranking', 'compact'), ('--data digits', 'digits', 'sharing'),
    ('--data digits --compact', 'digits', 'compact'), ('--recipe accurate', 'accurate', 'sharing'),
    ('--compact --recipe=accurate --data digits', 'accurate', 'compact'), ('--recipe paper', 'paper', 'sharing')]


@pytest.mark.parametrize('arguments, recipe, part', SHARING_RECIPES)
def test_the_recipe_of_sharing_follows_from_the_flags_and_gives_the_other_values(arguments, recipe, part):
    args = parse_sharing(arguments.split())
    assert args.recipe == recipe and settings(args, RECIPES[recipe][part]) == RECIPES[recipe][part]
    assert args.save_model_path == {'sharing': 'saves/model_after_weight_sharing.ptmodel',
                                    'compact': 'saves/compact.ptmodel'}[part]


def test_flags_come_before_the_values_of_the_recipe():
    args = parse_pruning(['--epochs', '3', '--recipe', 'paper', '--prune-steps', '2'])
    assert (args.epochs, args.prune_steps, args.lr, args.optimizer) == (3, 2, 1e-3, 'adam')
    args = parse_sharing(['--compact', '--bits', '8', '--save-model-path', 'mine.ptmodel'])
    assert (args.bits, args.fc_bits, args.save_model_path) == (8, 3, 'mine.ptmodel')


def test_bits_are_those_of_every_convolution_also_where_a_recipe_names_some():
    accurate = ['--recipe', 'accurate', '--compact']
    assert parse_sharing(accurate).layer_bits == {'conv1': 7, 'conv2': 5, 'conv4': 3, 'conv5': 3}
    for bits in ['--bits', '6'], ['--bits=6']:
        args = parse_sharing([*accurate, *bits])
        assert (args.bits, args.fc_bits, args.layer_bits) == (6, 4, {})


def test_the_paper_prunes_once_with_the_rates_of_table_4_unless_others_are_given():
    assert parse_pruning(['--recipe', 'paper']).rates is None
    args = parse_pruning(['--rates', 'conv1=50,fc2=0.5'])
    assert (args.rates, args.prune_steps, args.keep) == ({'conv1': 50, 'fc2': 0.5}, 1, None)


def test_the_help_shows_the_values_of_the_recipe_that_the_other_flags_choose(capsys):
    for arguments, recipe in [('--help', 'ranking'), ('--help --data digits', 'digits'),
                              ('--recipe accurate --help', 'accurate')]:
        with pytest.raises(SystemExit):
            parse_pruning(arguments.split())
        keep = RECIPES[recipe]['pruning']['keep']
        assert f'weights to keep in all (default: {keep})' in ' '.join(capsys.readouterr().out.split())


def test_what_a_run_depends_on_are_all_settings_and_flags_but_those_that_only_show_something():
    depends = arguments_of_run(parse_pruning(['--lr', '0.5', '--log', 'x.txt', '--figures', 'f', '--resume']))
    assert depends['--lr'] == '0.5' and depends['--prune-lr'] == '0.02' and depends['--recipe'] == 'ranking'
    assert not {'--log', '--figures', '--resume', '--restart', '--test-batch-size', '--log-interval'} & set(depends)
    depends = arguments_of_run(parse_sharing(['--bits', '4']))
    assert depends['--bits'] == '4' and depends['--save-model-path'] == 'saves/model_after_weight_sharing.ptmodel'


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


def few_weights():
    sparse_model('model.ptmodel', 2000)  # some of which nothing reads


IMAGES, MODEL = '--data images --load-model-path model.ptmodel', '--data digits --load-model-path model.ptmodel'
BAD_INPUTS = [  # script, what is there, arguments, what the line says
    ('pruning', [good_model, no_images], IMAGES, '^error: images: expected images in train/<class>/ and test/<class>/'),
    ('pruning', [good_model, one_unreadable_image], IMAGES,
     r'^error: images.(train|test).cat.1.png: not a readable image'),
    ('pruning', [good_model, only_other_classes], IMAGES,
     '^error: images: train/ and test/ must hold the same classes, only one has cat, dog'),
    ('pruning', [good_model], f'{MODEL} --validation 20',
     '^error: --validation must be less than the 20 training images of digits, got 20'),
    ('pruning', [good_model], f'{MODEL} --recipe ranking --keep 99999999',
     '^error: --keep must be at most the 1360576 live weights of the network, got 99999999$'),
    ('pruning', [few_weights], f'{MODEL} --recipe ranking',
     '^error: --keep must be at most the 1592 live weights of the network, got 2300, '
     'the default of --recipe ranking$'),
    ('pruning', [], '--data digits --recipe ranking --start-units 200',
     '^error: --keep-units must be at most the 200 live units of the network, got 280, '
     'the default of --recipe ranking$'),
    ('weight_share', [], MODEL, '^error: model.ptmodel: no such file, expected a .ptmodel of an AlexNet'),
    ('weight_share', [state_dict], MODEL,
     '^error: model.ptmodel: holds a value of type OrderedDict, expected a whole net.models.AlexNet'),
    ('weight_share', [truncated], MODEL, r'^error: model.ptmodel: not a readable .ptmodel of an AlexNet \(truncated'),
    ('weight_share', [one_byte_flipped], MODEL,
     r'^error: model.ptmodel: not a readable .ptmodel of an AlexNet \(truncated, dam'),
    ('weight_share', [good_model], f'{MODEL} --resume',
     '^error: saves.checkpoint.pt: no such file, so there is nothing to'),
    ('weight_share', [good_model], f'{MODEL} --save-model-path model.ptmodel/x.ptmodel',
     r'^error: model.ptmodel.x.ptmodel: cannot be written \(model.ptmodel is no folder\)$'),
    ('weight_share', [good_model], f'{MODEL} --save-model-path saves/checkpoint.pt',
     '^error: --save-model-path must not be a checkpoint, which goes in the end, got saves/checkpoint.pt'),
    ('weight_share', [good_model], f'{MODEL} --save-model-path saves/checkpoint_start_training.pt',
     '--save-model-path must not be a checkpoint'),
    ('huffman_coding', [other_classes], MODEL, '^error: model.ptmodel: tells 3 classes apart, --data digits has 10'),
]


@pytest.mark.parametrize('script, files, arguments, message', BAD_INPUTS)
def test_a_bad_input_ends_in_one_line_and_status_1(script, files, arguments, message, capsys):
    for make in files:
        make()
    before = sorted(Path().rglob('*'))
    status, line = status_and_line(script, [*arguments.split(), '--no-cuda'], capsys)
    assert status == 1 and re.search(message, line)
    assert {path for path in Path().rglob('*') if path not in before} <= {Path('saves'), Path('.lock'), Path('log.txt')}


@pytest.mark.parametrize('script, flag', [
    ('pruning', '--load-model-path'), ('weight_share', '--save-model-path'), ('pruning', '--log'),
    ('pruning', '--figures')])
def test_a_tilde_is_the_home_folder_also_where_the_shell_leaves_it(script, flag, monkeypatch):
    home = Path('home').absolute()
    home.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('USERPROFILE', str(home))
    args = SCRIPTS[script].parse_args([f'{flag}=~/mine'])
    assert Path(getattr(args, flag.removeprefix('--').replace('-', '_'))) == home / 'mine'


def test_a_missing_matplotlib_is_named_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
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
