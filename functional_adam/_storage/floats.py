"""Floats handled by their bits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of a float32, as an int32: for x >= 0 a piecewise linear logarithm."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def from_bits(n: jax.Array) -> jax.Array:
    """The float32 with these bits."""
    return jax.lax.bitcast_convert_type(n, jnp.float32)


# Tested by bits, because XLA's fast math assumes that every number is finite.
INFINITE = np.int32(0x7F800000)  # the bits of NaN are larger


def is_finite(x: jax.Array) -> jax.Array:
    """Whether a float32 is neither infinite nor NaN."""
    return bits_of(jnp.abs(x)) < INFINITE


def is_nan(x: jax.Array) -> jax.Array:
    """Whether a float32 is NaN."""
    return bits_of(jnp.abs(x)) > INFINITE


def with_sign(size: jax.Array, of: jax.Array) -> jax.Array:
    """|size| with the sign of `of`, even if that is 0 or NaN: copysign with integers only."""
    sign = np.int32(-(2**31))
    return from_bits((bits_of(size) & ~sign) | (bits_of(of) & sign))


def is_16bit(dtype: Any) -> bool:
    """Whether `rounding` applies to parameters of this dtype."""
    return dtype in (jnp.bfloat16, jnp.float16)
