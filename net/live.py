"""The live part of a pruned network: the units that still do something, as a small dense network.

The network's layers are taken for a chain: each layer reads relu of the one before, one input for each of its
outputs. That holds for AlexNet, whose last convolution leaves one value per channel.
"""
from contextlib import contextmanager
from itertools import pairwise

from net.errors import UserError

import torch
import torch.nn.functional as F
from torch import nn


def count_alive(model):
    """How many weights and biases of its layers are not zero."""
    return sum(int(torch.count_nonzero(param)) for _, layer in model.layers() for param in (layer.weight, layer.bias)
               if param is not None)


def count_nonzeros(layer):
    """How many of its weights are not zero."""
    return int(torch.count_nonzero(layer.weight))


def count_hidden_units(model):
    """How many hidden units the next layer reads."""
    return sum(int(_used_inputs(following).sum()) for _, following in neighbours(model))


def neighbours(model):
    """(layer, the one that reads it) for every layer but the last."""
    return pairwise(layer for _, layer in model.layers())


def remove_dead_weights(model, drop_constants=False):
    """Zero, in place, every weight and bias that no output depends on, until nothing changes.

    A unit whose outgoing weights are all pruned is not used: it loses its incoming weights and its bias, and the
    outputs stay exactly equal. A unit that receives nothing is the constant relu(bias): before a fully connected layer
    it moves into the next bias (equal up to rounding). Before a convolution, whose zero padding does not see the
    constant, it goes only if it is 0, or with `drop_constants`, which changes the outputs: retraining makes up for it.
    """
    pairs = list(neighbours(model))
    before, after = None, count_alive(model)
    while after != before:
        for layer, following in pairs:
            _remove_constant_units(layer, following, drop_constants)
        for layer, following in reversed(pairs):
            unused = ~_used_inputs(following)
            for param in layer.parameters():
                param.data[unused] = 0
        before, after = after, count_alive(model)


def _remove_constant_units(layer, following, drop_constants):
    removed = (layer.weight.data == 0).flatten(1).all(1)  # receive nothing
    constants = torch.zeros_like(removed, dtype=layer.weight.dtype) if layer.bias is None else F.relu(layer.bias.data)
    if isinstance(following, nn.Linear) and following.bias is not None:
        following.bias.data += following.weight.data[:, removed] @ constants[removed]
    elif not drop_constants:
        removed &= constants == 0
    following.weight.data[:, removed] = 0


def _used_inputs(layer):
    """Which inputs have a weight that is not zero: (in,), bool."""
    return (layer.weight.data != 0).transpose(0, 1).flatten(1).any(1)


def live_units(model):
    """Indices of the units in use, int64: all channels of the images, then for each layer those the next one reads.

    Raises UserError if none is left in some layer.
    """
    first, *following = [layer for _, layer in model.layers()]
    units = [torch.arange(first.weight.shape[1], device=first.weight.device)]
    units += [_used_inputs(layer).nonzero()[:, 0] for layer in following]
    units += [torch.arange(following[-1].weight.shape[0], device=first.weight.device)]
    if not all(map(len, units)):
        raise UserError('no path is left from the images to the outputs: keep more weights')
    return units


def sort_units(model):
    """Renumber, in place, the units between the layers: live ones first, in the order of their first incoming weight.

    The network computes the same (up to rounding, as sums run in another order), but where its weights lie takes fewer
    bits to say. A kernel's first place comes before the second, whatever the input.
    """
    for layer, following in neighbours(model):
        weight = layer.weight.data.reshape(*layer.weight.shape[:2], -1)
        incoming = (weight != 0).transpose(1, 2).flatten(1)  # (out, places * in)
        first = torch.where(incoming.any(1), incoming.int().argmax(1), incoming.shape[1])
        first[~_used_inputs(following)] = incoming.shape[1] + 1
        order = first.argsort(stable=True)
        for param in layer.parameters():
            param.data = param.data[order]
        following.weight.data = following.weight.data[:, order]


@contextmanager
def live_part(model, optimizer=None):
    """Within this context the model consists of its live units only: the same network with fewer channels.

    Parameters, and the state that the optimizer has for them, are gathered from the whole model and in the end
    scattered back, so that what is done in between costs what the live part costs. Dead units stay as they are.
    """
    state = optimizer.state if optimizer else {}
    whole = {}  # parameter -> where its live part lies, all of it, all of its state
    for (_, layer), (inputs, outputs) in zip(model.layers(), pairwise(live_units(model)), strict=True):
        for param in layer.parameters():
            index = outputs if param is layer.bias else (outputs[:, None], inputs)
            whole[param] = index, param.data, state_like(param, state)
            state.get(param, {}).update({key: value[index] for key, value in whole[param][2].items()})
            param.grad, param.data = None, param.data[index]
    try:
        yield
    finally:
        for param, (index, data, whole_state) in whole.items():
            for key, value in state_like(param, state).items():
                state[param][key] = whole_state.get(key, torch.zeros_like(data))
                state[param][key][index] = value
            data[index] = param.data
            param.grad, param.data = None, data


def live_network(model):
    """The live units as a network of the same class with fewer channels; its outputs are equal up to rounding.

    Raises UserError if none is left in some layer.
    """
    units = live_units(model)
    with torch.device('meta'):  # shapes only, and no random numbers
        network = type(model)(len(units[-1]), [len(hidden) for hidden in units[1:-1]])
    network.to(next(model.parameters()).dtype).to_empty(device=units[0].device)
    with live_part(model):
        network.load_state_dict(model.state_dict())
    return network


def state_like(param, state):
    """What the optimizer has for every single value of a parameter, such as Adam's moments: name -> tensor."""
    return {key: value for key, value in state.get(param, {}).items()
            if torch.is_tensor(value) and value.shape == param.shape}
