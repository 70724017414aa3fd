import copy
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

from net import models
from net.live import live_network, live_part, live_units, remove_dead_weights, sort_units
from net.models import AlexNet
from net.prune import PruningModule
from net.quantization import codebooks_as_parameters

import pytest
import torch
import torch.nn.functional as F
from networks import Sequential
from small import WIDTHS
from torch import nn


class Chain(PruningModule):
    """Layers with ReLU in between, each of them given by its weight (out, in) and bias (out,), which may be None."""

    def __init__(self, *layers):
        super().__init__()
        for i, (weight, bias) in enumerate(layers):
            layer = nn.Linear(len(weight[0]), len(weight), bias is not None)
            layer.weight.data = torch.tensor(weight)
            if bias is not None:
                layer.bias.data = torch.tensor(bias)
            self.add_module(f'fc{i}', layer)

    def forward(self, x):
        *hidden, last = [layer for _, layer in self.layers()]
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class Convolutions(PruningModule):
    """Two zero-padded convolutions; the first one's only unit has no weights, so that it is the constant relu(bias)."""

    def __init__(self, bias):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.conv1.weight.data.zero_()
        self.conv1.bias.data.fill_(bias)

    def forward(self, x):
        return self.conv2(F.relu(self.conv1(x)))


def sparse_alexnet(seed, widths=WIDTHS, n_units=15):
    """An AlexNet with some weights between a few random units of each layer, and more anywhere: most of those dead."""
    torch.manual_seed(seed)
    model = AlexNet(widths=widths)
    inputs = torch.arange(3)
    for _, layer in model.layers():
        weight = layer.weight.data
        outputs = torch.arange(10) if layer is model.fc3 else torch.randperm(len(weight))[:n_units]
        keep = torch.rand(weight.shape) < 10 / 3 * n_units / weight.numel()
        keep[outputs[:, None], inputs] |= torch.rand(keep[outputs[:, None], inputs].shape) < 0.2
        n_read = 0.2 * len(inputs) * weight[0, 0].numel()  # weights of a unit; outputs keep their scale
        layer.weight.data = torch.where(keep, torch.randn(weight.shape) * (2 / n_read) ** 0.5, 0)
        layer.bias.data.uniform_(-0.5, 0.5)
        inputs = outputs
    return model.eval()


def counts(model):
    return [int(torch.count_nonzero(param)) for param in model.parameters()]


def test_a_unit_that_nothing_reads_loses_its_weights_and_its_bias():
    model = Chain(([[1., 2.], [3., 4.]], [5., 6.]), ([[7., 0.]], [8.]))
    remove_dead_weights(model)
    assert model.fc0.weight.tolist() == [[1, 2], [0, 0]] and model.fc0.bias.tolist() == [5, 0]
    assert model.fc1.weight.tolist() == [[7, 0]] and model.fc1.bias.tolist() == [8]


def test_what_only_dead_units_read_is_dead_as_well():
    model = Chain(([[1.], [2.]], [3., 4.]), ([[5., 0.], [0., 6.]], [7., 8.]), ([[9., 0.]], [1.]))
    remove_dead_weights(model)
    assert model.fc0.weight.tolist() == [[1], [0]] and model.fc0.bias.tolist() == [3, 0]
    assert model.fc1.weight.tolist() == [[5, 0], [0, 0]] and model.fc1.bias.tolist() == [7, 0]


def test_a_unit_that_receives_nothing_moves_into_the_next_bias():
    model = Chain(([[0., 0.], [1., 0.]], [2., 0.5]), ([[3., 4.]], [1.]))
    remove_dead_weights(model)
    assert model.fc0.bias.tolist() == [0, 0.5]
    assert model.fc1.weight.tolist() == [[0, 4]] and model.fc1.bias.tolist() == [1 + 3 * 2]


def test_a_unit_that_receives_nothing_and_is_never_positive_just_goes():
    model = Chain(([[0.], [1.]], [-2., 0.5]), ([[3., 4.]], [1.]))
    remove_dead_weights(model)
    assert model.fc0.bias.tolist() == [0, 0.5] and model.fc1.bias.tolist() == [1]


def test_constants_travel_through_several_layers():
    """Unit 0 of fc0 is 2, which makes unit 0 of fc1 the constant 2 * 3 + 1 = 7, and the output 7 * 5 + 1 = 36."""
    model = Chain(([[0.]], [2.]), ([[3.]], [1.]), ([[5.]], [1.]))
    remove_dead_weights(model)
    assert counts(model) == [0, 0, 0, 0, 0, 1] and model.fc2.bias.tolist() == [36]


def test_before_a_padded_convolution_only_the_constant_zero_goes():
    """At the borders the padding hides the constant from some weights, so no bias could stand in for it."""
    negative, positive = Convolutions(-1.), Convolutions(1.)
    outputs = positive(torch.randn(1, 1, 4, 4))
    remove_dead_weights(negative)
    remove_dead_weights(positive)
    assert counts(negative) == [0, 0, 0, 1] and counts(positive) == [0, 1, 9, 1]
    assert torch.equal(positive(torch.randn(1, 1, 4, 4)), outputs) and len(outputs.unique()) > 1


def test_a_constant_before_a_convolution_can_be_dropped():
    model = Convolutions(1.)
    remove_dead_weights(model, drop_constants=True)
    assert counts(model) == [0, 0, 0, 1]


def test_units_without_biases_that_receive_nothing_or_are_not_read_are_dead():
    model = Chain(([[1., 2.], [3., 4.], [0., 0.]], None), ([[7., 0., 5.]], None))
    remove_dead_weights(model)
    assert model.fc0.weight.tolist() == [[1, 2], [0, 0], [0, 0]] and model.fc1.weight.tolist() == [[7, 0, 0]]


def test_units_without_biases_are_dead_in_a_network_of_other_precision_as_well():
    model = Chain(([[1., 2.], [0., 0.]], None), ([[7., 5.]], [8.])).double()
    remove_dead_weights(model)
    assert model.fc1.weight.tolist() == [[7, 0]] and model.fc1.bias.tolist() == [8]


def test_a_constant_that_no_bias_can_take_stays_unless_it_is_dropped():
    model = Chain(([[0.], [1.]], [2., 0.5]), ([[3., 4.]], None))
    remove_dead_weights(model)
    assert model.fc0.bias.tolist() == [2, 0.5] and model.fc1.weight.tolist() == [[3, 4]]
    remove_dead_weights(model, drop_constants=True)
    assert model.fc0.bias.tolist() == [0, 0.5] and model.fc1.weight.tolist() == [[0, 4]]


@pytest.mark.parametrize('seed', range(3))
def test_removing_unused_units_leaves_the_outputs_exactly_equal(seed):
    model = sparse_alexnet(seed)
    for _, layer in model.layers():  # every unit receives something: there are no constants
        flat = layer.weight.data.flatten(1)
        flat[:, 0][(flat == 0).all(1)] = 0.1
    pixels = torch.randn(8, 3, 32, 32)
    before, outputs = counts(model), model(pixels)
    remove_dead_weights(model)
    assert torch.equal(model(pixels), outputs) and outputs.std(0).min() > 1e-3
    assert sum(counts(model)) < 0.6 * sum(before)


@pytest.mark.parametrize('seed', range(3))
def test_folding_constants_leaves_the_outputs_equal_up_to_rounding_and_nothing_more_to_remove(seed):
    model = sparse_alexnet(seed)
    pixels = torch.randn(8, 3, 32, 32)
    before, outputs = counts(model), model(pixels)
    remove_dead_weights(model)
    assert torch.allclose(model(pixels), outputs, atol=1e-5) and outputs.std(0).min() > 1e-3
    after = counts(model)
    assert sum(after) < 0.6 * sum(before)
    remove_dead_weights(model)
    assert counts(model) == after
    assert not any(param[param == 0].signbit().any() for param in model.parameters())


def test_live_units_are_those_that_the_next_layer_reads():
    model = Chain(([[1., 0.], [2., 0.], [3., 0.]], [0.] * 3), ([[0., 1., 1.], [0., 0., 1.]], [0.] * 2))
    assert [units.tolist() for units in live_units(model)] == [[0, 1], [1, 2], [0, 1]]


def test_a_network_without_any_path_is_refused():
    model = Chain(([[1.]], [1.]), ([[0.]], [1.]))
    with pytest.raises(ValueError, match='no path is left from the images to the outputs: keep more weights'):
        live_units(model)


def test_the_live_part_is_small_and_computes_the_same():
    model = sparse_alexnet(0, models.WIDTHS, 30)
    remove_dead_weights(model)
    pixels = torch.randn(8, 3, 32, 32)
    outputs = model(pixels)
    with live_part(model):
        assert sum(param.numel() for param in model.parameters()) < 500_000  # of 20 million
        assert torch.allclose(model(pixels), outputs, atol=1e-5)
    assert torch.equal(model(pixels), outputs)


def test_the_live_units_are_a_network_of_their_own_that_computes_the_same():
    model = sparse_alexnet(0, models.WIDTHS, 30)
    before, pixels = copy.deepcopy(model), torch.randn(8, 3, 32, 32)
    network = live_network(model).eval()
    assert [layer.bias.numel() for _, layer in network.layers()] == [len(units) for units in live_units(model)[1:]]
    assert sum(param.numel() for param in network.parameters()) < 600_000  # of 20 million
    assert torch.allclose(network(pixels), model(pixels), atol=1e-5)
    network.conv1.weight.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_units_are_sorted_by_their_first_weight_and_dead_ones_come_last():
    model = Chain(([[0., 1.], [2., 3.], [0., 0.], [4., 0.]], [1., 2., 3., 4.]),
                  ([[5., 6., 7., 0.]], [8.]))
    sort_units(model)
    assert model.fc0.weight.tolist() == [[2, 3], [0, 1], [0, 0], [4, 0]]  # the last one is not read
    assert model.fc0.bias.tolist() == [2, 1, 3, 4]
    assert model.fc1.weight.tolist() == [[6, 5, 7, 0]] and model.fc1.bias.tolist() == [8]


def test_units_without_biases_are_sorted_trained_alone_and_put_back():
    model = Chain(([[0., 1.], [2., 3.], [0., 0.]], None), ([[5., 6., 0.]], None))
    x = torch.tensor([[1., 10.]])
    sort_units(model)
    assert model.fc0.weight.tolist() == [[2, 3], [0, 1], [0, 0]] and model.fc1.weight.tolist() == [[6, 5, 0]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    with live_part(model, optimizer):
        assert model.fc0.weight.shape == (2, 2) and model(x).tolist() == [[6 * 32 + 5 * 10]]
        model(x).sum().backward()
        optimizer.step()
    assert model.fc0.weight.tolist() == [[2 - 0.5 * 6, 3 - 0.5 * 60], [0 - 0.5 * 5, 1 - 0.5 * 50], [0, 0]]
    assert model.fc1.weight.tolist() == [[6 - 0.5 * 32, 5 - 0.5 * 10, 0]]


def test_the_first_place_of_a_kernel_comes_first_whatever_the_input():
    model = Sequential(nn.Conv2d(2, 2, (1, 2)), nn.Conv2d(2, 1, 1))
    model[0].weight.data = torch.tensor([[[[0., 1.]], [[0., 0.]]], [[[0., 0.]], [[1., 0.]]]])
    sort_units(model)
    assert model[0].weight.tolist() == [[[[0, 0]], [[1, 0]]], [[[0, 1]], [[0, 0]]]]


def test_sorted_units_compute_the_same_and_are_sorted_already():
    model = sparse_alexnet(0)
    remove_dead_weights(model)
    before, images = copy.deepcopy(model), torch.randn(20, 3, 32, 32)
    sort_units(model)
    assert counts(model) == counts(before)
    assert torch.allclose(model(images), before(images), atol=1e-5)
    assert all(torch.equal(units, torch.arange(len(units))) for units in live_units(model))
    once = copy.deepcopy(model)
    sort_units(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), once.parameters(), strict=True))


OPTIMIZERS = {
    'Adam': lambda params: torch.optim.Adam(params, lr=1e-3, weight_decay=0.01, fused=True),
    'SGD with momentum': lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9),
}


def masked_steps(model, optimizer, batches):
    masks = [(param, param.detach() != 0) for param in model.parameters()]
    for pixels, labels in batches:
        optimizer.zero_grad()
        F.nll_loss(model(pixels), labels).backward()
        for param, mask in masks:
            param.grad *= mask
        optimizer.step()


def prune_half(model, optimizer):
    for _, layer in model.layers():
        layer.weight.data[layer.weight.abs() < layer.weight[layer.weight != 0].abs().median()] = 0
    remove_dead_weights(model, drop_constants=True)
    for param in model.parameters():
        for value in optimizer.state[param].values():
            if value is not None and value.shape == param.shape:
                value[param == 0] = 0


@pytest.mark.parametrize('make_optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_the_live_part_is_training_the_whole_masked_network(make_optimizer):
    """Also when more units die, and the training goes on with what the optimizer has of the others."""
    whole = sparse_alexnet(3).double()  # Adam makes much of little: a gradient of rounding errors is a whole step
    remove_dead_weights(whole)
    part, before = copy.deepcopy(whole), copy.deepcopy(whole)
    optimizers = [make_optimizer(model.parameters()) for model in (whole, part)]
    sizes = []
    for _ in range(2):
        batches = [(torch.randn(16, 3, 32, 32).double(), torch.randint(10, (16,))) for _ in range(3)]
        masked_steps(whole, optimizers[0], batches)
        with live_part(part, optimizers[1]):
            sizes.append(sum(param.numel() for param in part.parameters()))
            masked_steps(part, optimizers[1], batches)
        for name, param in whole.named_parameters():
            assert torch.allclose(part.get_parameter(name), param, atol=1e-9), name
            assert not torch.allclose(before.get_parameter(name), param, atol=1e-6), name
            for key, value in optimizers[0].state[param].items():
                other = optimizers[1].state[part.get_parameter(name)][key]
                assert torch.allclose(other, value, rtol=1e-6, atol=1e-9 * value.abs().max().item()), (name, key)
        prune_half(whole, optimizers[0])
        prune_half(part, optimizers[1])
    assert sizes[1] < sizes[0] < 250_000


def test_gradients_of_the_live_part_are_those_of_the_whole_network():
    model = sparse_alexnet(4)
    remove_dead_weights(model)
    batch = torch.randn(16, 3, 32, 32)
    model(batch)[:, 3].sum().backward()
    gradients = [layer.weight.grad[outputs][:, inputs]
                 for (_, layer), (inputs, outputs) in zip(model.layers(), pairwise(live_units(model)), strict=True)]
    with live_part(model):
        model(batch)[:, 3].sum().backward()
        for (_, layer), expected in zip(model.layers(), gradients, strict=True):
            assert torch.allclose(layer.weight.grad, expected, atol=1e-5, rtol=1e-4) and expected.abs().sum() > 0


@pytest.mark.parametrize('inner', [nullcontext, codebooks_as_parameters, partial(codebooks_as_parameters, moving=True)],
                         ids=['weights', 'codebooks', 'moving codebooks'])
def test_an_interrupted_training_leaves_the_whole_network_with_what_it_has_learned(inner):
    model = Chain(([[1., 2.], [3., 4.]], [5., 6.]), ([[7., 0.], [9., 0.]], [8., 1.]))  # unit 1 of fc0 is dead
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(KeyboardInterrupt), live_part(model, optimizer), inner(*[model] * (inner is not nullcontext)):
        model.fc1.bias.data += 1
        raise KeyboardInterrupt
    assert model.fc0.weight.tolist() == [[1, 2], [3, 4]] and model.fc0.bias.tolist() == [5, 6]
    assert model.fc1.weight.tolist() == [[7, 0], [9, 0]] and model.fc1.bias.tolist() == [9, 2]


def test_a_live_network_has_the_precision_of_the_model_whatever_the_default_type():
    model = AlexNet(widths=WIDTHS)
    torch.set_default_dtype(torch.float64)
    try:
        assert {param.dtype for param in live_network(model).parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
