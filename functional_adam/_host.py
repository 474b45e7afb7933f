"""Moments in the host's memory: where an array is, and how it moves to a device and back.

The type of an array says which memory it is in. `jax.device_put` with a `jax.memory.Space` moves it
without naming a mesh, so it works alike under `jit`, `scan`, `vmap` and `shard_map`. A residual
belongs to its parameter and never moves.
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
# None in versions of JAX whose array types do not say which memory an array is in.
_SPACE: Any = getattr(getattr(jax, "memory", None), "Space", None)
HAS_SPACES = _SPACE is not None

Waiting = frozenset[str]  # the paths of the leaves whose moments wait on the host

# The waiting leaves, while a transformation that contains one of this package runs.
WITHIN: ContextVar[Waiting] = ContextVar("WITHIN", default=frozenset())


def is_on_host(x: Any) -> bool:
    """Whether an array, traced or not, is in the host's memory."""
    return HAS_SPACES and getattr(jax.typeof(x), "memory_space", None) == _SPACE.Host


def on_device(tree: T) -> T:
    """The arrays of a tree, moved from the host to the devices."""
    return jax.device_put(tree, _SPACE.Device)


def brought(tree: T) -> T:
    """The arrays of a tree; those on the host are moved to the devices."""
    return jax.tree.map(lambda x: on_device(x) if is_on_host(x) else x, tree)


def on_host(tree: T) -> T:
    """The arrays of a tree, moved to the host."""
    return jax.device_put(tree, _SPACE.Host)


def check_side(path: str, stored: LeafState, waits: bool) -> None:
    """Check that the moments of a leaf are on the host exactly if `waits`, and a residual never."""
    for name, x, moves in _arrays(stored):
        if is_on_host(x) != (waits and moves):
            raise ValueError(f"state.{name}{path} lies {tree_hints.side(is_on_host(x))}")


def _arrays(stored: LeafState) -> Iterator[tuple[str, Any, bool]]:
    """The name of each array stored for a leaf, the array, and whether it may wait on the host."""
    named = {"mu": stored.m, "nu": stored.v, "nu_scale": stored.scale}
    extra = {f"extra[{name!r}]": x for name, x in stored.extra.items()}
    for name, x in {**named, **extra, "residual": stored.residual}.items():
        if x is not None:
            yield name, x, name != "residual"


class Trip(NamedTuple):
    """The updated moments of a leaf: `there` on the devices, `back` once copied to the host."""

    there: LeafState
    back: LeafState


def visit(
    step: Callable[[LeafState], tuple[Any, LeafState]], stored: LeafState, before: Trip | None
) -> tuple[tuple[Any, LeafState], Trip]:
    """Fetch the moments of a leaf, run `step` with them, and send the new ones back.

    `before` is the trip of the previous leaf. The fetch waits until that leaf's arithmetic is done,
    and `step` waits until its moments are back on the host. So the devices hold the moments of two
    leaves: one arrives while the other leaves. Without this order, XLA fetches all leaves first.
    """
    moments, residual = _split(stored)
    moments = on_device(_after(before and before.there, moments))
    moments = _after(before and before.back, moments)
    out, new = step(moments._replace(residual=residual))
    there, residual = _split(new)
    back = on_host(there)
    return (out, back._replace(residual=residual)), Trip(there, back)


def _split(stored: LeafState) -> tuple[LeafState, Any]:
    """The moments, which move, and the residual, which stays."""
    return stored._replace(residual=None), stored.residual


def _after(done: Any, x: T) -> T:
    """`x`, which a compiled program does not use before it has computed `done`."""
    if done is None or not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)):
        return x  # outside of a trace, operations run in order anyway
    return jax.lax.optimization_barrier((x, done))[0]
