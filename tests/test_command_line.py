"""How a script begins and ends: Ctrl-C at any moment, bugs, two runs in one folder."""
import signal
import sys
from pathlib import Path

import pytest
import small
import torch
from scripts import DIGITS, ROOT, SMALLEST, start
from small import sparse_model

import huffman_coding
import pruning
import weight_share
from net import command_line
from net.checkpoint import PATH, Checkpoint
from net.command_line import already_written, duration, peak_memory
from net.errors import UserError
from net.files import one_run_per_folder

pytestmark = pytest.mark.usefixtures('small_runs')
CTRL_C = pytest.mark.skipif(sys.platform == 'win32', reason='no SIGINT can be sent to another process')


# ---- errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('error', [UserError('what is wrong'), OSError('what is wrong'),
                                   torch.OutOfMemoryError('what is wrong')])
def test_what_the_user_can_put_right_is_one_line(error):
    def fails():
        raise error
    with pytest.raises(SystemExit, match='^error: what is wrong$'):
        command_line.run(fails)


@pytest.mark.parametrize('bug', [lambda: int('x'), lambda: torch.zeros(2).reshape(3), lambda: [][1], lambda: 1 / 0])
def test_a_bug_keeps_its_traceback(bug):
    """Also one that raises a ValueError, of which the errors for the user are a kind."""
    with pytest.raises((ValueError, RuntimeError, IndexError, ZeroDivisionError)):
        command_line.run(bug)


@pytest.mark.parametrize('main', [pruning.main, weight_share.main, huffman_coding.main])
def test_an_empty_argument_is_refused_in_one_line(main, capsys):
    with pytest.raises(SystemExit, match='2'):
        main([''])
    assert capsys.readouterr().err.startswith('error: unrecognized arguments: ')


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------

@CTRL_C
@pytest.mark.parametrize('script', ['pruning.py', 'weight_share.py', 'huffman_coding.py'])
def test_ctrl_c_during_the_imports_ends_in_one_line(script):
    """In place of PyTorch there is a module that says so and waits."""
    Path('modules').mkdir()
    Path('modules/torch.py').write_text('print("importing")\ninput()\n', encoding='utf-8')
    process = start(ROOT / script, PYTHONPATH='modules')
    assert process.stdout.readline() == 'importing\n'
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == 'interrupted: nothing was begun\n' and process.returncode == 130


def interrupted(main, arguments, capsys):
    """The line that a run ends with, which Ctrl-C comes to."""
    with pytest.raises(SystemExit) as stopped:
        command_line.run(lambda: main(arguments), PATH if main is not huffman_coding.main else None)
    assert stopped.value.code == 130
    return capsys.readouterr().err


def ctrl_c_at(key, monkeypatch):
    """Let Ctrl-C come while the accuracy under this key is measured."""
    report = command_line.report

    def interrupted_report(name, *args, **kwargs):
        if name == key:
            raise KeyboardInterrupt
        return report(name, *args, **kwargs)
    monkeypatch.setattr(command_line, 'report', interrupted_report)


PRUNING = [*DIGITS, '--load-model-path', 'sparse.ptmodel', '--keep', '4000', '--prune-steps', '1',
           '--retrain-epochs', '1']


def test_ctrl_c_at_the_last_accuracy_of_pruning_can_be_resumed(monkeypatch, capsys):
    sparse_model('sparse.ptmodel')
    with monkeypatch.context() as patch:
        ctrl_c_at('accuracy_after_retraining', patch)
        assert interrupted(pruning.main, PRUNING, capsys) == (
            f'interrupted: the same command with --resume goes on from {PATH}\n')
    saved = Path('saves/model_after_retraining.ptmodel').read_bytes()
    pruning.main([*PRUNING, '--resume'])
    assert Path('saves/model_after_retraining.ptmodel').read_bytes() == saved and not PATH.exists()
    assert 'accuracy_after_retraining' in Path('log.txt').read_text(encoding='utf-8')


def test_the_last_accuracy_is_in_the_log_before_the_checkpoint_goes(monkeypatch):
    sparse_model('sparse.ptmodel')
    logged = []
    monkeypatch.setattr(Checkpoint, 'finish', lambda self: logged.append(
        Path('log.txt').exists() and 'accuracy_after_retraining' in Path('log.txt').read_text(encoding='utf-8')))
    pruning.main(PRUNING)
    assert logged[-1]


def test_ctrl_c_after_weight_sharing_says_that_the_model_is_there(monkeypatch, capsys):
    sparse_model('saves/model_after_retraining.ptmodel')
    ctrl_c_at('Accuracy_after_quantization', monkeypatch)
    assert interrupted(weight_share.main, [*DIGITS, '--epochs', '0'], capsys) == (
        'interrupted: already written: saves/model_after_weight_sharing.ptmodel\n')


def test_ctrl_c_after_encoding_says_that_the_files_are_there(monkeypatch, capsys):
    sparse_model('saves/model_after_weight_sharing.ptmodel')
    ctrl_c_at('Accuracy_after_decoding', monkeypatch)
    assert interrupted(huffman_coding.main, DIGITS, capsys) == 'interrupted: already written: encodings/\n'


def test_ctrl_c_before_that_says_that_there_is_nothing_to_resume(monkeypatch, capsys):
    sparse_model('saves/model_after_weight_sharing.ptmodel')
    ctrl_c_at('Accuracy_before_encoding', monkeypatch)
    assert interrupted(huffman_coding.main, DIGITS, capsys) == 'interrupted: there is nothing to resume\n'


def test_several_files_may_be_there():
    with pytest.raises(KeyboardInterrupt, match='^already written: a, b$'), already_written('a', Path('b')):
        raise KeyboardInterrupt


# ---- two runs in one folder ------------------------------------------------------------------------------------------

BUSY = 'another run is at work in {}: let it end, or start this one in another folder'


@pytest.mark.skipif(sys.platform == 'win32', reason='has no SIGKILL')
def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_gone():
    sparse_model('sparse.ptmodel')
    script = small.__file__, pruning.__file__  # on a small network
    first = start(*script, *PRUNING, '--retrain-epochs', '100000', PYTHONPATH=str(ROOT))
    while not first.stdout.readline().startswith('Epoch 2/'):
        pass  # the checkpoint of the first one is there
    second = start(*script, *PRUNING, '--restart', PYTHONPATH=str(ROOT))
    error = second.communicate()[1]
    assert (second.returncode, error) == (1, f'error: {BUSY.format(Path().absolute())}\n')
    for main in weight_share.main, huffman_coding.main:
        with pytest.raises(UserError, match='^another run is at work in '):
            main(DIGITS)
    assert PATH.exists()
    first.kill()
    first.communicate()
    with one_run_per_folder():  # the lock has gone with the process
        pass


def test_a_network_can_be_looked_at_while_a_run_is_at_work(capsys):
    with one_run_per_folder():
        huffman_coding.main(['--from-compact', str(SMALLEST), '--save-model-path', 'x.ptmodel'])
    assert 'Wrote x.ptmodel' in capsys.readouterr().out


def test_the_lock_goes_with_the_run_whatever_its_end():
    for error in UserError, KeyboardInterrupt:
        with pytest.raises(error), one_run_per_folder():
            raise error
    with one_run_per_folder():
        pass


def test_a_folder_that_no_lock_can_be_written_to_is_named():
    Path('.lock').mkdir()
    with pytest.raises(OSError, match='^.lock: cannot be written'), one_run_per_folder():
        pass


# ---- time and memory -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seconds, text', [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min 0 s'), (3723, '62 min 3 s')])
def test_durations_are_told_in_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


@pytest.mark.skipif(sys.platform == 'win32', reason='has no resource usage to ask for')
def test_the_peak_memory_is_that_of_the_process():
    gigabytes = float(peak_memory().split()[0])
    assert 0.1 < gigabytes < 100
    big = torch.zeros(int(gigabytes * 1e9 / 4) + 10 ** 8)  # 0.4 GB more than ever before
    assert float(peak_memory().split()[0]) > gigabytes + 0.1 and len(big)
