import os
import pickletools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import net.models
from net.models import AlexNet, load_model, multiply_small_maps, save_model

import pytest
import torch
from hostile import RunsCommand, plant_link
from torch import nn
from torch.nn.utils import prune

small_runs = pytest.mark.usefixtures('small_runs')


def test_alexnet_has_the_parameters_of_the_homework():
    assert sum(param.numel() for param in AlexNet().parameters()) == 20_344_650


@pytest.mark.parametrize('seed', range(3))
def test_no_weight_starts_as_zero_which_would_mean_pruned(seed):
    """nn.Linear alone draws an exact 0.0 now and then: about one in 2^24, and fc2 has as many weights."""
    torch.manual_seed(seed)
    assert all(torch.count_nonzero(param) == param.numel() for param in AlexNet().parameters())


def test_output_is_log_probabilities():
    output = AlexNet(n_classes=3)(torch.randn(2, 3, 32, 32))
    assert output.shape == (2, 3)
    assert torch.allclose(output.exp().sum(1), torch.ones(2))


@pytest.mark.parametrize('name', ['conv3', 'conv4', 'conv5'])
def test_a_multiplied_map_has_the_outputs_and_gradients_of_the_convolution(name):
    torch.manual_seed(0)
    model = AlexNet(widths=(1, 2, 3, 4, 5, 6, 7)).double()
    layer = model.get_submodule(name)
    maps = torch.randn(5, layer.in_channels, 2, 2, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(5, layer.out_channels, 2, 2, dtype=torch.float64)  # another gradient for each output

    def outputs_and_gradients():
        outputs = layer(maps)
        return outputs, *torch.autograd.grad((outputs * factors).sum(), (maps, layer.weight, layer.bias))

    convolved = outputs_and_gradients()
    multiply_small_maps(model)
    assert 'forward' in vars(layer)
    torch.testing.assert_close(outputs_and_gradients(), convolved)


@small_runs
@pytest.mark.parametrize('n_classes', [10, 3])
def test_a_model_comes_back_bit_for_bit(n_classes):
    model = AlexNet(n_classes)
    save_model(model, 'saves/model.ptmodel')
    loaded = load_model('saves/model.ptmodel')
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@small_runs
def test_equal_models_are_equal_files_whatever_their_names():
    model = AlexNet()
    save_model(model, 'a.ptmodel')
    save_model(model, 'b.ptmodel')
    assert Path('a.ptmodel').read_bytes() == Path('b.ptmodel').read_bytes()


@pytest.mark.slow
def test_a_plain_load_in_another_process_needs_nothing_but_the_net_folder():
    save_model(AlexNet(), 'model.ptmodel')
    shutil.copytree(Path(net.models.__file__).parent, 'grader/net')
    code = "import torch; print(type(torch.load('../model.ptmodel', weights_only=False)))"
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', code], cwd='grader', env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "<class 'net.models.AlexNet'>", done.stderr


@small_runs
def test_the_pickle_names_only_classes_of_torch_and_alexnet():
    save_model(AlexNet(), 'model.ptmodel')
    with zipfile.ZipFile('model.ptmodel') as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith('data.pkl')))
    names = {arg for opcode, arg, _ in pickletools.genops(pickled) if opcode.name == 'GLOBAL'}
    foreign = {name for name in names if not name.startswith('torch')}
    assert foreign == {'net.models AlexNet', 'collections OrderedDict', '__builtin__ set'}


@small_runs
def test_a_crash_while_saving_leaves_the_old_file_and_nothing_else(monkeypatch):
    Path('model.ptmodel').write_text('old', encoding='utf-8')

    def disk_full(file):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', disk_full)
    with pytest.raises(OSError, match='^model.ptmodel: cannot be written .No space left on device.$'):
        save_model(AlexNet(), 'model.ptmodel')
    assert os.listdir() == ['model.ptmodel'] and Path('model.ptmodel').read_text(encoding='utf-8') == 'old'


@small_runs
def test_saving_does_not_follow_a_link_left_in_place_of_the_partial_file():
    Path('victim').write_text('precious', encoding='utf-8')
    plant_link('model.ptmodel.partial', 'victim')
    save_model(AlexNet(), 'model.ptmodel')
    assert Path('victim').read_text(encoding='utf-8') == 'precious' and load_model('model.ptmodel')


def with_changed(change):
    """An AlexNet after `change(model)`."""
    model = AlexNet()
    change(model)
    return model


def set_weight(weight):
    return lambda model: model.conv1.register_parameter('weight', nn.Parameter(weight, requires_grad=False))


def rename_layer(model):
    model.fc4 = model._modules.pop('fc1')


@small_runs
@pytest.mark.filterwarnings('ignore:Validating sparse tensor invariants')
@pytest.mark.parametrize('content, message', [
    (lambda: AlexNet().state_dict(), 'type OrderedDict, expected a whole net.models.AlexNet: load_state_dict it into'),
    (lambda: torch.zeros(3), 'holds a value of type Tensor, expected a whole net.models.AlexNet'),
    (lambda: nn.Linear(2, 2), 'holds a value of type Linear, expected'),
    (lambda: nn.Sequential(nn.Linear(2, 2)), 'refused, no .ptmodel of an AlexNet or more'),
    (RunsCommand, 'refused, no .ptmodel of an AlexNet or more'),
    (lambda: with_changed(lambda model: setattr(model, 'extra', RunsCommand())), 'refused, no .ptmodel of an AlexNet'),
    (lambda: with_changed(set_weight(torch.zeros(64, 3, 11, 10))), 'conv1.weight has shape .64, 3, 11, 10., expected'),
    (lambda: with_changed(set_weight(torch.zeros(64, 3, 11, 11).double())), 'conv1.weight is torch.float64'),
    (lambda: with_changed(set_weight(torch.full((64, 3, 11, 11), float('nan')))), 'conv1.weight holds nan'),
    (lambda: with_changed(lambda model: setattr(model, 'fc4', nn.Linear(1, 1))), 'differ .* fc4.bias, fc4.weight'),
    (lambda: with_changed(rename_layer), 'differ .* fc1.bias, fc1.weight, fc4.bias, fc4.weight'),
    (lambda: with_changed(lambda model: model._modules.pop('fc3')), 'differ .* fc3.bias, fc3.weight'),
    (lambda: with_changed(lambda model: model._modules.update(fc3='no layer')), 'fc3 is a str, expected a layer'),
    (lambda: with_changed(lambda model: model.fc1._parameters.update(bias=7)), 'fc1.bias is int, expected float32'),
    (lambda: with_changed(lambda model: vars(model).pop('_parameters')), 'not the inside of an AlexNet .*_parameters'),
    (lambda: with_changed(set_weight(torch.zeros(1, 1, 1, 1).expand(2**40, 3, 11, 11))), 'more than the values stored'),
    (lambda: with_changed(set_weight(torch.zeros(64, 3, 11, 11).to_sparse())), 'not the inside of an AlexNet'),
    (lambda: with_changed(set_weight(torch.zeros(64, 3, 11, 11, device='meta'))), 'not the inside of an AlexNet'),
])
def test_anything_but_the_parameters_of_an_alexnet_is_refused(content, message):
    with open('model.ptmodel', 'wb') as file:
        torch.save(content(), file)
    with pytest.raises(ValueError, match=f'model.ptmodel: .*{message}') as error:
        load_model('model.ptmodel')
    assert '\n' not in str(error.value)
    assert not Path('command-ran').exists()


@pytest.mark.parametrize('content', [b'', b'not a model', b'PK\x03\x04 cut short', b'\x80\x02}q\x00.'])
def test_files_of_another_format_are_refused(content):
    Path('model.ptmodel').write_bytes(content)
    with pytest.raises(ValueError, match='^model.ptmodel: '):
        load_model('model.ptmodel')


@small_runs
@pytest.mark.parametrize('kept', [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept):
    save_model(AlexNet(), 'model.ptmodel')
    os.truncate('model.ptmodel', int(kept * os.path.getsize('model.ptmodel')))
    with pytest.raises(ValueError, match='^model.ptmodel: not a readable .ptmodel of an AlexNet'):
        load_model('model.ptmodel')


class RunsWhenLoaded(nn.Module):
    """As TorchScript: some versions of PyTorch call `__setstate__` while they read its archive."""

    def __init__(self):
        super().__init__()
        self.values = torch.zeros(4)

    @torch.jit.export
    def __getstate__(self):
        return self.training

    @torch.jit.export
    def __setstate__(self, training: bool):
        self.training = training
        self.values = torch.from_file('command-ran', shared=True, size=4)

    def forward(self, x):
        return x


@pytest.mark.filterwarnings('ignore:`torch.jit')
def test_an_archive_of_torchscript_is_refused_and_runs_nothing():
    torch.jit.save(torch.jit.script(RunsWhenLoaded()), 'model.ptmodel')
    with pytest.raises(ValueError, match='^model.ptmodel: refused, no .ptmodel of an AlexNet or more than that in it$'):
        load_model('model.ptmodel')
    assert not Path('command-ran').exists()


@small_runs
def test_the_format_before_the_zip_archive_is_refused():
    torch.save(AlexNet(), 'model.ptmodel', _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match='^model.ptmodel: not a readable .ptmodel of an AlexNet .*another format.$'):
        load_model('model.ptmodel')


@small_runs
def test_a_model_that_is_still_masked_is_told_the_way_out():
    model = AlexNet()
    prune.l1_unstructured(model.conv1, 'weight', 0.5)
    save_model(model, 'model.ptmodel')
    with pytest.raises(ValueError, match='^model.ptmodel: still masked by torch.nn.utils.prune: call prune.remove on '
                                         'each layer, then save it again$'):
        load_model('model.ptmodel')
    prune.remove(model.conv1, 'weight')
    save_model(model, 'model.ptmodel')
    assert torch.equal(load_model('model.ptmodel').conv1.weight, model.conv1.weight)


@small_runs
def test_what_is_loaded_is_float32_whatever_the_default_of_the_caller():
    model = AlexNet()
    save_model(model, 'model.ptmodel')
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load_model('model.ptmodel')
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_a_folder_in_place_of_a_file_is_named():
    Path('model.ptmodel').mkdir()
    with pytest.raises(ValueError, match='^model.ptmodel: cannot be read'):
        load_model('model.ptmodel')


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match='^nowhere.ptmodel: no such file'):
        load_model('nowhere.ptmodel')


@small_runs
def test_attributes_of_the_file_do_not_reach_the_model():
    model = AlexNet()
    model.forward = 'not a method'
    save_model(model, 'model.ptmodel')
    assert load_model('model.ptmodel')(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_model_saved_on_the_gpu_loads_on_either_device():
    save_model(AlexNet().cuda(), 'model.ptmodel')
    assert load_model('model.ptmodel', 'cpu').fc1.weight.device.type == 'cpu'
    assert load_model('model.ptmodel', 'cuda').fc1.weight.device.type == 'cuda'
