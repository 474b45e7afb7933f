"""Moments that wait in the host's memory: which side an array lies on, and its trips.

The type of an array says on which side it lies, and `jax.device_put` with a `jax.memory.Space`
moves it without a word about the mesh: under `jit`, `scan`, `vmap` and `shard_map` alike. A
residual is a part of its parameter and never moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
from jax.core import Tracer

from functional_adam._hints import tree_hints
from functional_adam._storage.leaf_state import LeafState

T = TypeVar("T")

KIND = "pinned_host"  # JAX's name for memory of the host that devices can read
# None in versions of JAX whose types do not say on which side an array lies.
_SPACE: Any = getattr(getattr(jax, "memory", None), "Space", None)
HAS_SPACES = _SPACE is not None

Waiting = frozenset[str]  # the paths of the leaves whose moments wait on the host

# The leaves of the transformation that is being run, where it is inside of others.
WITHIN: ContextVar[Waiting] = ContextVar("WITHIN", default=frozenset())


def is_on_host(x: Any) -> bool:
    """Whether an array, traced or not, lies in the host's memory."""
    return HAS_SPACES and getattr(jax.typeof(x), "memory_space", None) == _SPACE.Host


def on_device(tree: T) -> T:
    """The arrays of a tree, brought to the devices."""
    return jax.device_put(tree, _SPACE.Device)


def brought(tree: T) -> T:
    """The arrays of a tree, all of them on the devices."""
    return jax.tree.map(lambda x: on_device(x) if is_on_host(x) else x, tree)


def on_host(tree: T) -> T:
    """The arrays of a tree, sent to the host."""
    return jax.device_put(tree, _SPACE.Host)


def check_side(path: str, stored: LeafState, waits: bool) -> None:
    """What is stored of a leaf lies where a step looks for it: its moments on the host or not."""
    for name, x, moves in _arrays(stored):
        if is_on_host(x) != (waits and moves):
            raise ValueError(f"state.{name}{path} lies {tree_hints.side(is_on_host(x))}")


def _arrays(stored: LeafState) -> Iterator[tuple[str, Any, bool]]:
    """The name of each array in a state, the array, and whether it is one that may wait."""
    named = {"mu": stored.m, "nu": stored.v, "nu_scale": stored.scale}
    extra = {f"extra[{name!r}]": x for name, x in stored.extra.items()}
    for name, x in {**named, **extra, "residual": stored.residual}.items():
        if x is not None:
            yield name, x, name != "residual"


class Trip(NamedTuple):
    """The moments of a leaf that has been to the devices: new ones there, and back on the host."""

    there: LeafState
    back: LeafState


def visit(
    step: Callable[[LeafState], tuple[Any, LeafState]], stored: LeafState, before: Trip | None
) -> tuple[tuple[Any, LeafState], Trip]:
    """`step` of moments that come over for it and go back; `before` is the trip of another leaf.

    Nothing is fetched before that leaf's arithmetic is done, and nothing is computed before its
    moments are back, so that the devices hold those of two leaves: one comes while one goes.
    Without this order XLA fetches all of them first.
    """
    moments, residual = _split(stored)
    moments = on_device(_after(before and before.there, moments))
    moments = _after(before and before.back, moments)
    out, new = step(moments._replace(residual=residual))
    there, residual = _split(new)
    back = on_host(there)
    return (out, back._replace(residual=residual)), Trip(there, back)


def _split(stored: LeafState) -> tuple[LeafState, Any]:
    """What moves, and what stays."""
    return stored._replace(residual=None), stored.residual


def _after(done: Any, x: T) -> T:
    """`x`, which a compiled program does not touch before it has `done`."""
    if done is None or not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)):
        return x  # without a trace one thing is done after the other
    return jax.lax.optimization_barrier((x, done))[0]
