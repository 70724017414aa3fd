"""Checkpoints: where a run stands after each epoch, in one file, so that it goes on after an interruption."""
from contextlib import contextmanager
from pathlib import Path

import torch

from net.live import count_alive
from net.models import load_archive, save_archive
from util import flag

PATH = Path('saves/checkpoint.pt')
FIELDS = {'script': str, 'arguments': dict, 'phase': str, 'epoch': int, 'start': dict, 'model': dict,
          'optimizer': dict, 'scheduler': dict, 'random': tuple, 'history': list}
UNREADABLE = 'a run that cannot be read any more'
NO_PART_OF_THE_RUN = {'resume', 'restart', 'log', 'figures'}  # arguments that do not change the result


class Checkpoint:
    """What it takes to continue a run, bit for bit; and its history.

    A run passes through phases, one after the other. It announces each with `enter`, calls `restore` before the epochs
    of the phase and `save` after each of them, and `finish` when the result is in its place.

    Attributes:
        history: a dictionary for each epoch so far, with phase, epoch, loss, alive (parameters that are not zero) and
            accuracy, in percent.
        accuracy: called with the model after each epoch, if it is not None: the accuracy for the history.
    """

    def __init__(self, script, phases, args):
        """Read the checkpoint if `args.resume`; with `args.restart`, the first phase will drop it.

        Raises FileNotFoundError if there is nothing to resume, and ValueError if the checkpoint is damaged, or belongs
        to another script or other arguments, or if there is one, but neither flag to say what to do with it.
        """
        self.script = script
        self.arguments = {k: str(v) for k, v in vars(args).items() if k not in NO_PART_OF_THE_RUN}
        self.history, self.accuracy, self._stored = [], None, None
        if args.resume and not PATH.exists():
            raise FileNotFoundError(f'{PATH}: no such file, so there is nothing to resume: start without --resume')
        if args.resume:
            self._stored = read(script, phases, self.arguments)
            self.history = self._stored['history']
        elif PATH.exists():
            owner = _owner()
            if owner not in (script, UNREADABLE):
                raise ValueError(f'{PATH}: {owner} was interrupted; first run it with --resume or --restart')
            if not args.restart:
                raise ValueError(f'{PATH}: {owner} was interrupted; --resume goes on with it, --restart throws it away')

    def enter(self, phase, model):
        """Begin a phase. False if the interrupted run was past it; else `model` is as it was when the phase began."""
        if self._stored and self._stored['phase'] != phase:
            return False
        if self._stored:
            with _misfits_refused():
                model.load_state_dict(self._stored['start'])
        elif not self.history:
            PATH.unlink(missing_ok=True)  # --restart: not before images and model have been found good
        self.phase, self.start = phase, {name: value.clone() for name, value in model.state_dict().items()}
        return True

    def restore(self, model, optimizer, scheduler):
        """Bring these, and the random generators, to where the interrupted run left them; return its epochs so far."""
        if self._stored is None:
            return 0
        with _misfits_refused():
            model.load_state_dict(self._stored['model'])
            optimizer.load_state_dict(self._stored['optimizer'])
            scheduler.load_state_dict(self._stored['scheduler'])
            cpu, cuda = self._stored['random']
            torch.set_rng_state(cpu)
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
        epochs, self._stored = self._stored['epoch'], None
        return epochs

    def save(self, model, optimizer, scheduler, epoch, loss):
        """Write the file after an epoch, in one piece, in place of the one before.

        It also holds the model as the phase began, since that decides what is pruned, alive and shared.
        """
        self.history.append({'phase': self.phase, 'epoch': epoch, 'loss': loss, 'alive': count_alive(model),
                             'accuracy': self.accuracy(model) if self.accuracy else None})
        cuda = torch.cuda.get_rng_state_all() if next(model.parameters()).is_cuda else []
        save_archive({
            'script': self.script, 'arguments': self.arguments, 'phase': self.phase, 'epoch': epoch,
            'start': self.start, 'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
            'scheduler': scheduler.state_dict(), 'random': (torch.get_rng_state(), cuda), 'history': self.history,
        }, PATH)

    def finish(self):
        """Remove the file: the result of the run has been saved."""
        PATH.unlink(missing_ok=True)


def read(script, phases, arguments):
    """The contents of the checkpoint, which need not be trusted; see `Checkpoint` for the errors."""
    stored = load_archive(PATH, 'checkpoint')
    if (not isinstance(stored, dict) or stored.keys() != FIELDS.keys()
            or not all(isinstance(stored[field], kind) for field, kind in FIELDS.items())
            or not all(isinstance(text, str) for pair in stored['arguments'].items() for text in pair)):
        raise ValueError(f'{PATH}: not a checkpoint of these scripts')
    if stored['script'] != script:
        raise ValueError(f'{PATH}: belongs to {stored["script"]}, got --resume for {script}')
    theirs = stored['arguments']
    differ = [f'{flag(name)} {theirs.get(name)}, got {arguments.get(name)}'
              for name in sorted(theirs.keys() | arguments.keys()) if theirs.get(name) != arguments.get(name)]
    if differ:
        raise ValueError(f'{PATH}: belongs to a run with {"; ".join(differ)}')
    if stored['phase'] not in phases:
        raise ValueError(f'{PATH}: phase must be one of {", ".join(phases)}, got {stored["phase"]}')
    return stored


def _owner():
    """The script that wrote the checkpoint."""
    try:
        return str(load_archive(PATH, 'checkpoint')['script'])
    except Exception:  # damaged, or anything else
        return UNREADABLE


@contextmanager
def _misfits_refused():
    try:
        yield
    except Exception as error:  # a file that was tampered with can hold anything
        raise ValueError(f'{PATH}: does not fit this run ({type(error).__name__})') from error
