"""The scripts, killed at any moment, stopped by Ctrl-C, or on a full disk: nothing is lost, nothing half-written."""
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import huffman_coding
import pruning
from net.huffmancoding import huffman_decode_model, huffman_encode_model
from net.models import AlexNet, load_model, save_model

ROOT = Path(pruning.__file__).parent
DIGITS = ['--data', 'digits', '--no-cuda']
PRUNING = ['pruning.py', *DIGITS, '--epochs', '3', '--prune-steps', '4', '--keep', '20000', '--retrain-epochs', '4']
SHARING = ['weight_share.py', *DIGITS, '--epochs', '3']
ENCODING = ['huffman_coding.py', *DIGITS]


def start(command, folder='.', **kwargs):
    """A script as a process whose lines can be read as soon as they are printed."""
    return subprocess.Popen([sys.executable, '-u', ROOT / command[0], *command[1:]], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def run(command, folder='.', **kwargs):
    """-> exit status, standard error."""
    process = start(command, folder, **kwargs)
    error = process.communicate()[1]
    return process.returncode, error


def stop_at(line, command, stop_signal=signal.SIGKILL):
    """Send the signal as soon as the script prints a line that starts like this -> exit status, standard error."""
    process = start(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # whoever runs the tests
    for printed in process.stdout:
        if printed.startswith(line):
            process.send_signal(stop_signal)
            break
    else:
        pytest.fail(f'{command[0]} did not print {line!r}: {process.communicate()[1]}')
    error = process.communicate()[1]
    return process.returncode, error


def resume_where_there_is_something(command):
    return [*command, '--resume'] if Path('saves/checkpoint.pt').exists() else command


def same_parameters(a, b):
    return all(torch.equal(x, y) for x, y in zip(load_model(a).parameters(), load_model(b).parameters(), strict=True))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """A folder in which all three scripts have run without interruption."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    for command in PRUNING, SHARING, ENCODING:
        assert run(command, folder)[0] == 0
    return folder


# ---- killed ----------------------------------------------------------------------------------------------------------

# A line is printed just before what it announces: before an epoch, before its checkpoint, before a model is saved.
PRUNING_MOMENTS = ['--- Initial training', 'Epoch 1/3', 'Epoch 2/3', 'Epoch 3/3', '--- Pruning', 'Pruning step 1/4',
                   'Pruning step 3/4', '--- After pruning', 'Epoch 2/4', 'Epoch 4/4']


@pytest.mark.slow
def test_pruning_killed_at_ten_moments_and_resumed_ends_in_the_same_weights(uninterrupted):
    for moment in PRUNING_MOMENTS:
        assert stop_at(moment, resume_where_there_is_something(PRUNING))[0] == -signal.SIGKILL
        assert not Path('saves/model_after_retraining.ptmodel').exists() or moment == 'Epoch 4/4'
    assert run(resume_where_there_is_something(PRUNING))[0] == 0
    for name in 'saves/initial_model.ptmodel', 'saves/model_after_retraining.ptmodel':
        assert same_parameters(name, uninterrupted / name)
    assert not Path('saves/checkpoint.pt').exists()


@pytest.mark.slow
def test_weight_sharing_killed_at_four_moments_and_resumed_ends_in_the_same_weights(uninterrupted):
    sharing = [*SHARING, '--load-model-path', str(uninterrupted / 'saves/model_after_retraining.ptmodel')]
    for moment in ['--- Training', 'Epoch 1/3', 'Epoch 2/3', 'Epoch 3/3']:
        assert stop_at(moment, resume_where_there_is_something(sharing))[0] == -signal.SIGKILL
    assert run(resume_where_there_is_something(sharing))[0] == 0
    name = 'saves/model_after_weight_sharing.ptmodel'
    assert same_parameters(name, uninterrupted / name)
    assert sorted(os.listdir('saves')) == ['model_after_weight_sharing.ptmodel']


ENCODING_MOMENTS = ['--- Start encoding', 'conv1.weight', 'conv2.weight', 'conv3.bias', 'conv5.weight', 'fc1.weight',
                    'fc2.weight', 'fc3.bias', 'total', '--- Start decoding']


def files(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


@pytest.mark.slow
def test_an_encoder_killed_at_ten_moments_leaves_the_old_files_or_the_new_ones_whole(uninterrupted):
    old_model = load_model(uninterrupted / 'saves/model_after_weight_sharing.ptmodel')
    old_model.fc2.bias.data += 1
    huffman_encode_model(old_model, 'encodings')
    old, new, found = files('encodings'), files(uninterrupted / 'encodings'), []
    encoding = [*ENCODING, '--load-model-path', str(uninterrupted / 'saves/model_after_weight_sharing.ptmodel')]
    for moment in ENCODING_MOMENTS:
        assert stop_at(moment, encoding)[0] == -signal.SIGKILL
        huffman_decode_model(AlexNet(), 'encodings')  # recovers, and compares the checksums
        assert files('encodings') in (old, new)
        found.append(files('encodings') == new)
    assert not found[0] and found[-1]
    assert not list(Path().glob('.encodings.*'))


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(uninterrupted):
    Path('saves').mkdir()
    shared = 'saves/model_after_weight_sharing.ptmodel'
    Path(shared).symlink_to(uninterrupted / shared)
    for command, moment, message in [
            (PRUNING, '--- Initial training', 'there is nothing to resume'),
            (PRUNING, 'Epoch 2/3', 'the same command with --resume goes on from saves/checkpoint.pt'),
            (ENCODING, '--- Accuracy before', 'there is nothing to resume')]:
        assert stop_at(moment, command, signal.SIGINT) == (130, f'interrupted: {message}\n')


# ---- the same seed ---------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_all_three_scripts(uninterrupted):
    for command in PRUNING, SHARING, ENCODING:
        assert run(command)[0] == 0
    for name in 'initial_model', 'model_after_retraining', 'model_after_weight_sharing':
        path = Path('saves', f'{name}.ptmodel')
        assert path.read_bytes() == (uninterrupted / path).read_bytes()
    assert files('encodings') == files(uninterrupted / 'encodings')


# ---- full disk, read-only folder -------------------------------------------------------------------------------------

def limit(n_bytes):
    """What a new process does first: files cannot grow beyond this size, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def small_model(path):
    """A model that is quick to encode, with something in each layer."""
    model = AlexNet()
    for param in model.parameters():
        param.data = torch.where(torch.arange(param.numel()) % 1009 == 0, 0.5, 0.).reshape(param.shape)
    save_model(model, path)


def tree_of_files(folder='.'):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file() and path.suffix != '.txt'}


FULL = {  # what does not fit -> script, the largest file possible, what the error names
    'a checkpoint': (PRUNING, 1_000_000, 'saves/checkpoint.pt'),
    'a .ptmodel': ([*SHARING, '--epochs', '0'], 1_000_000, 'saves/model_after_weight_sharing.ptmodel'),
    'an encoding': (ENCODING, 2_000, '.encodings.new/conv2.weight_csr_indptr.bin'),
    'the log': ([*ENCODING, '--log', 'long.txt'], 500, 'long.txt'),
    'a compact file': ([*ENCODING, '--compact', 'small.dcan'], 500, 'small.dcan'),
}


@pytest.mark.parametrize('command, n_bytes, named', FULL.values(), ids=FULL)
def test_what_does_not_fit_on_the_disk_leaves_the_old_file_and_nothing_else(command, n_bytes, named):
    small_model('saves/model_after_retraining.ptmodel')
    small_model('saves/model_after_weight_sharing.ptmodel')
    huffman_encode_model(load_model('saves/model_after_weight_sharing.ptmodel'), 'encodings', os.devnull)
    Path('small.dcan').write_text('old')
    Path('long.txt').write_text('x' * 490)
    before = tree_of_files()
    status, error = run(command, preexec_fn=limit(n_bytes))
    assert status == 1
    assert error.startswith('error: ') and error.endswith(f'{named}: cannot be written (File too large)\n')
    assert len(error.splitlines()) == 1
    assert tree_of_files() == before


def test_a_submission_that_does_not_fit_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='x1.ptmodel: cannot be written .No space left on device.'):
        huffman_coding.write_submission(AlexNet(), 'x1')
    assert os.listdir() == []


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
@pytest.mark.parametrize('command, message', [
    (PRUNING, 'saves'), (SHARING, 'saves'), (ENCODING, '.encodings.new')])
def test_a_read_only_folder_ends_in_one_line(command, message, uninterrupted):
    command = [*command, '--load-model-path', str(uninterrupted / 'saves/model_after_weight_sharing.ptmodel')]
    Path('log.txt').touch()
    os.chmod('.', 0o500)
    status, error = run(command)
    os.chmod('.', 0o700)
    assert status == 1 and len(error.splitlines()) == 1 and 'Permission denied' in error and message in error
    assert os.listdir() == ['log.txt']


@pytest.mark.parametrize('command', [PRUNING, [*SHARING, '--load-model-path', 'small.ptmodel']], ids=lambda c: c[0])
def test_a_file_in_place_of_the_folder_of_models_ends_in_one_line(command):
    small_model('small.ptmodel')
    Path('saves').write_text('mine')
    status, error = run(command)
    assert status == 1 and len(error.splitlines()) == 1 and "File exists: 'saves'" in error
    assert Path('saves').read_text() == 'mine'
