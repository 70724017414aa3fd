import pytest
import torch


@pytest.fixture(autouse=True)
def in_temporary_directory(tmp_path, monkeypatch):
    """The scripts write beside where they are started: every test starts in a folder of its own, with one seed."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
