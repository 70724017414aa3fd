import os
import tempfile

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# PyTorch is imported in the fixtures: the process that only hands out the tests to others does not need it.
# Each process of the tests has one core, and so has each script that it starts. OpenMP looks when PyTorch is imported.
os.environ['OMP_NUM_THREADS'] = '1'

set_hypothesis_home_dir(tempfile.mkdtemp())  # nothing is written beside the tests
settings.register_profile('same cases every time, on slow machines too', derandomize=True, database=None, deadline=None)
settings.load_profile('same cases every time, on slow machines too')


def pytest_collection_modifyitems(items):
    """The slow tests come first, so that no process of the tests is still at one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker('slow') is None)


@pytest.fixture(autouse=True)
def in_temporary_directory(tmp_path, monkeypatch):
    """The scripts write beside where they are started: every test starts in a folder of its own, with one seed."""
    import torch
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def cifar10_test_images():
    """The 10,000 test images, read once."""
    if 'CIFAR10_DIR' not in os.environ:
        pytest.skip('CIFAR10_DIR names no image folder')
    from net.data import load_images
    return load_images(os.environ['CIFAR10_DIR'], train=False)


@pytest.fixture
def small_runs(monkeypatch):
    """AlexNets with fewer units, and a few images in place of the digits."""
    from small import make_small
    make_small(monkeypatch.setattr)
