"""What is kept beside a parameter of 16 bits: both together are the weight.

A residual is an array of integers with the parameter's shape. Its dtype says of which kind it is.
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
    code: Callable[[jax.Array, jax.Array, RandomBits], jax.Array]  # of a weight, beside a parameter
    weight: Callable[[jax.Array, jax.Array], jax.Array]  # of a parameter and its code


@jax.jit
def master(theta: jax.Array, code: jax.Array | None) -> jax.Array:
    """The float32 weight that a parameter of 16 bits stands for, with what is kept beside it."""
    if code is None:
        return theta.astype(jnp.float32)
    return BY_DTYPE[code.dtype].weight(theta, code)


# ---- Compensated: 8 bits ----


def _compensated_code(x: jax.Array, theta: jax.Array, random: RandomBits) -> jax.Array:
    """(x - theta) in 1/256ths of a unit of theta."""
    missing = (x - theta.astype(jnp.float32)) / unit(theta, 8)
    # Whole, but below a power of two, whose own unit is twice that of x. By other bits than those
    # that round the weight.
    code = jnp.clip(jnp.floor(missing + fraction(random.theta)), -128, 127)
    return jnp.where(is_finite(missing), code, 0).astype(jnp.int8)


def _compensated_weight(theta: jax.Array, code: jax.Array) -> jax.Array:
    return theta.astype(jnp.float32) + code.astype(jnp.float32) * unit(theta, 8)


def unit(theta: jax.Array, further_bits: int) -> jax.Array:
    """The distance from theta to its neighbour in its dtype, over 2**further_bits."""
    info, bits = jnp.finfo(theta.dtype), jnp.finfo(theta.dtype).nmant + further_bits
    # float16's subnormals are spaced like its smallest normals; and float32 holds the unit itself.
    least = max(float(info.tiny), 2.0 ** (bits - 126))
    size = jnp.clip(power(theta.astype(jnp.float32)), np.float32(least), np.float32(2.0**127))
    return size * np.float32(2.0**-bits)


def power(x: jax.Array) -> jax.Array:
    """The power of two at or below |x|, 0 for float32's subnormals; infinite for NaN too."""
    return from_bits(bits_of(x) & INFINITE)


# ---- Split: 16 bits ----

#   float32     s eeeeeeee mmmmmmm mmmmmmmmmmmmmmmm
#   bfloat16    s eeeeeeee mmmmmmm                       the nearest number
#   int16                        - mmmmmmmmmmmmmmmm      what remains, from -2**15 to 2**15 - 1
#
# The sum of both bit patterns, as integers, is that of the weight: a carry out of the mantissa is
# the next power of two, as it should be. Half-way the larger of two numbers is taken: with the even
# one 2**16 + 1 weights would share it, and int16 tells 2**16.
_SPLIT_FLOAT16 = 15  # float32 has 14 bits more below a power of two of float16


def nearest_half(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """The nearest number of 16 bits: in bfloat16 from half-way away from 0, in float16 the even."""
    if dtype == jnp.float16:
        return x.astype(dtype)
    upper = (bits_of(x) + np.int32(2**15)) & np.int32(-(2**16))
    return jnp.where(is_finite(x), from_bits(upper), x).astype(dtype)


def _split_code(x: jax.Array, theta: jax.Array, random: RandomBits) -> jax.Array:
    """What theta lacks of x: bits of bfloat16, 2**-15 of a unit of float16."""
    del random
    wide = theta.astype(jnp.float32)
    if theta.dtype == jnp.float16:
        missing = jnp.floor((x - wide) / unit(theta, _SPLIT_FLOAT16) + np.float32(0.5))
        code = jnp.clip(missing, -(2**15), 2**15 - 1)
    else:
        code = jnp.clip(bits_of(x) - bits_of(wide), -(2**15), 2**15 - 1)
        # Of two signs, where an update cannot reach so near to 0, bits have no distance.
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
