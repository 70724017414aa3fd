"""What goes wrong for a new user, and the line that tells the way out; nothing is begun, nothing is downloaded."""
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import torchvision.datasets
from PIL import Image
from scripts import DIGITS, SMALLEST, error_of
from small import sparse_model
from test_data import make_folder

import huffman_coding
import pruning
import weight_share
from net import command_line
from net.models import AlexNet, save_model

pytestmark = pytest.mark.usefixtures('small_runs')


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(root, train, download):
        if download:
            pytest.fail('CIFAR-10 would be downloaded')
        raise RuntimeError('Dataset not found or corrupted.')
    monkeypatch.setattr(torchvision.datasets, 'CIFAR10', refuse)


# ---- the data --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('main', [pruning.main, weight_share.main, huffman_coding.main])
def test_every_script_names_data_that_cannot_be_used(main):
    make_folder('half', splits=['test'])
    save_model(AlexNet(), 'model.ptmodel')
    arguments = ['--data', 'half', '--load-model-path', 'model.ptmodel', '--no-cuda']
    assert error_of(main, arguments) == 'half: has test/ but no train/, expected images in both'


# ---- the device ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('no_cuda, version, reason', [
    (True, '13.0', '--no-cuda'), (False, '13.0', 'this PyTorch finds no GPU'),
    (False, None, 'this PyTorch was built without CUDA')])
def test_the_device_is_told_with_the_reason(no_cuda, version, reason, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: no_cuda)
    monkeypatch.setattr(torch.version, 'cuda', version)
    assert command_line.pick_device(no_cuda) == torch.device('cpu')
    assert capsys.readouterr().out == f'CPU, {torch.get_num_threads()} threads: {reason}\n'


def test_a_gpu_is_told_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA Example')
    assert command_line.pick_device(False) == torch.device('cuda')
    assert capsys.readouterr().out == 'GPU: NVIDIA Example\n'


class Elsewhere:
    """Stands for a model on a GPU."""
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
    monkeypatch.setattr(huffman_coding, 'save_model', lambda *args: None)
    if on_gpu:
        monkeypatch.setattr(model, 'parameters', lambda: iter([Elsewhere]))
    huffman_coding.write_submission(model, huffman_coding.parse_args(['--student-id', 'x1', *arguments]))
    assert capsys.readouterr().out.splitlines()[1].endswith(message)


# ---- the next step ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('main, path, made_by', [
    (weight_share.main, 'saves/model_after_retraining.ptmodel', 'pruning.py'),
    (huffman_coding.main, 'saves/model_after_weight_sharing.ptmodel', 'weight_share.py')])
def test_a_missing_input_names_the_script_that_makes_it(main, path, made_by):
    assert error_of(main, DIGITS) == (
        f'{path}: no such file: run {made_by} in this folder first, or name a model with --load-model-path')


def test_a_compact_file_in_place_of_a_ptmodel_points_to_the_flag_that_decodes_it():
    shutil.copy(SMALLEST, 'x.dcan')
    line = error_of(weight_share.main, [*DIGITS, '--load-model-path', 'x.dcan'])
    assert line == ('x.dcan: a compact file, expected a .ptmodel of an AlexNet: first decode it with '
                    'huffman_coding.py --from-compact x.dcan --save-model-path FILE')


def test_a_ptmodel_in_place_of_a_compact_file_points_to_the_flag_that_takes_it():
    save_model(AlexNet(), 'x.ptmodel')
    line = error_of(huffman_coding.main, ['--from-compact', 'x.ptmodel', '--save-model-path', 'y.ptmodel'])
    assert line == 'x.ptmodel: a .ptmodel, expected a compact file: name it with --load-model-path'


def test_patterns_that_the_shell_did_not_expand_are_expanded(capsys):
    for name in 'b.png', 'a.png', 'c.jpg':
        Image.new('RGB', (32, 32)).save(name)
    huffman_coding.main(['--classify', '*.png', 'c.jpg', '--no-cuda'])
    names = [line.split(':')[0] for line in capsys.readouterr().out.splitlines()]
    assert names[-3:] == ['a.png', 'b.png', 'c.jpg']


@pytest.mark.parametrize('arguments', [['--classify'], ['--export', 'x.pt2', '--from-compact', 'x.dcan']])
def test_data_that_was_named_is_not_passed_over_when_it_is_broken(arguments):
    make_folder('half', splits=['test'])
    shutil.copy(SMALLEST, 'x.dcan')
    line = error_of(huffman_coding.main, [*arguments, '--data', 'half', '--no-cuda'])
    assert line == 'half: has test/ but no train/, expected images in both'


def test_classify_alone_says_what_it_needs():
    line = error_of(huffman_coding.main, ['--classify', '--no-cuda'])
    assert line == ("--classify needs images to look at, or a test set to measure the accuracy on, got neither: "
                    "there is none in 'data'")


def test_the_help_of_the_last_script_speaks_of_its_own_flags_only(capsys):
    for main in pruning.main, weight_share.main, huffman_coding.main:
        with pytest.raises(SystemExit):
            main(['--help'])
        text = capsys.readouterr().out
        described, named = text.split('options:')[1], set(re.findall(r'--[a-z][a-z-]+', text))
        assert named <= set(', '.join(re.findall(r'^ +(--?[a-z-]+(?:, --[a-z-]+)*)', described, re.M)).split(', '))
        assert '(default: None)' not in text and '(default: False)' not in text
        assert len(text.split('examples:\n')[1].splitlines()) == 2


@pytest.mark.parametrize('age, pointed_out', [(-10, False), (10, True)])
def test_a_shared_model_older_than_the_pruned_one_is_pointed_out(age, pointed_out, capsys):
    sparse_model('saves/model_after_weight_sharing.ptmodel')
    pruned = Path('saves/model_after_retraining.ptmodel')
    pruned.touch()
    shared_time = Path('saves/model_after_weight_sharing.ptmodel').stat().st_mtime
    os.utime(pruned, (shared_time + age, shared_time + age))
    error_of(huffman_coding.main, ['--data', 'nowhere', '--no-cuda'])  # the rest of the run is of no interest
    assert (f'Note: {pruned} is newer than saves/model_after_weight_sharing.ptmodel: if you '
            'want it encoded, run weight_share.py first' in capsys.readouterr().out) == pointed_out


# ---- the log ---------------------------------------------------------------------------------------------------------

def test_each_run_begins_with_a_line_in_the_log():
    sparse_model('saves/model_after_weight_sharing.ptmodel')
    for _ in range(2):
        huffman_coding.main([*DIGITS, '--log', 'a log.txt'])
    lines = Path('a log.txt').read_text(encoding='utf-8').splitlines()
    headers = [line for line in lines if line.startswith('--- ')]
    assert lines[0] == headers[0] and len(headers) == 2
    assert re.fullmatch(r'--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d huffman_coding.py '
                        r"--data digits --no-cuda --log 'a log.txt' "
                        r'\(Python [\d.]+, PyTorch \S+, NumPy [\d.]+\)', headers[0])
