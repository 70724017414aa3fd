"""The recipes of all stages, and the command lines of the three scripts.

A recipe names one result. It holds the settings of pruning, of sharing, and of sharing for the compact file. Some of
these are defaults of flags, the others are changed here.
"""
import argparse
import difflib
import importlib.util
import math
import os
import sys
from pathlib import Path

from net.data import is_image_folder
from net.errors import UserError
from net.files import ARCHIVE_MAGIC, begins_with, crc32_of
from net.live import count_hidden_units, count_nonzeros, live_part
from net.models import COMPACT, PRUNED, SHARED, WIDTHS, AlexNet

SHARING = {  # what most recipes have in common
    'optimizer': 'adam', 'batch_size': 256, 'weight_decay': 0, 'crop': False, 'teacher_share': 0,
    'layer_bits': {}, 'bias_bits': None, 'moving': False, 'bfloat16': False,
}
RANKING = {  # of pruning
    'optimizer': 'sgd', 'batch_size': 128, 'batch_norm': False, 'label_smoothing': 0, 'teacher_share': 0,
    'start_units': 640, 'epochs': 24, 'lr': 0.05, 'weight_decay': 5e-4,
    'keep': 2300, 'keep_units': 280, 'fc_cost': 6, 'prune_steps': 50, 'prune_lr': 0.02, 'regrow': 0,
    'crop_after_pruning': False, 'retrain_epochs': 30, 'retrain_lr': 0.05, 'retrain_weight_decay': 5e-5,
}
SMALLEST = {**SHARING, 'bits': 3, 'fc_bits': 3, 'bias_bits': 3, 'moving': True, 'bfloat16': True,
            'epochs': 20, 'lr': 2e-3}
RECIPES = {
    # For the homework's ranking, above 60 % accuracy: weights and units of a narrow network go in many small steps.
    # Chosen on 5,000 held-out training images.
    'ranking': {
        'pruning': RANKING,
        'sharing': {**SHARING, 'bits': 5, 'fc_bits': 2, 'epochs': 6, 'lr': 1e-3},
        'compact': SMALLEST,
    },
    # Nothing lost: a network that was trained for long teaches what is left of it, and pruned weights may come back:
    # `regrow` is the least part of those kept that do. Chosen on 5,000 held-out training images.
    'accurate': {
        'pruning': {
            'optimizer': 'sgd', 'batch_size': 128, 'batch_norm': True, 'label_smoothing': 0.1, 'teacher_share': 0.7,
            'start_units': 1664, 'epochs': 80, 'lr': 0.3, 'weight_decay': 5e-4,
            'keep': 85_000, 'keep_units': 720, 'fc_cost': 6, 'prune_steps': 40, 'prune_lr': 0.02, 'regrow': 0.05,
            'crop_after_pruning': True, 'retrain_epochs': 40, 'retrain_lr': 0.05, 'retrain_weight_decay': 5e-4,
        },
        'sharing': {**SHARING, 'bits': 5, 'fc_bits': 5, 'epochs': 8, 'lr': 1e-3, 'crop': True, 'teacher_share': 0.7},
        'compact': {
            **SHARING, 'bits': 4, 'fc_bits': 4, 'layer_bits': {'conv1': 7, 'conv2': 5, 'conv4': 3, 'conv5': 3},
            'bias_bits': 4, 'bfloat16': True, 'epochs': 8, 'lr': 5e-4, 'crop': True, 'teacher_share': 0.7,
        },
    },
    # What the homework's slides ask for: prune once, at the rates of the paper's Table 4, train again, then k-means
    # alone. Nothing was tuned here.
    'paper': {
        'pruning': {
            'optimizer': 'adam', 'batch_size': 256, 'batch_norm': False, 'label_smoothing': 0, 'teacher_share': 0,
            'start_units': None, 'epochs': 20, 'lr': 1e-3, 'weight_decay': 0,
            'keep': None, 'keep_units': None, 'fc_cost': 1, 'prune_steps': 1, 'prune_lr': 1e-3, 'regrow': 0,
            'crop_after_pruning': True, 'retrain_epochs': 12, 'retrain_lr': 1e-3, 'retrain_weight_decay': 0,
        },
        'sharing': {**SHARING, 'bits': 5, 'fc_bits': 5, 'epochs': 0, 'lr': 1e-3},
        'compact': {**SHARING, 'bits': 5, 'fc_bits': 5, 'bias_bits': 5, 'bfloat16': True, 'epochs': 6, 'lr': 1e-3},
    },
    # As ranking, for scikit-learn's digits: fewer and simpler images need fewer steps, and bear more weights.
    'digits': {
        'pruning': {**RANKING, 'validation': 100, 'batch_size': 64, 'epochs': 20, 'lr': 0.02, 'keep': 6000,
                    'prune_steps': 20, 'retrain_lr': 0.02},
        'sharing': {**SHARING, 'bits': 5, 'fc_bits': 2, 'batch_size': 64, 'epochs': 12, 'lr': 1e-3},
        'compact': {**SMALLEST, 'batch_size': 64},
    },
}

# Arguments that cannot change the result of a run.
NO_PART_OF_THE_RUN = {'resume', 'restart', 'log', 'figures', 'test_batch_size', 'log_interval'}

# Flags that huffman_coding.py once had -> the command that does it now.
MOVED = {
    '--compact': 'python -m net.compact write MODEL FILE',
    '--from-compact': 'python -m net.compact read FILE MODEL',
    '--save-model-path': 'python -m net.compact read FILE MODEL',
    '--classify': 'python -m net.compact classify IMAGE',
    '--export': 'python -m net.compact export FILE',
}
MAX_BATCH = 10**6  # images
SYNONYMS = {'--learning-rate': '--lr', '--re-epochs': '--retrain-epochs'}


# ---- pruning.py ------------------------------------------------------------------------------------------------------

def parse_pruning(argv=None):
    """The arguments of pruning.py: its flags, and the other settings of its recipe."""
    given, parser = given_arguments(pruning_parser(), argv), pruning_parser()
    thresholds = [name for name in ('rates', 'sensitivity') if name in given]
    recipe = given.get('recipe') or ('paper' if thresholds else default_recipe(given))
    if thresholds and recipe != 'paper':
        parser.error(f'{flag(thresholds[0])} prunes as the paper does, at --recipe paper, got --recipe {recipe}')
    parser.set_defaults(**RECIPES[recipe]['pruning'], recipe=recipe)
    args = parser.parse_args(argv)
    refuse_without_effect(parser, given, [
        (['start_units', 'keep', 'keep_units'], 'a recipe that shares out a budget, got --recipe paper',
         recipe != 'paper'),
        (['start_units', 'epochs', 'lr', 'dense_only'], 'a first training, got --load-model-path',
         not args.load_model_path),
        (['keep', 'keep_units', 'rates', 'sensitivity', 'prune_steps', 'retrain_epochs', 'retrain_lr', 'figures'],
         'pruning, got --dense-only', not args.dense_only),
        (['prune_steps'], 'several thresholds, got --sensitivity, which prunes once', args.sensitivity is None)])
    if args.batch_norm and args.batch_size == 1:
        parser.error(f'--batch-size must be at least 2 with the batch normalisation of --recipe {recipe}, got 1')
    return args


def pruning_parser():
    parser = Parser('pruning.py', 'Stage 1 of Deep Compression: train the network, prune its small weights, retrain.',
                    ['data', 'training', 'pruning', 'output'],
                    ['--validation 5000 --figures figures', '--recipe paper --rates conv1=84,fc2=9'])
    add_common_arguments(parser)
    add_training_arguments(parser)
    add = parser.groups['data'].add_argument
    add('--load-model-path', type=file_name, metavar='FILE',
        help='trained model to start from: skips the first training')
    add = parser.groups['training'].add_argument
    add('--start-units', type=number(int, len(WIDTHS), sum(WIDTHS)), metavar='N', help='hidden units to begin with')
    add('--epochs', type=number(int, 1), metavar='N', help='epochs of the first training')
    add('--lr', type=number(float, 0), metavar='X', help='highest learning rate of the first training')
    add('--dense-only', action='store_true', help='stop after the first training')
    add('--retrain-epochs', type=number(int, 1), metavar='N', help='epochs after pruning')
    add('--retrain-lr', type=number(float, 0), metavar='X', help='highest learning rate after pruning')
    add = parser.groups['pruning'].add_argument
    goal = parser.groups['pruning'].add_mutually_exclusive_group()
    goal.add_argument('--keep', type=number(int, len(AlexNet.DEFAULT_PRUNE_RATE)), metavar='N',
                      help='weights to keep in all')
    add('--keep-units', type=number(int, len(WIDTHS)), metavar='N', help='hidden units to keep in all')
    goal.add_argument('--rates', type=rates, metavar='LAYER=PERCENT,...',
                      help='percent of the weights to keep in these layers, in the others the paper\'s')
    goal.add_argument('--sensitivity', type=number(float, 0), metavar='X',
                      help='prune below so many standard deviations of a layer')
    add('--prune-steps', type=number(int, 1), metavar='N', help='prune in N steps, with an epoch between two of them')
    return parser


def check_budgets(model, args):
    """Raise UserError if the model has fewer live weights or units than are to be kept."""
    if args.keep is None:  # percentages or deviations
        return
    with live_part(model):
        n_weights = sum(count_nonzeros(layer) for _, layer in model.layers())
    for name, n, what in ('keep', n_weights, 'weights'), ('keep_units', count_hidden_units(model), 'units'):
        kept = getattr(args, name)
        if kept is not None and kept > n:
            is_default = kept == RECIPES[args.recipe]['pruning'][name]
            raise UserError(f'{flag(name)} must be at most the {n} live {what} of the network, got {kept}'
                            + f', the default of --recipe {args.recipe}' * is_default)


# ---- weight_share.py -------------------------------------------------------------------------------------------------

def parse_sharing(argv=None):
    """The arguments of weight_share.py: its flags, and the other settings of its recipe."""
    given, parser = given_arguments(sharing_parser(), argv), sharing_parser()
    recipe, compact = given.get('recipe') or default_recipe(given), 'compact' in given
    parser.set_defaults(**RECIPES[recipe]['compact' if compact else 'sharing'], recipe=recipe,
                        save_model_path=COMPACT if compact else SHARED)
    args = parser.parse_args(argv)
    refuse_without_effect(parser, given, [
        (['lr', 'batch_size'], 'a training of the shared values, got --epochs 0', args.epochs > 0)])
    if 'bits' in given:
        args.layer_bits = {}  # of single convolutions
    return args


def sharing_parser():
    parser = Parser('weight_share.py', 'Stage 2 of Deep Compression: the weights of a layer share a few values.',
                    ['data', 'training', 'weight sharing', 'output'], ['--fc-bits 5', '--compact'])
    add_common_arguments(parser)
    add_training_arguments(parser)
    parser.groups['data'].add_argument('--load-model-path', type=file_name, metavar='FILE', default=PRUNED,
                                       help='pruned model')
    add = parser.groups['training'].add_argument
    add('--epochs', type=number(int, 0), metavar='N', help='epochs of training the shared values')
    add('--lr', type=number(float, 0), metavar='X', help='highest learning rate')
    add = parser.groups['weight sharing'].add_argument
    add('--bits', type=number(int, 1, 8), metavar='BITS', help='2^BITS shared values in each convolution')
    add('--fc-bits', type=number(int, 1, 8), metavar='BITS', help='the same for fully connected layers')
    add('--compact', action='store_true', help='share for the compact file: fewer values, not for handing in')
    parser.groups['output'].add_argument('--save-model-path', type=file_name, metavar='FILE', help='shared model')
    return parser


# ---- huffman_coding.py -----------------------------------------------------------------------------------------------

def parse_coding(argv=None):
    """The arguments of huffman_coding.py."""
    return coding_parser().parse_args(argv)


def coding_parser():
    parser = Parser('huffman_coding.py', 'Stage 3 of Deep Compression: encode, decode again, and check what is handed '
                    'in.', ['data', 'output'], ['--student-id b08902000', '--load-model-path mine.ptmodel'], MOVED)
    add_common_arguments(parser)
    parser.groups['data'].add_argument('--load-model-path', type=file_name, metavar='FILE', default=SHARED,
                                       help='shared model')
    parser.groups['output'].add_argument('--student-id', type=student_id, metavar='ID',
                                         help='write the files to hand in, ID.ptmodel and ID.zip')
    return parser


PARSERS = {'pruning.py': pruning_parser, 'weight_share.py': sharing_parser, 'huffman_coding.py': coding_parser}


# ---- what they share -------------------------------------------------------------------------------------------------

class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        says_nothing = action.default is None or action.default is False
        return action.help if says_nothing else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message):
        self.exit(2, f'error: {message} (see {self.prog} --help)\n')


class Parser(OneLineParser):
    """A parser with groups of flags, whose help ends with examples, and which says in one line what is wrong.

    `moved` names flags that are gone, and the command that each has become.
    """

    def __init__(self, script, description, groups, examples, moved=None):
        lines = [f'  python {script} {example}' for example in examples]
        super().__init__(script, description=description, epilog='\n'.join(['examples:', *lines]),
                         formatter_class=HelpFormatter, allow_abbrev=False)
        self.groups = {title: self.add_argument_group(title) for title in groups}
        self.moved = moved or {}

    def error(self, message):
        if message.startswith('unrecognized arguments: '):
            message += self.advice(message.removeprefix('unrecognized arguments: ').split(' ')[0].split('=')[0])
        super().error(message)

    def advice(self, unknown):
        """What to say of a flag that this parser does not know."""
        if unknown in self.moved:
            return f', now it is: {self.moved[unknown]}'
        for script, make_parser in PARSERS.items():
            if unknown in make_parser()._option_string_actions:
                return f', which is a flag of {script}'
        parts = [settings for recipe in RECIPES.values() for settings in recipe.values()]
        if any(unknown == flag(name) for settings in parts for name in settings):
            return ', which is a setting of the recipes in net/arguments.py'
        near = difflib.get_close_matches(SYNONYMS.get(unknown, unknown), self._option_string_actions, 1)
        return f', did you mean {near[0]}?' if near else ''


def flag(name):
    """'batch_size' -> '--batch-size'"""
    return f'--{name.replace("_", "-")}'


def given_arguments(parser, argv=None):
    """Name -> value of the arguments that are given, without defaults: these depend on the recipe."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    argv = sys.argv[1:] if argv is None else argv
    argv = [word for word in argv if word not in ('-h', '--help')]  # help is for the parser that has the defaults
    return vars(parser.parse_known_args(argv)[0])  # it says what is unknown, too


def default_recipe(given):
    return 'digits' if given.get('data') == 'digits' and not is_image_folder('digits') else 'ranking'


def refuse_without_effect(parser, given, rules):
    """End with an error if an argument is given that has no effect; a rule is (names, what they go with, if it is so).
    """
    for names, needed, have_effect in rules:
        for name in names:
            if name in given and not have_effect:
                parser.error(f'{flag(name)} goes with {needed}')


def add_common_arguments(parser):
    add = parser.groups['data'].add_argument
    add('--data', type=not_empty, metavar='FOLDER', default='data',
        help='folder with train/ and test/ images or CIFAR-10, or: digits')
    add('--no-cuda', action='store_true', help='use the CPU even if there is a GPU')
    add = parser.groups['output'].add_argument
    add('--log', type=log_file, metavar='FILE', default='log.txt', help='log file')
    add('--figures', type=figures_folder, metavar='FOLDER', help='draw figures of the run')


def add_training_arguments(parser):
    """The flags of the two scripts that train."""
    parser.groups['data'].add_argument('--validation', type=number(int, 1), metavar='N',
                                       help='report on N held-out training images, not on the test set')
    add = parser.groups['training'].add_argument
    add('--recipe', choices=RECIPES, help='which result: a high rate, nothing lost, the slides\' way, or digits')
    add('--batch-size', type=number(int, 1, MAX_BATCH), metavar='N', help='images per training step')
    add('--test-batch-size', type=number(int, 1, MAX_BATCH), metavar='N', default=1000, help='images per test step')
    add('--seed', type=number(int, 0, 2**63 - 1), metavar='N', default=42, help='random seed')
    add('--log-interval', type=number(int, 1), metavar='N', default=10, help='steps between two shown losses')
    unfinished = parser.groups['training'].add_mutually_exclusive_group()
    unfinished.add_argument('--resume', action='store_true', help='go on with an unfinished run (same settings)')
    unfinished.add_argument('--restart', action='store_true', help='throw an unfinished run away')


def arguments_of_run(args):
    """Flag -> value, as text, of all arguments and settings that the result depends on, and what model is loaded."""
    texts = {flag(name): str(value) for name, value in vars(args).items() if name not in NO_PART_OF_THE_RUN}
    loaded, result = args.load_model_path, vars(args).get('save_model_path', PRUNED)  # which may replace it
    if loaded and Path(loaded).is_file() and Path(loaded).resolve() != Path(result).resolve():
        texts['--load-model-path'] += f' (CRC-32 {crc32_of(loaded):08x})'
    return texts


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


def rates(text):
    """An argparse type: 'conv1=84,fc2=9' -> {'conv1': 84.0, 'fc2': 9.0}, percent."""
    percent_of = {}
    for part in text.split(','):
        name, equals, percent = part.partition('=')
        if not equals:
            raise argparse.ArgumentTypeError(f'must be LAYER=PERCENT,..., got {text!r}')
        if name not in AlexNet.DEFAULT_PRUNE_RATE:
            raise argparse.ArgumentTypeError(
                f'unknown layer {name!r}, expected one of {", ".join(AlexNet.DEFAULT_PRUNE_RATE)}')
        if name in percent_of:
            raise argparse.ArgumentTypeError(f'{name} must be given once, got {text}')
        try:
            percent_of[name] = number(float, 0, 100)(percent)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f'percent of {name} {error}') from None
    return percent_of


def student_id(text):
    """An argparse type: letters and digits, since the id becomes a file name."""
    if not (text.isascii() and text.isalnum()):
        raise argparse.ArgumentTypeError(f'must be letters and digits, got {text!r}')
    return text


def not_empty(text):
    """An argparse type: any text; an empty one comes from a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty, got ''")
    return text


def file_name(path):
    """An argparse type: a file, there or not; an empty name, of a variable that is not set, would mean none."""
    path = os.path.expanduser(path)  # shells leave the ~ of --log=~/log.txt
    if not path or Path(path).is_dir():
        raise argparse.ArgumentTypeError(f'must be a file, got {path or repr(path)}')
    return path


def output_file(path):
    """An argparse type: a file that can be written to later."""
    path = file_name(path)
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f'must be a file in an existing folder, got {path}')
    return path


def log_file(path):
    """An argparse type: a file that text can be added to."""
    if begins_with(path, ARCHIVE_MAGIC):
        raise argparse.ArgumentTypeError(f'must be a text file, got {path}, a .ptmodel or another archive')
    return output_file(path)


def folder_name(path):
    """An argparse type: a folder, there or not."""
    path = os.path.expanduser(path)
    if not path or Path(path).is_file():
        raise argparse.ArgumentTypeError(f'must be a folder, got {path or repr(path)}')
    return path


def figures_folder(path):
    """An argparse type: a folder, there or not, for figures, which need matplotlib."""
    if importlib.util.find_spec('matplotlib') is None:
        raise argparse.ArgumentTypeError('needs matplotlib, which is not installed: pip install matplotlib')
    os.environ.pop('MPLBACKEND', None)  # files need no backend, and that of a notebook may not be here
    return folder_name(path)
