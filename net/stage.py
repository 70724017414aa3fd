"""What every stage begins and ends with: device, header of the log, inputs, report, how a script ends."""
import json
import math
import os
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import util
from net.data import load_images
from net.errors import UserError, is_out_of_memory
from net.files import crc32_of, replace_file
from net.models import COMPACT, PRUNED, SHARED, load_model, save_model

import numpy
import torch

NOTE = {'crc32': int, 'classes': list, 'data': str, 'recipe': str, 'validation': int}  # how a model was made


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


def load_input(args, device):
    """The model at --load-model-path; prints what was otherwise when it was made, which may be meant, or forgotten.

    UserError says which script makes it, if it is not at its default place.
    """
    path = args.load_model_path
    made_by = {Path(PRUNED): 'pruning.py', Path(SHARED): 'weight_share.py'}.get(Path(path))
    if made_by and not Path(path).exists():
        raise UserError(f'{path}: no such file: run {made_by} in this folder first, or name a model with '
                        '--load-model-path')
    model = load_model(path, device)
    made, now = _note_of(path), vars(args)
    if made:
        for name in 'data', 'recipe':
            if name in now and Path(made[name]) != Path(now[name]):  # a folder may end with a slash
                print(f'Note: {path} was made with --{name} {made[name]}, got --{name} {now[name]}')
        if (now.get('validation') or 0) > made['validation']:
            print(f'Note: {path} was trained on some of the images that --validation {args.validation} holds out now: '
                  'the accuracy on them promises too much')
    return model


def note_if_older(path):
    """Print a note if the pruned model is newer than the shared one at `path`, which is to be encoded."""
    is_made_of_it = Path(path) in (Path(SHARED), Path(COMPACT)) and Path(PRUNED).exists()
    if is_made_of_it and os.path.getmtime(PRUNED) > os.path.getmtime(path):
        command = 'weight_share.py' + ' --compact' * (Path(path) == Path(COMPACT))
        print(f'Note: {PRUNED} is newer than {path}: if you want it encoded, run {command} first')


def load_splits(args, device):
    """The images to train on, those to report on, and what to call these, as `--data` and `--validation` say."""
    images = load_images(args.data)
    print(f'Images: {args.data}, {len(images.labels):,} to train on, of {len(images.classes)} classes: '
          f'{", ".join(images.classes[:3])}' + ', ...' * (len(images.classes) > 3))
    if len(images.classes) == 1:
        raise UserError(f'{args.data}: found one class, {images.classes[0]}, expected two or more, each a folder in '
                        'train/ and in test/')
    if not args.validation:
        test_images = load_images(args.data, train=False)
        n_known = count_known(test_images, images)
        if n_known > len(test_images.labels) / 20:  # a few, as many data sets have them, say little
            print(f'Note: {n_known:,} of the {len(test_images.labels):,} test images are training images as well: the '
                  'accuracy on them promises too much')
        return images.to(device), test_images.to(device), 'Test set'
    if args.validation >= len(images.labels):
        raise UserError(f'--validation must be less than the {len(images.labels)} training images of {args.data}, '
                        f'got {args.validation}')
    return *(part.to(device) for part in images.split(args.validation)), 'Validation set'


def count_known(images, others):
    """How many of these images are among the others, pixel by pixel."""
    known = {hash(pixels.tobytes()) for pixels in others.pixels.numpy()}
    return sum(hash(pixels.tobytes()) in known for pixels in images.pixels.numpy())


def report(key, model, images, log, title='Test set', batch_size=1000):
    """Print the accuracy of the model on these images, log it under the homework's key, and return it, in percent."""
    accuracy = util.test(model, images=images, title=title, batch_size=batch_size)
    util.log(f'{key} {accuracy}', log)
    return accuracy


def accuracy(model, images, batch_size):
    """In percent, without a word."""
    return 100 * util.evaluate(model, images, batch_size)[1] / len(images.labels)


def save(model, path, images, args):
    """Write a model, and beside it, in `<path>.note`, of which images and by which arguments it was made."""
    made = args.load_model_path and _note_of(args.load_model_path)  # now: it may be what is replaced
    held_out = min(args.validation or 0, made['validation'] if made else math.inf)  # from the first training on
    save_model(model, path)
    note = {'crc32': crc32_of(path), 'classes': images.classes, 'data': args.data, 'recipe': args.recipe,
            'validation': held_out}
    with replace_file(f'{path}.note') as file:
        file.write(json.dumps(note, indent=1).encode())


def check_images(path, model, images, data):
    """Raise UserError if the model was trained on images of other classes, by the note beside it or by their number."""
    made = _note_of(path)
    if not made:
        print(f'Note: {path} has no note of its classes beside it: are they those of --data {data}?')
    elif made['classes'] != list(images.classes):
        pairs = zip_longest(made['classes'], images.classes, fillvalue='none')
        theirs, ours = next(pair for pair in pairs if pair[0] != pair[1])
        raise UserError(f'{path}: was trained with --data {made["data"]}, got --data {data}: a class is {theirs} '
                        f'there, {ours} here')
    if model.n_classes != len(images.classes):
        raise UserError(f'{path}: tells {model.n_classes} classes apart, --data {data} has {len(images.classes)}')


def _note_of(path):
    """What `save` noted of this model; None if there is no such note, or it is that of another model."""
    try:
        note = json.loads(Path(f'{path}.note').read_text('utf-8'))
    except (OSError, ValueError):  # a model from elsewhere has none
        return None
    is_one = isinstance(note, dict) and all(isinstance(note.get(name), kind) for name, kind in NOTE.items())
    return note if is_one and note['crc32'] == crc32_of(path) else None


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
    except (UserError, OSError) as error:
        sys.exit(f'error: {error}')
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(f'error: not enough memory: {str(error) or "the system gives no more"}')
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
