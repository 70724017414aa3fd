"""The homework's own `net/`, retyped from its slides, with one file replaced by ours, in a process of its own.

`net/huffmancoding.py` alone: see `tests/test_huffmancoding.py`.
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

from net.models import load_model, save_model

import pytest
import torch
from scripts import ROOT

pytestmark = pytest.mark.slow

MODELS = '''
import torch.nn as nn
import torch.nn.functional as F
from net.prune import PruningModule


class AlexNet(PruningModule):
    def __init__(self, n_classes=10):
        super(AlexNet, self).__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=5)
        self.conv2 = nn.Conv2d(64, 192, kernel_size=5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(256, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, n_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), kernel_size=2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), kernel_size=2)
        x = F.relu(self.conv3(x), inplace=True)
        x = F.relu(self.conv4(x), inplace=True)
        x = F.max_pool2d(F.relu(self.conv5(x), inplace=True), kernel_size=2)
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc1(x), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        x = self.fc3(x)
        return F.log_softmax(x, dim=1)
'''
PRUNE = '''
import numpy as np
import torch
from torch.nn.modules.module import Module

DEFAULT_PRUNE_RATE = {
    'conv1': 84, 'conv2': 38, 'conv3': 35, 'conv4': 37, 'conv5': 37,
    'fc1': 9, 'fc2': 9, 'fc3': 25
}


class PruningModule(Module):
    def prune_by_percentile(self, q=DEFAULT_PRUNE_RATE):
        pass

    def prune_by_std(self, s=0.25):
        for name, module in self.named_modules():
            if name in ['fc1', 'fc2', 'fc3']:
                threshold = np.std(module.weight.data.cpu().numpy()) * s
                print(f'Pruning with threshold : {threshold:.4f} for layer {name}')
                self._prune(module, threshold)

    def _prune(self, module, threshold):
        pass
'''
QUANTIZATION = '''
import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.cluster import KMeans


def apply_weight_sharing(model, bits=5):
    for name, module in model.named_children():
        dev = module.weight.device
        weight = module.weight.data.cpu().numpy()
        shape = weight.shape
        quan_range = 2 ** bits
        if len(shape) == 2:  # Fully connected layers
            print(f'{name:20} | {str(module.weight.size()):35} | => Quantize to {quan_range} indices')
            mat = csr_matrix(weight) if shape[0] < shape[1] else csc_matrix(weight)
            space = np.linspace(min(mat.data), max(mat.data), num=quan_range)
            kmeans = KMeans(n_clusters=len(space), init=space.reshape(-1, 1), algorithm="full")
            kmeans.fit(mat.data.reshape(-1, 1))
            mat.data = kmeans.cluster_centers_[kmeans.labels_].reshape(-1)
            module.weight.data = torch.from_numpy(mat.toarray()).to(dev)
        elif len(shape) == 4:  # Convolution layers
            print(f'{name:20} | {str(module.weight.size()):35} | ** NEED TO BE IMPLEMENTED **')
'''
UTIL = '''
def log(content, filename='log.txt'):
    with open(filename, 'a') as f:
        content += "\\n"
        f.write(content)
'''
SCAFFOLD = {'net/__init__.py': '', 'net/models.py': MODELS, 'net/prune.py': PRUNE, 'net/quantization.py': QUANTIZATION,
            'util.py': UTIL}


def run_in_scaffold(code, replaced=None):
    """A scaffold, in which one file may be ours -> the lines that the code prints there."""
    for name, content in SCAFFOLD.items():
        path = Path('scaffold', name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding='utf-8')
    if replaced:
        shutil.copy(ROOT / replaced, Path('scaffold', replaced))
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', code], cwd='scaffold', env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


PRUNE_TWICE = '''
import numpy as np
from net.models import AlexNet
model = AlexNet()
before = {name: module.weight.detach().numpy().copy() for name, module in model.named_children()}
model.prune_by_std(0.5)
for name, module in model.named_children():
    weight, threshold = module.weight.detach().numpy(), 0.5 * np.std(before[name].astype(float))
    assert np.array_equal(weight, np.where(np.abs(before[name]) < threshold, 0, before[name])), name
    print(f'expected {threshold:.4f} for layer {name}')
model = AlexNet()
model.prune_by_percentile()
for name, module in model.named_children():
    print(name, f'{100 * (module.weight != 0).double().mean():.2f}')
try:
    model.prune_by_percentile({'fc9': 3})
except ValueError as error:
    print(error)
'''
SHARE = '''
import torch
from net.models import AlexNet
from net.quantization import apply_weight_sharing
torch.manual_seed(0)
model = AlexNet()
for param in model.parameters():
    param.data[torch.rand(param.shape) > 3000 / param.numel()] = 0
pruned = {name: module.weight == 0 for name, module in model.named_children()}
apply_weight_sharing(model, bits=5)
for name, module in model.named_children():
    assert torch.equal(module.weight == 0, pruned[name]), name
    print(name, len(module.weight.unique()))
try:
    apply_weight_sharing(model, bits=9)
except ValueError as error:
    print(error)
'''
LOAD_AND_SAVE = '''
import torch
from net.models import AlexNet
model = {model}
with open('../{name}.ptmodel', 'wb') as file:
    torch.save(model, file)
with torch.no_grad():
    torch.save(model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)), '../{name}_outputs.pt')
'''
LAYERS = 'conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc1', 'fc2', 'fc3'


def test_our_pruning_prunes_all_layers_of_a_scaffold_as_the_slides_ask():
    lines = run_in_scaffold(PRUNE_TWICE, 'net/prune.py')
    assert [line.split()[-1] for line in lines[:8]] == list(LAYERS)
    assert lines[:8] == [line.replace('expected', 'Pruning with threshold :') for line in lines[8:16]]
    assert lines[24:] == ['conv1 84.00', 'conv2 38.00', 'conv3 35.00', 'conv4 37.00', 'conv5 37.00', 'fc1 9.00',
                          'fc2 9.00', 'fc3 25.00',
                          f"unknown layer 'fc9', expected one of {', '.join(LAYERS)}"]


def test_a_model_of_the_scaffolds_own_class_can_be_loaded_and_computes_the_same():
    """Both were pickled as net.models.AlexNet."""
    run_in_scaffold(LOAD_AND_SAVE.format(model='AlexNet()', name='theirs'))
    ours = load_model('theirs.ptmodel')
    save_model(ours, 'ours.ptmodel')
    run_in_scaffold(LOAD_AND_SAVE.format(model="torch.load('../ours.ptmodel', weights_only=False)", name='again'))
    outputs = ours(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    for name in 'theirs', 'again':
        torch.testing.assert_close(torch.load(f'{name}_outputs.pt'), outputs)


def test_our_weight_sharing_leaves_33_values_in_each_layer_of_a_scaffold():
    lines = run_in_scaffold(SHARE, 'net/quantization.py')
    assert lines[:2] == ['conv1                | torch.Size([64, 3, 11, 11])         | => Quantize to 32 indices',
                         'conv2                | torch.Size([192, 64, 5, 5])         | => Quantize to 32 indices']
    assert lines[8:] == [f'{name} 33' for name in LAYERS] + ['bits must be 1 to 8, got 9']
