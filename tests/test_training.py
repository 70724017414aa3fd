"""What each phase takes from the recipe, and what its optimizer and learning rate are made of."""
from types import SimpleNamespace

from net import training
from net.models import DENSE, AlexNet, save_model
from net.training import Training, loss_of_batch, make_optimizer, one_cycle, warm_up

import benchmark
import pytest
import torch

# Every number occurs once, so that none can be taken for another.
ARGS = SimpleNamespace(
    optimizer='adam', batch_size=7, log_interval=3, batch_norm=True, label_smoothing=0.1, teacher_share=0,
    load_model_path=None, epochs=2, lr=0.2, weight_decay=0.3, prune_steps=6, prune_lr=0.4, retrain_epochs=8,
    retrain_lr=0.5, retrain_weight_decay=0.6, crop_after_pruning=False, crop=False)
PHASES = {
    'initial training': (training.initial_training,
                         Training(2, 0.2, '--lr', 0.3, True, None, 'adam', 7, 3, True)),
    'between pruning steps': (lambda args: training.training_between_steps(args, 'cpu'),
                              Training(5, 0.4, 'prune_lr (in the recipe)', 0.3, False, None, 'adam', 7, 3, True)),
    'retraining': (lambda args: training.retraining(args, 'cpu'),
                   Training(8, 0.5, '--retrain-lr', 0.6, False, None, 'adam', 7, 3, True)),
    'sharing': (lambda args: training.training_of_shared_values(args, None),
                Training(2, 0.2, '--lr', 0.3, False, None, 'adam', 7, 3)),
}


@pytest.mark.parametrize('make, expected', PHASES.values(), ids=PHASES)
def test_each_phase_takes_its_settings_from_the_recipe(make, expected):
    assert make(ARGS)._replace(loss=None) == expected


@pytest.mark.parametrize('phase', ['between pruning steps', 'retraining', 'sharing'])
def test_images_are_cropped_after_pruning_and_in_sharing_if_the_recipe_says_so(phase):
    make, expected = PHASES[phase]
    args = SimpleNamespace(**{**vars(ARGS), 'crop_after_pruning': True, 'crop': True})
    assert make(args)._replace(loss=None) == expected._replace(crop=True)


def test_the_loss_of_each_phase_is_smoothed_and_taught_as_the_recipe_says(small_runs):
    save_model(AlexNet(), DENSE)
    args = SimpleNamespace(**{**vars(ARGS), 'teacher_share': 0.7})
    losses = {phase: make(args).loss for phase, (make, _) in PHASES.items()}
    assert all(loss.func is loss_of_batch for loss in losses.values())
    assert losses['initial training'].keywords == {'smoothing': 0.1}
    for phase in 'between pruning steps', 'retraining':
        teacher = losses[phase].keywords.pop('teacher')
        assert isinstance(teacher, AlexNet) and not teacher.training
        assert losses[phase].keywords == {'smoothing': 0.1, 'teacher_share': 0.7}
    assert losses['sharing'].keywords == {'teacher': None, 'teacher_share': 0.7}


def test_a_teacher_multiplies_its_small_maps(small_runs):
    assert 'forward' in vars(training.teacher_of(AlexNet()).conv3)


def test_the_optimizer_has_the_rate_and_the_decay_of_the_phase():
    phase = Training(1, 0.25, '--lr', 0.125, False, None, 'sgd', 4, 1)
    group, = make_optimizer(torch.nn.Linear(2, 2), phase).param_groups
    assert (group['lr'], group['weight_decay'], group['momentum'], group['nesterov']) == (0.25, 0.125, 0.9, True)
    adam = make_optimizer(torch.nn.Linear(2, 2), phase._replace(optimizer='adam'))
    group, = adam.param_groups
    assert isinstance(adam, torch.optim.Adam) and (group['lr'], group['weight_decay']) == (0.25, 0.125)


def test_the_benchmark_trains_by_the_loop_of_the_scripts(small_runs, capsys):
    model = AlexNet()
    before = model.conv1.weight.clone()
    benchmark.train_epoch(model, benchmark.random_images(8), torch.optim.Adam(model.parameters()), 4, 2)
    assert not torch.equal(model.conv1.weight, before)
    assert 'Epoch 1/1: Average loss: ' in capsys.readouterr().out


def rates_of(make_schedule, optimizer, n_steps):
    """The learning rate of each of so many steps of one image, if the highest is 1."""
    phase = Training(n_steps, 1., '--lr', 0, False, None, optimizer, 1, 1)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), phase)
    schedule, rates = make_schedule(optimizer, phase, 1), []
    for _ in range(n_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize('optimizer, top, in_the_middle', [
    ('sgd', 200, 5 / 8),  # a straight line down: three eighths of it are gone
    ('adam', 100, (1 + torch.cos(torch.tensor(torch.pi * 4 / 9)).item()) / 2)])  # half a cosine
def test_the_learning_rate_is_highest_after_a_fifth_or_a_tenth_of_the_steps(optimizer, top, in_the_middle):
    rates = rates_of(one_cycle, optimizer, 1000)
    assert rates.index(max(rates)) == pytest.approx(top, abs=1)
    assert rates[500] == pytest.approx(in_the_middle, abs=0.01)


@pytest.mark.parametrize('n_steps, rising', [(1000, 100), (30, 10), (2, 0)])
def test_in_gradual_pruning_the_rate_rises_for_a_hundred_steps_or_a_third_of_them_and_stays(n_steps, rising):
    rates = rates_of(warm_up, 'sgd', n_steps)
    assert rates[0] == pytest.approx(0.01 if rising else 1)
    assert all(rate < 1 for rate in rates[:rising]) and rates[rising:] == pytest.approx([1] * (n_steps - rising))
