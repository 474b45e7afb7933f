"""A tree of states as pieces that are carried over whole: Adam states, counters, other arrays.

Optax counts steps in several places, a state of this package in one. This module decides which of
Optax's counters may be dropped or set from another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr
from numpy.typing import NDArray

from functional_adam import _check
from functional_adam._state import is_adam_state
from functional_adam._types import PyTree

_FIELDS = (
    {"count", "mu", "nu"},
    {"count", "mu", "nu", "nu_max"},
    {"count", "count_m2", "m1", "m2", "nu"},
    {"t", "m", "n"},
)
COUNTS = "count", "count_m2", "t"  # fields that are counters; a state uses its first
ADAM, COUNTER, ARRAY = "an Adam state", "the counter of a schedule", "an array"


class Side(NamedTuple):
    """A tree of states, its name in messages, and the test for its Adam states."""

    name: str
    tree: PyTree
    is_adam: Callable[[Any], bool]


class Piece(NamedTuple):
    """A piece that is carried over whole: an Adam state, the counter of a schedule, an array."""

    kind: str
    path: tuple[Any, ...]
    where: str
    value: Any

    def __str__(self) -> str:
        """The piece as messages name it."""
        return f"{self.where} ({self.kind})"


def _fields(x: Any) -> set[str]:
    fields: tuple[str, ...] = getattr(x, "_fields", ()) if isinstance(x, tuple) else ()
    return set(fields)


def is_theirs(x: Any) -> bool:
    """Whether `x` is an Adam state of Optax."""
    return _fields(x) in _FIELDS


def _is_counter(x: Any) -> bool:
    return _fields(x) == {"count"}


def pieces_of(side: Side) -> tuple[list[Piece], Any]:
    """The pieces of one side, in order, and the tree whose leaves they are."""

    def kind(x: Any) -> str:
        return ADAM if side.is_adam(x) else COUNTER if _is_counter(x) else ARRAY

    paths_and_values, treedef = jax.tree_util.tree_flatten_with_path(
        side.tree, is_leaf=lambda x: kind(x) != ARRAY
    )
    pieces = [Piece(kind(x), path, side.name + keystr(path), x) for path, x in paths_and_values]
    if not any(piece.kind == ADAM for piece in pieces):
        wanted = (
            "an AdamState: pass a state of this package, from the `init` of a transformation"
            if side.is_adam is is_adam_state
            else "an Adam state of Optax, a NamedTuple with the fields count, mu and nu. (A "
            "checkpoint restored without a target has lost them: restore it into the optimizer's "
            "`init(params)`.)"
        )
        raise ValueError(f"{side.name} must contain {wanted}; got {_check.show(side.tree)}.")
    return pieces, treedef


def nearest(piece: Piece, pieces: list[Piece]) -> list[Piece]:
    """The Adam states, one or several, whose path has the longest common start with `piece`."""
    adams = {p.path: p for p in pieces if p.kind == ADAM}
    most = max(_common(path, piece.path) for path in adams)
    return [adam for path, adam in adams.items() if _common(path, piece.path) == most]


def _common(a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
    """The length of the common start of two paths."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    return [*same, False].index(False)


def count_of(state: Any) -> Any:
    """The counter of an Adam state, or of a schedule."""
    fields = _fields(state)  # a tuple has a method named `count`
    return next(getattr(state, name) for name in COUNTS if name in fields)


def check_counter(counter: Piece, pieces: list[Piece]) -> None:
    """Raise unless a counter that is dropped equals the count of its Adam state."""
    for adam in nearest(counter, pieces):
        ours, theirs = (_counted(count_of(p.value)) for p in (adam, counter))
        if ours is None or theirs is None or np.array_equal(ours, theirs):
            continue
        start = ours - theirs
        n = f"n - {start}" if np.all(start >= 0) else f"n + {-start}"
        raise ValueError(
            f"{counter.where}.count is {theirs}, but {adam.where}.count is {ours}, and a single "
            "count would continue for both. Make the optimizer with a shifted schedule, "
            f"`lambda n: schedule({n})`, and set {counter.where}.count to {ours} before the "
            "conversion. Or keep a separate counter for the schedule on both sides, as in "
            "optax.chain(fa.scale_by_adam(), optax.scale_by_learning_rate(schedule))."
        )


def check_alike(counter: Piece, counts: Mapping[str, Any]) -> None:
    """Raise unless the Adam states that could set a new counter have the same count."""
    known = {where: x for where, count in counts.items() if (x := _counted(count)) is not None}
    for (first, one), (second, other) in itertools.pairwise(known.items()):
        if not np.array_equal(one, other):
            raise ValueError(
                f"{counter.where} could take its count from {first}, which is at {one}, or from "
                f"{second}, which is at {other}: convert the Adam states one at a time."
            )


def _counted(count: Any) -> NDArray[np.int64] | None:
    """The value of a counter; None if it is traced or has no value."""
    unknown = isinstance(count, Tracer | jax.ShapeDtypeStruct)
    return None if unknown else np.asarray(count, np.int64)


def check_one_count(adam: Piece) -> None:
    """Raise unless the two counters that AdEMAMix has in Optax agree."""
    state: Any = adam.value
    first, *others = [name for name in state._fields if name in COUNTS]
    for name in others:
        one, other = (_counted(getattr(state, field)) for field in (first, name))
        if one is not None and other is not None and not np.array_equal(one, other):
            raise ValueError(
                f"{adam.where}.{first} is {one}, but {adam.where}.{name} is {other}, and an "
                "AdamState has a single count: set both to the count that is to continue."
            )
