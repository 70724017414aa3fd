"""What goes wrong for a new user, and the line that tells the way out; nothing is begun, nothing is downloaded."""
import os
import re
from pathlib import Path

import huffman_coding
import pruning
import weight_share
from net import stage
from net.compact import __main__ as compact
from net.models import COMPACT, PRUNED, AlexNet, save_model

import pytest
import torch
import torchvision.datasets
from scripts import DIGITS, error_of
from small import sparse_model
from test_data import make_folder

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
    assert stage.pick_device(no_cuda) == torch.device('cpu')
    assert capsys.readouterr().out == f'CPU, {torch.get_num_threads()} threads: {reason}\n'


def test_a_gpu_is_told_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA Example')
    assert stage.pick_device(False) == torch.device('cuda')
    assert capsys.readouterr().out == 'GPU: NVIDIA Example\n'


# ---- the next step ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('main, path, made_by', [
    (weight_share.main, 'saves/model_after_retraining.ptmodel', 'pruning.py'),
    (huffman_coding.main, 'saves/model_after_weight_sharing.ptmodel', 'weight_share.py')])
def test_a_missing_input_names_the_script_that_makes_it(main, path, made_by):
    assert error_of(main, DIGITS) == (
        f'{path}: no such file: run {made_by} in this folder first, or name a model with --load-model-path')


def test_the_help_of_each_script_speaks_of_its_own_flags_only(capsys):
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
    assert ('Note: saves/model_after_retraining.ptmodel is newer than saves/model_after_weight_sharing.ptmodel: if you '
            'want it encoded, run weight_share.py first' in capsys.readouterr().out) == pointed_out


@pytest.mark.parametrize('age, note', [(-10, ''), (10, (
    'Note: saves/model_after_retraining.ptmodel is newer than saves/compact.ptmodel: if you want it encoded, run '
    'weight_share.py --compact first\n'))])
def test_a_model_for_the_compact_file_older_than_the_pruned_one_is_pointed_out(age, note, capsys):
    sparse_model(COMPACT)
    Path(PRUNED).touch()
    os.utime(PRUNED, (os.path.getmtime(COMPACT) + age,) * 2)
    capsys.readouterr()
    error_of(compact.main, ['write', COMPACT, 'x.dcan'])  # not shared
    assert capsys.readouterr().out == note


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
