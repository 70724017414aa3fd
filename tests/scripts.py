"""How tests call the scripts: in this process, or as a process of their own."""
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pruning
from net import stage

import pytest

ROOT = Path(pruning.__file__).parent
SMALLEST = ROOT / 'net/compact/smallest.dcan'
DIGITS = ['--data', 'digits', '--no-cuda']


def error_of(main, arguments):
    """The line that a script ends with, and exit status 1."""
    with pytest.raises(SystemExit) as stopped:
        stage.run(lambda: main(arguments))
    assert str(stopped.value.code).startswith('error: ') and '\n' not in stopped.value.code
    return stopped.value.code.removeprefix('error: ')


def made_with(data='digits', recipe='digits', validation=None):
    """Arguments of a script that saves a model."""
    return SimpleNamespace(data=data, recipe=recipe, validation=validation, load_model_path=None)


def start(*command, **environment):
    """A script as a process, whose lines can be read as soon as they are printed."""
    return subprocess.Popen([sys.executable, '-u', *command], env={**os.environ, **environment}, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # whoever runs the tests
