"""Stage 1 of Deep Compression: train the network, prune its small weights, retrain what is left."""
from net.command_line import catch_ctrl_c

if __name__ == '__main__':
    catch_ctrl_c()  # before the imports that take seconds

import argparse
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR
from tqdm import tqdm

import util
from net import command_line
from net.batch_norm import batch_normalised
from net.checkpoint import PATH, Checkpoint
from net.command_line import by_layer, number
from net.data import Images, batches
from net.files import UserError, one_run_per_folder
from net.live import (
    count_alive,
    count_hidden_units,
    live_network,
    live_part,
    live_units,
    remove_dead_weights,
    state_like,
)
from net.models import WIDTHS, AlexNet, load_model, replace_zeros, save_model
from net.prune import CRITERIA, SENSITIVITY, amount_to_keep, number_to_keep, percentile_threshold

# Defaults of flags, chosen on 5,000 held-out training images.
RECIPES = {
    # The highest compression rate above 60 % accuracy: weights and units of a narrow network go in many small steps.
    'ranking': {'optimizer': 'sgd', 'schedule': 'linear', 'batch_size': 128, 'crop': 'first', 'batch_norm': False,
                'start_units': 640, 'epochs': 24, 'lr': 0.05, 'weight_decay': 5e-4,
                'prune': 'lamp', 'keep': 2300, 'keep_units': 280, 'fc_cost': 6, 'prune_steps': 50, 'prune_lr': 0.02,
                'retrain_epochs': 30, 'retrain_lr': 0.05, 'retrain_weight_decay': 5e-5,
                'label_smoothing': 0, 'distill': 0},
    # Little accuracy lost: a network that was trained for long teaches what is left of it after pruning. How much is
    # left was set by bytes: the compact file takes less than a 900th of the whole.
    'accurate': {'optimizer': 'sgd', 'schedule': 'linear', 'batch_size': 128, 'crop': 'always', 'batch_norm': True,
                 'start_units': 1664, 'epochs': 80, 'lr': 0.3, 'weight_decay': 5e-4,
                 'prune': 'lamp', 'keep': 97_000, 'keep_units': 520, 'fc_cost': 6, 'prune_steps': 40, 'prune_lr': 0.02,
                 'retrain_epochs': 40, 'retrain_lr': 0.05, 'retrain_weight_decay': 5e-4,
                 'label_smoothing': 0.1, 'distill': 0.7},
    # Han et al. 2016: prune once, at the rates of Table 4.
    'paper': {'optimizer': 'adam', 'schedule': 'one-cycle', 'batch_size': 256, 'crop': 'always', 'batch_norm': False,
              'start_units': None, 'epochs': 20, 'lr': 1e-3, 'weight_decay': 0,
              'prune': 'percentile', 'keep': None, 'keep_units': None, 'fc_cost': 1, 'prune_steps': 1, 'prune_lr': 1e-3,
              'retrain_epochs': 12, 'retrain_lr': 1e-3, 'retrain_weight_decay': 0, 'label_smoothing': 0, 'distill': 0},
}
GOALS = {'percentile': 'rates', 'std': 'sensitivity'}  # criterion -> its flag; a budget, --keep, for all others

SCANNED_PERCENTS = 80, 60, 40, 30, 20, 10, 5, 2  # of the weights kept, for the figure of the sensitivity
TEMPERATURE = 2  # that the answers of a teacher, and of the network that learns from it, are divided by
PHASES = 'initial training', 'pruning', 'retraining'


# ---- arguments -------------------------------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = make_parser()
    given = parser.parse_args(argv)  # flags with a default of the recipe are None, unless they are given
    asked = next((criterion for criterion in CRITERIA if getattr(given, goal_of(criterion)) is not None), None)
    criterion = given.prune or asked
    if criterion and asked and goal_of(criterion) != goal_of(asked):
        parser.error(f'{command_line.flag(goal_of(asked))} goes with --prune {asked}, got --prune {criterion}')
    recipe = given.recipe or ('paper' if criterion in GOALS else 'ranking')
    criterion = criterion or RECIPES[recipe]['prune']
    if criterion not in GOALS and (given.keep or RECIPES[recipe]['keep']) is None:
        parser.error(f'--prune {criterion} needs --keep, got --recipe {recipe} without it')
    if criterion == 'std' and (given.prune_steps or 1) > 1:
        parser.error(f'--prune std prunes once, got --prune-steps {given.prune_steps}')
    parser.set_defaults(**RECIPES[recipe], recipe=recipe)
    args = parser.parse_args(argv)
    args.prune, args.rates = criterion, args.rates or {}
    if criterion in GOALS:
        args.keep = None
    if criterion == 'std':
        args.prune_steps, args.sensitivity = 1, SENSITIVITY if args.sensitivity is None else args.sensitivity
    if args.batch_norm and args.batch_size == 1:
        parser.error('--batch-norm needs a --batch-size of at least 2, got 1')
    refuse_flags_without_effect(parser, given, args)
    return args


def refuse_flags_without_effect(parser, given, args):
    after_training = ['prune', 'keep', 'keep_units', 'rates', 'sensitivity', 'fc_cost', 'prune_steps', 'prune_lr',
                      'retrain_epochs', 'retrain_lr', 'retrain_weight_decay', 'crop', 'distill', 'figures']
    for flags, needed, have_effect in [
            (['start_units', 'epochs', 'lr', 'dense_only'], 'a first training, got --load-model-path',
             args.load_model_path is None),
            (after_training, 'pruning, got --dense-only', not args.dense_only),
            (['fc_cost'], f'--keep or --keep-units, got --prune {args.prune}',
             args.prune not in GOALS or args.keep_units is not None),
            (['prune_lr'], 'more than one pruning step, got --prune-steps 1', args.prune_steps > 1)]:
        for flag in flags:
            if getattr(given, flag) is not None and not have_effect:
                parser.error(f'{command_line.flag(flag)} goes with {needed}')


def goal_of(criterion):
    return GOALS.get(criterion, 'keep')


def of_recipe(name):
    """The defaults of a flag, for its help."""
    return '(' + ', '.join(f'{recipe}: {defaults[name]}' for recipe, defaults in RECIPES.items()
                           if defaults[name] is not None) + ')'


def make_parser():
    parser = command_line.Parser(__doc__, ['data', 'training', 'pruning', 'output'], EXAMPLES)
    command_line.add_common_arguments(parser)
    command_line.add_training_arguments(parser, {}, of_recipe)

    add = parser.groups['data'].add_argument
    add('--load-model-path', metavar='FILE', help='trained model: skips the first training; with --validation, it must '
        'have been trained with the same --validation')
    add = parser.groups['training'].add_argument
    add('--recipe', choices=RECIPES, help='which defaults other flags have (paper with --rates, --sensitivity or the '
        '--prune of these, else ranking)')
    add('--start-units', type=number(int, len(WIDTHS), sum(WIDTHS)), metavar='N', help='hidden units to begin with, '
        'about as many in each layer: where few weights will be left, a wide network is not needed '
        f'{of_recipe("start_units")}')
    add('--epochs', type=number(int, 1), metavar='N', help=f'epochs of the first training {of_recipe("epochs")}')
    add('--lr', type=number(float, 0), metavar='X',
        help=f'highest learning rate of the first training {of_recipe("lr")}')
    add('--dense-only', action='store_true', default=None,  # not given, as with other flags
        help='stop after the first training: '
        f'{command_line.DENSE} is the network before it is compressed')
    add('--crop', choices=['always', 'first'], help='random crops of the images always, or only in the first training: '
        f'a network with few weights left does without {of_recipe("crop")}')
    add('--batch-norm', action=argparse.BooleanOptionalAction, help='normalise the hidden layers over each batch while '
        f'they are trained; it ends up in weights and biases {of_recipe("batch_norm")}')
    add('--label-smoothing', type=number(float, 0, 1), metavar='X', help='share of each label that goes to all classes '
        f'alike {of_recipe("label_smoothing")}')
    add('--distill', type=number(float, 0, 1), metavar='X', help='share of the loss, from pruning on, that is the '
        f'distance to the answers of the dense network {of_recipe("distill")}')
    add('--retrain-epochs', type=number(int, 1), metavar='N',
        help=f'epochs after pruning {of_recipe("retrain_epochs")}')
    add('--retrain-lr', type=number(float, 0), metavar='X',
        help=f'highest learning rate after pruning {of_recipe("retrain_lr")}')
    add('--retrain-weight-decay', type=number(float, 0), metavar='X',
        help=f'L2 penalty after pruning {of_recipe("retrain_weight_decay")}')
    add_pruning_arguments(parser)
    return parser


def add_pruning_arguments(parser):
    add = parser.groups['pruning'].add_argument
    add('--prune', choices=CRITERIA, help='what tells which weights go: percentile: a percentage of each layer '
        '(--rates); std: its standard deviation, once (--sensitivity); lamp: a layer-adaptive score under a budget '
        f'(--keep) {of_recipe("prune")}')
    goal = parser.groups['pruning'].add_mutually_exclusive_group()
    goal.add_argument('--keep', type=number(int, 1), metavar='N',
                      help=f'weights to keep in all, those with the highest scores {of_recipe("keep")}')
    add('--keep-units', type=number(int, len(WIDTHS)), metavar='N', help='hidden units to keep in all; those with the '
        f'smallest products of incoming and outgoing weights go in each step {of_recipe("keep_units")}')
    goal.add_argument('--rates', type=by_layer('percent', float, 0, 100), metavar='LAYER=PERCENT,...',
                      help='percent of the weights to keep in these layers, and the paper\'s in the others')
    goal.add_argument('--sensitivity', type=number(float, 0), metavar='X',
                      help=f'threshold in standard deviations of a layer ({SENSITIVITY} for --prune std alone)')
    add('--fc-cost', type=number(float, 0.01), metavar='X', help='with --keep, --keep-units: how many times the score '
        'of a convolution\'s weight or unit one of a fully connected layer needs to stay, since it takes more bytes '
        f'{of_recipe("fc_cost")}')
    add('--prune-steps', type=number(int, 1), metavar='N',
        help=f'reach the goal in N steps, with an epoch of training between two of them {of_recipe("prune_steps")}')
    add('--prune-lr', type=number(float, 0), metavar='X',
        help=f'learning rate between the steps, constant after a warm-up {of_recipe("prune_lr")}')


EXAMPLES = """\
  python pruning.py --validation 5000 --figures figures
  python pruning.py --recipe paper --rates conv1=84,fc2=9"""


# ---- training --------------------------------------------------------------------------------------------------------

def loss_of_batch(output, pixels, labels, smoothing=0., teacher=None, share=0.):
    """The loss of log-probabilities (n, classes), as a scalar tensor.

    Of each label, `smoothing` goes to all classes alike (Szegedy et al. 2016, section 7). With a teacher, `share` of
    the loss is how far the network is from the teacher's answers, both softened (Hinton et al. 2015, section 2).
    """
    loss = (1 - smoothing) * F.nll_loss(output, labels) - smoothing * output.mean()
    if teacher is None:
        return loss
    with torch.no_grad():
        answers = (teacher(pixels) / TEMPERATURE).softmax(1)
    distance = F.kl_div((output / TEMPERATURE).log_softmax(1), answers, reduction='batchmean')
    return (1 - share) * loss + share * TEMPERATURE ** 2 * distance  # as large a gradient as without a temperature


def train(model, images, optimizer, scheduler, epochs, batch_size=256, log_interval=10, crop=True, checkpoint=None,
          loss_of=loss_of_batch):
    """Train in place; weights that are zero when it starts are pruned, and stay zero.

    One step of the scheduler follows each of the `epochs * ceil(n / batch_size)` steps of the optimizer. With a
    checkpoint, it is written after each epoch, and a run that is resumed goes on where it was.
    """
    masks = pruning_masks(model, optimizer)
    done = checkpoint.restore(model, optimizer, scheduler) if checkpoint else 0
    for epoch in tqdm(range(done + 1, epochs + 1), 'Epochs', epochs, initial=done, leave=False, disable=None):
        loss = train_epoch(model, images, optimizer, scheduler, masks, f'Epoch {epoch}/{epochs}',
                           batch_size, log_interval, loss_of, crop)
        if checkpoint:
            checkpoint.save(model, optimizer, scheduler, epoch, loss)


def train_epoch(model, images, optimizer, scheduler, masks, title, batch_size, log_interval, loss_of, crop):
    """Train one epoch in place, with a bar and a line that begin with `title`; return the average loss."""
    model.train()
    n, total_loss, alive, start = len(images.labels), 0.0, count_alive(model), time.perf_counter()
    with tqdm(desc=title, total=n, unit=' images', unit_scale=True, leave=False, disable=None) as bar:
        for step, (pixels, labels) in enumerate(batches(images, batch_size, crop)):
            optimizer.zero_grad()
            loss = loss_of(model(pixels), pixels, labels)
            loss.backward()
            for param, mask in masks:
                param.grad.mul_(mask)  # zero the gradients of pruned weights (Han et al. 2015, section 3.3)
            optimizer.step()
            lr = scheduler.get_last_lr()[0]  # of this step
            scheduler.step()
            total_loss += loss.detach()
            bar.update(len(labels))
            if step % log_interval == 0:
                bar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{lr:.1e}', alive=f'{alive:,}')
        average_loss = total_loss.item() / math.ceil(n / batch_size)
    with tqdm.external_write_mode():  # the bars make way for the line
        print(f'{title}: Average loss: {average_loss:.4f}, lr {lr:.1e}, {alive} parameters alive, '
              f'{n / (time.perf_counter() - start):.0f} images/s', flush=True)
    return average_loss


def pruning_masks(model, optimizer):
    """(parameter, mask) for every parameter with zeros: 0.0 where pruned, 1.0 elsewhere. Works in place.

    What the optimizer remembers of pruned weights (momentum) is cleared, once: with neither history nor gradient the
    update of a pruned weight is zero, whatever the weight decay, because decay is proportional to the weight.
    """
    masks = [(param, (param != 0).to(param.dtype)) for param in model.parameters() if (param == 0).any()]
    for param, mask in masks:
        param.data.masked_fill_(mask == 0, 0)  # -0.0 becomes +0.0
        for history in state_like(param, optimizer.state).values():
            history.mul_(mask)
    return masks


def fit(model, images, epochs, lr, weight_decay, args, crop, checkpoint=None, loss_of=loss_of_batch):
    """Train in place with a fresh optimizer; the learning rate has its highest value `lr` early, and ends near zero."""
    optimizer = make_optimizer(model, lr, weight_decay, args)
    n_steps = epochs * math.ceil(len(images.labels) / args.batch_size)
    if args.schedule == 'cosine':
        scheduler = CosineAnnealingLR(optimizer, n_steps)
    else:  # OneCycleLR cannot do a warm-up of exactly one step
        along, warm_up = {'one-cycle': ('cos', 0.1), 'linear': ('linear', 0.2)}[args.schedule]
        scheduler = OneCycleLR(optimizer, lr, n_steps, pct_start=warm_up if n_steps > 10 else 0.3,
                               anneal_strategy=along, cycle_momentum=False)
    train(model, images, optimizer, scheduler, epochs, args.batch_size, args.log_interval, crop, checkpoint, loss_of)


def normalised(model, args, images=None, optimizer=None):
    """The context of a training, for `--batch-norm`; with images, the model begins it computing what it does now."""
    if not args.batch_norm:
        return nullcontext()
    n = 1000  # images that give the first means and deviations
    pixels = None if images is None else next(batches(images, n, args.crop == 'always'))[0]
    return batch_normalised(model, pixels, optimizer)


def make_optimizer(model, lr, weight_decay, args):
    if args.optimizer == 'sgd':
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay,
                               fused=True)
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


# ---- pruning ---------------------------------------------------------------------------------------------------------

def prune_gradually(model, images, args, checkpoint=None, loss_of=loss_of_batch):
    """Prune in steps, in place, with an epoch of training between two of them; one step is one-shot pruning."""
    start = {name: count_nonzeros(layer) for name, layer in model.layers()}
    start_units = count_hidden_units(model)
    optimizer = make_optimizer(model, args.prune_lr, args.weight_decay, args)
    scheduler = LinearLR(optimizer, 0.01, total_iters=100)  # warm-up, then --prune-lr
    done, n_steps = checkpoint.restore(model, optimizer, scheduler) if checkpoint else 0, args.prune_steps
    for step in tqdm(range(done + 1, n_steps + 1), 'Pruning steps', n_steps, initial=done, leave=False, disable=None):
        if args.keep_units is not None:
            model.prune_units(number_to_keep(start_units, args.keep_units, step, n_steps), args.fc_cost)
        with tqdm.external_write_mode():  # the bar makes way for the lines of the thresholds
            prune(model, args, step, start)
        if n_steps > 1:  # one shot leaves just the homework's percentages, whatever is dead among them
            remove_dead_weights(model, drop_constants=True)
        if step < n_steps:
            with live_part(model, optimizer), normalised(model, args, images, optimizer):
                loss = train_epoch(model, images, optimizer, scheduler, pruning_masks(model, optimizer),
                                   f'Pruning step {step}/{n_steps}', args.batch_size, args.log_interval,
                                   loss_of, args.crop == 'always')
            if checkpoint:
                checkpoint.save(model, optimizer, scheduler, step, loss)


def count_nonzeros(layer):
    return int(torch.count_nonzero(layer.weight))


def prune(model, args, step, start):
    """One of the pruning steps, in place; `start` tells how many weights each layer had before the first."""
    if args.prune == 'std':
        model.prune_by_std(args.sensitivity)
    elif args.prune == 'percentile':
        alive = {name: 100 * start[name] / layer.weight.numel() for name, layer in model.layers()}  # percent
        model.prune_by_percentile({name: amount_to_keep(alive[name], percent, step, args.prune_steps)
                                   for name, percent in {**model.DEFAULT_PRUNE_RATE, **args.rates}.items()})
    else:
        n_kept = number_to_keep(sum(start.values()), args.keep, step, args.prune_steps)
        model.prune_to_budget(n_kept, args.fc_cost, args.prune)


def sensitivity_scan(model, accuracy):
    """Layer -> {percent of its weights kept: `accuracy(model)`}, each layer pruned alone (Han et al. 2015, Fig. 6)."""
    scan, dense = {}, accuracy(model)
    for name, layer in model.layers():
        weight = layer.weight.data.clone()
        scan[name] = {100: dense}
        for percent in tqdm(SCANNED_PERCENTS, f'Sensitivity of {name}', leave=False, disable=None):
            model._prune(layer, percentile_threshold(weight, percent))
            scan[name][percent] = accuracy(model)
            layer.weight.data.copy_(weight)
    return scan


# ---- the whole stage -------------------------------------------------------------------------------------------------

def main(argv=None):
    args = parse_args(argv)
    with one_run_per_folder():
        run_stage(args, command_line.header('pruning.py', argv))


class Run(NamedTuple):
    """What the phases of a run share."""
    args: argparse.Namespace
    model: AlexNet
    images: Images  # to train on
    checkpoint: Checkpoint
    report: Callable  # (key, model): prints and logs the accuracy
    shown_name: str | None  # what figures show the accuracy on


def run_stage(args, header):
    """From the images to `saves/model_after_retraining.ptmodel`, or with --dense-only to the dense model."""
    checkpoint = Checkpoint(PATH, 'pruning.py', PHASES[1:] if args.load_model_path else PHASES,
                            command_line.arguments_of_run(args), args.resume, args.restart)
    torch.manual_seed(args.seed)
    device = command_line.pick_device(args.no_cuda)
    Path('saves').mkdir(exist_ok=True)  # if it cannot be made, better now than after the training
    model = load_model(args.load_model_path, device) if args.load_model_path else None
    images, report_images, title = command_line.load_splits(args, device)
    model = model or new_model(args, len(images.classes)).to(device)
    if not args.resume and not args.dense_only:  # resumed: some may be gone already; dense only: no budget is used
        check_budgets(model, args)
    shown_name = None
    if args.figures:
        shown, shown_name = images_for_figures(args, images, report_images)
        checkpoint.accuracy = lambda model: (
            100 * util.evaluate(model, shown, args.test_batch_size)[1] / len(shown.labels))
    report = partial(command_line.report, images=report_images, log=args.log, title=title,
                     batch_size=args.test_batch_size)
    run = Run(args, model, images, checkpoint, report, shown_name)
    util.log(header, args.log)
    print(model)
    util.print_model_parameters(model)
    if not args.load_model_path and checkpoint.enter('initial training', model):
        train_dense(run)
    if args.dense_only:
        run.report('initial_accuracy', model)
    else:
        if checkpoint.enter('pruning', model):
            prune_dense(run)
        checkpoint.enter('retraining', model)
        retrain(run)
    with command_line.already_written(command_line.DENSE if args.dense_only else command_line.PRUNED):
        checkpoint.finish()


def train_dense(run):
    print('--- Initial training ---')
    with live_part(run.model), normalised(run.model, run.args):
        fit(run.model, run.images, run.args.epochs, run.args.lr, run.args.weight_decay, run.args, True, run.checkpoint,
            partial(loss_of_batch, smoothing=run.args.label_smoothing))
    save_model(run.model, command_line.DENSE)


def prune_dense(run):
    run.report('initial_accuracy', run.model)
    print('--- Before pruning ---')
    util.print_nonzeros(run.model, run.args.log)
    if run.args.figures:
        from net import figures  # matplotlib takes a second to import
        with live_part(run.model):
            scan = sensitivity_scan(run.model, run.checkpoint.accuracy)
        print('Wrote', figures.draw_sensitivity(scan, run.shown_name, run.args.figures))
    print('--- Pruning ---')
    prune_gradually(run.model, run.images, run.args, run.checkpoint, loss_after_pruning(run))
    print('--- After pruning ---')
    util.print_nonzeros(run.model, run.args.log)
    run.report('accuracy_after_pruning', run.model)


def loss_after_pruning(run):
    """The loss of pruning and retraining, for which the dense model may be the teacher."""
    args, teacher = run.args, None
    if args.distill:
        dense = load_model(args.load_model_path or command_line.DENSE, run.images.labels.device)
        teacher = live_network(dense).eval()
    return partial(loss_of_batch, smoothing=args.label_smoothing, teacher=teacher, share=args.distill)


def retrain(run):
    args = run.args
    print('--- Retraining ---')
    with live_part(run.model), normalised(run.model, args, run.images):
        fit(run.model, run.images, args.retrain_epochs, args.retrain_lr, args.retrain_weight_decay, args,
            args.crop == 'always', run.checkpoint, loss_after_pruning(run))
    save_model(run.model, command_line.PRUNED)
    run.report('accuracy_after_retraining', run.model)
    print('--- After Retraining ---')
    util.print_nonzeros(run.model, args.log)
    if args.figures:
        from net import figures
        print('Wrote', figures.draw_history(run.checkpoint.history, run.shown_name, args.figures))
        sizes = {name: figures.LayerSize(len(layer.weight), len(outputs), layer.weight.numel(), count_nonzeros(layer))
                 for (name, layer), outputs in zip(run.model.layers(), live_units(run.model)[1:], strict=True)}
        print('Wrote', figures.draw_network(sizes, args.figures))


def new_model(args, n_classes):
    """An AlexNet, or the narrow part of one that --start-units leaves, initialised for that width (He et al. 2015)."""
    model = AlexNet(n_classes)
    if args.start_units is not None:
        model.prune_units(args.start_units)
        with live_part(model):
            for _, layer in model.layers():
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            replace_zeros(model)
    return model


def check_budgets(model, args):
    """Raise UserError if the model has fewer weights or units than are to be kept."""
    n_weights, n_units = sum(count_nonzeros(layer) for _, layer in model.layers()), count_hidden_units(model)
    if args.keep is not None and args.keep > n_weights:
        raise UserError(f'--keep must be at most the {n_weights} weights of the network, got {args.keep}')
    if args.keep_units is not None and args.keep_units > n_units:
        raise UserError(f'--keep-units must be at most the {n_units} units of the network, got {args.keep_units}')


def images_for_figures(args, images, report_images):
    """What figures show the accuracy on, never the test set: held-out images, or else some of the others; its name."""
    if args.validation:
        return report_images, f'{len(report_images.labels):,} held-out training images'
    n = min(1000, len(images.labels) - 1)
    return images.split(n)[1], f'{n:,} of the training images'


if __name__ == '__main__':
    command_line.run(main, PATH)
