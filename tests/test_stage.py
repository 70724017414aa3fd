"""How a script begins and ends: other images, failed trainings, Ctrl-C, bugs, two runs in one folder."""
import errno
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import huffman_coding
import pruning
import weight_share
from net import data, stage
from net.arguments import RECIPES, parse_coding, parse_sharing
from net.checkpoint import PATH, Checkpoint
from net.data import load_photo
from net.errors import UserError
from net.files import one_run_per_folder
from net.models import DENSE, PRUNED, SHARED, AlexNet, load_model, save_model
from net.stage import already_written, duration, peak_memory

import numpy as np
import pytest
import small
import torch
from scripts import DIGITS, ROOT, error_of, made_with, start
from small import sparse_model
from test_compact_verbs import photo
from test_data import make_folder

RANKING = [*DIGITS, '--recipe', 'ranking']  # the recipe for digits holds out more images than there are

pytestmark = pytest.mark.usefixtures('small_runs')


# ---- errors ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('error', [UserError('what is wrong'), OSError('what is wrong')])
def test_what_the_user_can_put_right_is_one_line(error):
    def fails():
        raise error
    with pytest.raises(SystemExit, match='^error: what is wrong$'):
        stage.run(fails)


def gpu_is_full():
    raise torch.OutOfMemoryError('CUDA out of memory')


@pytest.mark.parametrize('take, reason', [
    (lambda: torch.empty(10 ** 15), '.*DefaultCPUAllocator.*'), (gpu_is_full, 'CUDA out of memory'),
    (lambda: bytearray(10 ** 15), 'the system gives no more'), (lambda: np.empty(10 ** 15), 'Unable to allocate .*')])
def test_too_little_memory_is_one_line(take, reason):
    with pytest.raises(SystemExit, match=f'^error: not enough memory: {reason}$'):
        stage.run(take)


@pytest.mark.parametrize('read', [load_model, load_photo])
def test_too_little_memory_is_not_blamed_on_a_file(read, monkeypatch):
    photo('x.png')
    save_model(AlexNet(), 'x.ptmodel')

    def take(*args, **kwargs):
        raise MemoryError
    monkeypatch.setattr(torch, 'load', take)
    monkeypatch.setattr('PIL.ImageOps.fit', take)
    with pytest.raises(MemoryError):
        read('x.ptmodel' if read is load_model else 'x.png')


@pytest.mark.parametrize('bug', [lambda: int('x'), lambda: torch.zeros(2).reshape(3), lambda: [][1], lambda: 1 / 0])
def test_a_bug_keeps_its_traceback(bug):
    """Also one that raises a ValueError, of which the errors for the user are a kind."""
    with pytest.raises((ValueError, RuntimeError, IndexError, ZeroDivisionError)):
        stage.run(bug)


@pytest.mark.parametrize('main', [pruning.main, weight_share.main, huffman_coding.main])
def test_an_empty_argument_is_refused_in_one_line(main, capsys):
    with pytest.raises(SystemExit, match='2'):
        main([''])
    assert capsys.readouterr().err.startswith('error: unrecognized arguments: ')


@pytest.mark.parametrize('script', ['pruning.py', 'weight_share.py', 'huffman_coding.py'])
def test_a_missing_pytorch_is_one_line(script):
    """Without `site` Python finds no package but its own."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-S', ROOT / script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, '', 1)
    assert done.stderr.startswith('error: PyTorch is not installed for this Python. Activate the environment (')


@pytest.mark.parametrize('name, line', [
    ('prune.py', 'This is a library: run pruning.py in the folder above.'),
    ('quantization.py', 'This is a library: run weight_share.py in the folder above.'),
    ('huffmancoding.py', 'This is a library: run huffman_coding.py in the folder above.'),
    ('compact', 'error: run it in the folder above net/, as python -m net.compact')])
def test_a_library_that_is_run_says_what_to_run(name, line):
    """As from the command line: what lies in the folder above is not found."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, ROOT / 'net' / name], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, '', f'{line}\n')


# ---- where it prints -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('encoding, printed', [('ascii', b'? ?'), ('cp1252', b'? \xfc'), ('cp950', b'\xb9\xcf ?'),
                                               ('utf-8', '圖 ü'.encode())])
def test_a_console_replaces_what_it_cannot_show(encoding, printed, monkeypatch):
    consoles = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, 'stdout', consoles[0])
    monkeypatch.setattr(sys, 'stderr', consoles[1])

    def main():
        for console in consoles:
            print('圖 ü', file=console, flush=True)
    stage.run(main)
    assert [console.buffer.getvalue().split(b'\n')[0] for console in consoles] == [printed] * 2


def test_where_there_is_no_console_a_run_trains_all_the_same(monkeypatch):
    """As under pythonw, some schedulers, and 2>&- of a shell."""
    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', None)
    stage.run(lambda: pruning.main([*RANKING, '--epochs', '1', '--dense-only']))
    assert isinstance(load_model(DENSE), AlexNet)


# ---- the images that a model was trained on --------------------------------------------------------------------------

@pytest.fixture
def trained_on_digits():
    """A folder in which the first two scripts have run on digits, as far as the third one can see."""
    model, digits = AlexNet(), data.load_images('digits')
    model.prune_to_budget(5000)
    for path in PRUNED, SHARED:
        stage.save(model, path, digits, made_with())
    Path('encodings').mkdir()
    make_folder('pets')


def tree():
    return {path: path.read_bytes() for path in Path().rglob('*') if path.is_file() and path.name != '.lock'}


TRAINED_ON = 'was trained with --data digits, got --data pets: a class is 0 there, cat here'


@pytest.mark.parametrize('script, path', [(weight_share, PRUNED), (huffman_coding, SHARED)])
def test_other_images_than_a_model_was_trained_on_are_refused_and_nothing_is_overwritten(script, path,
                                                                                         trained_on_digits):
    before = tree()
    assert error_of(script.main, ['--data', 'pets', '--no-cuda']) == f'{path}: {TRAINED_ON}'
    assert tree() == before


def test_pruning_of_a_loaded_model_refuses_other_images_as_well(trained_on_digits):
    before = tree()
    assert error_of(pruning.main, ['--data', 'pets', '--no-cuda', '--load-model-path', PRUNED]) == (
        f'{PRUNED}: {TRAINED_ON}')
    assert tree() == before


def test_the_scripts_note_how_each_model_was_made(capsys):
    pruning.main([*RANKING, '--epochs', '1', '--keep', '20000', '--prune-steps', '1', '--retrain-epochs', '1',
                  '--validation', '3'])
    weight_share.main([*DIGITS, '--epochs', '0', '--save-model-path', 'mine/shared.ptmodel'])
    made = {DENSE: ('ranking', 3), PRUNED: ('ranking', 3), 'mine/shared.ptmodel': ('digits', 0)}
    for path, (recipe, validation) in made.items():
        assert json.loads(Path(f'{path}.note').read_text(encoding='utf-8')) == {
            'crc32': zlib.crc32(Path(path).read_bytes()), 'classes': list('0123456789'), 'data': 'digits',
            'recipe': recipe, 'validation': validation}


def test_test_images_that_are_training_images_as_well_are_told(capsys):
    make_folder('my')  # the same files in train/ and test/
    args = made_with('my')
    stage.load_splits(args, 'cpu')
    assert capsys.readouterr().out.splitlines() == [
        'Images: my, 2 to train on, of 2 classes: cat, dog',
        'Note: 2 of the 2 test images are training images as well: the accuracy on them promises too much']
    stage.load_splits(made_with('digits'), 'cpu')
    assert capsys.readouterr().out == 'Images: digits, 20 to train on, of 10 classes: 0, 1, 2, ...\n'


def test_images_held_out_late_are_not_noted_as_held_out_from_the_first_training_on(trained_on_digits, capsys):
    """Both stages look at them: the first one was trained on them, whatever the second one holds out."""
    weight_share.main([*DIGITS, '--epochs', '0', '--validation', '4'])
    assert HELD_OUT_NOTE in capsys.readouterr().out
    weight_share.main([*DIGITS, '--epochs', '0', '--validation', '4', '--load-model-path', SHARED])
    assert HELD_OUT_NOTE.replace(PRUNED, SHARED) in capsys.readouterr().out


RECIPE_NOTE = f'Note: {PRUNED} was made with --recipe digits, got --recipe ranking'
DATA_NOTE = f'Note: {PRUNED} was made with --data digits, got --data my'
HELD_OUT_NOTE = (f'Note: {PRUNED} was trained on some of the images that --validation 4 holds out now: the accuracy on '
                 'them promises too much')


@pytest.mark.parametrize('held_out, arguments, notes', [
    (None, ['--data', 'digits'], []),  # all is as it was
    (None, ['--data', 'digits', '--recipe', 'ranking'], [RECIPE_NOTE]),
    (None, ['--data', 'my'], [DATA_NOTE, RECIPE_NOTE]),
    (None, ['--data', 'digits/', '--recipe', 'digits'], []),
    (None, ['--data', 'digits', '--validation', '4'], [HELD_OUT_NOTE]),
    (3, ['--data', 'digits', '--validation', '4'], [HELD_OUT_NOTE]),
    (4, ['--data', 'digits', '--validation', '4'], []),
    (5, ['--data', 'digits', '--validation', '4'], []),  # the same, and one more
    (5, ['--data', 'digits'], [])])  # trained on from here
def test_what_was_otherwise_when_a_model_was_made_is_told(held_out, arguments, notes, capsys):
    stage.save(AlexNet(), PRUNED, data.load_images('digits'), made_with(validation=held_out))
    stage.load_input(parse_sharing(arguments), 'cpu')
    assert capsys.readouterr().out.splitlines() == notes
    stage.load_input(parse_coding(['--data', 'my', '--load-model-path', f'./{PRUNED}']), 'cpu')  # has no recipe
    assert capsys.readouterr().out.splitlines() == [DATA_NOTE.replace(PRUNED, f'./{PRUNED}')]


def test_a_model_that_has_taken_the_place_of_the_one_that_was_noted_is_taken(trained_on_digits):
    save_model(AlexNet(2), PRUNED)
    stage.check_images(PRUNED, load_model(PRUNED), data.load_images('pets'), 'pets')


NOTES = [None, '{}', '{"crc32": 0, "classes": ["a"], "data": 3, "recipe": "ranking", "validation": 0}',
         'no JSON', '{"crc32": ', '[1]', '{"crc32": 0, "classes": ["a"], "data": "x"}',
         '{"crc32": 0, "classes": ["a"], "data": "x", "recipe": "ranking", "validation": 0}']


@pytest.mark.parametrize('note', NOTES)
def test_a_model_from_elsewhere_which_has_no_note_that_could_be_read_is_taken(note):
    make_folder('pets')
    if note is not None:
        Path('model.ptmodel.note').write_text(note, encoding='utf-8')
    pets = data.load_images('pets')
    model = AlexNet(2)
    save_model(model, 'model.ptmodel')
    stage.check_images('model.ptmodel', model, pets, 'pets')
    stage.save(model, 'model.ptmodel', pets, made_with('pets'))
    stage.check_images('model.ptmodel', model, pets, 'pets')


def test_a_restart_with_a_model_of_other_classes_keeps_the_unfinished_run():
    save_model(AlexNet(3), 'x.ptmodel')
    PATH.parent.mkdir()
    PATH.write_text('hours of training', encoding='utf-8')
    arguments = [*RANKING, '--load-model-path', 'x.ptmodel', '--restart']
    assert error_of(pruning.main, arguments) == 'x.ptmodel: tells 3 classes apart, --data digits has 10'
    assert PATH.read_text(encoding='utf-8') == 'hours of training'


def stop_after_an_epoch(main, arguments, monkeypatch):
    """Let Ctrl-C come to a script right after its first checkpoint."""
    save = Checkpoint.save

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, 'save', save_and_stop)
        main(arguments)


@pytest.mark.parametrize('script, arguments', [
    (pruning, [*RANKING, '--epochs', '2', '--dense-only']),
    (weight_share, [*DIGITS, '--epochs', '2', '--load-model-path', 'sparse.ptmodel'])])
def test_a_run_is_not_resumed_on_other_images(script, arguments, monkeypatch):
    sparse_model('sparse.ptmodel')
    stop_after_an_epoch(script.main, arguments, monkeypatch)
    before = PATH.read_bytes()
    digits = data.load_images('digits')
    for others in digits._replace(labels=digits.labels.flip(0)), digits.split(3)[0]:  # renamed, or removed
        with monkeypatch.context() as patch:
            patch.setattr(data, '_load_digits', lambda train, others=others: others)
            assert error_of(script.main, [*arguments, '--resume']) == (
                f'{PATH}: belongs to a run on {digits.fingerprint()}, got {others.fingerprint()}; '
                '--restart throws it away')
    assert PATH.read_bytes() == before
    script.main([*arguments, '--resume'])
    assert not PATH.exists()


def test_a_run_is_not_resumed_with_another_model_in_the_place_of_the_one_it_began_with(monkeypatch):
    sparse_model(PRUNED)
    stop_after_an_epoch(weight_share.main, [*DIGITS, '--epochs', '2'], monkeypatch)
    first = Path(PRUNED).read_bytes()
    sparse_model(PRUNED, 4000)
    names = [f'{PRUNED} (CRC-32 {zlib.crc32(content):08x})' for content in (first, Path(PRUNED).read_bytes())]
    assert error_of(weight_share.main, [*DIGITS, '--epochs', '2', '--resume']) == (
        f'{PATH}: belongs to a run with --load-model-path {names[0]}, got {names[1]}')
    Path(PRUNED).write_bytes(first)
    weight_share.main([*DIGITS, '--epochs', '2', '--resume'])


# ---- trainings that fail ---------------------------------------------------------------------------------------------

AGAIN = (f' (without the first training again: --restart --load-model-path {DENSE}, and no --epochs, --lr, '
         '--start-units)')
FAILING = {  # phase -> arguments, setting of the recipe, the epoch, what to lower, the way on
    'initial training': (['--lr', '1e30'], {}, 'Epoch 2/2', '--lr', ''),
    'pruning': ([], {'prune_lr': 1e14}, 'Pruning step 2/3', 'prune_lr (in the recipe)', AGAIN),
    'retraining': (['--retrain-lr', '1e30'], {}, 'Epoch 2/2', '--retrain-lr', AGAIN),
}


@pytest.mark.parametrize('phase', FAILING)
def test_a_loss_that_is_not_finite_ends_pruning_with_the_checkpoint_of_the_last_good_epoch(phase, monkeypatch):
    arguments, changes, epoch, lr, way_on = FAILING[phase]
    for name, value in changes.items():
        monkeypatch.setitem(RECIPES['ranking']['pruning'], name, value)
    Path('saves').mkdir()
    Path(PRUNED).write_text('of the run before', encoding='utf-8')
    command = [*RANKING, '--epochs', '2', '--keep', '20000', '--prune-steps', '3', '--retrain-epochs', '2', *arguments]
    assert error_of(pruning.main, command) == (
        f'{epoch}, step 1: the loss is no longer finite, the training has failed: start again with a lower {lr} and '
        f'--restart{way_on}')
    assert Path(DENSE).exists() == (phase != 'initial training')
    assert Path(PRUNED).read_text(encoding='utf-8') == 'of the run before'
    checkpoint = torch.load(PATH, weights_only=True)
    assert (checkpoint['phase'], checkpoint['epoch']) == (phase, 1)
    assert all(value.isfinite().all() for value in checkpoint['model'].values())
    assert error_of(pruning.main, RANKING) == (
        f'{PATH}: a run of pruning.py is unfinished; --resume goes on with it, --restart throws it away')


def test_a_loss_that_is_not_finite_ends_weight_sharing_and_the_old_model_stays():
    sparse_model(PRUNED)
    Path(SHARED).write_text('PK: of the run before', encoding='utf-8')
    assert error_of(weight_share.main, [*DIGITS, '--epochs', '2', '--lr', '1e30']) == (
        'Epoch 2/2, step 1: the loss is no longer finite, the training has failed: start again with a lower --lr and '
        '--restart')
    assert Path(SHARED).read_text(encoding='utf-8') == 'PK: of the run before'
    assert torch.load(PATH, weights_only=True)['epoch'] == 1
    assert error_of(weight_share.main, DIGITS) == (
        f'{PATH}: a run of weight_share.py is unfinished; --resume goes on with it, --restart throws it away')


@pytest.mark.parametrize('arguments', ['--recipe ranking --keep 8 --prune-steps 2', '--sensitivity 30'])
def test_a_pruning_that_leaves_no_path_says_how_to_go_on_without_the_first_training(arguments, capsys):
    error = error_of(pruning.main, [*DIGITS, '--epochs', '1', *arguments.split()])
    assert error == f'no path is left from the images to the outputs: keep more weights{AGAIN}'
    capsys.readouterr()
    way_on = AGAIN.split(': ')[1].split(', and no')[0].split()
    pruning.main([*RANKING, '--keep', '20000', '--prune-steps', '1', '--retrain-epochs', '1', *way_on])
    assert 'Initial training' not in capsys.readouterr().out and isinstance(load_model(PRUNED), AlexNet)


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------

def interrupted(main, arguments, capsys):
    """The line that a run ends with, which Ctrl-C comes to."""
    with pytest.raises(SystemExit) as stopped:
        stage.run(lambda: main(arguments), PATH if main is not huffman_coding.main else None)
    assert stopped.value.code == 130
    return capsys.readouterr().err


def ctrl_c_at(key, monkeypatch):
    """Let Ctrl-C come while the accuracy under this key is measured."""
    report = stage.report

    def interrupted_report(name, *args, **kwargs):
        if name == key:
            raise KeyboardInterrupt
        return report(name, *args, **kwargs)
    monkeypatch.setattr(stage, 'report', interrupted_report)


PRUNING = [*RANKING, '--load-model-path', 'sparse.ptmodel', '--keep', '4000', '--prune-steps', '1',
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


def test_so_it_can_where_the_model_that_was_loaded_is_pruned_further_and_replaced(monkeypatch, capsys):
    sparse_model(PRUNED)
    further = [argument.replace('sparse.ptmodel', PRUNED) for argument in PRUNING]
    with monkeypatch.context() as patch:
        ctrl_c_at('accuracy_after_retraining', patch)
        interrupted(pruning.main, further, capsys)
    saved = Path(PRUNED).read_bytes()
    pruning.main([*further, '--resume'])
    assert Path(PRUNED).read_bytes() == saved and not PATH.exists()


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


@pytest.mark.parametrize('written, line', [
    (True, f'the same command with --resume in place of --restart goes on from {PATH}'),
    (False, f'{PATH} is still that of the run before')])
def test_the_way_on_after_a_restart_depends_on_whose_checkpoint_is_there(written, line, monkeypatch, capsys):
    PATH.parent.mkdir()
    PATH.touch()
    os.utime(PATH, (0, 0))
    monkeypatch.setattr(sys, 'argv', ['pruning.py', '--restart'])

    def main(arguments):
        if written:
            PATH.write_text('after an epoch', encoding='utf-8')
        raise KeyboardInterrupt
    assert interrupted(main, [], capsys) == f'interrupted: {line}\n'


def test_several_files_may_be_there():
    with pytest.raises(KeyboardInterrupt, match='^already written: a, b$'), already_written('a', Path('b')):
        raise KeyboardInterrupt


# ---- two runs in one folder ------------------------------------------------------------------------------------------

BUSY = 'another run is at work in {}: let it end, or start this one in another folder'


@pytest.mark.skipif(sys.platform == 'win32', reason='has no SIGKILL')
def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_gone():
    sparse_model('sparse.ptmodel')
    first = start(small.__file__, pruning.__file__, *PRUNING, '--retrain-epochs', '100000', PYTHONPATH=str(ROOT))
    for line in first.stdout:
        if line.startswith('Epoch 2/'):
            break  # the checkpoint of the first one is there
    else:
        pytest.fail(first.stderr.read())
    others = (pruning.main, [*PRUNING, '--restart']), (weight_share.main, DIGITS), (huffman_coding.main, DIGITS)
    for main, arguments in others:
        assert error_of(main, arguments) == BUSY.format(Path().absolute())
    assert PATH.exists()
    first.kill()
    first.communicate()
    with one_run_per_folder():  # the lock has gone with the process
        pass


def test_the_lock_goes_with_the_run_whatever_its_end():
    for error in UserError, KeyboardInterrupt:
        with pytest.raises(error), one_run_per_folder():
            raise error
    with one_run_per_folder():
        pass


@pytest.mark.skipif(sys.platform == 'win32', reason='has other locks')
@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_on_a_disk_without_locks_the_run_goes_on_and_says_so(number, monkeypatch, capsys):
    def no_locks(file, operation):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr('fcntl.flock', no_locks)
    with one_run_per_folder():
        print('at work')
    assert capsys.readouterr().out == (f'Note: this disk has no locks ({os.strerror(number)}), so nothing keeps '
                                       'another run out of this folder\nat work\n')


def test_a_folder_that_no_lock_can_be_written_to_is_named():
    Path('.lock').mkdir()
    with pytest.raises(OSError, match='^.lock: cannot be written'), one_run_per_folder():
        pass


# ---- time and memory -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seconds, text', [(0.4, '0 s'), (59.4, '59 s'), (59.6, '1 min 0 s'), (3723, '62 min 3 s')])
def test_durations_are_told_in_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


@pytest.mark.slow  # fills as much memory as this process ever had
@pytest.mark.skipif(sys.platform == 'win32', reason='has no resource usage to ask for')
def test_the_peak_memory_is_that_of_the_process():
    gigabytes = float(peak_memory().split()[0])
    assert 0.1 < gigabytes < 100
    big = torch.zeros(int(gigabytes * 1e9 / 4) + 10 ** 8)  # 0.4 GB more than ever before
    assert float(peak_memory().split()[0]) > gigabytes + 0.1 and len(big)
