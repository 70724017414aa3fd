"""Batch normalisation around a training: what it computes, and that it leaves no trace."""
from functools import partial

from net.batch_norm import batch_normalised
from net.models import AlexNet

import pytest
import torch
import torch.nn.functional as F
from small import WIDTHS

assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)  # rounding adds up over layers


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    return torch.randn(50, 3, 32, 32) * 3 + 1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AlexNet(widths=WIDTHS)


def step(model, optimizer, pixels):
    optimizer.zero_grad()
    F.nll_loss(model(pixels), torch.arange(len(pixels)) % 10).backward()
    optimizer.step()


def test_one_image_which_has_no_variance_is_normalised_with_the_averages(model, pixels):
    with batch_normalised(model, pixels):
        averages = [norm.running_mean.clone() for norm in model.norms]
        trained = model.train()(pixels[:1])
        assert_close(trained, model.eval()(pixels[:1]))
        assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(model.norms, averages, strict=True))


def test_entering_and_leaving_change_no_output(model, pixels):
    model.eval()
    before = model(pixels)
    with batch_normalised(model, pixels):
        assert_close(model(pixels), before)
        assert_close(model.train()(pixels), before)  # the batch that the averages were taken from
    assert_close(model(pixels), before)


def test_what_was_trained_is_still_there_when_the_norms_are_gone(model, pixels):
    with batch_normalised(model):
        assert 'forward' in vars(model.conv3)  # small maps are multiplied
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            step(model, optimizer, pixels)
        trained = model.eval()(pixels)
        assert all((norm.weight != 1).any() for norm in model.norms)
    assert_close(model(pixels), trained)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in AlexNet().named_parameters()]
    assert not any(layer._forward_hooks or 'forward' in vars(layer) for layer in model.modules())


def test_without_images_each_channel_begins_with_mean_0_and_deviation_1(model, pixels):
    seen = []
    with batch_normalised(model):
        model.conv2.register_forward_hook(lambda _, __, output: seen.append(output))
        model(pixels)
    variance, mean = torch.var_mean(seen[0], (0, 2, 3), correction=0)
    assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)  # eps


def test_the_last_layer_is_not_normalised(model):
    with batch_normalised(model):
        assert [len(norm.weight) for norm in model.norms] == list(WIDTHS)


def test_pruned_weights_stay_positive_zeros_though_a_deviation_becomes_negative(model, pixels):
    model.prune_to_budget(2000)
    pruned = [layer.weight == 0 for _, layer in model.layers()]
    with batch_normalised(model, pixels):
        for norm in model.norms:
            norm.weight.data[::2] *= -1
        expected = model.eval()(pixels)
    assert_close(model(pixels), expected)
    for (_, layer), zeros in zip(model.layers(), pruned, strict=True):
        assert torch.equal(layer.weight == 0, zeros) and not layer.weight[zeros].signbit().any()


@pytest.mark.parametrize('size', [0, 1e-30])
def test_a_unit_that_receives_next_to_nothing_does_no_harm(size, model, pixels):
    model.eval()
    model.fc1.weight.data[0] = size
    before = model(pixels)
    with batch_normalised(model, pixels):
        assert_close(model(pixels), before)
    assert_close(model(pixels), before)


def test_an_optimizer_gets_the_new_parameters_and_forgets_the_old_ones(model, pixels):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with batch_normalised(model, pixels, optimizer):
        assert optimizer.param_groups[1]['params'] == list(model.norms.parameters())
        assert optimizer.param_groups[1]['momentum'] == 0.9
        before = model.norms[0].weight.clone()
        step(model, optimizer, pixels)
        assert not torch.equal(model.norms[0].weight, before) and optimizer.state
    assert len(optimizer.param_groups) == 1 and not optimizer.state


def test_a_layer_without_biases_to_fold_into_is_named(model, pixels):
    model.conv3.bias = None
    with pytest.raises(ValueError, match='^batch normalisation becomes part of the biases, conv3 has none$'):
        with batch_normalised(model, pixels):
            pass
    assert not hasattr(model, 'norms') and not any(layer._forward_hooks for layer in model.modules())


def test_an_interruption_leaves_the_network_without_norms(model, pixels):
    with pytest.raises(KeyboardInterrupt), batch_normalised(model, pixels):
        raise KeyboardInterrupt
    assert not hasattr(model, 'norms')
    assert not any(layer._forward_hooks or 'forward' in vars(layer) for layer in model.modules())
