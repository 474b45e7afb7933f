"""What an optimizer's state costs, before any of it is allocated."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check
from functional_adam._state import AdamState
from functional_adam._types import GradientTransformation, PyTree

_PARTS = ("mu", "nu", "nu_scale", "residual", "extra")


class LeafMemory(NamedTuple):
    """The bytes of one parameter and of what is kept for it, by part of the state."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    parameter: int
    mu: int
    nu: int
    nu_scale: int
    residual: int
    extra: int

    @property
    def state(self) -> int:
        """The parts of the state together."""
        return self.mu + self.nu + self.nu_scale + self.residual + self.extra


class MemoryReport(NamedTuple):
    """Bytes by leaf and in all; as text a table.

    Attributes:
        leaves: one `LeafMemory` a parameter.
        other: bytes of the state that belong to no parameter: counters, other transformations.
    """

    leaves: tuple[LeafMemory, ...]
    other: int

    @property
    def parameters(self) -> int:
        """How many numbers the parameters are."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def parameter_bytes(self) -> int:
        """The parameters themselves."""
        return sum(leaf.parameter for leaf in self.leaves)

    @property
    def state_bytes(self) -> int:
        """The whole state."""
        return sum(leaf.state for leaf in self.leaves) + self.other

    @property
    def float32_adam_bytes(self) -> int:
        """What the state of Adam with float32 moments would be: 8 a number, and the counter."""
        return 8 * self.parameters + 4

    def __str__(self) -> str:
        """The table."""
        rows = [_row(leaf.path or "(params)", leaf.shape, leaf.dtype, leaf) for leaf in self.leaves]
        sums = [sum(column) for column in zip(*map(_sizes, self.leaves), strict=True)] or [0] * 6
        total = LeafMemory("", (self.parameters,), "", *sums)
        rows.append(_row("total", (), "", total))
        head = ["leaf", "shape", "dtype", "parameter", *_PARTS, "state", "B/param"]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        texts = [
            "  ".join(
                x.ljust(w) if i < 3 else x.rjust(w)
                for i, (x, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, *rows)
        ]
        rule = "-" * len(texts[0])
        share = self.state_bytes / self.float32_adam_bytes
        end = (
            f"{self.other:,} bytes besides; {self.state_bytes:,} in all, {share:.1%} of float32 "
            f"Adam's {self.float32_adam_bytes:,}"
        )
        return "\n".join([texts[0], rule, *texts[1:-1], rule, texts[-1], end])


def _sizes(leaf: LeafMemory) -> tuple[int, ...]:
    return leaf.parameter, leaf.mu, leaf.nu, leaf.nu_scale, leaf.residual, leaf.extra


def _row(name: str, shape: tuple[int, ...], dtype: str, leaf: LeafMemory) -> list[str]:
    count = math.prod(leaf.shape)
    per = f"{leaf.state / count:.3f}" if count else "-"
    return [
        name,
        str(shape) if dtype else "",
        dtype,
        *(f"{n:,}" for n in (*_sizes(leaf), leaf.state)),
        per,
    ]


def memory_report(tx: GradientTransformation, params: PyTree) -> MemoryReport:
    """The bytes that the state of `tx` takes for these parameters, leaf by leaf.

    Nothing is allocated: `tx.init` is evaluated in shapes alone.

    Args:
        tx: a transformation of this package, alone or anywhere in one of Optax's (a chain,
            `masked`, `partition`, `inject_hyperparams`).
        params: a tree of arrays, or of `jax.ShapeDtypeStruct`s.

    Returns:
        A `MemoryReport`: print it for a table, or read its fields. Float32 Adam is 8 bytes of state
        a number.

    Raises:
        TypeError: `tx` has no `init`, or a leaf is not an array that it can train.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)}
        >>> report = fa.memory_report(fa.adamw(moments="int8", rounding="compensated"), params)
        >>> report.state_bytes / report.parameters
        3.015628...
    """
    if not callable(getattr(tx, "init", None)):
        raise TypeError(
            f"tx must be a gradient transformation with an init; got {_check.show(tx)}."
        )
    state = jax.eval_shape(tx.init, params)
    whole = sum(_bytes(leaf) for leaf in jax.tree.leaves(state))
    ours = [x for x in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(x)]
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = [_bytes_by_path(ours, name) for name in _PARTS]
    rows: list[LeafMemory] = []
    for path, leaf in paths_and_leaves:
        parts = [of_part[keystr(path)] for of_part in sizes]
        shape, dtype = np.shape(leaf), jax.dtypes.result_type(leaf)
        size = math.prod(shape) * dtype.itemsize
        rows.append(LeafMemory(keystr(path), shape, dtype.name, size, *parts))
    return MemoryReport(tuple(rows), whole - sum(row.state for row in rows))


def _is_ours(x: Any) -> bool:
    return isinstance(x, AdamState)


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _bytes_by_path(states: list[AdamState], name: str) -> Counter[str]:
    """The bytes that the states have under `name` for the parameter at each path."""
    sizes: Counter[str] = Counter()
    for state in states:
        tree = getattr(state, name)
        for one in (tree or {}).values() if name == "extra" else [tree]:
            for path, leaf in jax.tree_util.tree_leaves_with_path(one):
                sizes[keystr(path)] += _bytes(leaf)
    return sizes
