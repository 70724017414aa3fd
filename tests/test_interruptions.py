"""The scripts, killed at any moment, stopped by Ctrl-C, or on a full disk: nothing is lost, nothing half-written."""
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import huffman_coding
import pruning
import weight_share
from net.huffmancoding import huffman_decode_model, huffman_encode_model
from net.models import AlexNet, load_model, save_model

import pytest
import small
import torch
from scripts import DIGITS, ROOT, error_of, start

ACCURATE = [*DIGITS, '--recipe', 'accurate']  # with a teacher, which has to be found again, and batch normalisation
PRUNING = [pruning, *ACCURATE, '--epochs', '3', '--prune-steps', '4', '--keep', '20000', '--retrain-epochs', '4']
SHARING = [weight_share, *ACCURATE, '--epochs', '3']
ENCODING = [huffman_coding, *DIGITS]
SIGNALS = pytest.mark.skipif(sys.platform == 'win32', reason='no such signals can be sent to another process')

# Two threads in all processes, since the results must not depend on which is faster; they wait without using a core.
ENVIRONMENT = {'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')]),
               'OMP_NUM_THREADS': '2', 'OMP_WAIT_POLICY': 'PASSIVE'}

pytestmark = pytest.mark.usefixtures('small_runs')


def interrupt_at(line, command):
    """Send Ctrl-C to a script as soon as it prints a line that starts like this -> exit status, standard error."""
    script, *arguments = command
    process = start(small.__file__, script.__file__, *arguments, **ENVIRONMENT)
    for printed in process.stdout:
        if printed.startswith(line):
            process.send_signal(signal.SIGINT)
            break
    else:
        pytest.fail(f'{script.__file__} did not print {line!r}: {process.communicate()[1]}')
    error = process.communicate()[1]
    return process.returncode, error


def run_apart(command, processes, until=None):
    """Run a script in a process of its own: to its end, or kill it at the first line that starts with `until`.

    Returns what it printed, in lines.
    """
    script, *arguments = command
    reading, writing = processes.Pipe(duplex=False)
    process = processes.Process(target=small.run_script, args=(script.main, arguments, writing))
    process.start()
    writing.close()
    printed = []
    with reading, open(reading.fileno(), closefd=False) as lines:
        for text in lines:
            printed.append(text)
            if until and text.startswith(until):
                process.kill()
                break
    process.join()
    assert process.exitcode == (-signal.SIGKILL if until else 0), ''.join(printed)
    return printed


def run(*commands, folder='.'):
    """Scripts, one after the other, in a process that was started for them and imports all anew."""
    lines = ['import small, pruning, weight_share, huffman_coding', 'small.make_small()',
             *(f'{script.__name__}.main({arguments})' for script, *arguments in commands)]
    done = subprocess.run([sys.executable, '-c', '\n'.join(lines)], cwd=folder, env={**os.environ, **ENVIRONMENT},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def resume_where_there_is_something(command):
    return [*command, '--resume'] if Path('saves/checkpoint.pt').exists() else command


def same_parameters(a, b):
    return all(torch.equal(x, y) for x, y in zip(load_model(a).parameters(), load_model(b).parameters(), strict=True))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """A folder in which all three scripts have run without interruption."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    run(PRUNING, SHARING, ENCODING, folder=folder)
    return folder


@pytest.fixture(scope='module')
def processes():
    """Starts processes that have everything imported, which takes most of a short run.

    On Linux they are forked from one that has. Elsewhere that is not safe, and each imports it.
    """
    context = multiprocessing.get_context('forkserver' if sys.platform == 'linux' else 'spawn')
    # The last one is imported by the first optimizer.
    context.set_forkserver_preload(['small', 'pruning', 'weight_share', 'huffman_coding', 'torch._dynamo'])
    with pytest.MonkeyPatch.context() as patch:  # of the one that is forked, and where it looks for modules
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield context


# ---- killed ----------------------------------------------------------------------------------------------------------

# A line is printed just before what it announces: before an epoch, before its checkpoint, before a model is saved.
# Which one the run is killed at, and with which epoch the next one goes on: this or the one after, if that came late.
PRUNING_EPOCHS = [f'Epoch {i}/3' for i in (1, 2, 3)] + [f'Pruning step {i}/4' for i in (1, 2, 3)] + [
    f'Epoch {i}/4' for i in (1, 2, 3, 4)]
PRUNING_MOMENTS = {
    '--- Initial training': 'Epoch 1/3', 'Epoch 1/3': 'Epoch 1/3', 'Epoch 2/3': 'Epoch 2/3', 'Epoch 3/3': 'Epoch 3/3',
    '--- Pruning': 'Pruning step 1/4', 'Pruning step 1/4': 'Pruning step 1/4', 'Pruning step 3/4': 'Pruning step 3/4',
    '--- After pruning': 'Epoch 1/4', 'Epoch 2/4': 'Epoch 2/4', 'Epoch 4/4': 'Epoch 4/4'}
SHARING_EPOCHS = [f'Epoch {i}/3' for i in (1, 2, 3)]
SHARING_MOMENTS = {'--- Training': 'Epoch 1/3', 'Epoch 1/3': 'Epoch 1/3', 'Epoch 2/3': 'Epoch 2/3',
                   'Epoch 3/3': 'Epoch 3/3'}


def kill_and_resume(command, processes, moments, all_epochs):
    """Kill a script at each of the moments, go on each time, in the end to its end; each goes on where it should."""
    goes_on = all_epochs[0]
    for moment, next_goes_on in [*moments.items(), (None, None)]:
        printed = run_apart(resume_where_there_is_something(command), processes, moment)
        epochs = [line.split(':')[0] for line in printed if line.startswith(('Epoch', 'Pruning step'))]
        assert not epochs or epochs[0] in all_epochs[all_epochs.index(goes_on):][:2], (moment, printed)
        assert not Path('saves/model_after_retraining.ptmodel').exists() or moment in ('Epoch 4/4', None)
        goes_on = next_goes_on


@SIGNALS
@pytest.mark.slow
def test_pruning_killed_at_ten_moments_and_resumed_ends_in_the_same_weights(uninterrupted, processes):
    kill_and_resume(PRUNING, processes, PRUNING_MOMENTS, PRUNING_EPOCHS)
    for name in 'saves/initial_model.ptmodel', 'saves/model_after_retraining.ptmodel':
        assert same_parameters(name, uninterrupted / name)
    assert not Path('saves/checkpoint.pt').exists()


@SIGNALS
@pytest.mark.slow
def test_weight_sharing_killed_at_four_moments_and_resumed_ends_in_the_same_weights(uninterrupted, processes):
    sharing = [*SHARING, '--load-model-path', str(uninterrupted / 'saves/model_after_retraining.ptmodel')]
    kill_and_resume(sharing, processes, SHARING_MOMENTS, SHARING_EPOCHS)
    name = 'saves/model_after_weight_sharing.ptmodel'
    assert same_parameters(name, uninterrupted / name)
    assert sorted(os.listdir('saves')) == [Path(name).name, f'{Path(name).name}.note']


ENCODING_MOMENTS = ['--- Start encoding', 'conv1.weight', 'conv2.weight', 'conv3.bias', 'conv5.weight', 'fc1.weight',
                    'fc2.weight', 'fc3.bias', 'total', '--- Start decoding']


def files(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


@SIGNALS
@pytest.mark.slow
def test_an_encoder_killed_at_ten_moments_leaves_the_old_files_or_the_new_ones_whole(uninterrupted, processes):
    old_model = load_model(uninterrupted / 'saves/model_after_weight_sharing.ptmodel')
    old_model.fc2.bias.data += 1
    huffman_encode_model(old_model, 'encodings')
    old, new, found = files('encodings'), files(uninterrupted / 'encodings'), []
    encoding = [*ENCODING, '--load-model-path', str(uninterrupted / 'saves/model_after_weight_sharing.ptmodel')]
    for moment in ENCODING_MOMENTS:
        run_apart(encoding, processes, until=moment)
        whole = 'encodings' if Path('encodings').exists() else '.encodings.old'  # killed between the two renames
        huffman_decode_model(AlexNet(), whole)
        assert files(whole) in (old, new)
        found.append(files(whole) == new)
    assert not found[0] and found[-1]
    assert not list(Path().glob('.encodings.*'))


@SIGNALS
@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(uninterrupted):
    Path('saves').mkdir()
    shutil.copy(uninterrupted / 'saves/model_after_weight_sharing.ptmodel', 'saves')
    for command, moment, message in [
            (PRUNING, '--- Initial training', 'there is nothing to resume'),
            (PRUNING, 'Epoch 2/3', f'the same command with --resume goes on from {Path("saves/checkpoint.pt")}'),
            (ENCODING, '--- Accuracy before', 'there is nothing to resume')]:
        assert interrupt_at(moment, command) == (130, f'interrupted: {message}\n')


# ---- the same seed ---------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_all_three_scripts(uninterrupted):
    run(PRUNING, SHARING, ENCODING)
    for name in 'initial_model', 'model_after_retraining', 'model_after_weight_sharing':
        path = Path('saves', f'{name}.ptmodel')
        assert path.read_bytes() == (uninterrupted / path).read_bytes()
    assert files('encodings') == files(uninterrupted / 'encodings')


# ---- full disk, read-only folder -------------------------------------------------------------------------------------

@contextmanager
def full_disk(n_bytes):
    """Within this context files cannot grow beyond this size."""
    resource = pytest.importorskip('resource', reason='needs a limit of the size of files')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def small_model(path):
    """A model that is quick to encode, with something in each layer."""
    model = AlexNet()
    for param in model.parameters():
        param.data = torch.where(torch.arange(param.numel()) % 1009 == 0, 0.5, 0.).reshape(param.shape)
    save_model(model, path)
    return model


def tree_of_files(folder='.'):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file() and path.suffix != '.txt'}


FULL = {  # what does not fit -> script, the largest file possible, what the error names
    'a checkpoint': ([*PRUNING, '--epochs', '1'], 1_000_000, 'saves/checkpoint_start_initial_training.pt'),
    'a .ptmodel': ([weight_share, *DIGITS, '--epochs', '0'], 1_000_000, 'saves/model_after_weight_sharing.ptmodel'),
    'an encoding': (ENCODING, 2_000, '.encodings.new/conv2.weight_csr_indptr.bin'),
    'the log': ([*ENCODING, '--log', 'long.txt'], 500, 'long.txt'),
}


@pytest.mark.parametrize('command, n_bytes, named', FULL.values(), ids=FULL)
def test_what_does_not_fit_on_the_disk_leaves_the_old_file_and_nothing_else(command, n_bytes, named, capsys):
    """What is printed is kept in memory: the limit holds for the files of the tests as well."""
    model = small_model('saves/model_after_retraining.ptmodel')
    shutil.copy('saves/model_after_retraining.ptmodel', 'saves/model_after_weight_sharing.ptmodel')
    huffman_encode_model(model, 'encodings', os.devnull)
    Path('long.txt').write_text('x' * 490, encoding='utf-8')
    Path('.lock').touch()
    before = tree_of_files()
    with full_disk(n_bytes):
        error = error_of(command[0].main, command[1:])
    assert error.endswith(f'{Path(named)}: cannot be written (File too large)')
    assert tree_of_files() == before


def test_a_submission_that_does_not_fit_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='x1.ptmodel: cannot be written .No space left on device.'):
        huffman_coding.write_submission(AlexNet(), huffman_coding.parse_args(['--student-id', 'x1']))
    assert os.listdir() == []


@pytest.mark.skipif(getattr(os, 'geteuid', int)() == 0, reason='root, or anybody on Windows, may write into any folder')
@pytest.mark.parametrize('command', [PRUNING, SHARING, ENCODING], ids=lambda command: command[0].__name__)
def test_a_read_only_folder_ends_in_one_line(command):
    Path('log.txt').touch()
    os.chmod('.', 0o500)
    error = error_of(command[0].main, command[1:])
    os.chmod('.', 0o700)
    assert error == '.lock: cannot be written (Permission denied)'
    assert os.listdir() == ['log.txt']


@pytest.mark.parametrize('command', [PRUNING, [*SHARING, '--load-model-path', 'small.ptmodel']],
                         ids=lambda command: command[0].__name__)
def test_a_file_in_place_of_the_folder_of_models_ends_in_one_line(command):
    small_model('small.ptmodel')
    Path('saves').write_text('mine', encoding='utf-8')
    assert error_of(command[0].main, command[1:]).endswith('.ptmodel: cannot be written (saves is no folder)')
    assert Path('saves').read_text(encoding='utf-8') == 'mine'
