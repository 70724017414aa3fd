import tempfile

import pytest
import torch
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(tempfile.mkdtemp())  # nothing is written beside the tests
settings.register_profile('same cases every time, on slow machines too', derandomize=True, database=None, deadline=None)
settings.load_profile('same cases every time, on slow machines too')


@pytest.fixture(autouse=True)
def in_temporary_directory(tmp_path, monkeypatch):
    """The scripts write beside where they are started: every test starts in a folder of its own, with one seed."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
