"""Checkpoints: a training that is interrupted after any epoch goes on and ends in the same bits."""
import copy
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pruning
import weight_share
from net import stage
from net.arguments import arguments_of_run
from net.batch_norm import batch_normalised
from net.checkpoint import PATH, Checkpoint
from net.data import Images
from net.files import save_archive
from net.live import live_part, remove_dead_weights
from net.models import AlexNet
from net.quantization import apply_weight_sharing, codebooks_as_parameters
from net.training import OPTIMIZERS, Training, loss_of_batch, make_optimizer

import pytest
import torch
from hostile import RunsCommand

NAME = re.escape(str(PATH))
WIDTHS = (16,) * 7  # units: the size does not matter here


@pytest.fixture(scope='module')
def images():
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    return Images(pixels, torch.arange(20) % 10, tuple('0123456789'))


@pytest.fixture(scope='module')
def pruned():
    torch.manual_seed(1)
    model = AlexNet(widths=WIDTHS)
    model.prune_to_budget(10_000)
    remove_dead_weights(model, drop_constants=True)
    return model


TRAINING = Training(epochs=3, lr=1e-3, lr_flag='--lr', weight_decay=1e-4, crop=True, loss=loss_of_batch,
                    optimizer='adam', batch_size=6, log_interval=10)


def arguments(*argv):
    return pruning.parse_args(['--batch-size', '7', *argv])


def make_checkpoint(script, phases, args):
    return Checkpoint(PATH, script, phases, arguments_of_run(args), args.resume, args.restart)


def interrupt_after(n_saves, monkeypatch):
    """Let Ctrl-C come right after the checkpoint has been written that many times."""
    save, calls = Checkpoint.save, []

    def save_and_stop(self, *args):
        save(self, *args)
        calls.append(args)
        if len(calls) == n_saves:
            raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'save', save_and_stop)


def run_interrupted(run, n_saves, monkeypatch):
    """`run(checkpoint)`, stopped after `n_saves` epochs and resumed -> what it returns then."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(n_saves, patch)
        run(make_checkpoint('test', ['only'], arguments()))
    torch.manual_seed(99)  # whatever the random generators are at then
    return run(make_checkpoint('test', ['only'], arguments('--resume')))


CONTEXTS = {
    'live part': lambda model: [live_part(model)],
    'batch norm': lambda model: [live_part(model), batch_normalised(model)],
    'codebooks': lambda model: [live_part(model), codebooks_as_parameters(model)],
    'shared biases': lambda model: [live_part(model), codebooks_as_parameters(model, shared_biases=True)],
    'moving': lambda model: [live_part(model), codebooks_as_parameters(model, moving=True)],
}


@pytest.mark.parametrize('n_saves', [1, 2])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('contexts', CONTEXTS.values(), ids=CONTEXTS)
def test_a_training_that_is_resumed_ends_in_the_same_bits(contexts, optimizer, n_saves, pruned, images, monkeypatch):
    def run(checkpoint):
        model = copy.deepcopy(pruned)
        if contexts not in (CONTEXTS['live part'], CONTEXTS['batch norm']):
            apply_weight_sharing(model, 3, bias_bits=3)
        checkpoint.enter('only', model)
        with ExitStack() as stack:
            for context in contexts(model):
                stack.enter_context(context)
            pruning.fit(model, images, TRAINING._replace(optimizer=optimizer), checkpoint)
        assert [entry['epoch'] for entry in checkpoint.history] == [1, 2, 3]
        checkpoint.finish()
        return [param.detach().clone() for param in model.parameters()]

    torch.manual_seed(5)
    expected = run(make_checkpoint('test', ['only'], arguments()))
    assert not PATH.exists()
    torch.manual_seed(5)
    resumed = run_interrupted(run, n_saves, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed, strict=True))
    assert not PATH.exists()


def test_an_accuracy_in_the_history_does_not_change_the_training(pruned, images):
    """It is measured in evaluation mode, where batch normalisation takes other means and deviations."""
    def trained(accuracy):
        torch.manual_seed(5)
        model = copy.deepcopy(pruned)
        checkpoint = make_checkpoint('test', ['only'], arguments())
        checkpoint.accuracy = accuracy
        checkpoint.enter('only', model)
        with live_part(model), batch_normalised(model):
            pruning.fit(model, images, TRAINING, checkpoint)
        checkpoint.finish()
        return model.state_dict()
    measured = trained(lambda model: stage.accuracy(model, images, batch_size=20))
    assert all(map(torch.equal, measured.values(), trained(None).values()))


@pytest.mark.parametrize('batch_norm, regrow', [(False, 0), (True, 0), (True, 0.2), (False, 0.2)])
@pytest.mark.parametrize('n_saves', [1, 2])
def test_pruning_that_is_resumed_between_two_steps_ends_in_the_same_bits(n_saves, batch_norm, regrow, pruned, images,
                                                                         monkeypatch):
    def run(checkpoint):
        model = copy.deepcopy(pruned)
        checkpoint.enter('only', model)
        args = arguments('--keep', '2000', '--prune-steps', '3')
        args.regrow = regrow
        with pruning.budgeted(model, args):
            pruning.prune_gradually(model, images, args, TRAINING._replace(epochs=2, batch_norm=batch_norm), checkpoint)
        assert [entry['alive'] for entry in checkpoint.history] == sorted(
            (entry['alive'] for entry in checkpoint.history), reverse=True)
        checkpoint.finish()
        return [param.detach().clone() for param in model.parameters()]

    torch.manual_seed(5)
    expected = run(make_checkpoint('test', ['only'], arguments()))
    torch.manual_seed(5)
    resumed = run_interrupted(run, n_saves, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed, strict=True))


def test_a_run_that_was_past_a_phase_skips_it(pruned, images, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(1, patch)
        checkpoint = make_checkpoint('test', ['first', 'second'], arguments())
        assert checkpoint.enter('first', pruned) and checkpoint.enter('second', pruned)
        with live_part(pruned):
            pruning.fit(copy.deepcopy(pruned), images, TRAINING, checkpoint)
    resumed = make_checkpoint('test', ['first', 'second'], arguments('--resume'))
    model = AlexNet(widths=WIDTHS)
    assert not resumed.enter('first', model)
    assert resumed.enter('second', model) and torch.equal(model.fc2.weight, pruned.fc2.weight)


def test_the_history_holds_accuracies_only_if_they_are_asked_for(pruned, images):
    checkpoint = make_checkpoint('test', ['only'], arguments())
    checkpoint.enter('only', pruned)
    model = copy.deepcopy(pruned)
    pruning.fit(model, images, TRAINING._replace(epochs=1), checkpoint)
    checkpoint.accuracy = lambda model: 12.5
    pruning.fit(model, images, TRAINING._replace(epochs=1), checkpoint)
    assert [entry['accuracy'] for entry in checkpoint.history] == [None, 12.5]
    assert all(entry['phase'] == 'only' and entry['loss'] > 0 and entry['alive'] > 500 for entry in checkpoint.history)


# ---- what is refused -------------------------------------------------------------------------------------------------

@pytest.fixture
def written(pruned):
    """A checkpoint of an interrupted run of pruning.py, and what is in it."""
    checkpoint = make_checkpoint('pruning.py', pruning.PHASES, arguments())
    checkpoint.enter('pruning', pruned)
    optimizer = make_optimizer(pruned, TRAINING)
    checkpoint.save(pruned, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer), 1, 2.5)
    return torch.load(PATH, weights_only=True)


def flip_a_byte():
    data = bytearray(PATH.read_bytes())
    data[len(data) // 2] ^= 1
    PATH.write_bytes(data)


DAMAGES = {
    'one byte': (flip_a_byte, 'not a readable checkpoint (truncated, damaged'),
    'truncated': (lambda: os.truncate(PATH, os.path.getsize(PATH) // 2),
                  'not a readable checkpoint (truncated, damaged'),
    'its first kilobyte': (lambda: os.truncate(PATH, 1_000), 'not a readable checkpoint (truncated, damaged'),
    'empty': (lambda: os.truncate(PATH, 0), 'not a readable checkpoint (truncated, damaged'),
    'a command': (lambda: save_archive(RunsCommand(), PATH), 'refused, no checkpoint or more than that in it'),
    'another file': (lambda: save_archive([1, 2], PATH), 'not a checkpoint of these scripts'),
}


@pytest.mark.parametrize('damage, message', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_hostile_checkpoint_is_refused_by_name(damage, message, written):
    damage()
    with pytest.raises(SystemExit, match=f'^error: {NAME}: {re.escape(message)}'):
        stage.run(lambda: pruning.main(['--batch-size', '7', '--resume']))
    assert not Path('command-ran').exists()


CHANGES = {  # how each changes what is stored, in place
    'field missing': (lambda stored: stored.pop('random'), 'not a checkpoint of these scripts'),
    'arguments that are no text': (lambda stored: stored.update(arguments={1: 2}), 'not a checkpoint of these scripts'),
    'field of another type': (lambda stored: stored.update(epoch='many'), 'not a checkpoint of these scripts'),
    'unknown phase': (lambda stored: stored.update(phase='waiting'),
                      'phase must be one of initial training, pruning, retraining, got waiting'),
    'other shapes': (lambda stored: stored['model'].update({'fc3.bias': torch.zeros(3)}),
                     'does not fit this run (RuntimeError); --restart throws it away'),
    'random state': (lambda stored: stored.update(random=(torch.zeros(3), [])), 'does not fit this run'),
    'no optimizer': (lambda stored: stored.update(optimizer={}), 'does not fit this run'),
}


@pytest.mark.parametrize('change, message', CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_was_tampered_with_is_refused_by_name(change, message, written):
    change(written)
    save_archive(written, PATH)
    with pytest.raises(ValueError, match=f'^saves.checkpoint.*.pt: {re.escape(message)}'):
        model = AlexNet(widths=WIDTHS)
        checkpoint = make_checkpoint('pruning.py', pruning.PHASES, arguments('--resume'))
        checkpoint.enter('pruning', model)
        optimizer = make_optimizer(model, TRAINING)
        checkpoint.restore(model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer))


STARTS = {'missing': (None, f'no such file, but {PATH} needs it; --restart throws the run away'),
          'no model': ([1, 2], 'does not fit this run'),
          'other shapes': ({'fc3.bias': torch.zeros(3)}, 'does not fit this run'),
          'a command': (RunsCommand(), 'refused, no checkpoint or more than that in it')}


@pytest.mark.parametrize('content, message', STARTS.values(), ids=STARTS)
def test_a_model_as_the_phase_began_that_is_none_is_refused_by_name(content, message, written):
    start = Path('saves/checkpoint_start_pruning.pt')
    start.unlink() if content is None else save_archive(content, start)
    with pytest.raises(ValueError, match=f'^{re.escape(str(start))}: {re.escape(message)}'):
        make_checkpoint('pruning.py', pruning.PHASES, arguments('--resume')).enter('pruning', AlexNet(widths=WIDTHS))
    assert not Path('command-ran').exists()


def test_other_arguments_are_refused_with_both_values(written):
    with pytest.raises(ValueError, match=f'^{NAME}: belongs to a run with --batch-size 7, got 128; --seed 42, got 1$'):
        make_checkpoint('pruning.py', pruning.PHASES, pruning.parse_args(['--seed=1', '--resume']))


def test_another_setting_of_the_recipe_is_refused_like_another_argument(written):
    args = arguments('--resume')
    args.prune_lr = 0.5
    with pytest.raises(ValueError, match=f'^{NAME}: belongs to a run with --prune-lr 0.02, got 0.5$'):
        make_checkpoint('pruning.py', pruning.PHASES, args)


def test_another_script_is_refused_with_both_names(written):
    with pytest.raises(ValueError, match=f'^{NAME}: belongs to pruning.py, got --resume for weight_share.py$'):
        make_checkpoint('weight_share.py', ['training'], weight_share.parse_args(['--resume']))


def test_what_does_not_change_the_result_may_be_another(written):
    args = arguments('--resume', '--log', 'other.txt', '--figures', 'figures', '--test-batch-size', '10',
                     '--log-interval', '1')
    assert make_checkpoint('pruning.py', pruning.PHASES, args).history == written['history']


@pytest.mark.parametrize('main, message', [
    (pruning.main, 'a run of pruning.py is unfinished; --resume goes on with it, --restart throws it away'),
    (weight_share.main, 'a run of pruning.py is unfinished; first run it with --resume or --restart')])
def test_a_checkpoint_is_not_thrown_away_silently(main, message, written):
    before = PATH.read_bytes()
    with pytest.raises(SystemExit, match=f'^error: {NAME}: {message}$'):
        stage.run(lambda: main(['--data', 'digits']))
    assert PATH.read_bytes() == before


def test_restart_throws_it_away_once_the_new_run_begins(written):
    checkpoint = make_checkpoint('pruning.py', pruning.PHASES, arguments('--restart'))
    assert PATH.exists()  # images or model could still be missing
    checkpoint.enter('initial training', AlexNet(widths=WIDTHS))
    assert not PATH.exists()


def test_restart_throws_a_damaged_one_away(written):
    flip_a_byte()
    checkpoint = make_checkpoint('weight_share.py', ['training'], weight_share.parse_args(['--restart']))
    checkpoint.enter('training', AlexNet(widths=WIDTHS))
    assert not PATH.exists()


def test_restart_does_not_throw_another_scripts_run_away(written):
    with pytest.raises(ValueError, match=f'^{NAME}: a run of pruning.py is unfinished; first run it with --re'):
        make_checkpoint('weight_share.py', ['training'], weight_share.parse_args(['--restart']))
    assert PATH.exists()


def test_the_model_as_a_phase_began_is_written_once_and_goes_with_the_phase(pruned):
    optimizer = make_optimizer(pruned, TRAINING)
    state = pruned, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer)
    checkpoint, written = make_checkpoint('pruning.py', pruning.PHASES, arguments()), []
    for phase in 'initial training', 'pruning':
        checkpoint.enter(phase, pruned)
        for epoch in 1, 2:
            checkpoint.save(*state, epoch, 2.5)
            start, = Path('saves').glob('checkpoint_start_*.pt')
            written.append((start.name, start.stat().st_mtime_ns))
    assert [name for name, _ in written] == ['checkpoint_start_initial_training.pt'] * 2 + [
        'checkpoint_start_pruning.pt'] * 2
    assert written[0] == written[1] and written[2] == written[3]
    checkpoint.finish()
    assert os.listdir('saves') == []


def test_nothing_to_resume_is_an_error():
    with pytest.raises(SystemExit, match=f'^error: {NAME}: no such file, so there is nothing to resume'):
        stage.run(lambda: pruning.main(['--resume']))


@pytest.mark.parametrize('written_yet, message', [
    (True, f'interrupted: the same command with --resume goes on from {PATH}\n'),
    (False, 'interrupted: there is nothing to resume\n')])
def test_ctrl_c_says_how_to_go_on(written_yet, message, capsys):
    def interrupted():
        if written_yet:
            PATH.parent.mkdir()
            PATH.touch()
        raise KeyboardInterrupt
    with pytest.raises(SystemExit) as stopped:
        stage.run(interrupted, PATH)
    assert stopped.value.code == 130 and capsys.readouterr().err == message


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_training_on_the_gpu_is_resumed(pruned, images, monkeypatch):
    def run(checkpoint):
        model = copy.deepcopy(pruned).cuda()
        checkpoint.enter('only', model)
        with live_part(model):
            pruning.fit(model, images.to('cuda'), TRAINING, checkpoint)
        checkpoint.finish()
        return model, torch.cuda.get_rng_state()

    torch.manual_seed(5)
    expected, state = run(make_checkpoint('test', ['only'], arguments()))
    torch.manual_seed(5)
    resumed, resumed_state = run_interrupted(run, 2, monkeypatch)
    assert torch.equal(resumed_state, state)
    for a, b in zip(expected.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # sums on a GPU may run in another order
