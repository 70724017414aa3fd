from net import prune
from net.live import live_part, live_units
from net.models import AlexNet
from net.prune import PruningModule, amount_to_keep, number_to_keep

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


class TinyNet(PruningModule):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, kernel_size=2)
        self.fc1 = nn.Linear(4, 2)


@pytest.fixture
def net():
    net = TinyNet()
    net.conv1.weight.data = torch.tensor([1., -2., 3., -4., 5., -6., 7., -8.]).reshape(2, 1, 2, 2)
    net.fc1.weight.data = torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.0, 0.2, -0.2, 0.8]])
    return net


def test_weights_below_the_threshold_become_zero_in_place(net):
    storage = net.fc1.weight.data_ptr()
    net._prune(net.fc1, 0.25)
    assert net.fc1.weight.equal(torch.tensor([[0., 0., 0.3, -0.4], [0., 0., 0., 0.8]]))
    assert net.fc1.weight.data_ptr() == storage


def test_a_weight_at_the_threshold_stays(net):
    net._prune(net.conv1, 6)
    assert net.conv1.weight.flatten().tolist() == [0, 0, 0, 0, 0, -6, 7, -8]


def test_pruning_writes_no_negative_zeros_and_leaves_biases_alone(net):
    biases = [net.conv1.bias.clone(), net.fc1.bias.clone()]
    net._prune(net.conv1, 100)
    net._prune(net.fc1, 0.25)
    assert not net.conv1.weight.signbit().any() and not net.fc1.weight[net.fc1.weight == 0].signbit().any()
    assert net.conv1.bias.equal(biases[0]) and net.fc1.bias.equal(biases[1])


def test_the_threshold_of_std_pruning_is_s_population_deviations_of_conv_and_fc_layers(net, capsys):
    stds = {'conv1': net.conv1.weight.detach().numpy().std(), 'fc1': net.fc1.weight.detach().numpy().std()}
    net.prune_by_std(0.75)
    assert capsys.readouterr().out.splitlines() == [
        f'Pruning with threshold : {0.75 * stds["conv1"]:.4f} for layer conv1',
        f'Pruning with threshold : {0.75 * stds["fc1"]:.4f} for layer fc1']
    assert net.conv1.weight.flatten().tolist() == [0, 0, 0, -4, 5, -6, 7, -8]  # std 5.07
    assert net.fc1.weight.equal(torch.tensor([[0., 0., 0.3, -0.4], [0., 0., 0., 0.8]]))  # std 0.36


@pytest.mark.parametrize('s', [0, 0.25, 1, 2.5])
def test_std_thresholds_agree_with_numpy(s, capsys):
    net = TinyNet()
    net.conv1, net.fc1 = nn.Conv2d(7, 5, 3), nn.Linear(100, 77)
    weights = {name: layer.weight.detach().numpy().astype(np.float64) for name, layer in net.layers()}
    net.prune_by_std(s)
    lines = capsys.readouterr().out.splitlines()
    for (name, layer), line in zip(net.layers(), lines, strict=True):
        threshold = s * np.std(weights[name])
        assert line == f'Pruning with threshold : {threshold:.4f} for layer {name}'
        assert np.array_equal(layer.weight.detach().numpy() != 0, np.abs(weights[name]) >= threshold)


@pytest.mark.parametrize('percent, kept', [
    (100, [1, -2, 3, -4, 5, -6, 7, -8]),
    (50, [0, 0, 0, 0, 5, -6, 7, -8]),
    (25, [0, 0, 0, 0, 0, 0, 7, -8]),
    (12.5, [0, 0, 0, 0, 0, 0, 0, -8]),
    (0, [0, 0, 0, 0, 0, 0, 0, -8]),  # strictly below: the largest weight always stays
])
def test_percentile_pruning_keeps_that_percentage(net, percent, kept):
    net.prune_by_percentile({'conv1': percent})
    assert net.conv1.weight.flatten().tolist() == kept


def test_layers_that_are_not_named_stay_as_they_are(net):
    before = net.conv1.weight.clone()
    net.prune_by_percentile({'fc1': 25})
    assert net.conv1.weight.equal(before)


def test_equal_magnitudes_stay_or_go_together(net):
    net.fc1.weight.data = torch.tensor([[1., -1., 1., -1.], [1., 1., 2., 2.]])
    net.prune_by_percentile({'fc1': 50})
    assert net.fc1.weight.tolist() == [[1, -1, 1, -1], [1, 1, 2, 2]]  # the median is 1, and 1 < 1 is false


def test_a_second_pruning_respects_the_first(net):
    net.prune_by_percentile({'conv1': 50})
    net.prune_by_percentile({'conv1': 25})
    assert net.conv1.weight.flatten().tolist() == [0, 0, 0, 0, 0, 0, 7, -8]


@pytest.mark.parametrize('percent', [84, 38, 9, 1, 0.03])
def test_percentile_thresholds_agree_with_numpy(percent):
    net = TinyNet()
    net.fc1 = nn.Linear(100, 77)
    weights = net.fc1.weight.detach().numpy().astype(np.float64)
    threshold = np.percentile(np.abs(weights), 100 - percent)
    net.prune_by_percentile({'fc1': percent})
    assert np.array_equal(net.fc1.weight.detach().numpy() != 0, np.abs(weights) >= threshold)


def test_thresholds_are_float64(net):
    """Between neighbouring float32 numbers there is no float32 threshold; rounded to one, it would prune nothing."""
    after_one = np.nextafter(np.float32(1), np.float32(2))
    net.fc1.weight.data = torch.tensor([[1., 1., 1., 1.], [after_one] * 4])
    net.prune_by_percentile({'fc1': 50})
    assert torch.count_nonzero(net.fc1.weight) == 4


def test_a_layer_may_have_more_weights_than_torch_quantile_takes():
    net = TinyNet()
    net.fc1 = nn.Linear(4096, 4097)
    net.fc1.weight.data = torch.arange(1., 4096 * 4097 + 1).reshape(4097, 4096)  # whole numbers, rounded above 2^24
    net.prune_by_percentile({'fc1': 50})
    assert torch.count_nonzero(net.fc1.weight) == 4096 * 4097 // 2


@pytest.mark.parametrize('q, message', [
    ({'fc9': 50}, "unknown layer 'fc9', expected one of conv1, fc1"),
    ({'fc1': 101}, 'fc1 must be 0 to 100, got 101'),
    ({'fc1': -1}, 'fc1 must be 0 to 100, got -1'),
    ({'fc1': float('nan')}, 'fc1 must be 0 to 100, got nan'),
])
def test_bad_percentages_are_refused_before_anything_is_pruned(net, q, message):
    before = net.conv1.weight.clone()
    with pytest.raises(ValueError, match=message):
        net.prune_by_percentile({'conv1': 10, **q})
    assert net.conv1.weight.equal(before)


@pytest.mark.parametrize('s', [-0.1, float('nan'), float('inf')])
def test_bad_sensitivities_are_refused(net, s):
    with pytest.raises(ValueError, match=f'sensitivity must be .* got {s}'):
        net.prune_by_std(s)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('method', ['prune_by_std', 'prune_by_percentile'])
def test_weights_that_are_not_finite_are_refused_before_anything_is_pruned(net, value, method):
    net.fc1.weight.data[1, 2] = value
    before = net.conv1.weight.clone()
    with pytest.raises(ValueError, match=f'fc1.weight holds {value}'):
        net.prune_by_std() if method == 'prune_by_std' else net.prune_by_percentile({'conv1': 10, 'fc1': 10})
    assert net.conv1.weight.equal(before)


def test_default_rates_are_those_of_table_4_of_the_paper():
    assert PruningModule.DEFAULT_PRUNE_RATE == {
        'conv1': 84, 'conv2': 38, 'conv3': 35, 'conv4': 37, 'conv5': 37, 'fc1': 9, 'fc2': 9, 'fc3': 25}


# ---- how many weights each layer keeps -------------------------------------------------------------------------------

def counts(net):
    return {name: int(torch.count_nonzero(layer.weight)) for name, layer in net.layers()}


def test_layer_adaptive_scores_by_hand(net):
    """The highest are 64/64 and 49/(49 + 64) in conv1, 0.64/0.64 in fc1, whose next one is 0.16/(0.16 + 0.64)."""
    assert net.shares_of_budget(3) == {'conv1': 2, 'fc1': 1}
    net.prune_to_budget(3)
    assert net.conv1.weight.flatten().tolist() == [0, 0, 0, 0, 0, 0, 7, -8]
    assert net.fc1.weight.equal(torch.tensor([[0., 0., 0., 0.], [0., 0., 0., 0.8]]))


def test_the_threshold_of_a_budget_is_the_smallest_weight_that_stays(net, capsys):
    net.prune_to_budget(3)
    assert capsys.readouterr().out.splitlines() == [
        'Pruning with threshold : 7.0000 for layer conv1', 'Pruning with threshold : 0.8000 for layer fc1']


def scores_in_loops(weight):
    """Lee et al. 2021, equation 3, in two loops."""
    weight = sorted(w * w for w in weight.flatten().tolist() if w)
    return [square / sum(weight[i:]) for i, square in enumerate(weight)]


@pytest.mark.parametrize('keep', [2, 5, 40, 300, 1000, 1760])
@pytest.mark.parametrize('fc_cost', [1, 4])
def test_the_weights_kept_are_those_with_the_highest_layer_adaptive_scores(keep, fc_cost):
    net = TinyNet()
    net.conv1.weight.data, net.fc1.weight.data = torch.randn(10, 4, 4, 4), torch.randn(40, 30) ** 3
    conv1, fc1 = scores_in_loops(net.conv1.weight), [score / fc_cost for score in scores_in_loops(net.fc1.weight)]
    conv1[-1] = fc1[-1] = float('inf')  # one of each layer stays in any case
    lowest = sorted(conv1 + fc1)[-keep]
    net.prune_to_budget(keep, fc_cost)
    assert counts(net) == {'conv1': sum(score >= lowest for score in conv1),
                           'fc1': sum(score >= lowest for score in fc1)}


def first_of_the_largest(weight, n):
    """The weight with its `n` largest magnitudes only; of equal ones, the first."""
    flat = weight.flatten().tolist()
    kept = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[:n]  # Python's sort keeps the order of equals
    return torch.tensor([value if i in kept else 0 for i, value in enumerate(flat)]).view(weight.shape)


WEIGHTS = st.integers(-3, 3).map(float)


@given(st.lists(WEIGHTS, min_size=8, max_size=8), st.lists(WEIGHTS, min_size=8, max_size=8), st.integers(2, 20),
       st.sampled_from([1, 6]))
def test_a_budget_is_kept_exactly_though_weights_are_equal_and_the_first_of_them_stay(conv1, fc1, keep, fc_cost):
    net = TinyNet()
    net.conv1.weight.data, net.fc1.weight.data = torch.tensor(conv1).view(2, 1, 2, 2), torch.tensor(fc1).view(2, 4)
    before = {name: layer.weight.data.clone() for name, layer in net.layers()}
    shares = net.shares_of_budget(keep, fc_cost)
    net.prune_to_budget(keep, fc_cost)
    assert sum(counts(net).values()) == min(keep, np.count_nonzero(conv1) + np.count_nonzero(fc1))
    assert counts(net) == shares and all(shares[name] >= 1 for name in shares if before[name].any())
    for name, layer in net.layers():
        assert layer.weight.equal(first_of_the_largest(before[name], shares[name]))
        assert not layer.weight[layer.weight == 0].signbit().any()


def test_a_network_whose_layers_share_values_keeps_exactly_its_budget():
    net = TinyNet()
    net.conv1.weight.data = torch.tensor([0.5, -0.25, 0.5, 0.25, -0.5, 0.25, 0.25, 0.5]).view(2, 1, 2, 2)
    net.fc1.weight.data.fill_(-2)
    net.prune_to_budget(6)  # LAMP: 1 and 1, 1/2 and 1/2, 1/3 and 1/3, 1/4 and 1/4 of the four largest of each
    assert net.conv1.weight.flatten().tolist() == [0.5, 0, 0.5, 0, -0.5, 0, 0, 0]
    assert net.fc1.weight.tolist() == [[-2, -2, -2, 0], [0, 0, 0, 0]]
    net.prune_to_budget(5)  # of equal scores that of the first layer
    assert counts(net) == {'conv1': 3, 'fc1': 2}


def test_weights_pruned_before_are_not_counted_as_kept(net):
    net.prune_by_percentile({'conv1': 50, 'fc1': 25})
    before = [net.conv1.weight.clone(), net.fc1.weight.clone()]
    net.prune_to_budget(100)  # more than there are: nothing goes
    assert net.conv1.weight.equal(before[0]) and net.fc1.weight.equal(before[1])
    net.prune_to_budget(4)
    assert sum(counts(net).values()) == 4


@pytest.mark.parametrize('keep', [1, 0, -1, float('nan')])
def test_a_budget_has_at_least_one_weight_for_each_layer(net, keep):
    before = net.conv1.weight.clone()
    with pytest.raises(ValueError, match=f'must be at least 2, one for each layer, got {keep}$'):
        net.prune_to_budget(keep)
    assert net.conv1.weight.equal(before)


def test_another_score_is_one_function_in_the_table(net, monkeypatch):
    monkeypatch.setitem(prune.SCORES, 'magnitude', lambda weights: weights[weights != 0].abs().double().sort().values)
    net.prune_to_budget(5, score='magnitude')  # the five largest are in conv1, but one of fc1 stays in any case
    assert net.conv1.weight.flatten().tolist() == [0, 0, 0, 0, 5, -6, 7, -8]
    assert counts(net) == {'conv1': 4, 'fc1': 1}


@pytest.mark.parametrize('start, goal, step, n_steps, expected', [
    (20_335_296, 4200, 40, 40, 4200),  # exactly, whatever the rounding
    (20_335_296, 4200, 1, 40, int(20_335_296 * (4200 / 20_335_296) ** (1 - (39 / 40) ** 3))),
    (5000, 4200, 1, 1, 4200)])
def test_a_budget_falls_on_the_same_course_to_its_goal(start, goal, step, n_steps, expected):
    assert number_to_keep(start, goal, step, n_steps) == expected


@pytest.mark.parametrize('start, goal, step, n_steps, expected', [
    (1, 0.09, 1, 1, 0.09),  # one shot: the goal itself
    (1, 0.001, 3, 3, 0.001),
    (1, 0.001, 1, 2, 0.001 ** 0.875),  # half way: 1 - (1/2)^3
    (1, 0.001, 1, 10, 0.001 ** 0.271),
    (0.1, 0.001, 1, 2, 0.1 * 0.01 ** 0.875),
    (1, 1, 2, 5, 1),
    (1, 0, 1, 2, 0),
    (0.1, 0.2, 1, 2, 0.2),  # there are fewer already
])
def test_the_amount_to_keep_falls_on_a_geometric_cubic_schedule(start, goal, step, n_steps, expected):
    assert amount_to_keep(start, goal, step, n_steps) == pytest.approx(expected, rel=1e-12)


# ---- units -----------------------------------------------------------------------------------------------------------

class Chain(PruningModule):
    """Two hidden layers: units of size 4, 3 and 2, then 2 and 1; LAMP scores 1, 9/25 and 4/29, then 1 and 1/5."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1)
        self.fc1.weight.data = torch.tensor([[4., 0.], [0., 1.], [0.3, -0.4]])  # norms 4, 1, 0.5
        self.fc2.weight.data = torch.tensor([[0., -3., 4.], [1., 0., 0.]])  # of the columns 1, 3, 4; of the rows 5, 1
        self.fc3.weight.data = torch.tensor([[0.4, -1.]])
        for _, layer in self.layers():
            layer.bias.data.fill_(0.5)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def units_with_bias(model):
    return [layer.bias.nonzero()[:, 0].tolist() for _, layer in model.layers()]


@pytest.mark.parametrize('keep, expected', [
    (9, [[0, 1, 2], [0, 1]]), (5, [[0, 1, 2], [0, 1]]), (4, [[0, 1], [0, 1]]), (3, [[0, 1], [0]]), (2, [[0], [0]])])
def test_units_go_in_the_order_of_their_scores_over_all_hidden_layers(keep, expected):
    model = Chain()
    model.prune_units(keep)
    assert units_with_bias(model) == [*expected, [0]]


def test_a_pruned_unit_loses_its_bias_and_its_weights_in_front_and_behind_and_others_lose_nothing():
    model = Chain()
    model.prune_units(3)
    assert model.fc1.weight.equal(torch.tensor([[4., 0.], [0., 1.], [0., 0.]]))
    assert model.fc2.weight.equal(torch.tensor([[0., -3., 0.], [0., 0., 0.]]))
    assert model.fc3.weight.equal(torch.tensor([[0.4, 0.]])) and model.fc3.bias.tolist() == [0.5]
    assert not any(param[param == 0].signbit().any() for param in model.parameters())


def test_a_unit_scaled_up_in_front_and_down_behind_has_the_same_score():
    """Those that read it receive less, and have another one."""
    model, scaled = Chain(), Chain()
    scaled.fc1.weight.data[2] *= 1024
    scaled.fc1.bias.data[2] *= 1024
    scaled.fc2.weight.data[:, 2] /= 1024
    x = torch.randn(8, 2)
    assert scaled(x).equal(model(x))
    model.prune_units(4)
    scaled.prune_units(4)
    assert units_with_bias(scaled) == units_with_bias(model) == [[0, 1], [0, 1], [0]] and scaled(x).equal(model(x))


def test_scaling_a_whole_layer_changes_no_score():
    model = Chain()
    model.fc1.weight.data /= 1e6
    model.prune_units(3)
    assert units_with_bias(model) == [[0, 1], [0], [0]]


@pytest.mark.parametrize('keep, expected', [
    (5, [[1, 2], [0, 1]]), (4, [[1, 2], [0, 1]]), (3, [[1, 2], [0]]), (2, [[1], [0]])])
def test_of_equal_units_the_first_stay_and_units_without_weights_go(keep, expected):
    model = Chain()  # scores of 1 and 1/2, then 1 and 1/2
    for _, layer in model.layers():
        layer.weight.data.fill_(1)
    model.fc1.weight.data[0] = 0
    model.prune_units(keep)
    assert units_with_bias(model) == [*expected, [0]]


def test_units_without_biases_are_pruned_as_well():
    model = Chain()
    for _, layer in model.layers():
        layer.bias = None
    model.prune_units(3)
    assert model.fc1.weight.equal(torch.tensor([[4., 0.], [0., 1.], [0., 0.]]))
    assert model.fc2.weight.equal(torch.tensor([[0., -3., 0.], [0., 0., 0.]]))
    assert model.fc3.weight.equal(torch.tensor([[0.4, 0.]]))


def test_fewer_units_than_hidden_layers_are_refused_and_nothing_is_pruned():
    model = Chain()
    with pytest.raises(ValueError, match='number of units to keep must be at least 2, one for each layer, got 1'):
        model.prune_units(1)
    assert units_with_bias(model) == [[0, 1, 2], [0, 1], [0]]


class ConvolutionAndStack(PruningModule):
    """Two hidden layers: a convolution, units of size 2 and 1, then units of size 1 and 1; scores 1, 1/5 and 1, 1/2."""

    def __init__(self):
        super().__init__()
        self.conv1, self.fc1, self.fc2 = nn.Conv2d(1, 2, 1), nn.Linear(2, 2), nn.Linear(2, 1)
        self.conv1.weight.data = torch.tensor([2., 1.]).view(2, 1, 1, 1)
        self.fc1.weight.data = torch.eye(2)
        self.fc2.weight.data = torch.ones(1, 2)
        for _, layer in self.layers():
            layer.bias.data.fill_(0.5)


@pytest.mark.parametrize('fc_cost, expected', [
    (1, [[0], [0, 1]]),  # 1/2 of the second unit behind, 1/5 of the one in front
    (3, [[0, 1], [0]]),  # 1/6 and 1/5
    (100, [[0, 1], [0]]),  # 1/100 is the highest score behind: it stays even so
])
def test_a_fully_connected_unit_needs_a_higher_score_but_the_largest_stays(fc_cost, expected):
    model = ConvolutionAndStack()
    model.prune_units(3, fc_cost)
    assert units_with_bias(model) == [*expected, [0]]


def test_no_layer_of_an_alexnet_is_emptied_and_its_live_part_computes_the_same():
    torch.manual_seed(0)
    model, pixels = AlexNet(), torch.randn(4, 3, 32, 32)
    for keep in 300, 7:
        model.prune_units(keep, fc_cost=6)
        outputs, hidden = model(pixels), live_units(model)[1:-1]
        assert sum(map(len, hidden)) == keep and min(map(len, hidden)) >= 1
        with live_part(model):
            assert sum(len(layer.bias) for _, layer in model.layers()) == keep + 10
            assert torch.allclose(model(pixels), outputs, atol=1e-5)
