"""A tree of states in pieces that are carried over whole: Adam states, counters, other arrays.

Optax counts in several places, a state of this package in one; which of Optax's counters may stand
for another is decided here.
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
COUNTS = "count", "count_m2", "t"  # fields that are counters; the first that a state has is its
ADAM, COUNTER, ARRAY = "an Adam state", "the counter of a schedule", "an array"


class Side(NamedTuple):
    """A tree of states, what messages call it, and which of its nodes are the Adam states."""

    name: str
    tree: PyTree
    is_adam: Callable[[Any], bool]


class Piece(NamedTuple):
    """What is carried over as a whole: an Adam state, the counter of a schedule, an array."""

    kind: str
    path: tuple[Any, ...]
    where: str
    value: Any

    def __str__(self) -> str:
        """For messages."""
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
            "an AdamState: give a state of this package, from the `init` of a transformation"
            if side.is_adam is is_adam_state
            else "an Adam state of Optax, a NamedTuple with the fields count, mu and nu. (A "
            "checkpoint restored without a target has lost them: restore it into the optimizer's "
            "`init(params)`.)"
        )
        raise ValueError(f"{side.name} must contain {wanted}; got {_check.show(side.tree)}.")
    return pieces, treedef


def nearest(piece: Piece, pieces: list[Piece]) -> list[Piece]:
    """The Adam states that have most of their way in common with `piece`, one or several."""
    adams = {p.path: p for p in pieces if p.kind == ADAM}
    most = max(_common(path, piece.path) for path in adams)
    return [adam for path, adam in adams.items() if _common(path, piece.path) == most]


def _common(a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
    """How many keys two paths begin with alike."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    return [*same, False].index(False)


def count_of(state: Any) -> Any:
    """The counter of an Adam state, or of a schedule."""
    fields = _fields(state)  # a tuple has a method of the name `count`
    return next(getattr(state, name) for name in COUNTS if name in fields)


def check_counter(counter: Piece, pieces: list[Piece]) -> None:
    """A counter that is dropped has the count of its Adam."""
    for adam in nearest(counter, pieces):
        ours, theirs = (_counted(count_of(p.value)) for p in (adam, counter))
        if ours is None or theirs is None or np.array_equal(ours, theirs):
            continue
        start = ours - theirs
        n = f"n - {start}" if np.all(start >= 0) else f"n + {-start}"
        raise ValueError(
            f"{counter.where}.count is {theirs}, but {adam.where}.count is {ours}, and one count "
            "would go on for both. Make the optimizer with the schedule moved, "
            f"`lambda n: schedule({n})`, and set {counter.where}.count to {ours} before you carry "
            "it over; or keep the schedule a counter of its own on both sides, as in "
            "optax.chain(fa.scale_by_adam(), optax.scale_by_learning_rate(schedule))."
        )


def check_alike(counter: Piece, counts: Mapping[str, Any]) -> None:
    """The Adam states, by name, of which one gives a new counter its count have the same."""
    known = {where: x for where, count in counts.items() if (x := _counted(count)) is not None}
    for (first, one), (second, other) in itertools.pairwise(known.items()):
        if not np.array_equal(one, other):
            raise ValueError(
                f"{counter.where} would begin at the count of {first}, which is {one}, or of "
                f"{second}, which is {other}: carry the Adam states over one at a time."
            )


def _counted(count: Any) -> NDArray[np.int64] | None:
    """The value of a counter; None where it has none yet."""
    unknown = isinstance(count, Tracer | jax.ShapeDtypeStruct)
    return None if unknown else np.asarray(count, np.int64)


def check_one_count(adam: Piece) -> None:
    """AdEMAMix counts twice in Optax: the same, or one of its counters was set by hand."""
    state: Any = adam.value
    first, *others = [name for name in state._fields if name in COUNTS]
    for name in others:
        one, other = (_counted(getattr(state, field)) for field in (first, name))
        if one is not None and other is not None and not np.array_equal(one, other):
            raise ValueError(
                f"{adam.where}.{first} is {one}, but {adam.where}.{name} is {other}, and an "
                "AdamState has one count: set both to the one that is to go on."
            )
