"""A network with fewer units and a few made-up images, where a script has to run and need not learn.

As a script it starts another one on them, without the seconds that scikit-learn takes to import:

    python tests/small.py pruning.py --data digits --epochs 1
"""
import os
import runpy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from net import data  # noqa: E402  (the path comes first)
from net.models import AlexNet, save_model  # noqa: E402

WIDTHS = 64, 64, 64, 64, 64, 1024, 1024  # units of the hidden layers: 1.4 million parameters


def load_few(train):
    """20 images to train on, or 10 others to test with, of ten classes."""
    n = 20 if train else 10
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return data.Images(pixels, torch.arange(n) % 10, tuple('0123456789'))


def make_small(set_attribute=setattr):
    set_attribute(AlexNet.__init__, '__defaults__', (10, WIDTHS))
    set_attribute(data, '_load_digits', load_few)


def sparse_model(path, n_weights=5000):
    """Write a model with so many weights."""
    model = AlexNet()
    model.prune_to_budget(n_weights)
    save_model(model, path)


def run_script(main, arguments, output):
    """Call a script's main in this process, which was started for it; what it prints goes into a pipe, line by line."""
    for stream in sys.stdout, sys.stderr:
        os.dup2(output.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)
    make_small()
    main(arguments)


if __name__ == '__main__':
    make_small()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name='__main__')
