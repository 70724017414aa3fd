from net.models import AlexNet
from net.prune import PruningModule
from net.quantization import apply_weight_sharing, codebooks_as_parameters, kmeans

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import Sequential
from small import WIDTHS
from torch import nn


def share(weights, bits):
    """The weights after sharing, as those of a layer."""
    weights = np.array(weights, dtype=np.float32)
    model = Sequential(nn.Linear(1, 1))
    model[0].weight.data = torch.tensor(weights if weights.ndim > 1 else weights[None])
    apply_weight_sharing(model, bits)
    shared = model[0].weight.detach().numpy().reshape(weights.shape)
    assert np.array_equal(shared != 0, weights != 0)  # zeros stay zero, and nothing else becomes zero
    assert not np.signbit(shared[shared == 0]).any()
    assert len(set(shared[shared != 0])) == min(2 ** bits, len(set(weights[weights != 0])))
    return shared


def test_each_weight_takes_the_mean_of_its_cluster():
    assert share([[1, 0, 2], [9, 10, 0]], bits=1).tolist() == [[1.5, 0, 1.5], [9.5, 9.5, 0]]


def test_repeated_weights_pull_the_centroid():
    assert share([1, 1, 1, 3, 18, 20], bits=1).tolist() == [1.5, 1.5, 1.5, 1.5, 19, 19]


def lloyd(values, n_clusters):
    """The textbook loop, from evenly spaced centroids."""
    values = values.astype(np.float64)
    centroids = np.linspace(values.min(), values.max(), n_clusters)
    for _ in range(300):
        labels = np.abs(values[:, None] - centroids).argmin(1)
        centroids = np.array([values[labels == k].mean() for k in range(n_clusters)])
    return centroids[labels]


@pytest.mark.parametrize('bits', [1, 2, 3, 4])
def test_clusters_are_those_of_the_textbook_loop(bits):
    weights = np.random.default_rng(0).uniform(-1, 1, 60).astype(np.float32)
    assert np.allclose(share(weights, bits), lloyd(weights, 2 ** bits))


@pytest.mark.parametrize('reason, weights, bits', [
    ('all zero', np.zeros((3, 4)), 5),
    ('empty', np.zeros((0, 4)), 5),
    ('negative zeros', [-0.0, 0.0, 1.0, 2.0, 3.0], 1),
    ('one value', [0, 0, 3], 1),
    ('one value many times', [2.5] * 100, 5),
    ('fewer values than clusters', [1, 2, 3, 0, 3, 2], 2),
    ('as many values as clusters', [1, 2, 3, 4], 2),
    ('one value more than clusters', [1, 2, 3, 4, 5], 2),
    ('a centroid that would be zero', [-0.1, 0.1, 10], 1),
    ('a centroid that would be zero, of many', [-3, -2, -1, 1, 2, 3, 100, -100, 99], 2),
    ('denormals', np.arange(1, 200) * 1e-45, 3),
    ('denormals of both signs', np.arange(-99, 100) * 1e-45, 5),
    ('denormals beside large weights', np.concatenate([np.arange(1, 40) * 1e-42, [1e30, -1e30]]), 5),
    ('the largest and smallest numbers', [3.4e38, -3.4e38, 1e-45, -1e-45, 1, 2], 2),
    ('clusters that start empty: an outlier', np.append(np.linspace(1, 2, 40), 1e6), 5),
    ('duplicates in few places', np.repeat(np.append(np.linspace(1, 1.001, 33), 9), 50), 5),
    ('neighbouring float32 numbers', np.float32(1) + np.arange(40) * np.finfo(np.float32).eps, 5),
    ('a convolution', np.random.default_rng(1).normal(size=(8, 4, 3, 3)), 5),
])
def test_every_layer_ends_with_the_count_of_values_it_should_have(reason, weights, bits):
    share(weights, bits)


def test_layers_with_few_values_stay_as_they_are():
    assert share([1, -2, 3, 0, 3, -2], bits=2).tolist() == [1, -2, 3, 0, 3, -2]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)), st.integers(1, 4))
def test_sharing_keeps_zeros_counts_and_the_order_of_weights(weights, bits):
    weights = np.sort(weights)
    shared = share(weights, bits)
    assert (np.diff(shared[weights != 0]) >= 0).all()


@pytest.mark.parametrize('weights, n_clusters, centroids, labels', [
    ([9, 1, 10, 2], 2, [1.5, 9.5], [1, 0, 1, 0]),
    ([-3, 5, -3], 4, [-3, 5], [0, 1, 0]),  # no more than two values
    ([], 4, [], [])])
def test_centroids_are_ascending_and_each_weight_is_told_its_own(weights, n_clusters, centroids, labels):
    weights = np.array(weights, np.float32)
    before = weights.copy()
    found, found_labels = kmeans(weights, n_clusters)
    assert found.dtype == np.float32 and found.tolist() == centroids and found_labels.tolist() == labels
    assert np.array_equal(weights, before)


class TinyNet(PruningModule):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=3)
        self.fc1 = nn.Linear(16, 8)


def test_a_line_is_printed_for_each_layer_and_biases_stay(capsys):
    net = TinyNet()
    net.conv1.weight.data.flatten()[::2] = 0
    biases = [net.conv1.bias.clone(), net.fc1.bias.clone()]
    apply_weight_sharing(net, bits=3)
    assert capsys.readouterr().out.splitlines() == [
        'conv1                | torch.Size([8, 3, 3, 3])            | => Quantize to 8 indices',
        'fc1                  | torch.Size([8, 16])                 | => Quantize to 8 indices']
    assert len(net.conv1.weight.unique()) == 9 and len(net.fc1.weight.unique()) == 8
    assert net.conv1.bias.equal(biases[0]) and net.fc1.bias.equal(biases[1])


def test_each_convolution_of_a_pruned_alexnet_has_the_33_values_the_grader_counts():
    model = AlexNet(widths=WIDTHS)
    model.prune_by_percentile({f'conv{i}': 10 for i in range(1, 6)})
    apply_weight_sharing(model)
    assert [len(param.unique()) for param in model.parameters() if param.dim() == 4] == [33] * 5


def test_what_is_no_layer_to_share_stays_as_it_is(capsys):
    model = Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 8))
    model[1].weight.data.uniform_()
    before = model[1].weight.clone()
    apply_weight_sharing(model, bits=2)
    assert model[1].weight.equal(before) and [len(model[i].weight.unique()) for i in (0, 4)] == [4, 4]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ['0', '4']


def test_bits_may_be_one_of_a_numpy_range():
    model = TinyNet()
    apply_weight_sharing(model, *np.arange(2, 3))
    assert len(model.conv1.weight.unique()) == 4


@pytest.mark.parametrize('bits', [0, 9, -1, 2.5, 5.0])
def test_bits_outside_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match=f'bits must be 1 to 8, got {bits}'):
        apply_weight_sharing(TinyNet(), bits)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(value):
    net = TinyNet()
    net.fc1.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=f'must be finite, got {value}'):
        apply_weight_sharing(net)


# ---- training the centroids ------------------------------------------------------------------------------------------

def shared_layer():
    model = Sequential(nn.Linear(3, 2))
    model[0].weight.data, model[0].bias.data = torch.tensor([[0.5, 0., -1.], [0.5, 0.5, 0.]]), torch.tensor([1., 2.])
    return model


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights():
    plain, model = shared_layer(), shared_layer()
    x = torch.tensor([[1., 2., 3.], [4., 5., 6.]])
    plain(x).square().sum().backward()
    gradient = plain[0].weight.grad
    with codebooks_as_parameters(model):
        model(x).square().sum().backward()
        centroids = model[0].parametrizations.weight.original
        assert centroids.tolist() == [-1, 0.5]
        assert torch.allclose(centroids.grad, torch.stack([gradient[0, 2], gradient[0, 0] + gradient[1, :2].sum()]))


@pytest.mark.parametrize('moving', [False, True])
def test_trained_centroids_become_plain_weights_that_still_share_values(moving):
    model = shared_layer()
    weight, bias = model[0].weight, model[0].bias
    with codebooks_as_parameters(model, shared_biases=True, moving=moving):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.tensor([[1., 2., 3.]])).sum().backward()
        optimizer.step()
    assert type(model[0]) is nn.Linear and model[0].weight is weight and model[0].bias is bias
    assert list(model.state_dict()) == ['0.weight', '0.bias']
    assert torch.allclose(model[0].weight, torch.tensor([[0.1, 0., -1.3], [0.1, 0.1, 0.]]))
    assert not model[0].weight[model[0].weight == 0].signbit().any()


def test_centroids_of_an_untrained_model_come_back_bit_for_bit():
    model = AlexNet(widths=WIDTHS)
    model.prune_by_percentile()
    apply_weight_sharing(model, bits=3)
    before = {name: param.clone() for name, param in model.named_parameters()}
    with codebooks_as_parameters(model):
        assert sum(param.numel() for name, param in model.named_parameters() if 'bias' not in name) == 8 * 2**3
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())


def test_training_the_centroids_lowers_the_loss_that_sharing_raised():
    model = Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
    x, y = torch.randn(200, 20), torch.randint(2, (200,))

    def train(steps):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return F.cross_entropy(model(x), y).item()
    trained = train(100)
    apply_weight_sharing(model, bits=2)
    shared = train(0)
    with codebooks_as_parameters(model):
        tuned = train(30)
    assert trained < tuned < shared
    assert [len(model[i].weight.unique()) for i in (0, 2)] == [4, 4] and train(0) == pytest.approx(tuned)


def test_a_weight_can_move_to_another_centroid():
    model = Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1., 1., 0., -1.]])
    with codebooks_as_parameters(model, moving=True):
        own, centroids = model[0].parametrizations.weight.original0, model[0].parametrizations.weight.original1
        assert own.tolist() == [1, 1, -1] and centroids.tolist() == [-1, 1]
        own.data[1] = -0.2
        assert model[0].weight.tolist() == [[1, -1, 0, -1]]
        (model[0].weight * torch.tensor([[1., 10., 100., 1000.]])).sum().backward()
        assert own.grad.tolist() == [1, 10, 1000] and centroids.grad.tolist() == [1010, 1]
    assert model[0].weight.tolist() == [[1, -1, 0, -1]]


@pytest.mark.parametrize('moving', [False, True])
def test_training_keeps_what_is_shared_at_the_number_of_centroids(moving):
    torch.manual_seed(0)
    model = Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    apply_weight_sharing(model, bits=2, bias_bits=1)
    with codebooks_as_parameters(model, shared_biases=True, moving=moving):
        before = model[0].weight.detach()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(50, 20)), torch.randint(2, (50,))).backward()
            optimizer.step()
        groups = {(a, b) for a, b in zip(before.flatten().tolist(), model[0].weight.flatten().tolist(), strict=True)}
    assert (len(groups) > 4) == moving
    assert [len(param.unique()) for param in model.parameters()] == [4, 2, 4, 2]


def test_fully_connected_layers_can_have_other_bits(capsys):
    model = Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    apply_weight_sharing(model, bits=4, fc_bits=2)
    assert [len(model[i].weight.unique()) for i in (0, 2)] == [16, 4]
    assert '=> Quantize to 16 indices' in capsys.readouterr().out


@pytest.mark.parametrize('layer_bits, n_values', [({}, [16, 4]), ({'conv1': 3}, [8, 4]), ({'fc1': 3}, [16, 8])])
def test_layer_bits_come_before_bits_and_fc_bits(layer_bits, n_values):
    net = TinyNet()
    apply_weight_sharing(net, bits=4, fc_bits=2, layer_bits=layer_bits)
    assert [len(layer.weight.unique()) for layer in (net.conv1, net.fc1)] == n_values


@pytest.mark.parametrize('layer_bits, line', [({'fc9': 3}, "unknown layer 'fc9', expected one of conv1, fc1"),
                                              ({'fc1': 9}, 'bits must be 1 to 8, got 9')])
def test_bits_of_unknown_layers_or_outside_1_to_8_are_refused_before_anything_is_shared(layer_bits, line):
    net = TinyNet()
    weights = net.conv1.weight.clone()
    with pytest.raises(ValueError, match=line):
        apply_weight_sharing(net, layer_bits=layer_bits)
    assert torch.equal(net.conv1.weight, weights)


def test_biases_are_shared_on_request(capsys):
    model = Sequential(nn.Linear(2, 40), nn.Linear(40, 1))
    model[0].bias.data[:10] = 0
    weights = model[0].weight.clone()
    apply_weight_sharing(model, bits=8, bias_bits=2)
    assert len(model[0].bias.unique()) == 5 and not model[0].bias[:10].any()
    assert torch.equal(model[0].weight, weights)  # it has no more than 2^8 values
    assert [line.split('|')[0].strip() for line in capsys.readouterr().out.splitlines()] == [
        '0', '1', '0.bias', '1.bias']


@pytest.mark.parametrize('moving', [False, True])
@pytest.mark.parametrize('shared', [False, True])
def test_layers_without_biases_are_shared_and_trained(shared, moving):
    model = Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 2))
    apply_weight_sharing(model, bits=2, bias_bits=1)
    before = model[0].weight.clone()
    with codebooks_as_parameters(model, shared, moving):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    assert [name for name, _ in model.named_parameters()] == ['0.weight', '1.weight', '1.bias']
    assert model[0].bias is None and len(model[0].weight.unique()) == 4 and not model[0].weight.equal(before)


@pytest.mark.parametrize('shared', [False, True])
def test_shared_biases_stay_shared_while_they_are_trained(shared):
    model = Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    model[1].bias.data.zero_()  # no value at all to train
    apply_weight_sharing(model, bits=2, bias_bits=1)
    with codebooks_as_parameters(model, shared):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    assert (len(model[0].bias.unique()) == 2) == shared
    assert [name for name, _ in model.named_parameters()] == ['0.weight', '0.bias', '1.weight', '1.bias']
    assert bool(model[1].bias.any()) != shared
