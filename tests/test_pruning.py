import copy
import io
import re
import sys
from contextlib import nullcontext
from itertools import pairwise

import pruning
from net import training
from net.checkpoint import PATH, Checkpoint, Epoch
from net.data import Images, batches
from net.errors import UserError
from net.live import count_hidden_units, live_part, live_units
from net.models import AlexNet, narrow_alexnet
from net.training import Training, loss_of_batch, recorded, regrow

import pytest
import torch
import torch.nn.functional as F
from networks import Sequential
from torch import nn


def tiny_net():
    layers = nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 2)
    return Sequential(nn.AvgPool2d(8), nn.Flatten(), *layers, nn.LogSoftmax(dim=1))


@pytest.fixture
def images():
    return Images(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 2, ('a', 'b'))


TRAINING = Training(epochs=2, lr=0.01, lr_flag='--lr', weight_decay=0, crop=False, loss=loss_of_batch, optimizer='adam',
                    batch_size=5, log_interval=1)


def train(model, images, optimizer, epochs=2, **changes):
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    numbered = [Epoch(number, f'Epoch {number}/{epochs}') for number in range(1, epochs + 1)]
    pruning.train(model, images, optimizer, constant, numbered, TRAINING._replace(**changes))
    return numbered


@pytest.fixture
def checkpoint():
    """That of a phase that has just begun."""
    checkpoint = Checkpoint(PATH, 'test', ['only'], {})
    checkpoint.enter('only', tiny_net())
    return checkpoint


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


def test_where_nothing_is_zero_nothing_is_pruned():
    model = tiny_net()
    assert training.pruning_masks(model, OPTIMIZERS['Adam'](model.parameters())) == {}


def test_negative_zeros_count_as_pruned_and_become_positive():
    model = tiny_net()
    model[4].weight.data[0] = -0.0
    masks = training.pruning_masks(model, OPTIMIZERS['Adam'](model.parameters()))
    assert {name: mask.tolist() for name, mask in masks.items()} == {'4.weight': [[0] * 8, [1] * 8]}
    assert not model[4].weight[0].signbit().any()


def test_training_learns(images, capsys):
    model = tiny_net()
    images.pixels[images.labels == 1] //= 4
    epochs = train(model, images, OPTIMIZERS['Adam'](model.parameters()), epochs=15)
    losses = [epoch.loss for epoch in epochs]
    assert losses[-1] < losses[0] / 2
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split('Average loss: ')[1].split(',')[0]) for line in lines] == pytest.approx(losses, abs=1e-4)


# ---- a training that fails -------------------------------------------------------------------------------------------

def loss_that_fails(step, value):
    """The loss of the homework, but in this step, counted from 1, of all epochs together."""
    calls = []

    def loss(output, target, data):
        calls.append(target)
        return F.nll_loss(output, target) * (value if len(calls) == step else 1)
    return loss


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('step, named', [(1, 'Epoch 1/2, step 1'), (3, 'Epoch 1/2, step 3'), (8, 'Epoch 2/2, step 4')])
def test_the_first_loss_that_is_not_finite_is_named_by_epoch_and_step(step, named, value, images):
    model = tiny_net()
    with pytest.raises(UserError, match=f'^{named}: the loss is no longer finite, the training has failed: start again '
                                        'with a lower --lr and --restart$'):
        train(model, images, OPTIMIZERS['Adam'](model.parameters()), loss=loss_that_fails(step, value))


def test_weights_that_are_not_finite_after_the_last_step_are_a_failed_training(images):
    """All four losses of the epoch were finite: the next one would not be."""
    class FailsInStep4(torch.optim.SGD):
        n_steps = 0

        def step(self, *args):
            super().step(*args)
            self.n_steps += 1
            if self.n_steps == 4:
                model[4].bias.data[0] = float('nan')

    model = tiny_net()
    optimizer = FailsInStep4(model.parameters(), lr=0.01)
    with pytest.raises(UserError, match='^Epoch 1/1, step 4: '):
        train(model, images, optimizer, epochs=1)


@pytest.mark.parametrize('make_optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_gradient_that_is_not_finite_revives_no_pruned_weight(make_optimizer, images):
    model = tiny_net()
    prune_half(model)
    pruned = {name: param == 0 for name, param in model.named_parameters()}
    with pytest.raises(UserError):
        train(model, images, make_optimizer(model.parameters()), loss=loss_that_fails(1, float('nan')))
    assert model[2].weight[~pruned['2.weight']].isnan().all()
    assert all((param[pruned[name]] == 0).all() for name, param in model.named_parameters())


# ---- learning rates --------------------------------------------------------------------------------------------------

@pytest.fixture
def rates(monkeypatch):
    """The learning rates of all steps so far."""
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]['lr'])
            return super().step(*args)
    monkeypatch.setattr(pruning, 'make_optimizer', lambda model, training: Recorder(model.parameters(), training.lr))
    return rates


@pytest.mark.parametrize('optimizer', training.OPTIMIZERS)
@pytest.mark.parametrize('epochs, n_images', [(11, 4), (10, 5), (3, 17), (30, 20)])
def test_the_learning_rate_rises_and_falls_towards_zero_over_all_steps(optimizer, epochs, n_images, images, rates,
                                                                       checkpoint):
    few = Images(images.pixels[:n_images], images.labels[:n_images], images.classes)
    pruning.fit(tiny_net(), few, TRAINING._replace(epochs=epochs, optimizer=optimizer, lr=0.5, batch_size=4),
                checkpoint)
    assert len(rates) == epochs * -(-n_images // 4)
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.5, rel=0.2) and rates[-1] < 1e-3
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


@pytest.mark.parametrize('optimizer', training.OPTIMIZERS)
@pytest.mark.parametrize('n_steps', [1, 2, 5, 10, 11, 12, 20])
def test_a_training_of_any_number_of_steps_learns(optimizer, n_steps, images, rates, checkpoint):
    """On average, its rate is at least a third of the highest one."""
    pruning.fit(tiny_net(), images, TRAINING._replace(epochs=n_steps, optimizer=optimizer, lr=0.5, batch_size=20),
                checkpoint)
    assert len(rates) == n_steps and sum(rates) / n_steps > 0.5 / 3


def test_a_single_step_of_training_is_one_at_the_full_rate(images, checkpoint):
    model = tiny_net()
    expected = copy.deepcopy(model)
    torch.manual_seed(0)
    pruning.fit(model, images, TRAINING._replace(epochs=1, optimizer='sgd', lr=0.5, batch_size=20), checkpoint)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(expected.parameters(), 0.5, momentum=0.9, nesterov=True)
    (pixels, labels), = batches(images, 20, crop=False)
    F.nll_loss(expected(pixels), labels).backward()
    optimizer.step()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('n_images, batch_norm, sizes', [
    (11, False, [5, 5, 1]), (11, True, [5, 5]), (12, True, [5, 5]), (13, True, [5, 5, 3]), (10, True, [5, 5]),
    (2, True, [2])])
def test_a_last_batch_less_than_half_full_is_left_out_under_batch_normalisation(n_images, batch_norm, sizes, images):
    training = TRAINING._replace(batch_norm=batch_norm)
    few = Images(images.pixels[:n_images], images.labels[:n_images], images.classes)
    assert [len(target) for _, target in training.batches(few)] == sizes
    assert training.steps_per_epoch(n_images) == len(sizes)


@pytest.mark.parametrize('prune_steps', [2, 3, 10])
def test_pruning_in_few_steps_of_one_batch_learns_in_between(prune_steps, images, small_runs, rates, checkpoint):
    """On average, its rate is at least a third of the highest one."""
    args = pruning.parse_args(['--keep', '20000', '--prune-steps', str(prune_steps)])
    pruning.prune_gradually(AlexNet(), images, args,
                            TRAINING._replace(epochs=prune_steps - 1, lr=0.5, batch_size=20), checkpoint)
    assert len(rates) == prune_steps - 1 and sum(rates) / len(rates) > 0.5 / 3


# ---- the loss --------------------------------------------------------------------------------------------------------

OUTPUT = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).log()  # two images, three classes
LABELS = torch.tensor([0, 1])


def test_without_smoothing_the_loss_is_that_of_the_homework():
    assert torch.equal(loss_of_batch(OUTPUT, LABELS, None), F.nll_loss(OUTPUT, LABELS))


def test_smoothing_is_that_of_pytorch():
    expected = F.cross_entropy(OUTPUT, LABELS, label_smoothing=0.1)  # log-probabilities are logits of themselves
    assert loss_of_batch(OUTPUT, LABELS, None, 0.1).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_is_shared_between_labels_and_teacher():
    hard = F.nll_loss(OUTPUT, LABELS).item()
    agreed = loss_of_batch(OUTPUT, LABELS, torch.zeros(2, 3, 4, 4), 0, lambda data: OUTPUT.repeat(2, 1), 0.25)
    assert agreed.item() == pytest.approx(0.75 * hard, rel=1e-6)  # nothing to learn from a teacher who says the same


def test_the_teacher_answers_the_images_and_their_mirror_images_and_the_mean_is_learned():
    """An image is one row of three pixels, and the teacher says what it sees there."""
    data = torch.tensor([[2., 0., -1.], [0., 3., 1.]])
    torn = loss_of_batch(OUTPUT, LABELS, data.view(2, 1, 1, 3), 0, lambda images: images.flatten(1), 0.25)
    answers = (torch.softmax(data / 2, 1) + torch.softmax(data.flip(1) / 2, 1)) / 2
    softened = torch.softmax(OUTPUT / 2, 1)
    distance = (answers * (answers / softened).log()).sum(1).mean().item()  # of Kullback and Leibler
    assert torn.item() == pytest.approx(0.75 * F.nll_loss(OUTPUT, LABELS).item() + 0.25 * 4 * distance, rel=1e-5)


# ---- gradual pruning -------------------------------------------------------------------------------------------------

def prune_gradually(model, images, arguments, checkpoint):
    args = pruning.parse_args(arguments)
    pruning.prune_gradually(model, images, args, TRAINING._replace(epochs=args.prune_steps - 1, batch_size=20),
                            checkpoint)


def noting(method, calls):
    """The method, which appends what it is asked for to `calls`."""
    def record(*args):
        calls.append(args)
        return method(*args)
    return record


def test_one_step_keeps_exactly_the_percentages_of_the_paper(images, monkeypatch, checkpoint):
    model, asked = AlexNet(), []
    monkeypatch.setattr(model, 'prune_by_percentile', lambda *args: asked.append(args))
    prune_gradually(model, images, ['--recipe', 'paper'], checkpoint)
    assert asked == [(AlexNet.DEFAULT_PRUNE_RATE,)]


def with_equal_weights():
    """A network whose layers have eight different weights each, as after weight sharing."""
    model = AlexNet()
    for _, layer in model.layers():
        layer.weight.data = layer.weight.sign() * (8 * layer.weight / layer.weight.abs().max()).abs().ceil() / 100
    return model


def n_weights(model):
    return sum(int(torch.count_nonzero(layer.weight)) for _, layer in model.layers())


def test_one_step_keeps_exactly_the_budget_though_many_weights_are_equal(images, small_runs, checkpoint):
    model = with_equal_weights()
    prune_gradually(model, images, ['--keep', '20011', '--keep-units', '900', '--prune-steps', '1'], checkpoint)
    assert n_weights(model) == 20_011 and count_hidden_units(model) <= 900


def counted_after(method, model, left):
    """The method, which afterwards notes in `left` how many weights the model has."""
    def counted(*args):
        result = method(*args)
        left.append(n_weights(model))
        return result
    return counted


def test_each_step_keeps_exactly_its_part_though_many_weights_are_equal(images, small_runs, checkpoint, monkeypatch):
    model, left = with_equal_weights(), []
    n = n_weights(model)
    monkeypatch.setattr(model, 'prune_to_counts', counted_after(model.prune_to_counts, model, left))
    prune_gradually(model, images, ['--keep', '20011', '--keep-units', '900', '--prune-steps', '3'], checkpoint)
    assert left == [int(n * (20_011 / n) ** (19 / 27)), int(n * (20_011 / n) ** (26 / 27)), 20_011]


def test_weights_come_back_where_the_loss_would_change_most():
    """Two units read the mean of each colour: normalised, -0.42, 1.21 and 2.82."""
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(4, 3, 32, 32)
    model = Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 2))
    model[2].weight.data = torch.tensor([[0., 0., 7.], [0., 0., 0.]])

    def loss(output, target, data):  # gradients: -0.42, 1.21, 2.82 and 0.85, -2.41, -5.64 for each image
        return (output @ torch.tensor([1., -2.])).sum()
    training = TRAINING._replace(loss=loss, batch_size=2)
    images = Images(pixels, torch.zeros(4, dtype=torch.int64), ('a', 'b'))
    regrow(model, images, training, {'2': 3})
    assert model[2].weight.equal(torch.tensor([[0., -1e-8, 7.], [0., 1e-8, 1e-8]]))
    regrow(model, images, training, {'2': 9})  # more than there are places
    assert model[2].weight.equal(torch.tensor([[1e-8, -1e-8, 7.], [-1e-8, 1e-8, 1e-8]]))


def test_what_comes_back_is_counted_in_the_budget(images, small_runs, checkpoint, monkeypatch):
    model, pruned, trained = AlexNet(), [], []
    n = n_weights(model)
    monkeypatch.setattr(model, 'prune_to_counts', counted_after(model.prune_to_counts, model, pruned))
    monkeypatch.setattr(pruning, 'train', counted_after(pruning.train, model, trained))
    args = pruning.parse_args(['--keep', '20000', '--keep-units', '900', '--prune-steps', '4'])
    args.regrow = 0.05
    pruning.prune_gradually(model, images, args, TRAINING._replace(epochs=3, batch_size=20), checkpoint)
    budgets = [int(n * (20_000 / n) ** (1 - (1 - step / 4) ** 3)) for step in (0, 1, 2, 3)]
    back = [min(max(before / budget - 1, 0.05), 0.5) for before, budget in pairwise(budgets)]
    assert pruned[:3] == pytest.approx([budget * (1 - part) for budget, part in zip(budgets[1:], back, strict=True)],
                                       abs=8)  # each layer rounded
    assert pruned[3] == 20_000
    assert all(0.95 * budget < n <= budget for n, budget in zip(trained, budgets[1:], strict=True))  # some were dead


@pytest.mark.parametrize('crop', [False, True])
def test_random_crops_are_those_of_the_training(crop, images, small_runs, checkpoint, monkeypatch):
    crops = []
    monkeypatch.setattr('net.data.random_crop', lambda pixels: crops.append(len(pixels)) or pixels)
    args = pruning.parse_args(['--prune-steps', '3'])
    pruning.prune_gradually(AlexNet(), images, args, TRAINING._replace(crop=crop, batch_size=20), checkpoint)
    assert crops == ([20, 20] if crop else [])


def test_pruning_goes_on_from_a_pruned_model(images, small_runs, checkpoint, monkeypatch):
    """From 200,000 to 100,000 weights in two steps: 2^(1 - (1 - 1/2)^3) times fewer, then twice as few."""
    model, asked = AlexNet(), []
    model.prune_to_budget(200_000)
    monkeypatch.setattr(model, 'shares_of_budget', noting(model.shares_of_budget, asked))
    monkeypatch.setattr(pruning, 'train', lambda *args: None)
    prune_gradually(model, images, ['--keep', '100000', '--prune-steps', '2'], checkpoint)
    assert asked == [(int(200_000 / 2**0.875), 6), (100_000, 6)]


def test_a_budget_is_shared_out_among_live_units_and_percentages_are_of_all_weights(small_runs):
    """A loaded model may have weights that nothing reads: those of a unit whose outgoing weights are zero."""
    model = AlexNet()
    model.fc3.weight.data[:, 3] = 0
    with pruning.budgeted(model, pruning.parse_args(['--recipe', 'paper'])):
        assert model.fc2.weight.shape == (1024, 1024)
    assert model.fc2.weight[3].count_nonzero() == 1024
    with pruning.budgeted(model, pruning.parse_args(['--keep', '20000'])):
        assert model.fc2.weight.shape == (1023, 1024)
    assert model.fc2.weight[3].count_nonzero() == 0 and model.fc2.weight.count_nonzero() == 1023 * 1024


@pytest.mark.parametrize('goal', ['--keep 20000', '--rates conv1=50,conv2=2,conv3=1,conv4=1,conv5=1,fc1=0.5,fc2=0.05,'
                                                  'fc3=10'])
def test_weights_once_pruned_stay_pruned_until_the_goal_is_reached(goal, images, small_runs, checkpoint, monkeypatch):
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
    prune_gradually(model, images, [*goal.split(), '--prune-steps', '3'], checkpoint)
    totals = [sum(count.values()) for count in counts]
    assert len(totals) == 3 and totals[0] > totals[1] > totals[2]
    if goal.startswith('--keep'):
        assert 15_000 < totals[-1] <= 20_000  # dead weights go as well
    else:
        assert counts[-1]['conv1'] <= 11_616 and 0.9 * 2_048 < counts[-1]['conv2'] <= 2_048
        assert counts[-1]['fc3'] <= 1_024


def test_units_go_step_by_step_until_their_goal_is_reached(images, small_runs, checkpoint, monkeypatch):
    arguments = ['--keep-units', '70', '--keep', '3000', '--prune-steps', '2']
    model, asked = narrow_alexnet(10, 140), []
    monkeypatch.setattr(model, 'prune_units', noting(model.prune_units, asked))
    prune_gradually(model, images, arguments, checkpoint)
    assert asked == [(int(140 / 2**0.875), 6), (70, 6)] and count_hidden_units(model) <= 70


def test_the_first_training_can_begin_with_a_narrow_network_initialised_for_its_width():
    model = narrow_alexnet(10, 640)
    first, *others = map(len, live_units(model)[1:-1])
    assert first == 64 and max(others) <= 97 and first + sum(others) == 640
    with live_part(model):
        for _, layer in model.layers():
            assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)
            assert torch.count_nonzero(layer.bias) == layer.bias.numel()  # a zero would mean pruned


@pytest.mark.parametrize('arguments, n_units', [
    ([], 640), (['--start-units', '9'], 9), (['--recipe', 'paper'], None), (['--load-model-path', 'x'], None)])
def test_a_training_that_began_narrow_says_why_so_much_is_zero_before_pruning(arguments, n_units, capsys):
    pruning.explain_narrow_start(pruning.parse_args(arguments))
    assert capsys.readouterr().out == ('' if n_units is None else (
        f'The training began with {n_units} of the 9344 hidden units. The others are zero, and count as pruned:\n'))


def test_a_rate_below_one_percent_is_told_in_weights(capsys):
    pruning.explain_low_rates(pruning.parse_args(['--rates', 'conv1=84,fc1=0.09,fc2=1,fc3=0']), AlexNet())
    assert capsys.readouterr().out == (
        'Note: --rates fc1=0.09 keeps 944 of 1,048,576 weights: it is a percentage, not a fraction\n')


# ---- progress --------------------------------------------------------------------------------------------------------

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_bars_show_loss_learning_rate_and_speed(images, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    train(tiny_net(), images, OPTIMIZERS['Adam'](tiny_net().parameters()))
    shown = sys.stderr.getvalue()
    assert 'Epoch 1/2:' in shown and 'Epoch 2/2:' in shown
    assert re.search(r'it/s, loss=[\d.]+, lr=1.0e-02', shown)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == ['Epoch 1/2', 'Epoch 2/2']


# ---- recorded on a GPU -----------------------------------------------------------------------------------------------

class OnGpu(torch.Tensor):
    is_cuda = True


@pytest.fixture
def replays(monkeypatch):
    """Sizes of the batches that were replayed, by a pretended recorder, which uses the model as PyTorch's does."""
    replays = []

    def record(model, args):
        forward = model.forward
        model(*args)
        model.forward = lambda data: replays.append(len(data)) or forward(data)
    monkeypatch.setattr(torch.cuda, 'make_graphed_callables', record)
    return replays


def test_full_batches_are_replayed(images, replays):
    model = nn.BatchNorm2d(3)
    with pytest.raises(KeyboardInterrupt), recorded(model, images._replace(pixels=images.pixels.as_subclass(OnGpu)), 6):
        assert model.running_mean.equal(torch.zeros(3)) and model.num_batches_tracked == 0  # recording left no trace
        for n in 6, 2, 6:
            model(torch.rand(n, 3, 2, 2))
        assert replays == [6, 6] and model.num_batches_tracked == 3
        raise KeyboardInterrupt
    assert 'forward' not in vars(model)


@pytest.mark.parametrize('pixels, batch_size', [(OnGpu, 21), (torch.Tensor, 6)])
def test_nothing_is_recorded_on_a_cpu_or_without_a_full_batch(pixels, batch_size, images, replays):
    model = nn.BatchNorm2d(3)
    with recorded(model, images._replace(pixels=images.pixels.as_subclass(pixels)), batch_size):
        model(torch.rand(batch_size, 3, 2, 2))
    assert replays == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('batch_norm', [False, True])
def test_what_is_recorded_on_the_gpu_is_as_what_is_not(batch_norm, images, monkeypatch):
    """20 images in batches of 6, and layers that become smaller with each step."""
    args = pruning.parse_args(['--keep', '2000', '--keep-units', '100', '--prune-steps', '3'])
    args.regrow = 0.05

    def trained(context):
        torch.manual_seed(5)
        model, seen = AlexNet(2, widths=[64] * 7).cuda(), []

        def loss(output, target, data):
            seen.append('forward' in vars(model))
            return loss_of_batch(output, target, data)
        monkeypatch.setattr(pruning, 'recorded', context)
        training = TRAINING._replace(epochs=2, optimizer='sgd', batch_size=6, loss=loss, batch_norm=batch_norm)
        checkpoint = Checkpoint(PATH, 'test', ['first', 'second'], {})
        checkpoint.enter('first', model)
        with pruning.budgeted(model, args):
            pruning.prune_gradually(model, images.to('cuda'), args, training, checkpoint)
        checkpoint.enter('second', model)
        with live_part(model), pruning.normalised(model, training):
            pruning.fit(model, images.to('cuda'), training, checkpoint)
        assert 'forward' not in vars(model) and any(seen) == (context is recorded)
        checkpoint.finish()
        return model
    plain = trained(lambda *args: nullcontext())
    for a, b in zip(plain.parameters(), trained(recorded).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # sums on a GPU may run in another order


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_training_on_the_gpu_keeps_pruned_weights_zero(images):
    model = tiny_net().cuda()
    optimizer = OPTIMIZERS['fused Adam'](model.parameters())
    train(model, images.to('cuda'), optimizer)
    prune_half(model)
    pruned = model[2].weight == 0
    train(model, images.to('cuda'), optimizer)
    assert torch.equal(model[2].weight == 0, pruned)
