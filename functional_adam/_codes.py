"""The 8-bit code of both moments: blocks, the root's logarithm, the ratio to the root.

A second moment v is one byte, the place of w = sqrt(v) on a piecewise linear logarithm below a
power of two for each block of some 128 elements. A first moment m is one byte too and needs no
scale: it is kept as r = m / w with w as decoded, which is Adam's own direction and therefore
bounded. As the two cannot come apart, no update can explode. `docs/memory.md` derives and measures.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._rounding import bits_of, fraction, from_bits

# ---- Blocks ----

_LANES = 16


def blocks(shape: tuple[int, ...], block_size: int) -> tuple[int, ...]:
    """The shape of a leaf's scales: its leading axes, then the number of blocks in the rest.

    Blocks lie along the last axis. Where that is short, as in a 3 x 3 kernel or a single column,
    it is merged with those before it, until there are at least 32 elements or a block's worth.
    """
    enough, lead, width = min(block_size, 32), len(shape), 1
    while lead and (width < enough or lead == len(shape)):
        lead -= 1
        width *= shape[lead]
    return (*shape[:lead], math.ceil(width / block_size))


def block_length(width: int, count: int) -> int:
    """The length of `count` equal blocks of `width` elements, a multiple of 16."""
    return math.ceil(width / max(count, 1) / _LANES) * _LANES


def split(x: jax.Array, scales: tuple[int, ...]) -> jax.Array:
    """x as (*scales, length): equal blocks, the last one filled up with zeros.

    How long the blocks are follows from their number, so that a state says all about itself.
    """
    lead, count = scales[:-1], scales[-1]
    width = math.prod(x.shape[len(lead) :])
    length = block_length(width, count)
    x = x.reshape(*lead, width)
    if count * length > width:
        x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, count * length - width)])
    return x.reshape(*scales, length)


def join(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The leaf that `split` made x of."""
    lead = x.ndim - 2
    width = math.prod(shape[lead:])
    return x.reshape(*shape[:lead], x.shape[-2] * x.shape[-1])[..., :width].reshape(shape)


# ---- Scales ----

# A scale is the biased exponent e of the largest v of its block, 0 for a block of zeros; the
# largest code means the end of that octave. (That headroom matters: were the largest code the
# largest v, stochastic rounding could not lift it.)
_LARGEST_SCALE = 253  # one octave below float32's end
_RISE = 4


def scale(v: jax.Array, old: jax.Array) -> jax.Array:
    """The scales of the blocks (..., length) of v, given those of the step before.

    A block follows its largest v, but rises at most 4 octaves beyond its old scale, or beyond what
    is usual in it: of the largest of its four quarters, the smallest. A spike or two must not push
    the others below the smallest code, where they would be clamped up and stand still for thousands
    of steps. The spike's own code saturates instead.
    """
    exponent = jnp.where(v < jnp.inf, bits_of(v), 0)  # neither infinities nor NaN
    # Over 16 lanes first: a maximum of vectors, where one along a block would be of numbers.
    lanes = exponent.reshape(*v.shape[:-1], v.shape[-1] // _LANES, _LANES)
    lanes = jnp.max(lanes, axis=-2, initial=0) >> 23
    quarters = jnp.max(lanes.reshape(*old.shape, 4, _LANES // 4), axis=-1)
    usual = jnp.min(jnp.where(quarters > 0, quarters, _LARGEST_SCALE), axis=-1)
    bound = jnp.maximum(usual, old.astype(jnp.int32)) + _RISE
    bound = jnp.minimum(bound, _LARGEST_SCALE)
    return jnp.minimum(jnp.max(quarters, axis=-1), bound).astype(jnp.uint8)


# ---- Roots ----

#   code   255 ................. 127 ................. 31 ................. 1          0
#   sqrt v top ... 32 an octave ... top/2**4 ... 16 ... top/2**10 ... 8 ... 2**-13.75   0
#
# What is coded is w = sqrt(v): it is what divides, and reading it needs no root. Within an octave
# codes are equally spaced and all spacings fit into one: rounding that is right on average in the
# bits of w is so in w, and where a scale moves, the codes' values stay in place.
_STEP = 18  # log2 of the smallest distance of codes, in bits of float32
_BENDS = (128 << _STEP, (3 * 128 + 2 * 96) << _STEP)


def root_code(w: jax.Array, scales: jax.Array, random: jax.Array) -> jax.Array:
    """The code of w >= 0 in blocks (..., length): up or down so that the mean is w.

    0 for w = 0 alone; a positive w below the smallest code takes that one, which makes its steps
    smaller; a w above the largest code takes that, and so does NaN.
    """
    depth = _top(scales) - bits_of(w)
    steps = jnp.minimum(depth, (depth + _BENDS[0]) >> 1)
    steps = jnp.minimum(steps, (depth + _BENDS[1]) >> 2)
    steps = (steps + (random >> np.uint32(32 - _STEP)).astype(jnp.int32)) >> _STEP
    code = 255 - jnp.clip(steps, 0, 254)
    return jnp.where(w == 0, 0, code).astype(jnp.uint8)


def root(code: jax.Array, scales: jax.Array) -> jax.Array:
    """The w that a code stands for."""
    steps = (255 - code.astype(jnp.int32)) << _STEP
    depth = jnp.maximum(steps, (steps << 1) - _BENDS[0])
    depth = jnp.maximum(depth, (steps << 2) - _BENDS[1])
    return jnp.where(code == 0, 0, from_bits(_top(scales) - depth))


def _top(scales: jax.Array) -> jax.Array:
    """The bits of the largest code: of sqrt(2**(e + 1 - 127)), or 1.5 for its sqrt(2) = 1.41."""
    return (scales[..., None].astype(jnp.int32) + 128) << 22


# ---- Ratios ----

# |r| as a function of the code's size is the largest of these lines, slope * (size - start) +
# value: 56 codes up to 7/16 for the directions of every day, whose typical size is 0.2, and ever
# fewer for those of a gradient that grows or has just begun. All of it is exact in float32.
_SLOPES = ((1 / 128, 56), (1 / 64, 24), (1 / 16, 32), (1 / 2, 15))
_NAN = -128
_WHOLE = np.float32(1.5 * 2**23)
_WHOLE_BITS = np.int32(0x4B400000)


def _lines() -> tuple[list[tuple[float, int, float]], float]:
    """(slope, start, value) of each line, and where the last one ends."""
    lines, start, value = [], 0, 0.0
    for slope, codes in _SLOPES:
        lines.append((slope, start, value))
        start, value = start + codes, value + slope * codes
    return lines, value


_LINES, LARGEST_RATIO = _lines()


def ratio_code(r: jax.Array, random: jax.Array) -> jax.Array:
    """The code of r: up or down so that the mean is r."""
    size = jnp.abs(r)
    lines = [size * (1 / slope) + (start - value / slope) for slope, start, value in _LINES]
    code = jnp.minimum(functools.reduce(jnp.minimum, lines), 127)
    # `_WHOLE` leaves no bits for what follows the point; of the result's bits, only its last ones
    # are not `_WHOLE`'s. (A conversion would have to check for what cannot be converted.)
    code = bits_of(jnp.copysign(code, r) + (fraction(random) - 0.5) + _WHOLE) - _WHOLE_BITS
    return jnp.where(jnp.isnan(r), _NAN, code).astype(jnp.int8)


def ratio(code: jax.Array) -> jax.Array:
    """The r that a code stands for."""
    signed = code.astype(jnp.float32)
    size = jnp.abs(signed)
    lines = [size * slope + (value - start * slope) for slope, start, value in _LINES]
    r = functools.reduce(jnp.maximum, lines)
    return jnp.where(code == _NAN, jnp.nan, jnp.copysign(r, signed))
