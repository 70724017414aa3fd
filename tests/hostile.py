"""What tests of hostile files put into them, or in their place."""
import os

import pytest


class RunsCommand:
    """Unpickled without an allow-list, it makes the file `command-ran`."""

    def __reduce__(self):
        return os.system, ('echo > command-ran',)


def plant_link(path, target):
    """Skips the test where no link can be made: Windows wants a privilege for that."""
    try:
        os.symlink(target, path)
    except OSError:
        pytest.skip('no links can be made here')
