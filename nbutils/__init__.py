"""Noisy maps, useful encoders: the helper rooms of the notebooks.

Each room imports only from the rooms below it (see the README). Importing the package makes `torchvision`
importable beside a CPU build of PyTorch first, because the libraries the rooms stand on import it.
"""

from pathlib import Path

from nbutils import compat

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parents[1]

compat.ensure_torchvision()
