import os
import tempfile

# Each process of the tests has one core, and so has each script that it starts. OpenMP looks when PyTorch is imported.
os.environ['OMP_NUM_THREADS'] = '1'

import pytest
import torch
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from small import make_small

from net.data import load_images

set_hypothesis_home_dir(tempfile.mkdtemp())  # nothing is written beside the tests
settings.register_profile('same cases every time, on slow machines too', derandomize=True, database=None, deadline=None)
settings.load_profile('same cases every time, on slow machines too')

RUNS_OF_ALL_SCRIPTS = {'finished', 'on_cpu', 'on_pretend_device'}  # fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The slow tests come first, so that no process of the tests begins a long one when the others are done.

    Those of a file that need the scripts to have run go to one process, which runs them once.
    """
    items.sort(key=lambda item: item.get_closest_marker('slow') is None)
    for item in items:
        if RUNS_OF_ALL_SCRIPTS & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
        elif 'cifar10_test_images' in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group('cifar10_test_images'))


@pytest.fixture(autouse=True)
def in_temporary_directory(tmp_path, monkeypatch):
    """The scripts write beside where they are started: every test starts in a folder of its own, with one seed."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def cifar10_test_images():
    """The 10,000 test images, read once."""
    if 'CIFAR10_DIR' not in os.environ:
        pytest.skip('CIFAR10_DIR names no image folder')
    return load_images(os.environ['CIFAR10_DIR'], train=False)


@pytest.fixture
def small_runs(monkeypatch):
    """AlexNets with fewer units, and a few images in place of the digits."""
    make_small(monkeypatch.setattr)
