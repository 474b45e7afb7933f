"""A leaf's step piece by piece, so that what it needs besides its state stays small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._storage.int8 import block_length
from functional_adam._storage.leaf_state import LeafState

# Elements a piece: its intermediate arrays stay in a core's cache, and calls still cost little.
_PIECE = 2**16

Leaf = Callable[[Any, jax.Array, LeafState, Any], tuple[jax.Array, LeafState]]


class Flat(NamedTuple):
    """A leaf before its step, its arrays in one dimension, as units of whole blocks."""

    key: Any
    g: jax.Array
    stored: LeafState
    theta: Any
    unit: int  # elements
    scales: int  # scales


def in_chunks(
    step: Callable[..., Any],
    s: Any,
    noise: Any,
    key: Any,
    g: jax.Array,
    stored: LeafState,
    theta: Any,
) -> tuple[jax.Array, LeafState]:
    """`step(s, noise, key, g, stored, theta)`, computed for whole blocks at a time.

    What is stored is the same in every bit; an update may differ by what XLA makes of small loops.

    A unit is a block, or a row of blocks where its last one is padded. The last piece of so many
    units may overlap the one before: it reads what was before the step.
    """
    leaf: Leaf = functools.partial(step, s, noise)
    unit, scales = _unit(g.shape, stored.scale.shape)
    units, left = divmod(g.size, max(unit, 1))
    piece = max(1, _PIECE // max(unit, 1))
    if units < 2 * piece or g.size >= 2**31:
        return leaf(key, g, stored, theta)
    flat = jax.tree.map(jnp.ravel, (g, stored, theta))
    flat = Flat(key, flat[0], flat[1], flat[2], unit, scales)
    u = jax.eval_shape(lambda: _step(leaf, flat, 0, piece, unit)[0])
    after = jnp.zeros(g.size, u.dtype), jax.tree.map(jnp.zeros_like, flat.stored)

    def body(i: Any, after: Any) -> Any:
        start = jnp.minimum(i * np.int32(piece), np.int32(units - piece))
        return _write(after, _step(leaf, flat, start, piece, unit), flat, start)

    after = jax.lax.fori_loop(0, -(-units // piece), body, after)
    if left:
        after = _write(after, _step(leaf, flat, units, 1, left), flat, units)
    return jax.tree.map(lambda x, like: x.reshape(like.shape), after, (g, stored))


def _unit(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """How many elements and scales a unit has."""
    rows, width = math.prod(scales[:-1]), math.prod(shape[len(scales) - 1 :])
    length = block_length(width, scales[-1])
    if rows > 1 and width % max(length, 1):
        return width, scales[-1]
    return length, 1


def _step(leaf: Leaf, flat: Flat, start: Any, units: int, size: int) -> tuple[jax.Array, LeafState]:
    """The step of `units` units from `start` on, with `size` elements in each."""

    def read(x: jax.Array, each: int = flat.unit, size: int = size) -> jax.Array:
        if not x.size:
            return x
        return jax.lax.dynamic_slice(x, (start * each,), (units * size,)).reshape(units, size)

    old = jax.tree.map(read, flat.stored._replace(scale=None))
    old = old._replace(scale=read(flat.stored.scale, flat.scales, flat.scales))
    key = flat.key + jnp.asarray(start * flat.unit).astype(jnp.uint32)
    return leaf(key, read(flat.g), old, jax.tree.map(read, flat.theta))


def _write(after: Any, piece: Any, flat: Flat, start: Any) -> tuple[jax.Array, LeafState]:
    """`after` with what `_step` gave for the units from `start` on."""

    def write(out: jax.Array, x: jax.Array, each: int = flat.unit) -> jax.Array:
        return jax.lax.dynamic_update_slice(out, x.ravel(), (start * each,)) if x.size else out

    (u, stored), (du, new) = after, piece
    rest = jax.tree.map(write, stored._replace(scale=None), new._replace(scale=None))
    return write(u, du), rest._replace(scale=write(stored.scale, new.scale, flat.scales))
