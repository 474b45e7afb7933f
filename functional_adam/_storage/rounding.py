"""Rounding to fewer bits, right on average, and how parameters of 16 bits take their steps."""

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
    if not further_bits:
        # A weight with a code may leave the range, as to nearest; not by a carry alone.
        rounded = jnp.minimum(rounded, np.float32(info.max))
    return jnp.where(is_finite(x), with_sign(rounded, x), x)


# ---- Parameters of 16 bits ----


class Rounding(NamedTuple):
    """How a parameter of 16 bits takes its step; parameters of other dtypes are not rounded."""

    name: str
    to_dtype: Callable[[jax.Array, np.dtype[Any], RandomBits], jax.Array]
    rounds_update: bool = True  # chosen with the update, and not when it is applied
    is_random: bool = True  # needs the bits of a step
    residual: Residual | None = None  # of the kind that is kept beside the parameter
    further_bits: int | None = None  # of a weight that is itself rounded, on average

    @property
    def has_residual(self) -> bool:
        """Whether anything is kept beside each number of a parameter."""
        return self.residual is not None


def _nearest(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    del random
    return x.astype(dtype)


def _on_average(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    return stochastic(x, dtype, random.theta)


def _up_from_half_way(x: jax.Array, dtype: np.dtype[Any], random: RandomBits) -> jax.Array:
    """To nearest; from half-way upwards, as there 128 codes would be missing and an int8 has 127.

    Clipped to these, a weight that rises by less than a code a step would stand still there.
    """
    del random
    size = jnp.minimum(power(x), np.float32(2.0**127))  # -inf + inf were NaN
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
    """From theta to x: the float32 update that lands on the grid, and the code of what is missing.

    u = goal - theta in float32 is exact unless one of them is thousands of times the other;
    there theta + u, which is what applying it comes to, is still the number the code refers to.
    """
    x = undifferentiable(x)
    if rounding.further_bits:  # first to what theta and a code can stand for, then to theta
        x = _to_grid(x, theta.dtype, rounding.further_bits, random.code)
    wide = theta.astype(jnp.float32)
    goal = rounding.to_dtype(x, theta.dtype, random).astype(jnp.float32)
    # What stays as it is adds -0, which keeps infinities and the sign of a zero.
    u = jnp.where(goal == wide, -0.0, goal - wide)
    if rounding.residual is None:
        return u, None
    landed = (wide + u).astype(theta.dtype)
    return u, rounding.residual.code(x, landed, random)


def added(theta: jax.Array, u: jax.Array) -> jax.Array:
    """theta + u in the wider of both dtypes, rounded once to that of theta."""
    wide = arithmetic_dtype(theta.dtype, u.dtype)
    return (theta.astype(wide) + u.astype(wide)).astype(theta.dtype)


def as_weak_as(theta: jax.Array, total: jax.Array) -> jax.Array:
    """`total`, of the weak type of theta."""
    # Only `full_like` hands a weak type on, and only with a scalar: hence one call an element.
    return jnp.vectorize(jax.lax.full_like)(theta, total) if theta.weak_type else total
