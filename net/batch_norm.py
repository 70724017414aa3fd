"""Batch normalisation while a network is trained; afterwards it is part of the weights and biases."""
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from net.models import replace_zeros

MOMENTUM, EPS = 0.1, 1e-5  # PyTorch's own


class BatchNorm(nn.Module):
    """Gives each of `n` channels the mean `bias` and the deviation `weight` (Ioffe and Szegedy 2015, algorithm 1).

    In training, mean and variance are taken from the batch, otherwise from averages over past batches; so they are for
    a batch of one image, which in a fully connected layer has no variance.
    """

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.bias = nn.Parameter(torch.zeros(n))
        self.register_buffer('mean', torch.zeros(n))
        self.register_buffer('variance', torch.ones(n))

    def forward(self, x):
        """Normalise (batch, n) or (batch, n, height, width)."""
        of_batch = self.training and len(x) > 1
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, of_batch, MOMENTUM, EPS)

    def unfold_from(self, layer, outputs):
        """Take the mean and deviation of these outputs out of the layer, in place: with this after it nothing changes.

        The weights of each unit get the norm with which He et al. (2015, equation 10) begin. It means nothing any more
        for what the unit computes, but the smaller it is, the farther the unit moves in a step. A unit that receives
        next to nothing stays as it is.
        """
        norms = layer.weight.data.flatten(1).norm(dim=1)
        scale = torch.where(norms > EPS, 2 ** 0.5 / norms, 1)
        _scale_units(layer, scale)
        variance, mean = torch.var_mean(outputs.transpose(0, 1).flatten(1), 1, correction=0)
        self.bias.data.copy_(mean)
        self.mean.copy_(mean * scale)
        self.variance.copy_(variance * scale ** 2)
        self.weight.data.copy_((self.variance + EPS).sqrt() / scale)

    def fold_into(self, layer):
        """Change the layer in place, so that it alone computes what it does with this after it."""
        scale = self.weight.data / (self.variance + EPS).sqrt()
        layer.bias.data -= self.mean
        _scale_units(layer, scale)
        layer.bias.data += self.bias.data
        layer.weight.data += 0  # a negative deviation makes -0.0 of pruned weights


def _scale_units(layer, scale):
    layer.weight.data *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.data *= scale


@contextmanager
def batch_normalised(model, pixels=None, optimizer=None):
    """Within this context every hidden layer of the model is normalised before its ReLU, by `model.norms`.

    In the end these are folded into weights and biases: the layers alone compute what they did with the norms, and
    pruned weights stay zero. With `pixels` as `batches` yields them, (n, 3, 32, 32), the outputs of the evaluation mode
    do not change on entering either; without, each channel begins with mean 0 and deviation 1. An optimizer of the
    model gets the new parameters for as long. In the end its state is cleared: it belongs to weights of another scale.
    """
    hidden = [layer for _, layer in model.layers()][:-1]
    norms = nn.ModuleList(BatchNorm(len(layer.weight)) for layer in hidden).to(hidden[0].weight.device)
    replace_zeros(norms)  # the means begin at 0, which would say that they are pruned
    if pixels is not None:
        outputs = []
        with torch.no_grad(), _hooked(hidden, [outputs.append for _ in hidden]):
            model(pixels)
        for layer, norm, output in zip(hidden, norms, outputs, strict=True):
            norm.unfold_from(layer, output)
    model.norms = norms  # among the model's parameters, and in its state
    if optimizer:
        optimizer.add_param_group({**optimizer.param_groups[0], 'params': list(norms.parameters())})
    try:
        with _hooked(hidden, norms):
            yield
    finally:
        for layer, norm in zip(hidden, norms, strict=True):
            norm.fold_into(layer)
        del model.norms
        if optimizer:
            optimizer.param_groups.pop()
            optimizer.state.clear()


@contextmanager
def _hooked(layers, functions):
    """Within this context the output of each layer goes through its function, which may return another one."""
    hooks = [layer.register_forward_hook(lambda _, __, output, function=function: function(output))
             for layer, function in zip(layers, functions, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
