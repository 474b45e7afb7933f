"""Stochastic rounding, and the rounding of 16-bit parameters when they take a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._storage.floats import (
    bits_of,
    from_bits,
    is_finite,
    with_sign,
)
from functional_adam._storage.noise import RandomBits
from functional_adam._storage.residual import (
    COMPENSATED,
    SPLIT,
    Residual,
    nearest_half,
    power,
)
from functional_adam._types import arithmetic_dtype

T = TypeVar("T")


@jax.custom_jvp
def undifferentiable(x: T) -> T:
    """x; a derivative through it raises instead of silently being 0."""
    return x


@undifferentiable.defjvp
def _undifferentiable_jvp(  # registered, never called by name
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    del primals, tangents
    raise TypeError(
        'Cannot differentiate through moments="int8", moments="bfloat16" or a rounding other than '
        '"nearest": the state is rounded between steps, and rounding has no derivative. '
        'Use moments="full" and rounding="nearest" for that, or jax.lax.stop_gradient on the '
        "gradients."
    )


# ---- 16-bit floats ----


def stochastic(x: jax.Array, dtype: np.dtype[Any], random: jax.Array) -> jax.Array:
    """x in `dtype`, rounded up or down so that the mean is x; numbers of `dtype` stay the same.

        float32     s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
        bfloat16    s eeeeeeee mmmmmmm                   drops 16 bits, float16 13
        random                        rrrrrrrrrrrrrrrr   added to them; the carry rounds up

    Finite numbers stay finite. Infinities and NaN pass through.
    """
    return _to_grid(x, dtype, 0, random).astype(dtype)


def _to_grid(x: jax.Array, dtype: np.dtype[Any], further_bits: int, random: jax.Array) -> jax.Array:
    """`stochastic`, to the numbers that `dtype` would have with `further_bits` more bits."""
    info = jnp.finfo(dtype)
    dropped, least = 23 - info.nmant - further_bits, np.float32(info.tiny)
    size = jnp.abs(x)
    # Subnormals of float16 have the spacing of its smallest normals. Adding that number to x gives
    # x the same spacing.
    lift = jnp.where(size < least, least if dtype == jnp.float16 else 0, np.float32(0))
    carried = bits_of(size + lift) + (random >> np.uint32(32 - dropped)).astype(jnp.int32)
    rounded = from_bits(carried & np.int32(-(2**dropped))) - lift
    if not further_bits:
        # A weight with a code may overflow as in rounding to nearest, but not by a carry alone.
        rounded = jnp.minimum(rounded, np.float32(info.max))
    return jnp.where(is_finite(x), with_sign(rounded, x), x)


# ---- 16-bit parameters ----


class Rounding(NamedTuple):
    """How a 16-bit parameter is rounded when it takes a step; wider ones are not rounded."""

    name: str
    to_dtype: Callable[[jax.Array, np.dtype[Any], RandomBits], jax.Array]
    rounds_update: bool = True  # whether the update already lands on the parameter's grid
    is_random: bool = True  # whether it needs the random bits of a step
    residual: Residual | None = None  # the kind of residual that the state stores
    further_bits: int | None = None  # bits that a code adds to the weight, which is rounded too

    @property
    def has_residual(self) -> bool:
        """Whether the state stores a residual for each element of a parameter."""
        return self.residual is not None


def _nearest(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    del random
    return x.astype(dtype)


def _on_average(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    return stochastic(x, dtype, random.theta)


def _up_from_half_way(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    """Round to nearest, ties up: at a tie 128 codes are missing, but an int8 holds only 127.

    Clipped to 127, a weight that rises by less than a code per step would stop there.
    """
    del random
    size = jnp.minimum(power(x), np.float32(2.0**127))  # -inf + inf would be NaN
    return (x + size * np.float32(2.0 ** -(jnp.finfo(dtype).nmant + 12))).astype(dtype)


def _half(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    del random
    return nearest_half(x, dtype)


ROUNDINGS = {
    rounding.name: rounding
    for rounding in (
        Rounding("nearest", _nearest, rounds_update=False, is_random=False),
        Rounding("stochastic", _on_average),
        Rounding("compensated", _up_from_half_way, residual=COMPENSATED, further_bits=8),
        Rounding("split", _half, residual=SPLIT, is_random=False),
    )
}


def round_update(
    rounding: Rounding, x: jax.Array, theta: jax.Array, random: RandomBits
) -> tuple[jax.Array, jax.Array | None]:
    """The float32 update from theta to a number of its dtype near x, and the code of the error.

    u = goal - theta is exact in float32 unless one of them is thousands of times the other. Even
    then, theta + u rounds to the number that the code refers to.
    """
    x = undifferentiable(x)
    if rounding.further_bits:  # first to what parameter and code can represent together
        x = _to_grid(x, theta.dtype, rounding.further_bits, random.code)
    wide = theta.astype(jnp.float32)
    goal = rounding.to_dtype(x, theta.dtype, random).astype(jnp.float32)
    # An unchanged parameter adds -0, which keeps infinities and the sign of a zero.
    u = jnp.where(goal == wide, -0.0, goal - wide)
    if rounding.residual is None:
        return u, None
    landed = (wide + u).astype(theta.dtype)
    return u, rounding.residual.code(x, landed, random)


def added(theta: jax.Array, u: jax.Array) -> jax.Array:
    """theta + u, computed in the wider of the two dtypes and rounded once to that of theta."""
    wide = arithmetic_dtype(theta.dtype, u.dtype)
    return (theta.astype(wide) + u.astype(wide)).astype(theta.dtype)


def as_weak_as(theta: jax.Array, total: jax.Array) -> jax.Array:
    """`total` with the weak type of theta."""
    # Only `full_like` passes a weak type on, and only with a scalar: hence one call per element.
    return jnp.vectorize(jax.lax.full_like)(theta, total) if theta.weak_type else total
