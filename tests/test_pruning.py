import io
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from networks import Sequential
from torch import nn

import pruning
from net.data import Images
from net.live import count_hidden_units, live_part, live_units
from net.models import AlexNet


def tiny_net():
    layers = nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 2)
    return Sequential(nn.AvgPool2d(8), nn.Flatten(), *layers, nn.LogSoftmax(dim=1))


@pytest.fixture
def images():
    return Images(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 2, ('a', 'b'))


def train(model, images, optimizer, epochs=2):
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    pruning.train(model, images, optimizer, constant, epochs, batch_size=5)


OPTIMIZERS = {
    'Adam': lambda params: torch.optim.Adam(params, lr=0.01),
    'Adam with weight decay': lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=0.1),
    'fused Adam': lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=0.1, fused=True),
    'AdamW': lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    'AMSGrad': lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    'SGD with momentum': lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.1),
    'SGD with Nesterov momentum': lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True),
    'RMSprop with momentum': lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.9),
}


def prune_half(model):
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data[layer.weight.abs() < layer.weight.abs().median()] = 0


@pytest.mark.parametrize('make_optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_weights_stay_zero_through_an_optimizer_with_history(make_optimizer, images):
    model = tiny_net()
    optimizer = make_optimizer(model.parameters())
    train(model, images, optimizer)
    prune_half(model)
    before = [param.clone() for param in model.parameters()]
    train(model, images, optimizer)
    for param, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(param == 0, old == 0)
        assert not param[param == 0].signbit().any()
        assert not torch.equal(param, old)


@pytest.mark.parametrize('name', ['Adam', 'SGD with momentum'])
def test_momentum_would_revive_pruned_weights_if_it_were_kept(name, images):
    """What the test above guards against: zero gradients alone do not keep weights zero."""
    model = tiny_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, images, optimizer)
    prune_half(model)
    pruned = model[2].weight == 0
    for param in model.parameters():
        param.grad.zero_()
    optimizer.step()
    assert (model[2].weight[pruned] != 0).any()


def test_a_training_with_nothing_pruned_has_no_masks():
    model = tiny_net()
    assert pruning.pruning_masks(model, OPTIMIZERS['Adam'](model.parameters())) == []


def test_negative_zeros_count_as_pruned_and_become_positive():
    model = tiny_net()
    model[4].weight.data[0] = -0.0
    [(param, mask)] = pruning.pruning_masks(model, OPTIMIZERS['Adam'](model.parameters()))
    assert param is model[4].weight and mask.tolist() == [[0] * 8, [1] * 8]
    assert not param[0].signbit().any()


def test_training_learns(images, capsys):
    model = tiny_net()
    images.pixels[images.labels == 1] //= 4
    train(model, images, OPTIMIZERS['Adam'](model.parameters()), epochs=15)
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split('Average loss: ')[1].split(',')[0]) for line in lines]
    assert len(losses) == 15 and losses[-1] < losses[0] / 2


@pytest.mark.parametrize('schedule', ['one-cycle', 'linear', 'cosine'])
@pytest.mark.parametrize('epochs, n_images', [(10, 4), (1, 20), (3, 17), (1, 5), (1, 4)])
def test_the_learning_rate_falls_towards_zero_over_all_steps(schedule, epochs, n_images, images, monkeypatch):
    args = pruning.parse_args(['--schedule', schedule, '--batch-size', '4'])
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]['lr'])
            return super().step(*args)
    monkeypatch.setattr(pruning, 'make_optimizer', lambda model, lr, *args: Recorder(model.parameters(), lr=lr))
    few = Images(images.pixels[:n_images], images.labels[:n_images], images.classes)
    pruning.fit(tiny_net(), few, epochs, 0.5, 0, args, crop=False)
    assert len(rates) == epochs * -(-n_images // 4) and max(rates) <= 0.5
    if len(rates) >= 10:
        assert max(rates) > 0.4 and rates[-1] < 0.02


# ---- the loss --------------------------------------------------------------------------------------------------------

OUTPUT = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()  # two images, three classes
LABELS = torch.tensor([0, 1])


def test_without_smoothing_the_loss_is_that_of_the_homework():
    assert torch.equal(pruning.loss_of_batch(OUTPUT, None, LABELS), F.nll_loss(OUTPUT, LABELS))


def test_smoothing_is_that_of_pytorch():
    expected = F.cross_entropy(OUTPUT, LABELS, label_smoothing=0.1)  # log-probabilities are logits of themselves
    assert pruning.loss_of_batch(OUTPUT, None, LABELS, 0.1).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_shared_between_labels_and_teacher():
    hard = F.nll_loss(OUTPUT, LABELS).item()
    agreed = pruning.loss_of_batch(OUTPUT, OUTPUT, LABELS, teacher=lambda pixels: pixels, share=0.25)
    assert agreed.item() == pytest.approx(0.75 * hard, rel=1e-6)  # nothing to learn from a teacher who says the same
    torn = pruning.loss_of_batch(OUTPUT, OUTPUT.flip(0), LABELS, teacher=lambda pixels: pixels, share=0.25)
    softened, answers = (torch.softmax(values / 2, 1) for values in (OUTPUT, OUTPUT.flip(0)))
    distance = (answers * (answers / softened).log()).sum(1).mean().item()  # of Kullback and Leibler
    assert torn.item() == pytest.approx(0.75 * hard + 0.25 * 4 * distance, rel=1e-5)


# ---- gradual pruning -------------------------------------------------------------------------------------------------

def test_one_step_keeps_exactly_the_percentages_of_the_paper(monkeypatch):
    model, asked = AlexNet(), []
    monkeypatch.setattr(model, 'prune_by_percentile', asked.append)
    pruning.prune_gradually(model, None, pruning.parse_args(['--recipe', 'paper']))
    assert asked == [AlexNet.DEFAULT_PRUNE_RATE]


@pytest.mark.usefixtures('small_runs')
@pytest.mark.parametrize('crop, expected', [('always', True), ('first', False)])
def test_random_crops_can_end_with_the_first_training(crop, expected, images, monkeypatch):
    crops = []
    monkeypatch.setattr(pruning, 'train_epoch', lambda *args: crops.append(args[-1]))
    pruning.prune_gradually(AlexNet(), images, pruning.parse_args(['--crop', crop, '--prune-steps', '3']))
    assert crops == [expected] * 2


def test_pruning_goes_on_from_a_pruned_model(images, small_runs, monkeypatch):
    """From 200,000 to 100,000 weights in two steps: 2^(1 - (1 - 1/2)^3) times fewer, then twice as few."""
    model, asked = AlexNet(), []
    model.prune_to_budget(200_000)
    prune_to_budget = model.prune_to_budget
    monkeypatch.setattr(model, 'prune_to_budget',
                        lambda keep, *args: asked.append(keep) or prune_to_budget(keep, *args))
    monkeypatch.setattr(pruning, 'train_epoch', lambda *args: None)
    pruning.prune_gradually(model, images, pruning.parse_args(['--keep', '100000', '--prune-steps', '2']))
    assert asked == [int(200_000 / 2**0.875), 100_000]


@pytest.mark.parametrize('goal', [['--keep', '20000'], ['--rates', 'conv1=50,conv2=2,conv3=1,conv4=1,conv5=1,fc1=0.5,'
                                                                   'fc2=0.05,fc3=10']], ids=['keep', 'rates'])
def test_weights_once_pruned_stay_pruned_until_the_goal_is_reached(goal, images, small_runs, monkeypatch):
    model, previous, counts = AlexNet(), None, []
    prune = pruning.prune

    def watched(model, *args):
        nonlocal previous
        prune(model, *args)
        alive = [param != 0 for param in model.parameters()]
        if previous is not None:
            assert not any((now & ~before).any() for now, before in zip(alive, previous, strict=True))
        previous = alive
        counts.append({name: int(torch.count_nonzero(layer.weight)) for name, layer in model.layers()})
    monkeypatch.setattr(pruning, 'prune', watched)
    pruning.prune_gradually(model, images, pruning.parse_args([*goal, '--prune-steps', '3', '--batch-size', '100']))
    totals = [sum(count.values()) for count in counts]
    assert len(totals) == 3 and totals[0] > totals[1] > totals[2]
    if goal[0] == '--keep':
        assert 15_000 < totals[-1] <= 20_000  # dead weights go as well
    else:
        assert counts[-1]['conv1'] <= 11_616 and 0.9 * 2_048 < counts[-1]['conv2'] <= 2_048
        assert counts[-1]['fc3'] <= 1_024


def test_units_go_step_by_step_until_their_goal_is_reached(images, small_runs, monkeypatch):
    args = pruning.parse_args(['--start-units', '140', '--keep-units', '70', '--keep', '3000', '--prune-steps', '2'])
    model, asked = pruning.new_model(args, 10), []
    prune_units = model.prune_units
    monkeypatch.setattr(model, 'prune_units', lambda keep, fc_cost: asked.append((keep, fc_cost)) or prune_units(keep))
    pruning.prune_gradually(model, images, args)
    assert asked == [(int(140 / 2**0.875), 6), (70, 6)] and count_hidden_units(model) <= 70


def test_the_first_training_can_begin_with_a_narrow_network_initialised_for_its_width():
    model = pruning.new_model(pruning.parse_args([]), 10)
    first, *others = map(len, live_units(model)[1:-1])
    assert first == 64 and max(others) <= 97 and first + sum(others) == 640
    with live_part(model):
        for _, layer in model.layers():
            assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)
            assert torch.count_nonzero(layer.bias) == layer.bias.numel()  # a zero would mean pruned


# ---- progress --------------------------------------------------------------------------------------------------------

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_bars_show_loss_rate_weights_and_speed(images, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    train(tiny_net(), images, OPTIMIZERS['Adam'](tiny_net().parameters()))
    shown = sys.stderr.getvalue()
    assert 'Epochs:' in shown and 'Epoch 2/2:' in shown
    assert re.search(r'images/s, alive=410, loss=[\d.]+, lr=1.0e-02', shown)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == ['Epoch 1/2', 'Epoch 2/2']


# ---- arguments -------------------------------------------------------------------------------------------------------

def test_arguments_default_to_the_recipe_for_the_ranking():
    args = pruning.parse_args([])
    assert (args.prune, args.seed, args.log, args.recipe) == ('lamp', 42, 'log.txt', 'ranking')
    assert {key: getattr(args, key) for key in pruning.RECIPES['ranking']} == pruning.RECIPES['ranking']


def test_a_recipe_is_a_set_of_defaults_that_flags_override():
    args = pruning.parse_args(['--epochs', '3', '--recipe', 'paper'])
    assert {key: getattr(args, key) for key in pruning.RECIPES['paper']} == {**pruning.RECIPES['paper'], 'epochs': 3}


def test_the_help_shows_the_defaults_of_each_recipe(capsys):
    with pytest.raises(SystemExit):
        pruning.parse_args(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for key in pruning.RECIPES['paper']:
        assert pruning.of_recipe(key) in text
    assert '(ranking: 2300, accurate: 97000)' in text and '(ranking: sgd, accurate: sgd, paper: adam)' in text


@pytest.mark.parametrize('argv, recipe', [
    (['--rates', 'conv1=50'], 'paper'), (['--sensitivity', '1'], 'paper'), (['--prune', 'std'], 'paper'),
    (['--keep', '9000'], 'ranking'), (['--rates', 'conv1=50', '--recipe', 'ranking'], 'ranking'),
])
def test_asking_for_rates_or_thresholds_takes_the_other_defaults_from_the_paper(argv, recipe):
    args = pruning.parse_args(argv)
    assert args.recipe == recipe and args.retrain_epochs == pruning.RECIPES[recipe]['retrain_epochs']


def test_a_sensitivity_alone_selects_std_pruning_in_one_shot():
    args = pruning.parse_args(['--sensitivity', '0.5'])
    assert (args.prune, args.prune_steps) == ('std', 1)


def test_rates_override_single_layers_of_the_paper():
    args = pruning.parse_args(['--rates', 'conv1=50,fc2=0.5'])
    assert args.rates == {'conv1': 50, 'fc2': 0.5} and args.keep is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_training_on_the_gpu_keeps_pruned_weights_zero(images):
    model = tiny_net().cuda()
    optimizer = OPTIMIZERS['fused Adam'](model.parameters())
    train(model, images.to('cuda'), optimizer)
    prune_half(model)
    pruned = model[2].weight == 0
    train(model, images.to('cuda'), optimizer)
    assert torch.equal(model[2].weight == 0, pruned)
