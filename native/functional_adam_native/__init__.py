"""A native CPU kernel for functional_adam's step. functional_adam finds and calls it by itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

__version__ = "0.1.0"

# Version of the kernel's operands and results; functional_adam accepts only the one it knows.
CONTRACT = 1

# The names of the functions that XLA calls.
TARGETS = ("functional_adam_step",)


def library() -> ctypes.CDLL:
    """Load the shared library."""
    (path,) = Path(__file__).parent.glob("kernel.*")
    return ctypes.CDLL(str(path))
