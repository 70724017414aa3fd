"""Stage 1 of Deep Compression: train the network, prune its small weights, retrain what is left."""
import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from tqdm import tqdm

import util
from net.models import AlexNet, load_model, save_model


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    util.add_common_arguments(parser)
    parser.add_argument('--batch-size', type=util.number(int, 1), default=256, help='images per training step')
    parser.add_argument('--test-batch-size', type=util.number(int, 1), default=1000, help='images per test step')
    parser.add_argument('--epochs', type=util.number(int, 1), default=20, help='epochs of the first training')
    parser.add_argument('--retrain-epochs', type=util.number(int, 1), default=12, help='epochs after pruning')
    parser.add_argument('--lr', type=util.number(float, 0), default=1e-3, help='highest learning rate')
    parser.add_argument('--schedule', choices=['one-cycle', 'cosine'], default='one-cycle', help='of the learning rate')
    parser.add_argument('--weight-decay', type=util.number(float, 0), default=0, help='L2 penalty')
    parser.add_argument('--seed', type=util.number(int, 0, 2**63 - 1), default=42, help='random seed')
    parser.add_argument('--log-interval', type=util.number(int, 1), default=10, help='steps between two shown losses')
    parser.add_argument('--prune', choices=['percentile', 'std'], help='how to find the thresholds: keep a percentage '
                        'of each layer (unless --sensitivity is given), or compare with its standard deviation')
    parser.add_argument('--rates', type=parse_rates, metavar='LAYER=PERCENT,...',
                        help='percent of the weights to keep in these layers, instead of the paper\'s')
    parser.add_argument('--sensitivity', type=util.number(float, 0),
                        help='threshold in standard deviations; alone it selects --prune std')
    parser.add_argument('--load-model-path', help='trained dense model: skips the first training; '
                        'with --validation, it must have been trained with the same --validation')
    parser.add_argument('--validation', type=util.number(int, 1), metavar='N',
                        help='hold N training images out and report on them instead of the test set')
    args = parser.parse_args(argv)
    args.prune = args.prune or ('percentile' if args.sensitivity is None else 'std')
    if args.prune == 'percentile' and args.sensitivity is not None:
        parser.error('--sensitivity goes with --prune std, got --prune percentile')
    if args.prune == 'std' and args.rates is not None:
        parser.error('--rates goes with --prune percentile, got --prune std')
    return args


def parse_rates(text):
    """'conv1=84,fc2=9' -> {'conv1': 84.0, 'fc2': 9.0}"""
    rates = {}
    for part in text.split(','):
        name, _, percent = part.partition('=')
        if name not in AlexNet.DEFAULT_PRUNE_RATE:
            raise argparse.ArgumentTypeError(
                f'unknown layer {name!r}, expected one of {", ".join(AlexNet.DEFAULT_PRUNE_RATE)}')
        try:
            rates[name] = util.number(float, 0, 100)(percent)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{part!r} is not LAYER=PERCENT') from None
    return rates


def train(model, images, optimizer, scheduler, epochs, batch_size=256, log_interval=10):
    """Train in place; weights that are zero when it starts are pruned, and stay zero.

    One step of the scheduler follows each of the `epochs * ceil(n / batch_size)` steps of the optimizer.
    """
    model.train()
    masks = pruning_masks(model, optimizer)
    n_batches = math.ceil(len(images.labels) / batch_size)
    for epoch in range(1, epochs + 1):
        start, total_loss = time.perf_counter(), 0.0
        bar = tqdm(util.batches(images, batch_size), f'Epoch {epoch}/{epochs}', n_batches, leave=False, disable=None)
        for step, (pixels, labels) in enumerate(bar):
            optimizer.zero_grad()
            loss = F.nll_loss(model(pixels), labels)
            loss.backward()
            for param, mask in masks:
                param.grad.mul_(mask)  # zero the gradients of pruned weights (Han et al. 2015, section 3.3)
            optimizer.step()
            scheduler.step()
            total_loss += loss.detach()
            if step % log_interval == 0:
                bar.set_postfix(loss=f'{loss.item():.4f}', lr=f'{scheduler.get_last_lr()[0]:.2e}')
        print(f'Epoch {epoch}/{epochs}: Average loss: {total_loss.item() / n_batches:.4f}, '
              f'{time.perf_counter() - start:.1f} s', flush=True)


def pruning_masks(model, optimizer):
    """(parameter, mask) for every parameter with zeros: 0.0 where pruned, 1.0 elsewhere. Works in place.

    What the optimizer remembers of pruned weights (momentum) is cleared, once: with neither history nor gradient the
    update of a pruned weight is zero, whatever the weight decay, because decay is proportional to the weight.
    """
    masks = [(param, (param != 0).to(param.dtype)) for param in model.parameters() if (param == 0).any()]
    for param, mask in masks:
        param.data.masked_fill_(mask == 0, 0)  # -0.0 becomes +0.0
        for history in optimizer.state.get(param, {}).values():
            if torch.is_tensor(history) and history.shape == param.shape:
                history.mul_(mask)
    return masks


def make_optimizer(model, args, epochs, n_images):
    """A fresh Adam, and the schedule of its learning rate over all steps of `epochs`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    steps = epochs * math.ceil(n_images / args.batch_size)
    if args.schedule == 'cosine':
        return optimizer, CosineAnnealingLR(optimizer, steps)
    return optimizer, OneCycleLR(optimizer, args.lr, total_steps=steps)


def prune(model, args):
    if args.prune == 'std':
        model.prune_by_std(**({} if args.sensitivity is None else {'s': args.sensitivity}))
    else:
        model.prune_by_percentile({**model.DEFAULT_PRUNE_RATE, **(args.rates or {})})


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    device = util.pick_device(args.no_cuda)
    Path('saves').mkdir(exist_ok=True)  # if it cannot be made, better now than after the training
    images = util.load_images(args.data).to(device)
    if args.validation:
        title, (images, test_images) = 'Validation set', images.split(args.validation)
    else:
        title, test_images = 'Test set', util.load_images(args.data, train=False).to(device)

    def fit(epochs):
        optimizer, scheduler = make_optimizer(model, args, epochs, len(images.labels))
        train(model, images, optimizer, scheduler, epochs, args.batch_size, args.log_interval)

    def report(key):
        accuracy = util.test(model, device.type == 'cuda', test_images, title, args.test_batch_size)
        util.log(f'{key} {accuracy}', args.log)

    if args.load_model_path:
        model = load_model(args.load_model_path, device)
    else:
        model = AlexNet(n_classes=len(images.classes)).to(device)
    print(model)
    util.print_model_parameters(model)
    if not args.load_model_path:
        print('--- Initial training ---')
        fit(args.epochs)
        save_model(model, 'saves/initial_model.ptmodel')
    report('initial_accuracy')
    print('--- Before pruning ---')
    util.print_nonzeros(model, args.log)

    prune(model, args)
    print('--- After pruning ---')
    util.print_nonzeros(model, args.log)
    report('accuracy_after_pruning')

    print('--- Retraining ---')
    fit(args.retrain_epochs)
    save_model(model, 'saves/model_after_retraining.ptmodel')
    report('accuracy_after_retraining')
    print('--- After Retraining ---')
    util.print_nonzeros(model, args.log)


if __name__ == '__main__':
    util.run(main)
