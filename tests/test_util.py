from pathlib import Path

import util
from net.models import AlexNet

import numpy as np
import pytest
import torch
from test_data import random_images
from torch import nn

# ---- log and printed tables ------------------------------------------------------------------------------------------

def test_log_appends_lines():
    util.log('one')
    util.log('two')
    util.log('elsewhere', 'other.txt')
    assert Path('log.txt').read_text() == 'one\ntwo\n' and Path('other.txt').read_text() == 'elsewhere\n'


def test_what_is_no_text_is_replaced_in_the_log():
    util.log('--data \udca4\udca4')  # bytes of a file name that are not UTF-8
    assert Path('log.txt').read_text(encoding='utf-8') == '--data ??\n'


def test_nonzeros_are_counted_printed_and_logged(capsys):
    layer = nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[0., 1., 0., 2.], [0., 0., 0., -3.]])
    layer.bias.data = torch.tensor([1., -1.])
    util.print_nonzeros(layer)
    expected = [
        'weight               | nonzeros =       3 /       8 ( 37.50%) | total_pruned =       5 | shape = (2, 4)',
        'bias                 | nonzeros =       2 /       2 (100.00%) | total_pruned =       0 | shape = (2,)',
        'alive: 5, pruned : 5, total: 10, Compression rate :       2.00x  ( 50.00% pruned)']
    assert capsys.readouterr().out.splitlines() == Path('log.txt').read_text().splitlines() == expected


def test_an_entirely_pruned_model_has_an_infinite_rate(capsys):
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.zero_()
    util.print_nonzeros(layer)
    assert 'Compression rate :        infx' in capsys.readouterr().out


def test_parameters_are_printed_with_their_values_on_request(capsys):
    layer = nn.Linear(2, 1)
    util.print_model_parameters(layer)
    assert capsys.readouterr().out.splitlines()[2].split(maxsplit=1) == [
        'weight', 'torch.Size([1, 2])             torch.float32  ']
    util.print_model_parameters(layer, with_values=True)
    assert 'Parameter containing' in capsys.readouterr().out


# ---- test ------------------------------------------------------------------------------------------------------------

def test_accuracy_and_loss_are_printed_and_the_accuracy_returned(capsys):
    model = AlexNet()
    model.fc3.weight.data.zero_()
    model.fc3.bias.data = torch.log(torch.tensor([0.55] + [0.05] * 9))  # always answers class 0
    accuracy = util.test(model, False, random_images(40))
    loss = -(0.1 * np.log(0.55) + 0.9 * np.log(0.05))
    assert capsys.readouterr().out == f'Test set: Average loss: {loss:.4f}, Accuracy: 4/40 (10.00%)\n'
    assert accuracy == 10


def test_the_scaffolds_call_needs_nothing_but_the_model(monkeypatch, capsys):
    monkeypatch.setattr(util, 'load_images', lambda train: random_images(20) if not train else None)
    model = AlexNet()
    model.fc3.bias.data[3] = 99  # the answer is always 3
    assert util.test(model) == 10
    assert capsys.readouterr().out.startswith('Test set: Average loss: ')


def test_any_network_can_be_tested(capsys):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10), torch.nn.LogSoftmax(1))
    network[1].bias.data[3] = 99  # the answer is always 3
    assert util.test(network, False, random_images(20)) == 10
    assert capsys.readouterr().out.startswith('Test set: Average loss: ')


def test_batches_of_the_test_do_not_change_its_result(capsys):
    model, images = AlexNet(), random_images(30)
    assert util.test(model, False, images, batch_size=7) == util.test(model, False, images)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_a_model_for_other_classes_is_refused():
    with pytest.raises(ValueError, match='the model tells 3 classes apart, the data has 10'):
        util.test(AlexNet(n_classes=3), False, random_images(20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_testing_follows_the_device_of_the_model(capsys):
    images = random_images(20)
    model = AlexNet()
    on_cpu = util.test(model, True, images)
    assert util.test(model.cuda(), True, images) == on_cpu
