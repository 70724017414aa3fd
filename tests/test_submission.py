"""What is handed in: the grader's checks, the model, and the archive of the homework's files."""
import importlib.util
import os
import shutil
import zipfile
from itertools import pairwise
from pathlib import Path

import huffman_coding
from net import stage
from net.data import load_images
from net.errors import UserError
from net.models import AlexNet, narrow_alexnet, save_model

import pytest
import torch
from hostile import plant_link
from scripts import DIGITS, ROOT, error_of, made_with
from small import sparse_model
from torch.nn.utils import prune

pytestmark = pytest.mark.usefixtures('small_runs')


# ---- the checks ------------------------------------------------------------------------------------------------------

def pruned_by_hand():
    """Unit 3 of conv1 is not read, 64 kernels of 5 x 5; one more weight of conv2 is zero, between units in use."""
    model = AlexNet()
    model.conv2.weight.data[:, 3] = 0
    model.conv2.weight.data[5, 7, 1, 1] = 0
    return model


@pytest.mark.parametrize('make, passed, found', [
    (AlexNet, False, '0 zeros, 0 of them in units not in use'),
    (pruned_by_hand, True, '1601 zeros, 1600 of them in units not in use')])
def test_the_check_of_zeros_says_how_many_lie_in_units_not_in_use(make, passed, found):
    check = huffman_coding.submission_checks(make(), 60, 60)[1]
    assert check == ('some convolution weight is zero', '70 points', passed, found)


def test_a_model_that_was_never_pruned_passes_by_its_narrow_start_and_the_check_says_so():
    model = narrow_alexnet(10, 200)
    zeros = sum(int((param == 0).sum()) for param in model.parameters() if param.dim() == 4)
    check = huffman_coding.submission_checks(model, 60, 60)[1]
    assert zeros > 0 and check.passed and check.found == f'{zeros} zeros, {zeros} of them in units not in use'


@pytest.mark.parametrize('n_values, passed, found', [
    (33, True, '33, 33, 33, 33, 33'),
    (65, False, '65, 65, 65, 65, 65: share with --bits 5, each with a zero and 32 weights or more')])
def test_the_check_of_distinct_values_says_the_way_out(n_values, passed, found):
    model = AlexNet()
    for param in model.parameters():
        param.data = (torch.arange(param.numel()) % n_values).float().reshape(param.shape)
    check = huffman_coding.submission_checks(model, 60, 60)[2]
    assert (check.passed, check.found) == (passed, found)


@pytest.mark.parametrize('before, after, passed', [
    (58.01, 58.01, [True, True]), (58, 58, [True, False]), (60, 59.99, [False, True])])
def test_accuracy_has_to_be_kept_and_above_58_percent(before, after, passed):
    assert [check.passed for check in huffman_coding.submission_checks(AlexNet(), before, after)[3:]] == passed


def test_the_table_has_straight_columns(capsys):
    checks = huffman_coding.submission_checks(AlexNet(), 60, 60)
    assert huffman_coding.print_checks(checks) == [
        'some convolution weight is zero', '33 distinct values per convolution, on average']
    bars = [[i for i, character in enumerate(line) if character == '|']
            for line in capsys.readouterr().out.splitlines()]
    assert len(bars) == 5 and all(a == b for a, b in pairwise(bars)) and len(bars[0]) == 3


# ---- a model that does not fit ---------------------------------------------------------------------------------------

def of_another_number_of_classes():
    save_model(AlexNet(3), 'x.ptmodel')
    return 'x.ptmodel: tells 3 classes apart, --data digits has 10'


def trained_on_other_images():
    letters = load_images('digits', train=False)._replace(classes=tuple('abcdefghij'))
    stage.save(AlexNet(), 'x.ptmodel', letters, made_with(data='letters'))
    return 'x.ptmodel: was trained with --data letters, got --data digits: a class is a there, 0 here'


@pytest.mark.parametrize('make', [of_another_number_of_classes, trained_on_other_images])
def test_a_model_that_does_not_fit_the_images_is_refused_and_nothing_is_overwritten(make):
    message = make()
    Path('encodings').mkdir()
    Path('x1.ptmodel').write_text('stays', encoding='utf-8')
    assert error_of(huffman_coding.main, [*DIGITS, '--load-model-path', 'x.ptmodel', '--student-id', 'x1']) == message
    assert os.listdir('encodings') == [] and Path('x1.ptmodel').read_text(encoding='utf-8') == 'stays'
    assert not Path('x1.zip').exists()


def test_a_model_that_was_masked_by_pytorch_is_encoded_and_checked(capsys):
    """As the way out says: `prune.remove` leaves -0.0 of the negative weights."""
    model = AlexNet()
    for _, layer in model.layers():
        prune.l1_unstructured(layer, 'weight', amount=0.99)
        prune.remove(layer, 'weight')
    assert (model.conv1.weight[model.conv1.weight == 0].signbit()).any()
    save_model(model, 'x.ptmodel')
    huffman_coding.main([*DIGITS, '--load-model-path', 'x.ptmodel'])
    assert '\nok     | decoding keeps the accuracy' in capsys.readouterr().out


# ---- the files -------------------------------------------------------------------------------------------------------

def script_at(path):
    """The third script as a module of this file, which may be a link or a copy."""
    spec = importlib.util.spec_from_file_location('script', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_submission(script):
    script.write_submission(AlexNet(), script.parse_args(['--student-id', 'x1']))


def test_the_archive_holds_the_homework_also_where_the_script_is_a_link():
    plant_link('huffman_coding.py', ROOT / 'huffman_coding.py')
    write_submission(script_at('huffman_coding.py'))
    with zipfile.ZipFile('x1.zip') as archive:
        names = archive.namelist()
        assert archive.read('net/huffmancoding.py') == (ROOT / 'net/huffmancoding.py').read_bytes()
    assert sorted(names) == sorted(f'net/{path.name}' for path in (ROOT / 'net').glob('*.py'))


def test_files_dated_1970_as_some_package_managers_leave_them_are_packed_too():
    shutil.copy(ROOT / 'huffman_coding.py', '.')
    Path('net').mkdir()
    Path('net/prune.py').touch()
    os.utime('net/prune.py', (0, 0))
    write_submission(script_at('huffman_coding.py'))
    with zipfile.ZipFile('x1.zip') as archive:
        assert archive.namelist() == ['net/prune.py']


@pytest.mark.parametrize('name', ['x1.zip', 'x1.ptmodel'])
def test_what_was_handed_in_before_is_replaced_but_not_a_students_own_file_of_that_name(name):
    sparse_model('shared.ptmodel')
    arguments = [*DIGITS, '--load-model-path', 'shared.ptmodel', '--student-id', 'x1']
    for _ in range(2):
        assert error_of(huffman_coding.main, arguments).startswith('submission check failed')
    with zipfile.ZipFile(name, 'w') as archive:
        archive.writestr('net/prune.py', 'hours of work')
    before = Path(name).read_bytes()
    assert error_of(huffman_coding.main, arguments) == (
        f'{name}: is there already, and nothing says that this script made it: rename it')
    assert Path(name).read_bytes() == before
    Path('x1.zip').unlink()  # without it nobody knows where the model is from
    if name == 'x1.zip':
        assert 'x1.ptmodel: is there already' in error_of(huffman_coding.main, arguments)


def test_an_unfinished_run_is_told_before_the_model_of_the_one_before_is_encoded(capsys):
    Path('saves').mkdir()
    Path('saves/checkpoint.pt').touch()
    sparse_model('x.ptmodel')
    huffman_coding.main([*DIGITS, '--load-model-path', 'x.ptmodel'])
    out = capsys.readouterr().out
    assert f'Note: {Path("saves/checkpoint.pt")}: a run is unfinished, and x.ptmodel may be of the one before\n' in out
    assert 'Note: x.ptmodel has no note of its classes beside it: are they those of --data digits?\n' in out


def test_an_archive_without_the_homework_is_not_written():
    shutil.copy(ROOT / 'huffman_coding.py', '.')
    with pytest.raises(UserError, match='net: expected the files of the homework, to be handed in, found none$'):
        write_submission(script_at('huffman_coding.py'))
    assert os.listdir() == ['huffman_coding.py']


class Elsewhere:
    """Stands for a parameter on a GPU."""
    is_cuda = True


@pytest.mark.parametrize('on_gpu, arguments, message', [
    (False, [], 'x1.ptmodel remembers the CPU. For a grader with a GPU, copy '
                'saves/model_after_weight_sharing.ptmodel to a machine with a GPU and run there: '
                'python huffman_coding.py --student-id x1'),
    (True, [], 'x1.ptmodel remembers the GPU. For a grader without one: '
               'python huffman_coding.py --student-id x1 --no-cuda'),
    (True, ['--data', 'my images', '--load-model-path', 'x'],
     "python huffman_coding.py --data 'my images' --load-model-path x --student-id x1 --no-cuda")])
def test_what_is_handed_in_remembers_a_device_and_the_other_one_is_a_command_away(
        on_gpu, arguments, message, monkeypatch, capsys):
    model = AlexNet()
    monkeypatch.setattr(huffman_coding, 'save_model', lambda model, path: Path(path).touch())
    if on_gpu:
        monkeypatch.setattr(model, 'parameters', lambda: iter([Elsewhere]))
    huffman_coding.write_submission(model, huffman_coding.parse_args(['--student-id', 'x1', *arguments]))
    assert capsys.readouterr().out.splitlines()[1].endswith(message)
