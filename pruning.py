"""Stage 1 of Deep Compression: train the network, prune its small weights, retrain what is left.

`train` and `run_stage` are the homework's script; between them stands what goes beyond it.
"""
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import util
from net import stage
from net.arguments import arguments_of_run, check_budgets
from net.arguments import parse_pruning as parse_args
from net.batch_norm import batch_normalised
from net.checkpoint import PATH, Checkpoint
from net.data import batches
from net.errors import UserError
from net.files import check_writable, one_run_per_folder
from net.live import count_alive, count_hidden_units, count_nonzeros, live_part, remove_dead_weights
from net.models import DENSE, PRUNED, WIDTHS, narrow_alexnet
from net.prune import amount_to_keep, number_to_keep, part_to_regrow
from net.training import (
    average_loss,
    initial_training,
    make_optimizer,
    one_cycle,
    pruning_masks,
    recorded,
    regrow,
    retraining,
    training_between_steps,
    warm_up,
)

import torch
from tqdm import tqdm

PHASES = 'initial training', 'pruning', 'retraining'


# ---- training --------------------------------------------------------------------------------------------------------

def train(model, images, optimizer, scheduler, epochs, training):
    """Train in place; weights that are zero when it starts are pruned, and stay zero (`pruning_masks`).

    `epochs` yields a `net.checkpoint.Epoch` for each; one step of the scheduler follows each step of the optimizer.
    """
    masks = pruning_masks(model, optimizer)
    for epoch in epochs:
        model.train()  # the accuracy after an epoch, for the figures, leaves it in evaluation mode
        start, losses = time.perf_counter(), []
        pbar = tqdm(training.batches(images), epoch.title, training.steps_per_epoch(len(images.labels)),
                    leave=False, disable=None)
        for batch_idx, (data, target) in enumerate(pbar):
            optimizer.zero_grad()
            output = model(data)
            loss = training.loss(output, target, data)
            loss.backward()
            for name, p in model.named_parameters():
                if name in masks:
                    p.grad *= masks[name]  # zero out the gradients of the pruned weights
            optimizer.step()
            lr = scheduler.get_last_lr()[0]  # of this step
            scheduler.step()
            losses.append(loss.detach())
            if batch_idx % training.log_interval == 0:
                pbar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{lr:.1e}')
        epoch.loss = average_loss(losses, model, masks, epoch.title, training.lr_flag)
        print(f'{epoch.title}: Average loss: {epoch.loss:.4f}, lr {lr:.1e}, {count_alive(model)} parameters alive, '
              f'{len(images.labels) / (time.perf_counter() - start):.0f} images/s', flush=True)


def fit(model, images, training, checkpoint):
    """Train in place with a fresh optimizer, all epochs of a training."""
    optimizer = make_optimizer(model, training)
    scheduler = one_cycle(optimizer, training, len(images.labels))
    epochs = checkpoint.epochs(training.epochs, model, optimizer, scheduler)
    with recorded(model, images, training.batch_size):
        train(model, images, optimizer, scheduler, epochs, training)


def normalised(model, training, images=None, optimizer=None):
    """The context of a training, for batch normalisation; with images, the model begins it computing what it does now.
    """
    if not training.batch_norm:
        return nullcontext()
    n = 1000  # images that give the first means and deviations
    pixels = None if images is None else next(batches(images, n, training.crop))[0]
    return batch_normalised(model, pixels, optimizer)


# ---- gradual pruning -------------------------------------------------------------------------------------------------

def budgeted(model, args):
    """The context of pruning: a budget is for live units, and what is dead goes first, in place.

    Percentages and deviations are of all weights: for them nothing changes.
    """
    if args.keep is None:
        return nullcontext()
    remove_dead_weights(model)  # a loaded model may have some, which would stay, beside the budget
    return live_part(model)


def prune_gradually(model, images, args, training, checkpoint):
    """Prune in steps, in place, with an epoch of training between two of them; one step is one-shot pruning."""
    weights_before = {name: count_nonzeros(layer) for name, layer in model.layers()}
    units_before = count_hidden_units(model)
    optimizer = make_optimizer(model, training)
    scheduler = warm_up(optimizer, training, len(images.labels))
    title = f'Pruning step {{}}/{args.prune_steps}'
    for epoch in checkpoint.epochs(training.epochs, model, optimizer, scheduler, title):
        to_regrow = prune(model, args, epoch.number, weights_before, units_before)
        with live_part(model, optimizer), normalised(model, training, images, optimizer):
            regrow(model, images, training, to_regrow)
            with recorded(model, images, training.batch_size):
                train(model, images, optimizer, scheduler, [epoch], training)
    prune(model, args, args.prune_steps, weights_before, units_before)


def prune(model, args, step, weights_before, units_before):
    """One of the pruning steps, in place; returns layer -> how many weights are to come back, `to_regrow`."""
    to_regrow = {}
    if args.keep_units is not None:
        model.prune_units(number_to_keep(units_before, args.keep_units, step, args.prune_steps), args.fc_cost)
    if args.sensitivity is not None:
        model.prune_by_std(args.sensitivity)
    elif args.keep is None:
        alive = {name: 100 * weights_before[name] / layer.weight.numel() for name, layer in model.layers()}  # percent
        model.prune_by_percentile({name: amount_to_keep(alive[name], percent, step, args.prune_steps)
                                   for name, percent in {**model.DEFAULT_PRUNE_RATE, **(args.rates or {})}.items()})
    else:
        n_before, n_kept = (number_to_keep(sum(weights_before.values()), args.keep, n, args.prune_steps)
                            for n in (step - 1, step))
        counts = model.shares_of_budget(n_kept, args.fc_cost)
        if args.regrow and step < args.prune_steps:
            part = part_to_regrow(n_before, n_kept, args.regrow)
            to_regrow = {name: int(part * count) for name, count in counts.items()}
        model.prune_to_counts({name: count - to_regrow.get(name, 0) for name, count in counts.items()})
    if args.prune_steps > 1:  # one shot leaves just the homework's percentages, whatever is dead among them
        remove_dead_weights(model, drop_constants=True)
    return to_regrow


# ---- the whole stage -------------------------------------------------------------------------------------------------

def main(argv=None):
    args = parse_args(argv)
    with one_run_per_folder():
        run_stage(args, stage.header('pruning.py', argv))


def run_stage(args, header):
    """From the images to `saves/model_after_retraining.ptmodel`, or with --dense-only to the dense model."""
    model, images, checkpoint, report, figures = begin(args, header)

    if not args.load_model_path and checkpoint.enter('initial training', model):
        print('--- Initial training ---')
        training = initial_training(args)
        with live_part(model), normalised(model, training):
            fit(model, images, training, checkpoint)
        stage.save(model, DENSE, images, args)
    if args.dense_only:
        report('initial_accuracy', model)
        return end(checkpoint, DENSE)

    if checkpoint.enter('pruning', model):
        report('initial_accuracy', model)
        print('--- Before pruning ---')
        explain_narrow_start(args)
        util.print_nonzeros(model, args.log)
        figures.draw_sensitivity(model)
        print('--- Pruning ---')
        with dense_model_named(args), budgeted(model, args):
            prune_gradually(model, images, args, training_between_steps(args, images.labels.device), checkpoint)
        report('accuracy_after_pruning', model)
        print('--- After pruning ---')
        util.print_nonzeros(model, args.log)

    checkpoint.enter('retraining', model)
    print('--- Retraining ---')
    training = retraining(args, images.labels.device)
    with dense_model_named(args), live_part(model), normalised(model, training, images):
        fit(model, images, training, checkpoint)
    stage.save(model, PRUNED, images, args)
    report('accuracy_after_retraining', model)
    print('--- After Retraining ---')
    util.print_nonzeros(model, args.log)
    figures.draw_history(model)
    end(checkpoint, PRUNED)


def begin(args, header):
    """From the arguments to a model that can be trained or pruned, and all that a run needs beside it."""
    checkpoint = Checkpoint(PATH, 'pruning.py', PHASES[1:] if args.load_model_path else PHASES,
                            arguments_of_run(args), args.resume, args.restart)
    torch.manual_seed(args.seed)
    device = stage.pick_device(args.no_cuda)
    check_writable(PRUNED)  # better now than after the training
    model = stage.load_input(args, device) if args.load_model_path else None
    images, report_images, title = stage.load_splits(args, device)
    checkpoint.train_on(images)
    if model:
        stage.check_images(args.load_model_path, model, images, args.data)
    model = model or narrow_alexnet(len(images.classes), args.start_units).to(device)
    if not args.resume and not args.dense_only:  # resumed: some may be gone already; dense only: no budget is used
        check_budgets(model, args)
    explain_low_rates(args, model)
    figures = Figures(args, checkpoint, images, report_images)
    report = partial(stage.report, images=report_images, log=args.log, title=title, batch_size=args.test_batch_size)
    util.log(header, args.log)
    print(model)
    util.print_model_parameters(model)
    return model, images, checkpoint, report, figures


def end(checkpoint, written):
    with stage.already_written(written):
        checkpoint.finish()


@contextmanager
def dense_model_named(args):
    """Within this context, whose steps may fail, an error says how to do them again without the first training."""
    try:
        yield
    except UserError as error:
        if args.load_model_path:
            raise
        raise UserError(f'{error} (without the first training again: --restart --load-model-path {DENSE}, and no '
                        '--epochs, --lr, --start-units)') from error


def explain_narrow_start(args):
    if args.start_units and not args.load_model_path:
        print(f'The training began with {args.start_units} of the {sum(WIDTHS)} hidden units. The others are zero, and '
              'count as pruned:')


def explain_low_rates(args, model):
    """Who writes 0.09 may mean 9 percent."""
    for name, percent in (args.rates or {}).items():
        if 0 < percent < 1:
            n = model.get_submodule(name).weight.numel()
            print(f'Note: --rates {name}={percent:g} keeps {round(n * percent / 100):,} of {n:,} weights: it is a '
                  'percentage, not a fraction')


# ---- figures ---------------------------------------------------------------------------------------------------------

class Figures:
    """The figures of a run, if --figures asks for them.

    The accuracy in them is never that of the test set: of held-out images, or else of some of the others.
    """

    def __init__(self, args, checkpoint, images, report_images):
        self.folder, self.checkpoint = args.figures, checkpoint
        if self.folder:
            check_writable(f'{self.folder}/history.png')
            n = min(1000, len(images.labels) - 1)
            shown = report_images if args.validation else images.split(n)[1] if n else images
            self.shown = f'{len(shown.labels):,} ' + ('held-out' if args.validation else 'of the') + ' training images'
            checkpoint.accuracy = partial(stage.accuracy, images=shown, batch_size=args.test_batch_size)

    def draw_sensitivity(self, model):
        if self.folder:
            from net import figures  # matplotlib takes a second to import
            with live_part(model):
                scan = figures.sensitivity_scan(model, self.checkpoint.accuracy)
            print('Wrote', figures.draw_sensitivity(scan, self.shown, self.folder))

    def draw_history(self, model):
        if self.folder:
            from net import figures
            print('Wrote', figures.draw_history(self.checkpoint.history, self.shown, self.folder))
            print('Wrote', figures.draw_network(model, self.folder))


if __name__ == '__main__':
    stage.run(main, PATH)
