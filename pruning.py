"""Stage 1 of Deep Compression: train the network, prune its small weights, retrain what is left."""
import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR
from tqdm import tqdm

import util
from net.checkpoint import PATH, Checkpoint
from net.live import count_alive, live_part, remove_dead_weights, state_like
from net.models import AlexNet, load_model, save_model
from net.prune import fraction_to_keep

# Defaults of flags, chosen on 5,000 held-out training images.
RECIPES = {
    # The highest compression rate above 60 % accuracy: many small pruning steps, then a long training of what is left.
    'ranking': {'epochs': 8, 'keep': 4200, 'fc_cost': 6, 'prune_steps': 40,
                'retrain_epochs': 160, 'retrain_lr': 5e-3, 'crop': 'first'},
    # Han et al. 2016: prune once, at the rates of Table 4.
    'paper': {'epochs': 20, 'keep': None, 'fc_cost': 1, 'prune_steps': 1,
              'retrain_epochs': 12, 'retrain_lr': 1e-3, 'crop': 'always'},
}

SCANNED_PERCENTS = 80, 60, 40, 30, 20, 10, 5, 2  # of the weights kept, for the figure of the sensitivity
PHASES = 'initial training', 'pruning', 'retraining'


def parse_args(argv=None):
    parser = make_parser()
    given = parser.parse_args(argv)
    prune = getattr(given, 'prune', 'std' if 'sensitivity' in given else 'percentile')
    if prune == 'percentile' and 'sensitivity' in given:
        parser.error('--sensitivity goes with --prune std, got --prune percentile')
    if prune == 'std' and ('rates' in given or 'keep' in given):
        parser.error('--rates and --keep go with --prune percentile, got --prune std')
    if prune == 'std' and getattr(given, 'prune_steps', 1) > 1:
        parser.error(f'--prune std prunes once, got --prune-steps {given.prune_steps}')
    recipe = getattr(given, 'recipe', 'paper' if prune == 'std' or 'rates' in given else 'ranking')
    args = argparse.Namespace(**{**RECIPES[recipe], 'rates': {}, 'sensitivity': None, 'load_model_path': None,
                                 **vars(given), 'recipe': recipe, 'prune': prune})
    if prune == 'std':
        args.prune_steps = 1
    if 'rates' in given:
        args.keep = None
    return args


def make_parser():
    parser = util.Parser(__doc__)

    def add(flag, help, group=parser, **kwargs):
        """A flag whose default is the recipe's: absent from what is parsed, unless it is given."""
        values = [recipe[flag[2:].replace('-', '_')] for recipe in RECIPES.values()]
        group.add_argument(flag, default=argparse.SUPPRESS, **kwargs,
                           help=f'{help} ({", ".join(map("{}: {}".format, RECIPES, values))})')

    util.add_common_arguments(parser)
    util.add_training_arguments(parser)
    parser.add_argument('--recipe', choices=RECIPES, default=argparse.SUPPRESS, help='which defaults other flags have '
                        '(paper if --rates, --prune std or --sensitivity says how to prune, else ranking)')
    add('--epochs', 'epochs of the first training', type=util.number(int, 1))
    parser.add_argument('--lr', type=util.number(float, 0), default=1e-3,
                        help='highest learning rate of the first training, and the rate between pruning steps')
    add('--crop', 'random crops of the images always, or only in the first training: a network with few weights left '
        'does without', choices=['always', 'first'])
    parser.add_argument('--prune', choices=['percentile', 'std'], default=argparse.SUPPRESS, help='how to find the '
                        'thresholds: keep a percentage of each layer, or compare with its standard deviation, once '
                        '(std if --sensitivity is given, else percentile)')
    goal = parser.add_mutually_exclusive_group()
    add('--keep', 'weights to keep in all, shared out over the layers by a layer-adaptive score', goal,
        type=util.number(int, 1), metavar='N')
    goal.add_argument('--rates', type=parse_rates, metavar='LAYER=PERCENT,...', default=argparse.SUPPRESS,
                      help='percent of the weights to keep in these layers, and the paper\'s in the others')
    goal.add_argument('--sensitivity', type=util.number(float, 0), default=argparse.SUPPRESS,
                      help='threshold in standard deviations; alone it selects --prune std')
    add('--fc-cost', 'with --keep: how many times the score of a convolution weight one of a fully connected layer '
        'needs to stay, since it takes more bytes', type=util.number(float, 0.01))
    add('--prune-steps', 'reach the goal in N steps, with an epoch of training between two of them',
        type=util.number(int, 1), metavar='N')
    add('--retrain-epochs', 'epochs after pruning', type=util.number(int, 1))
    add('--retrain-lr', 'highest learning rate after pruning', type=util.number(float, 0))
    parser.add_argument('--load-model-path', default=argparse.SUPPRESS, help='trained model: skips the first training; '
                        'with --validation, it must have been trained with the same --validation')
    return parser


def parse_rates(text):
    """'conv1=84,fc2=9' -> {'conv1': 84.0, 'fc2': 9.0}"""
    rates = {}
    for part in text.split(','):
        name, _, percent = part.partition('=')
        if name not in AlexNet.DEFAULT_PRUNE_RATE:
            raise argparse.ArgumentTypeError(
                f'unknown layer {name!r}, expected one of {", ".join(AlexNet.DEFAULT_PRUNE_RATE)}')
        if name in rates:
            raise argparse.ArgumentTypeError(f'{name} must be given once, got {text}')
        try:
            rates[name] = util.number(float, 0, 100)(percent)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{part!r} is not LAYER=PERCENT') from None
    return rates


def train(model, images, optimizer, scheduler, epochs, batch_size=256, log_interval=10, crop=True, checkpoint=None):
    """Train in place; weights that are zero when it starts are pruned, and stay zero.

    One step of the scheduler follows each of the `epochs * ceil(n / batch_size)` steps of the optimizer. With a
    checkpoint, it is written after each epoch, and a run that is resumed goes on where it was.
    """
    masks = pruning_masks(model, optimizer)
    done = checkpoint.restore(model, optimizer, scheduler) if checkpoint else 0
    for epoch in tqdm(range(done + 1, epochs + 1), 'Epochs', epochs, initial=done, leave=False, disable=None):
        loss = train_epoch(model, images, optimizer, scheduler, masks, f'Epoch {epoch}/{epochs}',
                           batch_size, log_interval, crop)
        if checkpoint:
            checkpoint.save(model, optimizer, scheduler, epoch, loss)


def train_epoch(model, images, optimizer, scheduler, masks, title, batch_size, log_interval, crop):
    """Train one epoch in place, with a bar and a line that begin with `title`; return the average loss."""
    model.train()
    n, total_loss, alive, start = len(images.labels), 0.0, count_alive(model), time.perf_counter()
    with tqdm(desc=title, total=n, unit=' images', unit_scale=True, leave=False, disable=None) as bar:
        for step, (pixels, labels) in enumerate(util.batches(images, batch_size, crop)):
            optimizer.zero_grad()
            loss = F.nll_loss(model(pixels), labels)
            loss.backward()
            for param, mask in masks:
                param.grad.mul_(mask)  # zero the gradients of pruned weights (Han et al. 2015, section 3.3)
            optimizer.step()
            scheduler.step()
            total_loss += loss.detach()
            bar.update(len(labels))
            if step % log_interval == 0:
                bar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{scheduler.get_last_lr()[0]:.1e}', alive=f'{alive:,}')
        average_loss = total_loss.item() / math.ceil(n / batch_size)
    with tqdm.external_write_mode():  # the bars make way for the line
        print(f'{title}: Average loss: {average_loss:.4f}, lr {scheduler.get_last_lr()[0]:.1e}, {alive} parameters '
              f'alive, {n / (time.perf_counter() - start):.0f} images/s', flush=True)
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


def fit(model, images, epochs, lr, args, crop, checkpoint=None):
    """Train in place with a fresh Adam; the learning rate has its highest value `lr` early, and ends near zero."""
    optimizer = make_adam(model, lr, args)
    n_steps = epochs * math.ceil(len(images.labels) / args.batch_size)
    if args.schedule == 'cosine':
        scheduler = CosineAnnealingLR(optimizer, n_steps)
    else:  # a short warm-up is enough; OneCycleLR cannot do one of exactly one step
        scheduler = OneCycleLR(optimizer, lr, n_steps, pct_start=0.1 if n_steps > 10 else 0.3, cycle_momentum=False)
    train(model, images, optimizer, scheduler, epochs, args.batch_size, args.log_interval, crop, checkpoint)


def make_adam(model, lr, args):
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=args.weight_decay, fused=True)


def prune_gradually(model, images, args, checkpoint=None):
    """Prune in steps, in place, with an epoch of training between two of them; one step is one-shot pruning."""
    start = {name: int(torch.count_nonzero(layer.weight)) for name, layer in model.named_children()}
    optimizer = make_adam(model, args.lr, args)
    scheduler = LinearLR(optimizer, 0.01, total_iters=100)  # warm-up, then --lr
    done, n_steps = checkpoint.restore(model, optimizer, scheduler) if checkpoint else 0, args.prune_steps
    for step in tqdm(range(done + 1, n_steps + 1), 'Pruning steps', n_steps, initial=done, leave=False, disable=None):
        with tqdm.external_write_mode():  # the bar makes way for the lines of the thresholds
            prune(model, args, step, start)
        if n_steps > 1:  # one shot leaves just the homework's percentages, whatever is dead among them
            remove_dead_weights(model, drop_constants=True)
        if step < n_steps:
            with live_part(model, optimizer):
                loss = train_epoch(model, images, optimizer, scheduler, pruning_masks(model, optimizer),
                                   f'Pruning step {step}/{n_steps}', args.batch_size, args.log_interval,
                                   args.crop == 'always')
            if checkpoint:
                checkpoint.save(model, optimizer, scheduler, step, loss)


def prune(model, args, step, start):
    """One of the pruning steps, in place; `start` tells how many weights each layer had before the first."""
    if args.prune == 'std':
        model.prune_by_std(**({} if args.sensitivity is None else {'s': args.sensitivity}))
    elif args.keep is not None:
        n = sum(start.values())
        n_kept = n * fraction_to_keep(1, args.keep / n, step, args.prune_steps)
        model.prune_by_percentile(model.layer_adaptive_rates(n_kept + 1e-6, args.fc_cost))  # 4199.99... are 4200
    else:
        percents = {**model.DEFAULT_PRUNE_RATE, **args.rates}
        alive = {name: start[name] / layer.weight.numel() for name, layer in model.named_children()}
        model.prune_by_percentile({name: 100 * fraction_to_keep(alive[name], percent / 100, step, args.prune_steps)
                                   for name, percent in percents.items()})


def sensitivity_scan(model, accuracy):
    """Layer -> {percent of its weights kept: `accuracy(model)`}, each layer pruned alone (Han et al. 2015, Fig. 6)."""
    scan, dense = {}, accuracy(model)
    for name, layer in model.named_children():
        weight = layer.weight.data.clone()
        thresholds = np.percentile(weight.abs().double().cpu().numpy(), [100 - percent for percent in SCANNED_PERCENTS])
        scan[name] = {100: dense}
        bar = tqdm(thresholds, f'Sensitivity of {name}', leave=False, disable=None)
        for percent, threshold in zip(SCANNED_PERCENTS, bar, strict=True):
            model._prune(layer, threshold)
            scan[name][percent] = accuracy(model)
            layer.weight.data.copy_(weight)
    return scan


def make_model(args, n_classes, device):
    """The model to begin with: a new one, or that of --load-model-path. ValueError if it has not --keep weights."""
    model = load_model(args.load_model_path, device) if args.load_model_path else AlexNet(n_classes).to(device)
    n_weights = sum(int(torch.count_nonzero(layer.weight)) for layer in model.children())
    if args.keep is not None and args.keep > n_weights:
        raise ValueError(f'--keep must be at most the {n_weights} weights of the network, got {args.keep}')
    return model


def images_for_figures(args, images, test_images):
    """What figures show the accuracy on, never the test set: held-out images, or else some of the others; its name."""
    if args.validation:
        return test_images, f'{len(test_images.labels):,} held-out training images'
    n = min(1000, len(images.labels) - 1)
    return images.split(n)[1], f'{n:,} of the training images'


def main(argv=None):
    args = parse_args(argv)
    checkpoint = Checkpoint('pruning.py', PHASES[1:] if args.load_model_path else PHASES, args)
    torch.manual_seed(args.seed)
    device = util.pick_device(args.no_cuda)
    Path('saves').mkdir(exist_ok=True)  # if it cannot be made, better now than after the training
    images, test_images, title = util.load_splits(args, device)
    if args.figures:
        from net import figures
        shown, shown_name = images_for_figures(args, images, test_images)
        checkpoint.accuracy = lambda model: (
            100 * util.evaluate(model, shown, args.test_batch_size)[1] / len(shown.labels))

    def report(key):
        accuracy = util.test(model, device.type == 'cuda', test_images, title, args.test_batch_size)
        util.log(f'{key} {accuracy}', args.log)

    model = make_model(args, len(images.classes), device)
    print(model)
    util.print_model_parameters(model)
    if not args.load_model_path and checkpoint.enter('initial training', model):
        print('--- Initial training ---')
        fit(model, images, args.epochs, args.lr, args, crop=True, checkpoint=checkpoint)
        save_model(model, 'saves/initial_model.ptmodel')

    if checkpoint.enter('pruning', model):
        report('initial_accuracy')
        print('--- Before pruning ---')
        util.print_nonzeros(model, args.log)
        if args.figures:
            scan = sensitivity_scan(model, checkpoint.accuracy)
            print('Wrote', figures.draw_sensitivity(scan, shown_name, args.figures))
        print('--- Pruning ---')
        prune_gradually(model, images, args, checkpoint)
        print('--- After pruning ---')
        util.print_nonzeros(model, args.log)
        report('accuracy_after_pruning')

    checkpoint.enter('retraining', model)
    print('--- Retraining ---')
    with live_part(model):
        fit(model, images, args.retrain_epochs, args.retrain_lr, args, args.crop == 'always', checkpoint)
    save_model(model, 'saves/model_after_retraining.ptmodel')
    if args.figures:
        print('Wrote', figures.draw_history(checkpoint.history, shown_name, args.figures))
    checkpoint.finish()
    report('accuracy_after_retraining')
    print('--- After Retraining ---')
    util.print_nonzeros(model, args.log)


if __name__ == '__main__':
    util.run(main, PATH)
