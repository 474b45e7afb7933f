"""The 8-bit code of both moments: blocks, a logarithmic code of sqrt(v), a code of m / sqrt(v).

A second moment v takes one byte: the position of w = sqrt(v) on a piecewise linear logarithm, below
a power of two per block of about 128 elements. A first moment m takes one byte, which codes
r = m / w. This is Adam's own direction and therefore bounded. Decoding multiplies r by the decoded
w, so the two cannot disagree and no update can explode. See `docs/memory.md`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._storage.floats import INFINITE, bits_of, from_bits, is_nan, with_sign
from functional_adam._storage.reductions import GROUP_BITS, PLAIN, Reductions

# ---- Blocks ----

_LANES = 16


def blocks(shape: tuple[int, ...], block_size: int) -> tuple[int, ...]:
    """The shape of a leaf's scales: its leading axes, then the number of blocks in the rest.

    Blocks divide the last axis. If that is short, as in a 3 x 3 kernel or a single column, it is
    first merged with the axes before it until it has at least 32 elements or those of a block.
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

    A single block has no axis of its own: (*leading axes, length).

    The length of a block follows from the number of blocks, so a state describes itself fully.
    """
    lead, count = scales[:-1], scales[-1]
    width = math.prod(x.shape[len(lead) :])
    length = block_length(width, count)
    x = x.reshape(*lead, width)
    if count * length > width:
        x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, count * length - width)])
    return x if count == 1 else x.reshape(*scales, length)


def join(x: jax.Array, scales: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The leaf from which `split` made x."""
    lead = len(scales) - 1
    width, filled = math.prod(shape[lead:]), scales[-1] * x.shape[-1]
    if scales[-1] != 1:
        x = x.reshape(*shape[:lead], filled)
    return (x if filled == width else x[..., :width]).reshape(shape)


# ---- Scales and units ----

# Besides its codes a block stores two biased exponents in one uint16. The lower byte is the scale
# of its roots, the exponent of the largest v. The upper byte is the unit of its ratios. 0 means all
# zeros. A unit is the power of two above the largest |r|. That is usually about 0.5, but 6 in the
# first steps of a run and close to 0 where gradients have died away.
#
# The largest code stands for the end of the scale's octave. (The headroom matters: if the largest
# code stood for the largest v, stochastic rounding could not raise it.)
_LARGEST_SCALE = 253  # one octave below the largest float32
_RISE = 4  # octaves of v by which a spike may raise its block's scale
_MIDDLE = 12  # octaves of v below the scale where codes lie 1/16 octave of sqrt(v) apart
_COARSE = 20  # octaves of v below the scale where they begin to lie 1/8 apart
_FEW = 16  # fewer groups do not show what is usual


def packed(scales: jax.Array, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Both exponents of each block in the form that a state stores."""
    return (scales | (units << 8)).astype(jnp.uint16).reshape(shape)


def unpacked(both: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(scales, units) of each block, shaped for blocks (..., length) from `split`."""
    both = both.astype(jnp.int32)
    both = both if both.shape[-1] == 1 else both[..., None]
    return both & 255, both >> 8


def scale(
    v: jax.Array, old: jax.Array, *, lasting: bool = False, reduce: Reductions = PLAIN
) -> jax.Array:
    """The scales of the blocks (..., length) of v, given the scales of the previous step.

    A scale follows the largest v of its block, but not a spike. Following a spike would push its
    neighbors below the smallest code: they would be clamped up and not move for thousands of steps.
    The code of the spike saturates instead. The number of the block's 32 groups that rose by more
    than 4 octaves identifies a spike:

    - Up to three: spikes. The scale rises by 4 octaves.
    - Up to eight: spikes, or a column of every fourth or eighth element. The scale rises by 12,
      which the neighbors survive and which soon reaches a column.
    - More, as in any block without history: the old scale says nothing about the new one. The scale
      rises to 12 octaves above the fourth largest group.

    Any 13 elements of 128 lie in at least four groups, so no arrangement of columns hides them. In
    a block with fewer than 16 nonzero groups, the scale rises to 20 octaves above the second
    largest as soon as an eighth of the groups rose, and by 4 beyond that. With `lasting`, v comes
    from a long run in another format and holds no new spike: the scale then rises to 20 octaves
    above the fourth largest.
    """
    groups = _exponents(reduce, bits_of(v))
    alive = reduce.number(groups > 0)
    few = alive < _FEW
    largest, second, _, fourth = _ranked(reduce, groups, 4)
    usual = jnp.where(few, jnp.where(second > 0, second, largest), fourth)
    room = _COARSE if lasting else jnp.where(few, _COARSE, _MIDDLE)
    rose = reduce.number(groups > old + _RISE)
    bound = old + jnp.where(few | (rose * 8 < alive), _RISE, _MIDDLE)
    is_new = jnp.where(few, rose * 8, rose * 4 - 1) >= alive
    bound = jnp.where(is_new, jnp.maximum(bound, usual + room), bound)
    return jnp.minimum(largest, jnp.minimum(bound, _LARGEST_SCALE))


def unit(m: jax.Array, v: jax.Array, scales: jax.Array, reduce: Reductions = PLAIN) -> jax.Array:
    """The units of the blocks (..., length) of m / `divisor(sqrt(v))`: just above the largest.

    The bits of a float are roughly its logarithm. Half the bits of v give those of the root, and
    the bits of m minus these give those of the quotient, up to 1/8 too large or 1/17 too small.
    Hence 1/8 of an octave is added.
    """
    size, square = bits_of(jnp.abs(m)), bits_of(v)
    known = (size > 0) & (size < INFINITE) & (square > 0) & (square < INFINITE)
    root = jnp.maximum((square >> 1) + np.int32(127 << 22), _top(scales) - _DEEPEST)
    ratio = jnp.where(known, size - root + np.int32((127 << 23) + (1 << 20)), 0)
    largest = reduce.largest(_exponents(reduce, ratio))
    return jnp.where(largest > 0, largest + 1, 0) & 255


def _exponents(reduce: Reductions, bits: jax.Array) -> jax.Array:
    """The largest biased exponent of finite numbers in each group of the blocks (..., length)."""
    return reduce.groups(jnp.where((bits > 0) & (bits < INFINITE), bits, 0)) >> 23


def _ranked(reduce: Reductions, exponents: jax.Array, count: int) -> list[jax.Array]:
    """The largest of (..., groups), the second largest, and so on; ties count separately."""
    group = jax.lax.broadcasted_iota(jnp.int32, exponents.shape, exponents.ndim - 1)
    group &= reduce.period - 1  # not %, which a compiler for TPUs does not take
    keys = (exponents << GROUP_BITS) | group
    ranks = [reduce.largest(keys)]
    while len(ranks) < count:
        ranks.append(reduce.largest(jnp.where(keys < ranks[-1], keys, 0)))
    return [rank >> GROUP_BITS for rank in ranks]


# ---- Roots ----

#   code   255 ................. 127 ................. 31 ................. 1          0
#   sqrt v top ... 32 an octave ... top/2**4 ... 16 ... top/2**10 ... 8 ... 2**-13.75   0
#
# The code is that of w = sqrt(v), because w is the divisor and decoding it then needs no root.
# Within an octave codes are equally spaced, and every spacing is a multiple of the smallest.
# Rounding that is right on average in the bits of w is therefore right in w, and codes keep their
# values when a scale moves.
_STEP = 18  # log2 of the smallest distance of codes, in bits of float32
_BENDS = (128 << _STEP, (3 * 128 + 2 * 96) << _STEP)
_DEEPEST = (254 << _STEP + 2) - _BENDS[1]  # of code 1


def root_code(w: jax.Array, scales: jax.Array, random: jax.Array) -> jax.Array:
    """The code of w >= 0 in blocks (..., length), rounded up or down so that the mean is w.

    Only w = 0 gets code 0. A positive w below the smallest code gets that code, which makes its
    steps smaller. A w above the largest code gets the largest, and so does NaN.
    """
    bits = bits_of(jnp.abs(w))  # a NaN may have either sign
    depth = _top(scales) - bits
    steps = jnp.minimum(depth, (depth + _BENDS[0]) >> 1)
    steps = jnp.minimum(steps, (depth + _BENDS[1]) >> 2)
    steps = (steps + (random >> np.uint32(32 - _STEP)).astype(jnp.int32)) >> _STEP
    code = 255 - jnp.clip(steps, 0, 254)
    return jnp.where(bits == 0, 0, code).astype(jnp.uint8)


def root(code: jax.Array, scales: jax.Array) -> jax.Array:
    """The w that a code stands for."""
    steps = (255 - code.astype(jnp.int32)) << _STEP
    depth = jnp.maximum(steps, (steps << 1) - _BENDS[0])
    depth = jnp.maximum(depth, (steps << 2) - _BENDS[1])
    return jnp.where(code == 0, 0, from_bits(_top(scales) - depth))


def divisor(w: jax.Array, scales: jax.Array) -> jax.Array:
    """The divisor of m: w, or the value of the smallest code if w is smaller."""
    return jnp.maximum(w, from_bits(_top(scales) - _DEEPEST))


def _top(scales: jax.Array) -> jax.Array:
    """The bits of the largest code: of sqrt(2**(e + 1 - 127)), with 1.5 in place of sqrt(2)."""
    return (scales + 128) << 22


# ---- Ratios ----

# |r| in its block's unit is the maximum of several lines, slope * (size - start) + value, where
# size is the size of the code: 48 codes up to 3/16, 54 to 39/64, 25 to 1. All is exact in float32.
_SLOPES = ((1 / 256, 48), (1 / 128, 54), (1 / 64, 25))
_CODES = 127
NAN = -128
_POINT = 14  # bits after the point that a float32 has between 2**9 and 2**10
_FIXED = np.float32(1.5 * 2**9)
_FIXED_BITS = np.int32(0x44400000)


def _lines() -> list[tuple[float, int, float]]:
    """(slope, start, value) of each line."""
    lines, start, value = [], 0, 0.0
    for slope, codes in _SLOPES:
        lines.append((slope, start, value))
        start, value = start + codes, value + slope * codes
    return lines


_LINES = _lines()


def ratio_code(
    r: jax.Array, units: jax.Array, bound: jax.Array | float, random: jax.Array
) -> jax.Array:
    """The codes of the blocks (..., length) of r, rounded up or down so that the mean is r.

    No code stands for more than `bound`; a larger r gets the last code within it.
    """
    inverse = _power(254 - units)  # 2**127 for blocks of zeros
    within = jnp.minimum(bound, _power(jnp.maximum(units, 1)))  # or the product would overflow
    last = jnp.minimum(jnp.floor(_position(within * inverse)), _CODES)
    code = jnp.minimum(_position(jnp.abs(r) * inverse), last)
    # Adding `_FIXED` leaves room for `_POINT` bits after the point; only the last bits of the sum
    # differ from those of `_FIXED`. (A conversion would have to check for values that it cannot
    # convert, and XLA's fast math may reorder a sum of more than two terms.)
    fixed = bits_of(with_sign(code, r) + _FIXED) - _FIXED_BITS
    code = (fixed + (random >> np.uint32(32 - _POINT)).astype(jnp.int32)) >> _POINT
    return jnp.where(is_nan(r), NAN, code).astype(jnp.int8)


def _position(size: jax.Array) -> jax.Array:
    """The position of |r|, in its unit, among the codes."""
    lines = [size * (1 / slope) + (start - value / slope) for slope, start, value in _LINES]
    return functools.reduce(jnp.minimum, lines)


def ratio(code: jax.Array, units: jax.Array) -> jax.Array:
    """The values r of codes in blocks (..., length)."""
    signed = code.astype(jnp.float32)
    size = jnp.abs(signed)
    lines = [size * slope + (value - start * slope) for slope, start, value in _LINES]
    r = functools.reduce(jnp.maximum, lines) * _power(units)
    return jnp.where(code == NAN, jnp.nan, with_sign(r, signed))


def _power(exponents: jax.Array) -> jax.Array:
    """2**(exponents - 127), 0 for an exponent of 0."""
    return from_bits(exponents << 23)


def at_end(mu: jax.Array, nu: jax.Array) -> jax.Array:
    """The number of codes of both moments at the end of their range, NaN included.

    These are ratios of `_CODES` and roots of 255. The sum is a float32, as an int32 ends at 2**31.
    """
    ends = jnp.abs(mu.astype(jnp.int32)) >= _CODES, nu == 255
    return sum((jnp.sum(x, dtype=jnp.float32) for x in ends), jnp.float32(0))
