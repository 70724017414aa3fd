"""What tests of hostile files put into them."""
import os


class RunsCommand:
    """Unpickled without an allow-list, it makes the file `command-ran`."""

    def __reduce__(self):
        return os.system, ('touch command-ran',)
