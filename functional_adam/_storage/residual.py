"""Residuals of 16-bit parameters: parameter and residual together are the master weight.

A residual is an array of integers with the parameter's shape. Its dtype shows its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._storage.floats import INFINITE, bits_of, from_bits, is_finite
from functional_adam._storage.noise import RandomBits, fraction


class Residual(NamedTuple):
    """A kind of residual."""

    dtype: np.dtype[Any]
    code: Callable[[jax.Array, jax.Array, RandomBits], jax.Array]  # of (weight, parameter, bits)
    weight: Callable[[jax.Array, jax.Array], jax.Array]  # of (parameter, code)


@jax.jit
def master(theta: jax.Array, code: jax.Array | None) -> jax.Array:
    """The float32 weight of a 16-bit parameter and its code."""
    if code is None:
        return theta.astype(jnp.float32)
    return BY_DTYPE[code.dtype].weight(theta, code)


# ---- Compensated: 8 bits ----


def _compensated_code(x: jax.Array, theta: jax.Array, random: RandomBits) -> jax.Array:
    """(x - theta) in 1/256ths of a unit of theta."""
    missing = (x - theta.astype(jnp.float32)) / unit(theta, 8)
    # A whole number, except below a power of two, where the unit of theta is twice that of x. The
    # bits differ from those that round the weight.
    code = jnp.clip(jnp.floor(missing + fraction(random.theta)), -128, 127)
    return jnp.where(is_finite(missing), code, 0).astype(jnp.int8)


def _compensated_weight(theta: jax.Array, code: jax.Array) -> jax.Array:
    return theta.astype(jnp.float32) + code.astype(jnp.float32) * unit(theta, 8)


def unit(theta: jax.Array, further_bits: int) -> jax.Array:
    """The distance from theta to its neighbor in its dtype, over 2**further_bits."""
    info, bits = jnp.finfo(theta.dtype), jnp.finfo(theta.dtype).nmant + further_bits
    # Subnormals of float16 are spaced like its smallest normals, and float32 can hold the unit.
    least = max(float(info.tiny), 2.0 ** (bits - 126))
    size = jnp.clip(power(theta.astype(jnp.float32)), np.float32(least), np.float32(2.0**127))
    return size * np.float32(2.0**-bits)


def power(x: jax.Array) -> jax.Array:
    """The power of two at or below |x|; 0 for float32 subnormals, infinity also for NaN."""
    return from_bits(bits_of(x) & INFINITE)


# ---- Split: 16 bits ----

#   float32     s eeeeeeee mmmmmmm mmmmmmmmmmmmmmmm
#   bfloat16    s eeeeeeee mmmmmmm                       the nearest number
#   int16                        - mmmmmmmmmmmmmmmm      what remains, from -2**15 to 2**15 - 1
#
# The sum of both bit patterns, as integers, is that of the weight: a carry out of the mantissa
# gives the next power of two, as it should. A tie goes to the larger of the two numbers. With ties
# to even, 2**16 + 1 weights would share a number, but int16 distinguishes only 2**16.
_SPLIT_FLOAT16 = 15  # float32 has 14 bits more below a power of two of float16


def nearest_half(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """The nearest 16-bit number; ties go away from 0 in bfloat16 and to even in float16."""
    if dtype == jnp.float16:
        return x.astype(dtype)
    upper = (bits_of(x) + np.int32(2**15)) & np.int32(-(2**16))
    return jnp.where(is_finite(x), from_bits(upper), x).astype(dtype)


def _split_code(x: jax.Array, theta: jax.Array, random: RandomBits) -> jax.Array:
    """x minus theta, in lower bits (bfloat16) or in 2**-15 of a unit (float16)."""
    del random
    wide = theta.astype(jnp.float32)
    if theta.dtype == jnp.float16:
        missing = jnp.floor((x - wide) / unit(theta, _SPLIT_FLOAT16) + np.float32(0.5))
        code = jnp.clip(missing, -(2**15), 2**15 - 1)
    else:
        code = jnp.clip(bits_of(x) - bits_of(wide), -(2**15), 2**15 - 1)
        # Bits have no distance across 0. An update cannot come so close to 0 from the other side.
        code = jnp.where((bits_of(x) ^ bits_of(wide)) < 0, 0, code)
    return jnp.where(is_finite(wide), code, 0).astype(jnp.int16)


def _split_weight(theta: jax.Array, code: jax.Array) -> jax.Array:
    wide = theta.astype(jnp.float32)
    if theta.dtype == jnp.float16:
        return wide + code.astype(jnp.float32) * unit(theta, _SPLIT_FLOAT16)
    return from_bits(bits_of(wide) + code.astype(jnp.int32))


COMPENSATED = Residual(np.dtype(np.int8), _compensated_code, _compensated_weight)
SPLIT = Residual(np.dtype(np.int16), _split_code, _split_weight)
BY_DTYPE = {residual.dtype: residual for residual in (COMPENSATED, SPLIT)}
