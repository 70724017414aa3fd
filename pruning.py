"""Stage 1 of Deep Compression: train the network, prune its small weights, retrain what is left.

`train` and `run_stage` are the homework's script; between them stands what goes beyond it.
"""
import argparse
import math
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ConstantLR, LinearLR, OneCycleLR
from tqdm import tqdm

import util
from net import stage
from net.arguments import RECIPES, arguments_of_run, flag
from net.arguments import parse_pruning as parse_args
from net.batch_norm import batch_normalised
from net.checkpoint import PATH, Checkpoint
from net.data import Images, batches
from net.errors import UserError
from net.files import one_run_per_folder
from net.live import (
    count_alive,
    count_hidden_units,
    count_nonzeros,
    live_network,
    live_part,
    remove_dead_weights,
    state_like,
)
from net.models import DENSE, PRUNED, WIDTHS, AlexNet, load_model, replace_zeros
from net.prune import amount_to_keep, number_to_keep

TEMPERATURE = 2  # that the answers of a teacher, and of the network that learns from it, are divided by
PHASES = 'initial training', 'pruning', 'retraining'


# ---- training --------------------------------------------------------------------------------------------------------

class Training(NamedTuple):
    """How a network is trained in one phase."""
    epochs: int
    lr: float  # the highest
    lr_flag: str  # what sets it
    weight_decay: float
    crop: bool  # random crops of the images
    loss: Callable  # of a batch, as `loss_of_batch`
    optimizer: str  # of OPTIMIZERS
    batch_size: int
    log_interval: int  # steps between two shown losses


def train(model, images, optimizer, scheduler, epochs, training):
    """Train in place; weights that are zero when it starts are pruned, and stay zero.

    `epochs` yields a `net.checkpoint.Epoch` for each; one step of the scheduler follows each step of the optimizer.
    """
    pruned = pruned_weights(model, optimizer)
    model.train()
    for epoch in epochs:
        start, losses = time.perf_counter(), []
        pbar = tqdm(batches(images, training.batch_size, training.crop), epoch.title,
                    math.ceil(len(images.labels) / training.batch_size), leave=False, disable=None)
        for batch_idx, (data, target) in enumerate(pbar):
            optimizer.zero_grad()
            output = model(data)
            loss = training.loss(output, target, data)
            loss.backward()
            for name, p in model.named_parameters():
                if name in pruned:
                    p.grad.masked_fill_(pruned[name], 0)  # zero out the gradients of the pruned weights
            optimizer.step()
            lr = scheduler.get_last_lr()[0]  # of this step
            scheduler.step()
            losses.append(loss.detach())
            if batch_idx % training.log_interval == 0:
                pbar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{lr:.1e}')
        epoch.loss = average_loss(losses, model, epoch.title, training.lr_flag)
        print(f'{epoch.title}: Average loss: {epoch.loss:.4f}, lr {lr:.1e}, {count_alive(model)} parameters alive, '
              f'{len(images.labels) / (time.perf_counter() - start):.0f} images/s', flush=True)


def pruned_weights(model, optimizer):
    """Name -> where it is zero, bool, for every parameter with zeros. Works in place.

    What the optimizer remembers of pruned weights (momentum) is cleared, once: with neither history nor gradient the
    update of a pruned weight is zero, whatever the weight decay, because decay is proportional to the weight.
    """
    pruned = {name: param == 0 for name, param in model.named_parameters() if (param == 0).any()}
    for name, zeros in pruned.items():
        param = model.get_parameter(name)
        param.data.masked_fill_(zeros, 0)  # -0.0 becomes +0.0
        for history in state_like(param, optimizer.state).values():
            history.masked_fill_(zeros, 0)
    return pruned


def average_loss(losses, model, title, lr_flag):
    """The mean of an epoch's losses; UserError if the training has failed: one of them, or a weight, is not finite."""
    losses = torch.stack(losses)
    failed = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if failed or not all(torch.isfinite(param).all() for param in model.parameters()):
        step = failed[0] if failed else len(losses)
        raise UserError(f'{title}, step {step + 1}: the loss is no longer finite, the training has failed: start again '
                        f'with a lower {lr_flag} and --restart')
    return losses.mean().item()


def loss_of_batch(output, target, data, smoothing=0., teacher=None, teacher_share=0.):
    """The loss of log-probabilities (n, classes), as a scalar tensor.

    Of each label, `smoothing` goes to all classes alike (Szegedy et al. 2016, section 7). With a teacher,
    `teacher_share` of the loss is how far the network is from the teacher's answers to the images `data`, both
    softened (Hinton et al. 2015, section 2).
    """
    loss = F.cross_entropy(output, target, label_smoothing=smoothing) if smoothing else F.nll_loss(output, target)
    if teacher is None:
        return loss
    with torch.no_grad():
        answers = (teacher(data) / TEMPERATURE).softmax(1)
    distance = F.kl_div((output / TEMPERATURE).log_softmax(1), answers, reduction='batchmean')
    # The square: as large a gradient as without a temperature.
    return (1 - teacher_share) * loss + teacher_share * TEMPERATURE ** 2 * distance


OPTIMIZERS = {  # name -> optimizer, the course of its learning rate, and the part of the steps in which that rises
    'sgd': (partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True), 'linear', 0.2),
    'adam': (partial(torch.optim.Adam, fused=True), 'cos', 0.1),
}


def make_optimizer(model, training):
    return OPTIMIZERS[training.optimizer][0](model.parameters(), lr=training.lr, weight_decay=training.weight_decay)


def fit(model, images, training, checkpoint):
    """Train in place with a fresh optimizer; the learning rate rises to its highest value, and ends near zero."""
    optimizer = make_optimizer(model, training)
    n_steps = training.epochs * math.ceil(len(images.labels) / training.batch_size)
    _, course, warm_up = OPTIMIZERS[training.optimizer]
    if n_steps > 10:
        scheduler = OneCycleLR(optimizer, training.lr, n_steps, pct_start=warm_up, anneal_strategy=course,
                               cycle_momentum=False)
    else:  # too few to rise and fall
        scheduler = ConstantLR(optimizer, factor=1)
    epochs = checkpoint.epochs(training.epochs, model, optimizer, scheduler)
    train(model, images, optimizer, scheduler, epochs, training)


def normalised(model, args, crop, images=None, optimizer=None):
    """The context of a training with batch normalisation, if the recipe has it; with images, the model begins it
    computing what it does now.
    """
    if not args.batch_norm:
        return nullcontext()
    n = 1000  # images that give the first means and deviations
    pixels = None if images is None else next(batches(images, n, crop))[0]
    return batch_normalised(model, pixels, optimizer)


# ---- gradual pruning -------------------------------------------------------------------------------------------------

def prune_gradually(model, images, args, training, checkpoint):
    """Prune in steps, in place, with an epoch of training between two of them; one step is one-shot pruning."""
    weights_before = {name: count_nonzeros(layer) for name, layer in model.layers()}
    units_before = count_hidden_units(model)
    optimizer = make_optimizer(model, training)
    scheduler = LinearLR(optimizer, 0.01, total_iters=100)  # a warm-up, then constant
    for epoch in checkpoint.epochs(training.epochs, model, optimizer, scheduler, 'Pruning step'):
        prune(model, args, epoch.number, weights_before, units_before)
        with live_part(model, optimizer), normalised(model, args, training.crop, images, optimizer):
            train(model, images, optimizer, scheduler, [epoch], training)
    prune(model, args, args.prune_steps, weights_before, units_before)


def prune(model, args, step, weights_before, units_before):
    """One of the pruning steps, in place; the last two tell how many weights each layer and units the network had."""
    if args.keep_units is not None:
        model.prune_units(number_to_keep(units_before, args.keep_units, step, args.prune_steps), args.fc_cost)
    if args.sensitivity is not None:
        model.prune_by_std(args.sensitivity)
    elif args.keep is None:
        alive = {name: 100 * weights_before[name] / layer.weight.numel() for name, layer in model.layers()}  # percent
        model.prune_by_percentile({name: amount_to_keep(alive[name], percent, step, args.prune_steps)
                                   for name, percent in {**model.DEFAULT_PRUNE_RATE, **(args.rates or {})}.items()})
    else:
        n_kept = number_to_keep(sum(weights_before.values()), args.keep, step, args.prune_steps)
        model.prune_to_budget(n_kept, args.fc_cost)
    if args.prune_steps > 1:  # one shot leaves just the homework's percentages, whatever is dead among them
        remove_dead_weights(model, drop_constants=True)


# ---- the whole stage -------------------------------------------------------------------------------------------------

class Run(NamedTuple):
    """What the phases of a run have in common."""
    args: argparse.Namespace
    checkpoint: Checkpoint
    model: AlexNet
    images: Images  # to train on
    report: Callable  # (key, model): prints and logs the accuracy
    shown: str  # what figures show the accuracy on


def main(argv=None):
    args = parse_args(argv)
    with one_run_per_folder():
        run_stage(args, stage.header('pruning.py', argv))


def run_stage(args, header):
    """From the images to `saves/model_after_retraining.ptmodel`, or with --dense-only to the dense model."""
    run = begin(args, header)
    if not args.load_model_path and run.checkpoint.enter('initial training', run.model):
        print('--- Initial training ---')
        with live_part(run.model), normalised(run.model, args, crop=True):
            fit(run.model, run.images, initial_training(args), run.checkpoint)
        stage.save(run.model, DENSE, run.images, args.data)
    if args.dense_only:
        run.report('initial_accuracy', run.model)
    else:
        with dense_model_named(args):
            compress(run)
    with stage.already_written(DENSE if args.dense_only else PRUNED):
        run.checkpoint.finish()


def compress(run):
    """From the dense model to `saves/model_after_retraining.ptmodel`."""
    args, model = run.args, run.model
    if run.checkpoint.enter('pruning', model):
        run.report('initial_accuracy', model)
        print('--- Before pruning ---')
        explain_narrow_start(args)
        util.print_nonzeros(model, args.log)
        draw_sensitivity(run)
        print('--- Pruning ---')
        prune_gradually(model, run.images, args, training_between_steps(run), run.checkpoint)
        print('--- After pruning ---')
        util.print_nonzeros(model, args.log)
        run.report('accuracy_after_pruning', model)
    run.checkpoint.enter('retraining', model)
    print('--- Retraining ---')
    with live_part(model), normalised(model, args, args.crop_after_pruning, run.images):
        fit(model, run.images, retraining(run), run.checkpoint)
    stage.save(model, PRUNED, run.images, args.data)
    run.report('accuracy_after_retraining', model)
    print('--- After Retraining ---')
    util.print_nonzeros(model, args.log)
    draw_history(run)


def begin(args, header):
    """From the arguments to a model that can be trained or pruned."""
    checkpoint = Checkpoint(PATH, 'pruning.py', PHASES[1:] if args.load_model_path else PHASES,
                            arguments_of_run(args), args.resume, args.restart)
    torch.manual_seed(args.seed)
    device = stage.pick_device(args.no_cuda)
    Path('saves').mkdir(exist_ok=True)  # if it cannot be made, better now than after the training
    model = load_model(args.load_model_path, device) if args.load_model_path else None
    images, report_images, title = stage.load_splits(args, device)
    checkpoint.train_on(images)
    if model:
        stage.check_images(args.load_model_path, images, args.data)
    model = model or new_model(args, len(images.classes)).to(device)
    if not args.resume and not args.dense_only:  # resumed: some may be gone already; dense only: no budget is used
        check_budgets(model, args)
    shown, name = images_for_figures(args, images, report_images)
    if args.figures:
        checkpoint.accuracy = partial(stage.accuracy, images=shown, batch_size=args.test_batch_size)
    report = partial(stage.report, images=report_images, log=args.log, title=title, batch_size=args.test_batch_size)
    util.log(header, args.log)
    print(model)
    util.print_model_parameters(model)
    return Run(args, checkpoint, model, images, report, name)


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


def initial_training(args):
    return Training(args.epochs, args.lr, '--lr', args.weight_decay, True,
                    partial(loss_of_batch, smoothing=args.label_smoothing), *shared_settings(args))


def training_between_steps(run):
    args = run.args
    return Training(args.prune_steps - 1, args.prune_lr, 'prune_lr of the recipe', args.weight_decay,
                    args.crop_after_pruning, loss_after_pruning(run), *shared_settings(args))


def retraining(run):
    args = run.args
    return Training(args.retrain_epochs, args.retrain_lr, '--retrain-lr', args.retrain_weight_decay,
                    args.crop_after_pruning, loss_after_pruning(run), *shared_settings(args))


def shared_settings(args):
    return args.optimizer, args.batch_size, args.log_interval


def loss_after_pruning(run):
    """The loss of pruning and retraining, for which the dense model may be the teacher."""
    args, teacher = run.args, None
    if args.teacher_share:
        teacher = live_network(load_model(args.load_model_path or DENSE, run.images.labels.device)).eval()
    return partial(loss_of_batch, smoothing=args.label_smoothing, teacher=teacher, teacher_share=args.teacher_share)


def check_budgets(model, args):
    """Raise UserError if the model has fewer weights or units than are to be kept."""
    n_weights = sum(count_nonzeros(layer) for _, layer in model.layers())
    for name, there in ('keep', f'{n_weights} weights'), ('keep_units', f'{count_hidden_units(model)} units'):
        kept = getattr(args, name)
        if kept is not None and kept > int(there.split()[0]):
            is_default = kept == RECIPES[args.recipe]['pruning'][name]
            raise UserError(f'{flag(name)} must be at most the {there} of the network, got {kept}'
                            + f', the default of --recipe {args.recipe}' * is_default)


@contextmanager
def dense_model_named(args):
    """Within this context, whose steps may fail, an error says how to do them again without the first training."""
    try:
        yield
    except UserError as error:
        if args.load_model_path:
            raise
        raise UserError(f'{error} (without the first training again: --load-model-path {DENSE} --restart)') from error


def explain_narrow_start(args):
    if args.start_units and not args.load_model_path:
        print(f'The training began with {args.start_units} of the {sum(WIDTHS)} hidden units. The others are zero, and '
              'count as pruned:')


# ---- figures ---------------------------------------------------------------------------------------------------------

def images_for_figures(args, images, report_images):
    """What figures show the accuracy on, never the test set: held-out images, or else some of the others; its name."""
    if args.validation:
        return report_images, f'{len(report_images.labels):,} held-out training images'
    n = min(1000, len(images.labels) - 1)
    return images.split(n)[1] if n else images, f'{n or 1:,} of the training images'


def draw_sensitivity(run):
    if run.args.figures:
        from net import figures  # matplotlib takes a second to import
        with live_part(run.model):
            scan = figures.sensitivity_scan(run.model, run.checkpoint.accuracy)
        print('Wrote', figures.draw_sensitivity(scan, run.shown, run.args.figures))


def draw_history(run):
    if run.args.figures:
        from net import figures
        print('Wrote', figures.draw_history(run.checkpoint.history, run.shown, run.args.figures))
        print('Wrote', figures.draw_network(figures.layer_sizes(run.model), run.args.figures))


if __name__ == '__main__':
    stage.run(main, PATH)
