"""What is measured, here and by `tools/aot.py`: trees of shapes and kinds of state.

Nothing is imported from JAX, whose compilers read the environment when they are loaded.
"""

from __future__ import annotations

import itertools
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def mlp() -> Shapes:
    layers = enumerate(itertools.pairwise((784, 256, 256, 10)))
    return {f"{i}.{k}": s for i, (m, n) in layers for k, s in (("w", (m, n)), ("b", (n,)))}


def gpt2(width: int = 768, blocks: int = 12) -> Shapes:
    """GPT-2 small: 148 leaves, 124 million parameters."""
    block = {"ln1.g": (width,), "ln1.b": (width,), "ln2.g": (width,), "ln2.b": (width,)}
    for name, rows, columns in (("qkv", 1, 3), ("proj", 1, 1), ("fc", 1, 4), ("out", 4, 1)):
        block |= {f"{name}.w": (rows * width, columns * width), f"{name}.b": (columns * width,)}
    tree = {"wte": (50_257, width), "wpe": (1024, width), "ln.g": (width,), "ln.b": (width,)}
    return tree | {f"h{i}.{name}": shape for i in range(blocks) for name, shape in block.items()}


# The dtype of the parameters, and what a factory is told about their state.
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("float32", {}),
    "bfloat16": ("float32", {"moments": "bfloat16"}),
    "int8": ("float32", {"moments": "int8"}),
    "int8 + compensated": ("bfloat16", {"moments": "int8", "rounding": "compensated"}),
}
