"""Rounding to fewer bits that is right on average: where the random bits come from, and parameters.

The bits of an element are a pure function of the step's count, of its leaf's path and of its place
in the leaf: no key is kept, and the same step rounds alike on any mesh and after any resume.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

# ---- Random bits ----


class StepNoise(NamedTuple):
    """What one step brings to the bits of every element, for each thing that it may round."""

    nu: jax.Array
    mu: jax.Array
    code: jax.Array  # of what a compensated weight lacks
    theta: jax.Array
    extra: dict[str, jax.Array]  # by the names of the trees in `AdamState.extra`


class RandomBits(NamedTuple):
    """32 random bits for each element of a leaf, a stream of its own for each thing rounded."""

    nu: jax.Array
    mu: jax.Array
    code: jax.Array
    theta: jax.Array
    extra: dict[str, jax.Array]


def step_noise(count: jax.Array, extra: tuple[str, ...] = ()) -> StepNoise:
    """The noise of the step that `count`, counted from 1, numbers; `extra` names further averages.

    A moment moves by a small part of its code's step each time, so that rounding up happens at one
    time in many, and it matters that these times come evenly: independent bits would give a random
    walk. Every window of 2**k steps therefore takes each of the 2**k equal parts of the unit
    interval once, in an order shuffled anew for each window. (An order that does not change, such
    as multiples of the golden ratio, resonates with gradients that come in a period.) The window
    fits what is rounded: `mu` forgets within some ten steps, the others within many more.

    `theta` alone is independent from step to step. Bits of a window know of each other: what the
    first have done to a weight tells what the next will be. As the grid is twice as fine below a
    power of two, weights that cross it to and fro would drift towards 0, by 1.6 % in 10,000 steps
    of a quarter of a unit. (Codes are 256 times as fine: they drift by less than 1e-5.)
    """
    t = count.astype(jnp.uint32)
    return StepNoise(
        nu=_shuffled(t, 6, 1),
        mu=_shuffled(t, 3, 2),
        code=_shuffled(t, 6, 3),
        theta=mixed(t * np.uint32(8) + np.uint32(4)),
        extra={name: _shuffled(t, 6, int(leaf_key(name))) for name in extra},
    )


def _shuffled(t: jax.Array, bits: int, salt: int) -> jax.Array:
    """Window t >> bits, slot t mod 2**bits: a permuted slot, and an offset of the window."""
    u32 = np.uint32
    window = (t >> u32(bits)) * u32(8) + u32(salt)
    key, offset = mixed(window), mixed(window + u32(4))
    low = u32(2**bits - 1)
    slot = t & low
    for shift in (0, 8, 16):  # each line is one-to-one on `bits` bits
        slot = (slot * ((key >> u32(shift)) | u32(1)) + (key >> u32(shift + 4))) & low
        slot = slot ^ (slot >> u32((bits + 1) // 2))
    return (slot << u32(32 - bits)) + (offset >> u32(bits))


def mixed(x: jax.Array) -> jax.Array:
    """A one-to-one scrambling of uint32 in which every input bit moves every output bit."""
    x = _mixed_above(x)
    return x ^ (x >> np.uint32(15))


def _mixed_above(x: jax.Array) -> jax.Array:
    """`mixed`, but for the last few bits."""
    u32 = np.uint32
    x = (x ^ (x >> u32(16))) * u32(0x21F0AAAD)
    return (x ^ (x >> u32(15))) * u32(0x735A2D97)


def leaf_key(path: str) -> np.uint32:
    """What tells a leaf's bits from those of the others, and a further tree's stream."""
    return np.uint32(zlib.crc32(path.encode()))


@functools.partial(jax.jit, static_argnums=0)
def opaque_leaf_keys(paths: tuple[str, ...], count: jax.Array) -> tuple[jax.Array, ...]:
    """The keys of these leaves, as numbers that XLA for the CPU does not know when it compiles.

    Those it knows it writes into each leaf's loops, which then differ, and compiles all of them:
    the 148 leaves of GPT-2 took twice as long. `count` is positive, but XLA cannot know that.
    """
    keys = tuple(leaf_key(path) for path in paths)

    def known() -> tuple[jax.Array, ...]:
        return tuple(map(jnp.asarray, keys))

    def unknown() -> tuple[jax.Array, ...]:
        return jax.lax.cond(count > 0, known, lambda: tuple(jnp.zeros_like(k) for k in known()))

    return jax.lax.platform_dependent(cpu=unknown, default=known)


def random_bits(noise: StepNoise, key: jax.Array, shape: tuple[int, ...]) -> RandomBits:
    """The bits of a leaf of that shape; the index of an element is taken modulo 2**32."""
    u32 = np.uint32
    index, stride = jnp.zeros(shape, jnp.uint32) + key, 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + along * u32(stride % 2**32)
        stride *= shape[axis]
    # A scrambling of which the upper bits are wanted, and several of them: what one step rounds up
    # in `nu` it may round down in `mu`.
    index = index * u32(0x9E3779B1)
    index = (index ^ (index >> u32(15))) * u32(0x85EBCA77)
    return RandomBits(
        nu=index + noise.nu,
        mu=(index ^ (index >> u32(15))) * u32(0xC2B2AE3D) + noise.mu,
        code=(index ^ (index >> u32(17))) * u32(0x27D4EB2F) + noise.code,
        # Scrambled with the step's part: a sum would keep the distances of elements as they are.
        theta=_mixed_above(index ^ noise.theta),
        extra={name: _mixed_above(index ^ leaf_key(name)) + x for name, x in noise.extra.items()},
    )


def fraction(random: jax.Array) -> jax.Array:
    """The upper 14 bits as a number strictly inside (0, 1).

    Its distance from 0 and 1, 2**-15, is more than what rounding can do to a number below 256, so
    that floor(k + fraction) is k where k is a whole number but for such an error.
    """
    middle = ((random >> np.uint32(9)) & np.uint32(0x7FFE00)) | np.uint32(0x3F800100)
    return from_bits(middle.astype(jnp.int32)) - 1  # from [1, 2): no conversion


@jax.custom_jvp
def undifferentiable(x: T) -> T:
    """x; a derivative taken through it raises, where it would silently be 0."""
    return x


@undifferentiable.defjvp
def _undifferentiable_jvp(  # registered, never called by name
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    del primals, tangents
    raise TypeError(
        'Cannot differentiate through moments="int8", moments="bfloat16" or a rounding other than '
        '"nearest": what they keep between steps is rounded to codes, which have no derivative. '
        'Use moments="full" and rounding="nearest" for that, or jax.lax.stop_gradient on the '
        "gradients."
    )


# ---- Floats of 16 bits ----


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of a float32, as an int32: for x >= 0 a piecewise linear logarithm."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def from_bits(n: jax.Array) -> jax.Array:
    """The float32 with these bits."""
    return jax.lax.bitcast_convert_type(n, jnp.float32)


# By bits, as XLA's fast mathematics takes for granted that every number is finite.
INFINITE = np.int32(0x7F800000)  # NaN's bits are larger


def is_finite(x: jax.Array) -> jax.Array:
    """Whether a float32 is neither infinite nor NaN."""
    return bits_of(jnp.abs(x)) < INFINITE


def is_nan(x: jax.Array) -> jax.Array:
    """Whether a float32 is NaN."""
    return bits_of(jnp.abs(x)) > INFINITE


def stochastic(x: jax.Array, dtype: np.dtype[Any], random: jax.Array) -> jax.Array:
    """The float32 x in `dtype`, up or down so that the mean is x; what `dtype` has stays itself.

        float32     s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
        bfloat16    s eeeeeeee mmmmmmm                   drops 16 bits, float16 13
        random                        rrrrrrrrrrrrrrrr   added to them; the carry rounds up

    Finite numbers stay finite; infinities and NaN pass.
    """
    return _to_grid(x, dtype, 0, random).astype(dtype)


def _to_grid(x: jax.Array, dtype: np.dtype[Any], further_bits: int, random: jax.Array) -> jax.Array:
    """`stochastic`, to the numbers that `dtype` would have with that many more bits."""
    info = jnp.finfo(dtype)
    dropped, least = 23 - info.nmant - further_bits, np.float32(info.tiny)
    size = jnp.abs(x)
    # float16's subnormals keep the spacing of its smallest normals: lifted by that, so do these.
    lift = jnp.where(size < least, least if dtype == jnp.float16 else 0, np.float32(0))
    carried = bits_of(size + lift) + (random >> np.uint32(32 - dropped)).astype(jnp.int32)
    rounded = from_bits(carried & np.int32(-(2**dropped))) - lift
    if (
        not further_bits
    ):  # a weight with a code may leave the range, as to nearest; not by a carry alone
        rounded = jnp.minimum(rounded, np.float32(info.max))
    return jnp.where(is_finite(x), jnp.copysign(rounded, x), x)


# ---- Parameters of 16 bits ----


def is_16bit(dtype: Any) -> bool:
    """Whether parameters of this dtype are rounded at all."""
    return dtype in (jnp.bfloat16, jnp.float16)


class Rounding(NamedTuple):
    """How a parameter of 16 bits takes its step; parameters of other dtypes are not rounded."""

    name: str
    to_dtype: Callable[[jax.Array, np.dtype[Any], jax.Array], jax.Array]
    rounds_update: bool = True  # chosen with the update, and not when it is applied
    has_residual: bool = False


def _nearest(x: jax.Array, dtype: np.dtype[Any], random: jax.Array) -> jax.Array:
    del random
    return x.astype(dtype)


def _up_from_half_way(x: jax.Array, dtype: np.dtype[Any], random: jax.Array) -> jax.Array:
    """To nearest; from half-way upwards, as there 128 codes would be missing and an int8 has 127.

    Clipped to these, a weight that rises by less than a code a step would stand still there.
    """
    del random
    power = jnp.minimum(_power(x), np.float32(2.0**127))  # -inf + inf were NaN
    return (x + power * np.float32(2.0 ** -(jnp.finfo(dtype).nmant + 12))).astype(dtype)


ROUNDINGS = {
    rounding.name: rounding
    for rounding in (
        Rounding("nearest", _nearest, rounds_update=False),
        Rounding("stochastic", stochastic),
        Rounding("compensated", _up_from_half_way, has_residual=True),
    )
}


def round_update(
    rounding: Rounding, x: jax.Array, theta: jax.Array, random: RandomBits
) -> tuple[jax.Array, jax.Array | None]:
    """From theta to x: the float32 update that lands on the grid, and the code of what is missing.

    u = goal - theta in float32 is exact unless one of them is thousands of times the other;
    there theta + u, which is what applying it comes to, is still the number the code refers to.
    """
    x = undifferentiable(x)
    if rounding.has_residual:  # first to what theta and a code can stand for, then to theta
        x = _to_grid(x, theta.dtype, 8, random.code)
    wide = theta.astype(jnp.float32)
    goal = rounding.to_dtype(x, theta.dtype, random.theta).astype(jnp.float32)
    u = jnp.where(goal == wide, 0, goal - wide)  # 0 for what is infinite and stays so
    if not rounding.has_residual:
        return u, None
    landed = (wide + u).astype(theta.dtype)
    missing = (x - landed.astype(jnp.float32)) / _code_unit(landed)
    # Whole, but below a power of two, whose own unit is twice that of x. By other bits than above.
    code = jnp.clip(jnp.floor(missing + fraction(random.theta)), -128, 127)
    return u, jnp.where(is_finite(missing), code, 0).astype(jnp.int8)


@jax.jit
def master(theta: jax.Array, code: jax.Array | None) -> jax.Array:
    """The float32 weight that theta, of 16 bits, stands for: theta + code ulp(theta) / 256."""
    wide = theta.astype(jnp.float32)
    return wide if code is None else wide + code.astype(jnp.float32) * _code_unit(theta)


def _code_unit(theta: jax.Array) -> jax.Array:
    """1/256 of the distance from theta to its neighbour in its dtype."""
    info = jnp.finfo(theta.dtype)
    power = _power(theta.astype(jnp.float32))
    # float16's subnormals are spaced like its smallest normals; and float32 holds the unit itself.
    least = max(float(info.tiny), 2.0 ** (info.nmant + 8 - 126))
    power = jnp.clip(power, np.float32(least), np.float32(2.0**127))
    return power * np.float32(2.0 ** -(info.nmant + 8))


def _power(x: jax.Array) -> jax.Array:
    """The power of two at or below |x|, 0 for float32's subnormals; infinite for NaN too."""
    return from_bits(bits_of(x) & np.int32(0x7F800000))
