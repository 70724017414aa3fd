"""The three scripts on a pretend accelerator: mixing devices fails as on CUDA, and the results are those of the CPU."""
import io
from pathlib import Path
from unittest.mock import Mock

import huffman_coding
import pruning
import weight_share
from net import stage
from net.checkpoint import Checkpoint
from net.compact import __main__ as compact
from net.compact import format as compact_format
from net.models import AlexNet, load_model

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn
from torch.nn.utils import parametrize

if torch.cuda.is_available():  # then the tests for a GPU run, and PyTorch wants one kind of accelerator in a process
    pytest.skip('there is a GPU', allow_module_level=True)
try:
    from pretend_device import DEVICE, PretendTensor
except ImportError:
    pytest.skip('this PyTorch cannot register a device in Python', allow_module_level=True)


# ---- the device itself -----------------------------------------------------------------------------------------------

FACTORIES = {
    'arange': lambda device: torch.arange(5, device=device),
    'as_tensor': lambda device: torch.as_tensor([1, 2], device=device),
    'eye': lambda device: torch.eye(3, device=device),
    'full': lambda device: torch.full((2, 3), 0.5, device=device),
    'new_zeros': lambda device: torch.ones(2, device=device).new_zeros(4),
    'ones': lambda device: torch.ones(2, dtype=torch.uint8, device=device),
    'rand': lambda device: torch.rand(20, 1, device=device),
    'randint': lambda device: torch.randint(9, (2, 20), device=device),
    'randn': lambda device: torch.randn(20, device=device),
    'randperm': lambda device: torch.randperm(20, device=device),
    'tensor': lambda device: torch.tensor(2.5, device=device),
    'zeros': lambda device: torch.zeros(2, 3, device=device),
    'zeros_like': lambda device: torch.zeros_like(torch.ones(2), device=device),
}
MIXTURES = {
    'sum': lambda ours, other: ours + other,
    'sum, the other way round': lambda ours, other: other + ours,
    'product': lambda ours, other: ours @ other,
    'in place': lambda ours, other: ours.mul_(other),
    'in place on the CPU': lambda ours, other: other.mul_(ours),
    'in place on one value on the CPU': lambda ours, other: other[0].add_(ours[0]),
    'list': lambda ours, other: torch.cat([ours, other]),
    'mask': lambda ours, other: ours[other > 0],
    'positions': lambda ours, other: other[ours.long()],
    'assignment': lambda ours, other: ours.__setitem__(ours > 0, other),
    'comparison': lambda ours, other: torch.equal(ours, other),
    'data': lambda ours, other: setattr(ours, 'data', other),
    'gradient': lambda ours, other: setattr(ours, 'grad', other),
    'layer': lambda ours, other: nn.Linear(3, 3)(ours),
}


@pytest.mark.parametrize('make', FACTORIES.values(), ids=FACTORIES)
def test_new_tensors_hold_what_they_hold_on_the_cpu(make):
    torch.manual_seed(1)
    expected = make('cpu')
    torch.manual_seed(1)
    made = make(DEVICE)
    assert made.device.type == 'pretend' and expected.device.type == 'cpu'
    torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=0)


@pytest.mark.parametrize('mix', MIXTURES.values(), ids=MIXTURES)
def test_tensors_of_two_devices_do_not_meet(mix):
    with pytest.raises(RuntimeError, match='device|incompatible tensor type'):
        mix(torch.ones(3, device=DEVICE), torch.ones(3))


def test_a_single_value_may_come_from_the_cpu():
    x = torch.ones(3, device=DEVICE)
    assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2]
    x[0] = torch.tensor(5.0)
    assert x.tolist() == [5, 1, 1]


def test_tensors_are_copied_between_devices():
    x = torch.arange(3.0).to(DEVICE)
    assert x.device.type == 'pretend' and type(x.cpu()) is type(x.to('cpu')) is torch.Tensor
    assert torch.equal(torch.zeros(3).copy_(x), torch.arange(3.0))
    assert x.copy_(torch.ones(3)).tolist() == [1, 1, 1]
    layer, other = nn.Linear(2, 2).to(DEVICE), nn.Linear(2, 2)
    layer.load_state_dict(other.state_dict())
    assert layer.weight.device.type == 'pretend' and torch.equal(layer.weight.cpu(), other.weight)


@pytest.mark.parametrize('read', [lambda x: x.numpy(), np.asarray])
def test_there_is_no_array_of_a_tensor(read):
    with pytest.raises(TypeError, match='pretend device'):
        read(torch.ones(3, device=DEVICE))


def test_single_values_can_be_read():
    x = torch.tensor([[1.25, 2]], device=DEVICE)
    assert (x.tolist(), x[0, 0].item(), int(x[0, 1]), bool(x[0, 0] > 1)) == ([[1.25, 2]], 1.25, 2, True)
    assert f'{x[0, 0]:.1f}' == '1.2'


def test_saved_tensors_are_ordinary_ones():
    file, layer = io.BytesIO(), nn.Linear(2, 2).to(DEVICE)
    torch.save({'layer': layer, 'tensor': layer.bias.data}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded['layer'].weight) is nn.Parameter and type(loaded['tensor']) is torch.Tensor
    assert torch.equal(loaded['layer'].weight, layer.weight.cpu()) and torch.equal(loaded['tensor'], layer.bias.cpu())


def test_views_share_memory_and_data_can_be_replaced():
    param = nn.Parameter(torch.zeros(2, 3, device=DEVICE))
    param.data[1] = 7
    param.data.view(-1)[0] = 5
    assert param.tolist() == [[5, 0, 0], [7, 7, 7]]
    param.data = param.data[:, 1:]
    assert isinstance(param, nn.Parameter) and param.shape == (2, 2) and param.tolist() == [[0, 0], [7, 7]]
    with torch.no_grad():
        param.set_(torch.ones(4, device=DEVICE))
    assert param.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize('make_optimizer', [
    lambda params: torch.optim.Adam(params, weight_decay=0.1, fused=True),
    lambda params: torch.optim.SGD(params, 0.1, momentum=0.9)], ids=['fused Adam', 'SGD'])
def test_training_through_a_parametrization_ends_in_the_same_bits(make_optimizer):
    class Doubled(nn.Module):
        def forward(self, half):
            return 2 * half

        def right_inverse(self, weight):
            return weight / 2

    def train(device):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).to(device)
        images = torch.randn(4, 3, 8, 8, device=device)
        parametrize.register_parametrization(net[0], 'weight', Doubled())
        optimizer = make_optimizer(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            net(images).square().sum().backward()
            optimizer.step()
        parametrize.remove_parametrizations(net[0], 'weight')
        return [param.detach() for param in net.parameters()]

    for ours, expected in zip(train(DEVICE), train('cpu'), strict=True):
        assert isinstance(ours, PretendTensor) and torch.equal(ours.cpu(), expected)


# ---- the scripts -----------------------------------------------------------------------------------------------------

DIGITS = ['--data', 'digits']
TRAINING = [*DIGITS, '--batch-size', '64', '--validation', '20']
ACCURATE = [*TRAINING, '--recipe', 'accurate']  # with a teacher and batch normalisation
PRUNING = [*ACCURATE, '--epochs', '1', '--start-units', '120', '--keep-units', '80', '--keep', '3000', '--prune-steps',
           '3', '--retrain-epochs', '2']
SHARING = [*ACCURATE, '--epochs', '2']
COMPACT = [*TRAINING, '--epochs', '2', '--compact']  # sorts units, shares biases, moves weights, rounds to bfloat16
FIGURES = ['--figures', 'figures']
MODELS = 'initial_model', 'model_after_retraining', 'model_after_weight_sharing', 'compact'


THIN = 8, 16, 16, 16, 16, 64, 64  # units, for the sake of time


@pytest.fixture(scope='module')
def small():
    """A thin network, 200 images to train it on, and 50 for the test."""
    digits, labels = sklearn.datasets.load_digits(return_X_y=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlexNet.__init__, '__defaults__', (10, THIN))
        patch.setattr(compact_format, 'WIDTHS', THIN)
        patch.setattr(sklearn.datasets, 'load_digits', lambda return_X_y: (digits[:250], labels[:250]))
        yield


@pytest.fixture(scope='module')
def on_cpu(small, tmp_path_factory):
    """The folder in which all three scripts have run on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('cpu'))
        patch.setattr(stage, 'pick_device', lambda no_cuda: torch.device('cpu'))
        pruning.main(PRUNING)
        weight_share.main(SHARING)
        weight_share.main(COMPACT)
        return encode()


@pytest.fixture(scope='module')
def on_pretend_device(small, tmp_path_factory):
    """The folder in which they have run on the pretend device, interrupted after every epoch, and with figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('pretend'))
        pick_device = Mock(return_value=DEVICE)
        patch.setattr(stage, 'pick_device', pick_device)
        patch.setattr(Checkpoint, 'save', then_interrupt(Checkpoint.save))
        resume_until_done(pruning.main, [*PRUNING, *FIGURES])
        resume_until_done(weight_share.main, [*SHARING, *FIGURES])
        resume_until_done(weight_share.main, COMPACT)
        folder = encode(FIGURES)
        assert pick_device.call_count == (1 + 2 + 2 + 1) + (2 + 1) + (2 + 1) + 1  # epochs and ends, then stage 3
        return folder


def then_interrupt(function):
    def interrupted(*args):
        function(*args)
        raise KeyboardInterrupt
    return interrupted


def resume_until_done(main, argv):
    try:
        main(argv)
    except KeyboardInterrupt:
        resume_until_done(main, [*argv, '--resume'])


def encode(figures=()):
    """Stage 3, and the compact file; returns the folder."""
    huffman_coding.main([*DIGITS, *figures])
    compact.main(['write', 'saves/compact.ptmodel', 'digits.dcan'])
    return Path.cwd()


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_the_parameters_are_those_of_a_run_on_the_cpu(name, on_cpu, on_pretend_device):
    expected, found = (load_model(folder / f'saves/{name}.ptmodel') for folder in (on_cpu, on_pretend_device))
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a.data.view(torch.int32), b.data.view(torch.int32))


@pytest.mark.slow
def test_the_encoded_bytes_are_those_of_a_run_on_the_cpu(on_cpu, on_pretend_device):
    names = sorted(path.name for path in (on_cpu / 'encodings').iterdir())
    assert names == sorted(path.name for path in (on_pretend_device / 'encodings').iterdir())
    for name in ['digits.dcan', *(f'encodings/{name}' for name in names)]:
        assert (on_cpu / name).read_bytes() == (on_pretend_device / name).read_bytes()


@pytest.mark.slow
def test_the_logged_accuracies_are_those_of_a_run_on_the_cpu(on_cpu, on_pretend_device):
    expected, found = (dict(line.split() for line in (folder / 'log.txt').read_text(encoding='utf-8').splitlines()
                            if line.lower().startswith(('initial_accuracy', 'accuracy')))
                       for folder in (on_cpu, on_pretend_device))
    assert len(expected) == 7 and expected == found


@pytest.mark.slow
def test_all_figures_are_drawn(on_pretend_device):
    assert sorted(path.stem for path in (on_pretend_device / 'figures').iterdir()) == [
        'bytes', 'centroids', 'history', 'network', 'sensitivity']
