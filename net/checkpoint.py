"""Checkpoints: where a run stands after each epoch, so that it goes on after an interruption.

The file itself is written after each epoch. The model as the phase began, which decides what is pruned, alive and
shared, lies in a file of its own beside it, written once.
"""
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from net.errors import UserError, is_out_of_memory
from net.files import load_archive, save_archive
from net.live import count_alive, count_hidden_units

import torch

PATH = Path('saves/checkpoint.pt')
FIELDS = {'script': str, 'arguments': dict, 'images': str, 'phase': str, 'epoch': int, 'model': dict,
          'optimizer': dict, 'scheduler': dict, 'random': tuple, 'history': list}


@dataclass
class Epoch:
    """One epoch of a training."""
    number: int  # from 1
    title: str  # such as 'Epoch 3/24'
    loss: float = math.nan  # on average, once it has been trained


class Checkpoint:
    """What it takes to continue a run, bit for bit; and its history.

    A run passes through phases, one after the other. It announces each with `enter`, trains the `epochs` of the phase,
    and calls `finish` when the result is in its place.

    Attributes:
        history: a dictionary for each epoch so far, with phase, epoch, loss, alive (parameters that are not zero),
            units (hidden ones in use) and accuracy, in percent.
        accuracy: called with the model after each epoch, if it is not None: the accuracy for the history.
    """

    def __init__(self, path, script, phases, arguments, resume=False, restart=False):
        """Read the checkpoint if `resume`; with `restart`, the first phase will drop it.

        `arguments` (flag -> text) are those that the result of the run depends on. Raises FileNotFoundError if there is
        nothing to resume, and UserError if the checkpoint is damaged, or belongs to another script or other arguments,
        or if there is one, but neither `resume` nor `restart` to say what to do with it.
        """
        self.path, self.script, self.arguments = Path(path), script, arguments
        self.history, self.accuracy, self.images = [], None, ''
        self._stored = None  # what was read from the file, until it is restored
        self.phase = None
        self._start = None  # the model as the phase began, until it is written
        if resume:
            self._stored = self._read(phases)
            self.history = self._stored['history']
        elif self.path.exists():
            owner = self._owner()
            if owner is None and not restart:
                raise UserError(f'{path}: cannot be read any more; --restart throws it away')
            if owner not in (script, None):
                raise UserError(f'{path}: a run of {owner} is unfinished; first run it with --resume or --restart')
            if not restart:
                raise UserError(f'{path}: a run of {owner} is unfinished; --resume goes on with it, --restart throws '
                                'it away')

    def train_on(self, images):
        """Say which images the run trains on; UserError if the run that is resumed trained on others."""
        self.images = images.fingerprint()
        if self._stored and self._stored['images'] != self.images:
            raise UserError(f'{self.path}: belongs to a run on {self._stored["images"]}, got {self.images}; --restart '
                            'throws it away')

    def enter(self, phase, model):
        """Begin a phase with this model; False if the run that is resumed was past the phase: it is to be skipped.

        If that run was within the phase, the model is set, in place, to what it was when the phase began.
        """
        if self._stored and self._stored['phase'] != phase:
            return False
        if self._stored:
            self._set_to_start(phase, model)
        elif not self.history:
            self._remove_files()  # --restart: not before images and model have been found good
        self.phase = phase
        self._start = None if self._stored else {name: value.clone() for name, value in model.state_dict().items()}
        return True

    def epochs(self, n, model, optimizer, scheduler, title='Epoch {}/{}'):
        """Yield an `Epoch` for each of `n` that is still to be trained, and write the file after each.

        Before the first one, all three are brought to where the run that is resumed left them.
        """
        for number in range(self.restore(model, optimizer, scheduler) + 1, n + 1):
            epoch = Epoch(number, title.format(number, n))
            yield epoch
            self.save(model, optimizer, scheduler, number, epoch.loss)

    def restore(self, model, optimizer, scheduler):
        """Bring these, and the random generators, to where the interrupted run left them; return its epochs so far."""
        if self._stored is None:
            return 0
        with _misfits_refused(self.path):
            model.load_state_dict(self._stored['model'])
            optimizer.load_state_dict(self._stored['optimizer'])
            scheduler.load_state_dict(self._stored['scheduler'])
            cpu, cuda = self._stored['random']
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
        epochs, self._stored = self._stored['epoch'], None
        return epochs

    def save(self, model, optimizer, scheduler, epoch, loss):
        """Write the file after an epoch, in one piece, in place of the one before; first of all, once, the start."""
        first_of_phase = self._start is not None
        if first_of_phase:
            save_archive(self._start, self._start_path(self.phase))
            self._start = None
        self.history.append({'phase': self.phase, 'epoch': epoch, 'loss': loss, 'alive': count_alive(model),
                             'units': count_hidden_units(model),
                             'accuracy': self.accuracy(model) if self.accuracy else None})
        cuda = torch.cuda.get_rng_state() if next(model.parameters()).is_cuda else None
        save_archive({
            'script': self.script, 'arguments': self.arguments, 'images': self.images, 'phase': self.phase,
            'epoch': epoch, 'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
            'scheduler': scheduler.state_dict(), 'random': (torch.get_rng_state(), cuda), 'history': self.history,
        }, self.path)
        if first_of_phase:  # not before the file above, which needs that of the phase before until now
            self._drop_starts(keep=self._start_path(self.phase))

    def finish(self):
        """The result of the run has been saved: it need not be resumed any more."""
        self._remove_files()

    def _remove_files(self):
        self.path.unlink(missing_ok=True)
        self._drop_starts()

    def _start_path(self, phase):
        return self.path.with_name(f'{self.path.stem}_start_{phase.replace(" ", "_")}.pt')

    def _drop_starts(self, keep=None):
        for path in self.path.parent.glob(f'{self.path.stem}_start_*.pt'):
            if path != keep:
                path.unlink()

    def _read(self, phases):
        """The contents of the file, which need not be trusted."""
        if not self.path.exists():
            raise FileNotFoundError(f'{self.path}: no such file, so there is nothing to resume: start without --resume')
        stored = load_archive(self.path, 'checkpoint')
        if (not isinstance(stored, dict) or stored.keys() != FIELDS.keys()
                or not all(isinstance(stored[field], kind) for field, kind in FIELDS.items())
                or not all(isinstance(text, str) for pair in stored['arguments'].items() for text in pair)):
            raise UserError(f'{self.path}: not a checkpoint of these scripts')
        if stored['script'] != self.script:
            raise UserError(f'{self.path}: belongs to {stored["script"]}, got --resume for {self.script}')
        theirs, ours = stored['arguments'], self.arguments
        differ = [f'{flag} {theirs.get(flag)}, got {ours.get(flag)}'
                  for flag in sorted(theirs.keys() | ours.keys()) if theirs.get(flag) != ours.get(flag)]
        if differ:  # --data and --recipe decide many others
            differ = [text for text in differ if text.startswith(('--data ', '--recipe '))] or differ
            raise UserError(f'{self.path}: belongs to a run with {"; ".join(differ)}')
        if stored['phase'] not in phases:
            raise UserError(f'{self.path}: phase must be one of {", ".join(phases)}, got {stored["phase"]}')
        return stored

    def _set_to_start(self, phase, model):
        """Bring the model to what it was when the phase began, by a file which need not be trusted either."""
        path = self._start_path(phase)
        if not path.exists():
            raise UserError(f'{path}: no such file, but {self.path} needs it; --restart throws the run away')
        start = load_archive(path, 'checkpoint')
        with _misfits_refused(path):
            model.load_state_dict(start)

    def _owner(self):
        """The script that wrote the file, or None if it cannot be read any more."""
        try:
            return str(load_archive(self.path, 'checkpoint')['script'])
        except Exception:  # damaged, or anything else
            return None


@contextmanager
def _misfits_refused(path):
    try:
        yield
    except Exception as error:  # a file that was tampered with can hold anything
        if is_out_of_memory(error):
            raise
        raise UserError(f'{path}: does not fit this run ({type(error).__name__}); --restart throws it away') from error
