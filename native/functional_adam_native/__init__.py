"""The CPU's own kernel for functional_adam's step, which finds and calls it by itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

__version__ = "0.1.0"

# What a call is given and gives; functional_adam takes a kernel of the number that it knows.
CONTRACT = 1

# The names of the functions that XLA calls.
TARGETS = ("functional_adam_step",)


def library() -> ctypes.CDLL:
    """The shared library, loaded."""
    (path,) = Path(__file__).parent.glob("kernel.*")
    return ctypes.CDLL(str(path))
