"""A leaf's step on a CPU: in place, and without reading or decoding anything twice.

XLA for the CPU makes one loop per result. Each loop reads and decodes everything again, and a
donated array that several loops read is copied before one of them overwrites it. Two forms of
`update_leaf` prevent that with calls that XLA does not inline:

- Codes are processed piece by piece. One call computes the new moments of a piece, a second one its
  codes and its parameter. The float32 moments never leave a core's cache.
- 16-bit moments are cheap to read. Each result has a call that waits for the previous one, so that
  it can overwrite its old array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Var

from functional_adam._kernels.tiles import Part, origin, shift
from functional_adam._leaf import LeafConfig, advance, finish, update_leaf
from functional_adam._storage.floats import is_16bit
from functional_adam._storage.int8 import block_length
from functional_adam._storage.leaf_state import LeafState

_PIECE = 2**17  # elements, whose moments in float32 fit into a core's cache
_LEAST = 2**13  # elements of a leaf for which more than one loop pays

Form = Callable[[LeafConfig, tuple[int, ...], Part], tuple[Any, LeafState]]


def form_of(config: LeafConfig, part: Part, *, is_divided: bool) -> Form | None:
    """The form of a leaf's step; None for the plain one.

    With `is_divided`, XLA divides the leaf over devices. It would gather the pieces.
    """
    if not _LEAST <= part.g.size < 2**31 or not config.moments.is_random:
        return None
    if part.stored.scale is not None:
        is_one = is_divided or config.variant.whole_leaf or _units(part).size > _PIECE
        return None if is_one else in_pieces
    # XLA computes an update itself, because it adds it to the parameter in the same loop. And the
    # new parameter and residual both need both old arrays, so one of these would be copied.
    if config.applies and part.stored.residual is None:
        return functools.partial(in_turn, _all if is_divided else _first)
    return None


def _kept(f: Callable[..., Any]) -> Callable[..., Any]:
    """f as a call that XLA does not inline, so its results are arrays."""

    @jax.jit
    def inside(*operands: Any) -> Any:
        with set_xla_metadata(inlineable=None):  # else calls inside f would not be inlined either
            return f(*operands)

    def call(*operands: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return inside(*operands)

    return call


# ---- Codes: piece by piece ----


class _Units(NamedTuple):
    """A part of a leaf as units: blocks, or rows of blocks if the last one of a row is padded."""

    number: int
    size: int  # elements of a unit
    scales: int  # scales of a unit
    left: int  # elements of the last block if it is not full


def _units(part: Part) -> _Units:
    shape, scales = part.g.shape, part.stored.scale.shape
    rows, width = math.prod(scales[:-1]), math.prod(shape[len(scales) - 1 :])
    size, count = block_length(width, scales[-1]), 1
    if rows > 1 and width % size:
        size, count = width, scales[-1]
    return _Units(part.g.size // size, size, count, part.g.size % size)


def in_pieces(config: LeafConfig, leaf: tuple[int, ...], part: Part) -> tuple[jax.Array, LeafState]:
    """`update_leaf` of a part of a leaf with the shape `leaf`, whose moments are codes."""
    units = _units(part)
    target = part.theta if config.applies else jnp.zeros(part.g.shape, config.out)
    flat = jax.tree.map(functools.partial(_flat, units), (target, part.stored))
    carry = jax.tree.map(_bits, flat)
    step = functools.partial(_step, config, leaf, part, units)
    each, pieces = _divided(units.number, max(1, _PIECE // units.size))
    piece, done = (each, units.size), each * pieces
    carry = jax.lax.fori_loop(0, pieces, lambda i, carry: step(piece, i * each, carry), carry)
    if done < units.number:
        carry = step((units.number - done, units.size), jnp.int32(done), carry)
    if units.left:
        carry = step((1, units.left), jnp.int32(units.number), carry)
    return jax.tree.map(lambda x, y: _typed(x, y).reshape(y.shape), carry, (target, part.stored))


def _divided(count: int, most: int) -> tuple[int, int]:
    """(units of a piece, number of pieces): equal pieces if there is a divisor close to `most`."""
    least = -(-count // most)
    for pieces in range(least, 2 * least + 1):
        if count % pieces == 0:
            return count // pieces, pieces
    return most, count // most


def _step(
    config: LeafConfig,
    leaf: tuple[int, ...],
    part: Part,
    units: _Units,
    piece: tuple[int, int],
    start: jax.Array,
    carry: tuple[jax.Array, LeafState],
) -> tuple[jax.Array, LeafState]:
    """`carry` after the step of a piece of this shape that begins at unit `start`."""
    s, noise, key = part.scalars
    whole = part.g, part.stored, part.theta
    g, theta = (None if x is None else _flat(units, x) for x in (part.g, part.theta))
    arrays = g, carry[1], carry[0] if config.applies else theta

    def read(start: jax.Array, arrays: Any) -> Any:
        return jax.tree.map(lambda x, y: _typed(_read(units, piece, start, x), y), arrays, whole)

    def moments(start: jax.Array, arrays: Any) -> Any:
        return advance(config, s, *read(start, arrays))

    def results(start: jax.Array, x: Any, new: Any, arrays: Any) -> Any:
        _, stored, theta = read(start, arrays)
        place = key + _place(leaf, part, units, piece[0], start)
        return jax.tree.map(_bits, finish(config, s, noise, place, x, new, stored, theta))

    x, new = _kept(moments)(start, arrays)
    after = _kept(results)(start, x, new, arrays)
    return jax.tree.map(functools.partial(_written, units, start), carry, after)


def _place(leaf: tuple[int, ...], part: Part, units: _Units, rows: int, start: jax.Array) -> Any:
    """The place of each unit in the leaf, minus what `finish` adds for the rows of a piece."""
    size = np.uint32(units.size)
    begin = start.astype(jnp.uint32) * size
    if part.starts is None:
        return begin
    at: list[Any] = []
    rest = begin + size * jax.lax.broadcasted_iota(jnp.uint32, (rows, 1), 0)
    for length in reversed(part.g.shape):
        at.append(rest % np.uint32(length))
        rest = rest // np.uint32(length)
    return begin + origin(leaf, part.starts) + shift(leaf, part.g.shape, at[::-1])


# An array has one row per unit; otherwise XLA recomputes what a block shares for each element. If
# the last unit is not full, only scales have such rows. 16-bit floats are carried as their bits
# where XLA would widen a whole array to write a piece of it; this takes one more array.
_WIDENS = jax.__version_info__ < (0, 12)


def _flat(units: _Units, x: jax.Array) -> jax.Array:
    if x.size != units.number * units.size + units.left:
        return x.reshape(-1, units.scales)
    return x.ravel() if units.left else x.reshape(units.number, units.size)


def _bits(x: jax.Array) -> jax.Array:
    as_bits = _WIDENS and is_16bit(x.dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if as_bits else x


def _typed(x: jax.Array, like: jax.Array) -> jax.Array:
    return x if x.dtype == like.dtype else jax.lax.bitcast_convert_type(x, like.dtype)


def _read(units: _Units, piece: tuple[int, int], start: jax.Array, x: jax.Array) -> jax.Array:
    """The rows of a piece."""
    if x.ndim > 1:
        return jax.lax.dynamic_slice(x, (start, 0), (piece[0], x.shape[1]))
    return jax.lax.dynamic_slice(x, (start * units.size,), (math.prod(piece),)).reshape(piece)


def _written(units: _Units, start: jax.Array, x: jax.Array, piece: jax.Array) -> jax.Array:
    """x with the rows of a piece overwritten."""
    if x.ndim > 1:
        return jax.lax.dynamic_update_slice(x, piece, (start, 0))
    return jax.lax.dynamic_update_slice(x, piece.ravel(), (start * units.size,))


# ---- 16-bit moments: one result after the other ----


def in_turn(
    sign: Callable[[jax.Array], jax.Array],
    config: LeafConfig,
    leaf: tuple[int, ...],
    part: Part,
) -> tuple[jax.Array, LeafState]:
    """`update_leaf` to a parameter. `sign` picks the part of a result that the next call awaits."""
    del leaf
    (s, noise, key), g, stored, theta, _ = part
    inputs, given = jax.tree.flatten((g, stored, theta))
    after = jax.tree.structure((g, stored))

    def step(key: Any, *inputs: Any) -> list[jax.Array]:
        new = update_leaf(config, s, noise, key, *jax.tree.unflatten(given, inputs))
        return jax.tree.leaves(new)

    needs = [needed[1:] for needed in _needs(step, key, *inputs)]
    results: list[Any] = [None] * len(needs)
    for n in _order(needs):
        # An operand of a call, needed or not, cannot be overwritten before the call.
        known = [x if needed else g for x, needed in zip(inputs, needs[n], strict=True)]
        results[n] = _kept(lambda *operands, n=n: step(*operands)[n])(key, *known)
        key = key + _zero(sign(results[n]))
    return jax.tree.unflatten(after, results)


def _needs(f: Callable[..., list[jax.Array]], *operands: Any) -> list[list[bool]]:
    """For each result of f, which operands it depends on."""
    jaxpr, needs = jax.make_jaxpr(f)(*operands).jaxpr, []
    for result in jaxpr.outvars:
        live: set[Any] = {result}
        for equation in reversed(jaxpr.eqns):
            if live.intersection(equation.outvars):
                live.update(x for x in equation.invars if isinstance(x, Var))
        needs.append([x in live for x in jaxpr.invars])
    return needs


def _order(needs: list[list[bool]]) -> list[int]:
    """An order of the results in which, if possible, none overwrites what a later one needs.

    The first result, the parameter, overwrites the last input. Any other result overwrites the
    input with its own number.
    """
    order, left = [], list(range(len(needs)))
    while left:
        free = [n for n in left if not any(needs[k][n or -1] for k in left if k != n)]
        order.append((free or left)[0])
        left.remove(order[-1])
    return order


def _first(x: jax.Array) -> jax.Array:
    """One element, for a leaf on one device."""
    return jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())


def _all(x: jax.Array) -> jax.Array:
    """All elements, so that each device uses its own and sends nothing."""
    return x


def _zero(x: jax.Array) -> jax.Array:
    """0, which XLA cannot know before it has x."""
    number = jax.lax.bitcast_convert_type(x, np.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jnp.minimum(number.astype(jnp.int32) & 1, 0).astype(jnp.uint32)
