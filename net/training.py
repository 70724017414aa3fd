"""How a network is trained in each phase: its loss, its optimizer, the course of the learning rate, what is pruned."""
import gc
import math
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import NamedTuple

from net.data import batches, normalize
from net.errors import UserError
from net.live import live_network, state_like
from net.models import DENSE, load_model, multiply_small_maps

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ConstantLR, LinearLR, OneCycleLR

TEMPERATURE = 2  # that the answers of a teacher, and of the network that learns from it, are divided by
BATCHES_TO_REGROW = 8  # whose gradients say which pruned weights come back
REGROWN = 1e-8  # their size: not zero, so that they are trained, and nothing beside others
OPTIMIZERS = {  # name -> optimizer, the course of its learning rate, and the part of the steps in which that rises
    'sgd': (partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True), 'linear', 0.2),
    'adam': (partial(torch.optim.Adam, fused=True), 'cos', 0.1),
}


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
    batch_norm: bool = False

    def batches(self, images):
        """Yield the batches of one epoch, as `net.data.batches` does, with these settings."""
        return islice(batches(images, self.batch_size, self.crop), self.steps_per_epoch(len(images.labels)))

    def steps_per_epoch(self, n_images):
        """Under batch normalisation a last batch less than half full, whose deviations say little, is left out."""
        if self.batch_norm and n_images > self.batch_size and n_images % self.batch_size < self.batch_size / 2:
            return n_images // self.batch_size
        return math.ceil(n_images / self.batch_size)


# ---- the phases, as the recipe has them ------------------------------------------------------------------------------

def initial_training(args):
    loss = partial(loss_of_batch, smoothing=args.label_smoothing)
    return Training(args.epochs, args.lr, '--lr', args.weight_decay, True, loss, *_of_all_phases(args))


def training_between_steps(args, device):
    return Training(args.prune_steps - 1, args.prune_lr, 'prune_lr (in the recipe)', args.weight_decay,
                    args.crop_after_pruning, _loss_after_pruning(args, device), *_of_all_phases(args))


def retraining(args, device):
    return Training(args.retrain_epochs, args.retrain_lr, '--retrain-lr', args.retrain_weight_decay,
                    args.crop_after_pruning, _loss_after_pruning(args, device), *_of_all_phases(args))


def training_of_shared_values(args, teacher):
    loss = partial(loss_of_batch, teacher=teacher, teacher_share=args.teacher_share)
    return Training(args.epochs, args.lr, '--lr', args.weight_decay, args.crop, loss,
                    args.optimizer, args.batch_size, args.log_interval)


def _of_all_phases(args):
    return args.optimizer, args.batch_size, args.log_interval, args.batch_norm


def _loss_after_pruning(args, device):
    """The loss for which the dense model may be the teacher."""
    teacher = None
    if args.teacher_share:
        teacher = teacher_of(load_model(args.load_model_path or DENSE, device))
    return partial(loss_of_batch, smoothing=args.label_smoothing, teacher=teacher, teacher_share=args.teacher_share)


# ---- what they are made of -------------------------------------------------------------------------------------------

def make_optimizer(model, training):
    return OPTIMIZERS[training.optimizer][0](model.parameters(), lr=training.lr, weight_decay=training.weight_decay)


def one_cycle(optimizer, training, n_images):
    """The learning rate of all steps of a training: it rises to its highest value, and ends near zero."""
    n_steps = training.epochs * training.steps_per_epoch(n_images)
    if n_steps <= 10:  # too few to rise and fall
        return ConstantLR(optimizer, factor=1)
    _, course, rising = OPTIMIZERS[training.optimizer]
    return OneCycleLR(optimizer, training.lr, n_steps, pct_start=rising, anneal_strategy=course, cycle_momentum=False)


def warm_up(optimizer, training, n_images):
    """The learning rate of all steps of gradual pruning: constant after it has risen, in a third of them at most."""
    n_steps = training.epochs * training.steps_per_epoch(n_images)
    rising = min(100, n_steps // 3)
    return LinearLR(optimizer, 0.01, total_iters=rising) if rising else ConstantLR(optimizer, factor=1)


def teacher_of(model):
    """The live part of a model in evaluation mode, its small maps multiplied; UserError if some layer has none."""
    teacher = live_network(model).eval()
    multiply_small_maps(teacher)
    return teacher


def loss_of_batch(output, target, data, smoothing=0., teacher=None, teacher_share=0.):
    """The loss of log-probabilities (n, classes), as a scalar tensor.

    Of each label, `smoothing` goes to all classes alike (Szegedy et al. 2016, section 7). With a teacher,
    `teacher_share` of the loss is how far the network's softened answers are from the teacher's (Hinton et al. 2015,
    section 2): the mean of its softened answers to the images `data`, (n, 3, 32, 32), and to their mirror images.
    """
    loss = F.cross_entropy(output, target, label_smoothing=smoothing) if smoothing else F.nll_loss(output, target)
    if teacher is None:
        return loss
    with torch.no_grad():
        softened = (teacher(torch.cat([data, data.flip(3)])) / TEMPERATURE).softmax(1)
        answers = softened.view(2, *output.shape).mean(0)
    distance = F.kl_div((output / TEMPERATURE).log_softmax(1), answers, reduction='batchmean')
    # The square: as large a gradient as without a temperature.
    return (1 - teacher_share) * loss + teacher_share * TEMPERATURE ** 2 * distance


def regrow(model, images, training, to_regrow):
    """Let `to_regrow[name]` pruned weights of each layer come back, in place: those with the largest gradients.

    The gradients are summed over a few batches, and of equal ones any may be taken; where fewer are not zero, fewer
    come back (Liu et al. 2021, "Sparse training via boosting pruning plasticity with neuroregeneration"). A weight
    begins as next to nothing. Leaves the model in training mode, with gradients.
    """
    if not to_regrow:
        return
    model.train()
    model.zero_grad()
    for data, target in islice(training.batches(images), BATCHES_TO_REGROW):
        training.loss(model(data), target, data).backward()
    for name, layer in model.layers():
        weight, gradient = layer.weight.data.flatten(), layer.weight.grad.flatten()
        of_pruned = torch.where(weight == 0, gradient.abs(), 0)
        places = of_pruned.topk(min(to_regrow[name], int(torch.count_nonzero(of_pruned)))).indices
        weight[places] = -REGROWN * gradient[places].sign()
        layer.weight.data.copy_(weight.view_as(layer.weight))


@contextmanager
def recorded(model, images, batch_size):
    """Within this context the model's work on a full batch is replayed from CUDA graphs, if the images are on a GPU.

    There a layer takes less time than Python does to start it. The results are the same up to rounding. Until it ends,
    no parameter may be replaced, and each output is overwritten by the next (`torch.cuda.make_graphed_callables`).
    """
    if not images.pixels.is_cuda or len(images.labels) < batch_size:
        yield
        return
    model.train()  # the mode that is recorded
    plain, buffers = model.forward, [(buffer, buffer.clone()) for buffer in model.buffers()]
    data = normalize(images.pixels[:batch_size]).contiguous(memory_format=torch.channels_last)
    try:
        torch.cuda.make_graphed_callables(model, (data,))
        for buffer, before in buffers:  # the averages of batch normalisation, which have seen these images
            buffer.copy_(before)
        # Only the model refers to what was recorded, so that it can go in the end.
        model.forward = partial(_replay_if_full, model.forward, plain, batch_size)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'The AccumulateGrad node')  # it was made while recording
            yield
    finally:
        vars(model).pop('forward', None)
        gc.collect()  # it refers to itself; later, gradients would get the shapes that the model has now


def _replay_if_full(replayed, plain, batch_size, data):
    return (replayed if len(data) == batch_size else plain)(data)


def pruning_masks(model, optimizer):
    """Name -> 0.0 where it is pruned, 1.0 elsewhere, for every parameter with zeros. Works in place.

    What the optimizer remembers of pruned weights (momentum) is cleared, once: with neither history nor gradient the
    update of a pruned weight is zero, whatever the weight decay, because decay is proportional to the weight.
    """
    masks = {name: (param != 0).to(param.dtype) for name, param in model.named_parameters() if (param == 0).any()}
    for name, mask in masks.items():
        param = model.get_parameter(name)
        for values in param.data, *state_like(param, optimizer.state).values():
            values.masked_fill_(mask == 0, 0)  # of the weight, -0.0 becomes +0.0
    return masks


def average_loss(losses, model, masks, title, lr_flag):
    """The mean of an epoch's losses; UserError if the training has failed: one of them, or a weight, is not finite.

    Then pruned weights are set to zero again, since NaN times a mask is NaN.
    """
    losses = torch.stack(losses)
    failed = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if failed or not all(torch.isfinite(param).all() for param in model.parameters()):
        for name, mask in masks.items():
            model.get_parameter(name).data.masked_fill_(mask == 0, 0)
        step = failed[0] + 1 if failed else len(losses)
        raise UserError(f'{title}, step {step}: the loss is no longer finite, the training has failed: start again '
                        f'with a lower {lr_flag} and --restart')
    return losses.mean().item()
