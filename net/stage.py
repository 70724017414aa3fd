"""What every stage begins and ends with: device, header of the log, inputs, report, how a script ends."""
import json
import os
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import util
from net.data import load_images
from net.errors import UserError
from net.files import crc32_of, replace_file
from net.models import load_model, save_model

import numpy
import torch

IMAGES_NOTE = 'images.json'  # beside models: which images each was trained on
ENTRY = {'data', 'classes', 'crc32'}  # of the note, for each model


# ---- what a run begins with ------------------------------------------------------------------------------------------

def pick_device(no_cuda):
    """The GPU if there is one and it is wanted, else the CPU; prints which one, and why."""
    use_cuda = torch.cuda.is_available() and not no_cuda
    if use_cuda:
        print(f'GPU: {torch.cuda.get_device_name()}')
    else:
        reason = ('--no-cuda' if no_cuda else 'this PyTorch finds no GPU' if torch.version.cuda or torch.version.hip
                  else 'this PyTorch was built without CUDA')
        print(f'CPU, {torch.get_num_threads()} threads: {reason}')
    return torch.device('cuda' if use_cuda else 'cpu')


def header(script, argv):
    """The first line of a run in the log: when, what, and with which versions; `argv` as `parse_args` takes it."""
    arguments = shlex.join(sys.argv[1:] if argv is None else argv)
    return (f'--- {time.strftime("%Y-%m-%d %H:%M:%S")} {script} {arguments} (Python {sys.version.split()[0]}, '
            f'PyTorch {torch.__version__}, NumPy {numpy.__version__})')


def load_input(path, default, made_by, device):
    """The model that another script has made; UserError says which one, if the model is not at its default place."""
    if path == default and not Path(path).exists():
        raise UserError(f'{path}: no such file: run {made_by} in this folder first, or name a model with '
                        '--load-model-path')
    return load_model(path, device)


def load_splits(args, device):
    """The images to train on, those to report on, and what to call these, as `--data` and `--validation` say."""
    images = load_images(args.data).to(device)
    if not args.validation:
        return images, load_images(args.data, train=False).to(device), 'Test set'
    if args.validation >= len(images.labels):
        raise UserError(f'--validation must be less than the {len(images.labels)} training images of {args.data}, '
                        f'got {args.validation}')
    return *images.split(args.validation), 'Validation set'


def report(key, model, images, log, title='Test set', batch_size=1000):
    """Print the accuracy of the model on these images, log it under the homework's key, and return it, in percent."""
    accuracy = util.test(model, images=images, title=title, batch_size=batch_size)
    util.log(f'{key} {accuracy}', log)
    return accuracy


def accuracy(model, images, batch_size):
    """In percent, without a word."""
    return 100 * util.evaluate(model, images, batch_size)[1] / len(images.labels)


def save(model, path, images, data):
    """Write a model, and beside it, in images.json, that it was trained on these images, which `--data` named so."""
    save_model(model, path)
    note = Path(path).with_name(IMAGES_NOTE)
    entry = {'data': data, 'classes': list(images.classes), 'crc32': crc32_of(path)}
    with replace_file(note) as file:
        file.write(json.dumps({**_read_note(note), Path(path).name: entry}, indent=1).encode())


def check_images(path, model, images, data):
    """Raise UserError if the model was trained on images of other classes, by a note beside it or by their number."""
    trained_on = _read_note(Path(path).with_name(IMAGES_NOTE)).get(Path(path).name)
    if trained_on and trained_on['crc32'] == crc32_of(path) and trained_on['classes'] != list(images.classes):
        raise UserError(f'{path}: was trained with --data {trained_on["data"]}, of classes '
                        f'{", ".join(trained_on["classes"][:3])}, ..., got --data {data}, of classes '
                        f'{", ".join(images.classes[:3])}, ...')
    if model.n_classes != len(images.classes):
        raise UserError(f'{path}: tells {model.n_classes} classes apart, --data {data} has {len(images.classes)}')


def _read_note(path):
    """Model -> what it was trained on; what cannot be read is left out."""
    try:
        note = dict(json.loads(path.read_text('utf-8')))
    except (OSError, TypeError, ValueError):  # a model from elsewhere has none
        return {}
    return {name: entry for name, entry in note.items() if isinstance(entry, dict) and entry.keys() >= ENTRY}


# ---- how a run ends --------------------------------------------------------------------------------------------------

@contextmanager
def already_written(*paths):
    """Within this context, Ctrl-C says that these files are there, whole."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'already written: {", ".join(map(str, paths))}') from None


def run(main, checkpoint=None):
    """Call a script's main, tell what it took, and exit: bad input ends in one line and status 1, Ctrl-C in status 130.

    `checkpoint` is the file, if any, from which the script can go on after Ctrl-C. A bug keeps its traceback.
    """
    _make_printable()
    start, began = time.perf_counter(), time.time()
    try:
        main()
        print(f'Finished in {duration(time.perf_counter() - start)}, peak memory {peak_memory()}')
    except (UserError, OSError, torch.OutOfMemoryError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt as stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        hint = str(stopped) or 'there is nothing to resume'
        if checkpoint and checkpoint.exists():
            restarted = '--restart' in sys.argv
            instead = ' in place of --restart' if restarted else ''
            hint = f'the same command with --resume{instead} goes on from {checkpoint}'
            if restarted and checkpoint.stat().st_mtime < began:
                hint = f'{checkpoint} is still that of the run before'
        print(f'interrupted: {hint}', file=sys.stderr)
        sys.exit(130)


def _make_printable():
    """Let no text stop a run: a console replaces what it cannot show, and where there is none, nothing is printed."""
    for name in 'stdout', 'stderr':
        if getattr(sys, name) is None:  # closed, or pythonw
            setattr(sys, name, open(os.devnull, 'w'))
        elif hasattr(getattr(sys, name), 'reconfigure'):
            getattr(sys, name).reconfigure(errors='replace')


def duration(seconds):
    """83.4 -> '1 min 23 s'"""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def peak_memory():
    """The most memory the process has had so far, and the most on the GPU, if it was used."""
    text = 'unknown'
    if sys.platform != 'win32':
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text = f'{(peak if sys.platform == "darwin" else 1024 * peak) / 1e9:.2f} GB'  # Linux counts in KiB
    if torch.cuda.is_initialized():
        text += f', on the GPU {torch.cuda.max_memory_allocated() / 1e9:.2f} GB'
    return text
