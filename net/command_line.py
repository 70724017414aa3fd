"""The command lines of the three scripts: flags that they share, types of arguments, how a script begins and ends.

Importing this takes no time: what is slow is imported where it is used, so that Ctrl-C is caught from the start.
"""
import argparse
import difflib
import importlib.util
import math
import os
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

# What one script writes and the next one reads.
DENSE = 'saves/initial_model.ptmodel'
PRUNED = 'saves/model_after_retraining.ptmodel'
SHARED = 'saves/model_after_weight_sharing.ptmodel'

# Arguments that cannot change the result of a run.
NO_PART_OF_THE_RUN = {'resume', 'restart', 'log', 'figures', 'test_batch_size', 'log_interval'}


# ---- flags -----------------------------------------------------------------------------------------------------------

class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        says_nothing = action.default is None or action.default is False
        return action.help if says_nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser with groups of flags, whose help ends with examples, and which says in one line what is wrong."""

    def __init__(self, description, groups, examples):
        super().__init__(description=description, epilog=f'examples:\n{examples}', formatter_class=HelpFormatter,
                         allow_abbrev=False)
        self.groups = {title: self.add_argument_group(title) for title in groups}

    def error(self, message):
        if message.startswith('unrecognized arguments: '):
            unknown = message.removeprefix('unrecognized arguments: ').split(' ')[0].split('=')[0]
            nearest = difflib.get_close_matches(unknown, self._option_string_actions, 1)
            message += f', did you mean {nearest[0]}?' if nearest else ''
        self.exit(2, f'error: {message} (see {self.prog} --help)\n')


def flag(name):
    """'batch_size' -> '--batch-size'"""
    return f'--{name.replace("_", "-")}'


def add_common_arguments(parser):
    add = parser.groups['data'].add_argument
    add('--data', metavar='FOLDER', default='data', help='folder with train/ and test/ images, folder of '
        'torchvision\'s CIFAR-10 (downloaded into data/ if it is not there), or the word digits')
    add('--no-cuda', action='store_true', help='use the CPU even if there is a GPU')
    add = parser.groups['output'].add_argument
    add('--log', type=output_file, metavar='FILE', default='log.txt', help='log file')
    add('--figures', type=figures_folder, metavar='FOLDER', help='draw figures of the run')


def add_training_arguments(parser, defaults, note=lambda name: ''):
    """The flags of a training; `note` says more of the defaults of those that `defaults` may leave out."""
    parser.groups['data'].add_argument(
        '--validation', type=number(int, 1), metavar='N', help='hold N training images out and report on them instead '
        'of the test set')
    add = parser.groups['training'].add_argument
    add('--optimizer', choices=['adam', 'sgd'], default=defaults.get('optimizer'),
        help=f'Adam, or SGD with Nesterov momentum {note("optimizer")}')
    add('--schedule', choices=['one-cycle', 'linear', 'cosine'], default=defaults.get('schedule'), help='learning '
        f'rate: up and down along a cosine, up and down along lines, or only down {note("schedule")}')
    add('--weight-decay', type=number(float, 0), metavar='X', default=defaults.get('weight_decay'),
        help=f'L2 penalty {note("weight_decay")}')
    add('--batch-size', type=number(int, 1), metavar='N', default=defaults.get('batch_size'),
        help=f'images per training step {note("batch_size")}')
    add('--test-batch-size', type=number(int, 1), metavar='N', default=1000, help='images per test step')
    add('--seed', type=number(int, 0, 2**63 - 1), metavar='N', default=42, help='random seed')
    add('--log-interval', type=number(int, 1), metavar='N', default=10, help='steps between two shown losses')
    interrupted = parser.groups['training'].add_mutually_exclusive_group()
    interrupted.add_argument('--resume', action='store_true', help='go on with an interrupted run (same arguments)')
    interrupted.add_argument('--restart', action='store_true', help='throw an interrupted run away')


def arguments_of_run(args):
    """Flag -> value, as text, of all arguments that the result depends on."""
    return {flag(name): str(value) for name, value in vars(args).items() if name not in NO_PART_OF_THE_RUN}


# ---- types of arguments ----------------------------------------------------------------------------------------------

def number(kind, low, high=math.inf):
    """An argparse type: a finite `int` or `float` in [low, high]."""
    expected = 'a whole number' if kind is int else 'a number'
    expected += f', at least {low}' if high == math.inf else f' from {low} to {high}'

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and value < math.inf):
            raise argparse.ArgumentTypeError(f'must be {expected}, got {text}')
        return value
    return parse


def by_layer(what, kind, low, high):
    """An argparse type: 'conv1=84,fc2=9' -> {'conv1': 84, 'fc2': 9}.

    Each is a `number(kind, low, high)`; errors call it `what`.
    """
    def parse(text):
        from net.models import AlexNet
        values = {}
        for part in text.split(','):
            name, equals, value = part.partition('=')
            if not equals:
                raise argparse.ArgumentTypeError(f'must be LAYER={what.upper()},..., got {text!r}')
            if name not in AlexNet.DEFAULT_PRUNE_RATE:
                raise argparse.ArgumentTypeError(
                    f'unknown layer {name!r}, expected one of {", ".join(AlexNet.DEFAULT_PRUNE_RATE)}')
            if name in values:
                raise argparse.ArgumentTypeError(f'{name} must be given once, got {text}')
            try:
                values[name] = number(kind, low, high)(value)
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentTypeError(f'{what} of {name} {error}') from None
        return values
    return parse


def output_file(path):
    """An argparse type: a file that can be written to later."""
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise argparse.ArgumentTypeError(f'must be a file in an existing folder, got {path}')
    return path


def figures_folder(path):
    """An argparse type: a folder, there or not, for figures, which need matplotlib."""
    if importlib.util.find_spec('matplotlib') is None:
        raise argparse.ArgumentTypeError('needs matplotlib, which is not installed: pip install matplotlib')
    if Path(path).exists() and not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f'must be a folder, got {path}')
    return path


# ---- what a run begins with ------------------------------------------------------------------------------------------

def pick_device(no_cuda):
    """The GPU if there is one and it is wanted, else the CPU; prints which one, and why."""
    import torch
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
    import numpy
    import torch
    arguments = shlex.join(sys.argv[1:] if argv is None else argv)
    return (f'--- {time.strftime("%Y-%m-%d %H:%M:%S")} {script} {arguments} (Python {sys.version.split()[0]}, '
            f'PyTorch {torch.__version__}, NumPy {numpy.__version__})')


def load_input(path, default, made_by, device):
    """The model that another script has made; UserError says which one, if the model is not at its default place."""
    from net.files import UserError
    from net.models import load_model
    if path == default and not Path(path).exists():
        raise UserError(f'{path}: no such file: run {made_by} in this folder first, or name a model with '
                        '--load-model-path')
    return load_model(path, device)


def load_splits(args, device):
    """The images to train on, those to report on, and what to call these, as `--data` and `--validation` say."""
    from net.data import load_images
    from net.files import UserError
    images = load_images(args.data).to(device)
    if not args.validation:
        return images, load_images(args.data, train=False).to(device), 'Test set'
    if args.validation >= len(images.labels):
        raise UserError(f'--validation must be less than the {len(images.labels)} training images of {args.data}, '
                        f'got {args.validation}')
    return *images.split(args.validation), 'Validation set'


def report(key, model, images, log, title='Test set', batch_size=1000):
    """Print the accuracy of the model on these images, log it under the homework's key, and return it, in percent."""
    import util
    accuracy = util.test(model, images=images, title=title, batch_size=batch_size)
    util.log(f'{key} {accuracy}', log)
    return accuracy


# ---- how a run ends --------------------------------------------------------------------------------------------------

def catch_ctrl_c():
    """End the process on Ctrl-C in one line, until `run` takes over: for the seconds that a script imports."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us has it ignored
        signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(*_):
    os.write(2, b'interrupted: nothing was begun\n')
    os._exit(130)  # an exception could be caught by what is being imported


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
    start = time.perf_counter()
    try:
        if signal.getsignal(signal.SIGINT) is _end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        import torch

        from net.files import UserError
        try:
            main()
            print(f'Finished in {duration(time.perf_counter() - start)}, peak memory {peak_memory()}')
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            sys.exit(f'error: {error}')
    except KeyboardInterrupt as stopped:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        hint = str(stopped) or 'there is nothing to resume'
        if checkpoint and checkpoint.exists():
            instead = ' in place of --restart' if '--restart' in sys.argv else ''
            hint = f'the same command with --resume{instead} goes on from {checkpoint}'
        print(f'interrupted: {hint}', file=sys.stderr)
        sys.exit(130)


def duration(seconds):
    """83.4 -> '1 min 23 s'"""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def peak_memory():
    """The most memory the process has had so far, and the most on the GPU, if it was used."""
    import torch
    text = 'unknown'
    if sys.platform != 'win32':
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text = f'{(peak if sys.platform == "darwin" else 1024 * peak) / 1e9:.2f} GB'  # Linux counts in KiB
    if torch.cuda.is_initialized():
        text += f', on the GPU {torch.cuda.max_memory_allocated() / 1e9:.2f} GB'
    return text
