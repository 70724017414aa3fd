"""Batch normalisation while a network is trained; afterwards it is part of the weights and biases."""
from contextlib import contextmanager

from net.errors import UserError
from net.models import multiply_small_maps, replace_zeros

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

LEAST_NORM = 1e-5  # of the incoming weights of a unit, below which it counts as receiving nothing


@contextmanager
def batch_normalised(model, pixels=None, optimizer=None):
    """Within this context every hidden layer of the model is normalised before its ReLU, by `model.norms`.

    In the end these are folded into weights and biases: the layers alone compute what they did with the norms, and
    pruned weights stay zero. With `pixels` as `batches` yields them, (n, 3, 32, 32), the outputs of the evaluation mode
    do not change on entering either; without, each channel begins with mean 0 and deviation 1. An optimizer of the
    model gets the new parameters for as long. In the end its state is cleared: it belongs to weights of another scale.
    """
    hidden = [layer for _, layer in model.layers()][:-1]
    for name, layer in model.layers():
        if layer.bias is None:
            raise UserError(f'batch normalisation becomes part of the biases, {name} has none')
    norms = nn.ModuleList((nn.BatchNorm2d if layer.weight.dim() == 4 else nn.BatchNorm1d)(len(layer.weight))
                          for layer in hidden).to(hidden[0].weight.device)
    replace_zeros(norms)  # the means begin at 0, which would say that they are pruned
    if pixels is not None:
        outputs = []
        with torch.no_grad(), _hooked(hidden, [lambda _, __, output: outputs.append(output)] * len(hidden)):
            model(pixels)
        for layer, norm, output in zip(hidden, norms, outputs, strict=True):
            unfold(layer, norm, output)
    model.norms = norms  # among the model's parameters, and in its state
    if optimizer:
        optimizer.add_param_group({**optimizer.param_groups[0], 'params': list(norms.parameters())})
    try:
        multiply_small_maps(model)  # only here: faster where training takes hours, and elsewhere rounded as ever
        with _hooked(hidden, map(_normalise, norms)):
            yield
    finally:
        for layer, norm in zip(hidden, norms, strict=True):
            vars(layer).pop('forward', None)  # a convolution again
            fold(layer, norm)
        del model.norms
        if optimizer:
            optimizer.param_groups.pop()
            optimizer.state.clear()


def _normalise(norm):
    """A hook for a layer. One image has no variance in a fully connected layer: it takes the averages over batches."""
    return lambda layer, _, output: norm.train(layer.training and len(output) > 1)(output)


def unfold(layer, norm, outputs):
    """Move the mean and deviation of these outputs from the layer to the norm, in place: together nothing changes.

    The weights of each unit get the norm with which He et al. (2015, equation 10) begin. What the unit computes does
    not depend on it any more, but how far a step moves the unit does. A unit that receives next to nothing stays.
    """
    norms = layer.weight.data.flatten(1).norm(dim=1)
    scale = torch.where(norms > LEAST_NORM, 2 ** 0.5 / norms, 1)
    layer.weight.data *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.data *= scale
    variance, mean = torch.var_mean(outputs.transpose(0, 1).flatten(1), 1, correction=0)
    norm.bias.data.copy_(mean)
    norm.running_mean.copy_(mean * scale)
    norm.running_var.copy_(variance * scale ** 2)
    norm.weight.data.copy_((norm.running_var + norm.eps).sqrt() / scale)


def fold(layer, norm):
    """Change the layer in place, so that it alone computes what it does with the norm after it."""
    fuse = fuse_conv_bn_weights if layer.weight.dim() == 4 else fuse_linear_bn_weights
    weight, bias = fuse(layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    layer.weight.data.copy_(weight.data + 0)  # a negative deviation makes -0.0 of pruned weights
    layer.bias.data.copy_(bias.data)


@contextmanager
def _hooked(layers, hooks):
    """Within this context each layer has its forward hook, which may return another output."""
    handles = [layer.register_forward_hook(hook) for layer, hook in zip(layers, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
