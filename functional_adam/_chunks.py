"""A leaf's step piece by piece, so that what it needs besides its state stays small."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._codes import split
from functional_adam._moments import Stored

# Elements a piece: its intermediate arrays stay in a core's cache, and calls still cost little.
_PIECE = 2**16

Leaf = Callable[[Any, jax.Array, Stored, Any], tuple[jax.Array, Stored]]


def in_chunks(
    leaf: Leaf, key: Any, g: jax.Array, stored: Stored, theta: Any
) -> tuple[jax.Array, Stored]:
    """`leaf(key, g, stored, theta)`, computed for whole blocks at a time, the same in every bit.

    The arrays lie flat. A unit is a block, or a row of blocks where its last one is padded. The
    last piece of so many units may overlap the one before: it reads what was before the step.
    """
    if not 2 * _PIECE <= g.size < 2**31:
        return leaf(key, g, stored, theta)
    rows, count = math.prod(stored.scale.shape[:-1]), stored.scale.shape[-1]
    width = g.size // max(rows, 1)
    length = jax.eval_shape(lambda x: split(x, stored.scale.shape), g).shape[-1]
    per_unit = count if width % length and rows > 1 else 1
    unit = width if per_unit > 1 else length
    units, left = divmod(g.size, unit)
    piece = max(1, _PIECE // unit)
    if units < 2 * piece:
        return leaf(key, g, stored, theta)

    flat = jax.tree.map(jnp.ravel, (g, stored, theta))

    def computed(start: Any, units: int, size: int) -> tuple[jax.Array, Stored]:
        """The step of `units` units from `start` on, with `size` elements in each."""

        def part(x: Any, is_scale: bool = False) -> Any:
            if x is None or x.size == 0:
                return x
            each, shape = (per_unit, per_unit) if is_scale else (unit, size)
            piece = jax.lax.dynamic_slice(x, (start * each,), (units * shape,))
            return piece.reshape(units, shape)

        g, old, theta = flat
        parts = jax.tree.map(part, old._replace(scale=None))
        parts = parts._replace(scale=part(old.scale, is_scale=True))
        place = key + jnp.asarray(start * unit).astype(jnp.uint32)
        return leaf(place, part(g), parts, part(theta))

    def written(outs: Any, start: Any, units: int, size: int) -> Any:
        u, new = computed(start, units, size)

        def put(out: Any, x: Any, each: int = unit) -> Any:
            return jax.lax.dynamic_update_slice(out, x.ravel(), (start * each,)) if x.size else out

        u_out, new_out = outs
        scale = put(new_out.scale, new.scale, per_unit)
        rest = jax.tree.map(put, new_out._replace(scale=None), new._replace(scale=None))
        return put(u_out, u), rest._replace(scale=scale)

    like = jax.eval_shape(lambda: computed(0, piece, unit))
    u = jnp.zeros(g.size, like[0].dtype)
    outs = u, jax.tree.map(jnp.zeros_like, flat[1])

    def body(i: Any, outs: Any) -> Any:
        return written(outs, jnp.minimum(i * np.int32(piece), np.int32(units - piece)), piece, unit)

    outs = jax.lax.fori_loop(0, -(-units // piece), body, outs)
    if left:
        outs = written(outs, units, 1, left)
    return jax.tree.map(lambda x, shape_of: x.reshape(shape_of.shape), outs, (g, stored))
