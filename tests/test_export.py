"""The live network for other programs: the same classes as in PyTorch, in a file that says what goes in and out."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from net.compact.__main__ import CIFAR10_CLASSES, main
from net.compact.export import CONTRACT
from net.compact.format import live_network_from_compact
from net.data import normalize

import pytest
import torch
from scripts import SMALLEST


@pytest.fixture(scope='module')
def pixels(request):
    """1,000 images: of the test set of CIFAR-10, where it is, else of noise."""
    if 'CIFAR10_DIR' in os.environ:
        return request.getfixturevalue('cifar10_test_images').pixels[::10].contiguous()
    return torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def expected(pixels):
    """The log-probabilities of the network that comes with the scripts."""
    network = live_network_from_compact(SMALLEST.read_bytes()).eval()
    with torch.inference_mode():
        return network(normalize(pixels))


LOAD_ALONE = """
import json, sys, torch
contract = {'input': '', 'output': '', 'classes': ''}
network = torch.export.load('network.pt2', extra_files=contract).module()
with torch.inference_mode():
    outputs = [network(torch.load('pixels.pt')), network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))]
torch.save(outputs, 'outputs.pt')
print(json.dumps(contract))
"""


@pytest.mark.slow
def test_a_pt2_file_loads_without_this_repository_and_gives_the_same_classes(pixels, expected, capsys):
    main(['export', 'network.pt2'])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        'Wrote network.pt2',
        f'Only PyTorch {torch.__version__} can read it: for everything else, export to FILE.onnx']
    torch.save(pixels, 'pixels.pt')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', LOAD_ALONE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs, single = torch.load('outputs.pt')
    assert torch.equal(outputs.argmax(1), expected.argmax(1)) and torch.allclose(outputs, expected, atol=1e-4)
    assert single.shape == (1, 10)
    contract = json.loads(done.stdout)
    assert tuple(json.loads(contract.pop('classes'))) == CIFAR10_CLASSES and contract == CONTRACT


@pytest.mark.slow
def test_an_onnx_file_gives_the_same_classes_in_onnxruntime(pixels, expected, capsys):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    main(['export', 'network.onnx', '--classes', ','.join('abcdefghij')])
    assert capsys.readouterr().out.splitlines()[-1] == 'Wrote network.onnx'
    session = onnxruntime.InferenceSession('network.onnx')
    outputs = torch.from_numpy(session.run(None, {'pixels': pixels.numpy()})[0])
    assert torch.equal(outputs.argmax(1), expected.argmax(1)) and torch.allclose(outputs, expected, atol=1e-4)
    assert session.run(None, {'pixels': pixels[:1].numpy()})[0].shape == (1, 10)
    contract = session.get_modelmeta().custom_metadata_map
    assert json.loads(contract.pop('classes')) == list('abcdefghij') and contract == CONTRACT


@pytest.mark.parametrize('name, installed, message', [
    ('network.txt', True, 'argument FILE: must end in .onnx or .pt2, got network.txt'),
    ('network.onnx', False, 'argument FILE: network.onnx needs packages: pip install onnx onnxscript'),
    ('missing/network.pt2', True, 'argument FILE: must be a file in an existing folder, got missing/network.pt2')])
def test_what_cannot_be_written_is_said_before_anything_is_decoded(name, installed, message, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if installed else None)
    with pytest.raises(SystemExit, match='2'):
        main(['export', name])
    assert message in capsys.readouterr().err and not Path(name).exists()
