"""What the three scripts are made of. They all import it first, so that it can say what is missing."""
import importlib.util

if importlib.util.find_spec('torch') is None:
    raise SystemExit('error: PyTorch is not installed for this Python. Activate the environment '
                     '(. venv/bin/activate, in PowerShell venv\\Scripts\\Activate.ps1), or: '
                     'pip install -r requirements.txt')
