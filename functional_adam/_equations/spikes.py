"""What tells a spike: the norm of all gradients, and how far a number is above those before it.

A history is an array of numbers, the newest last; the first of them are 0 until there are as many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from functional_adam._equations.numerics import abs_squared
from functional_adam._types import arithmetic_dtype, real_dtype

T = TypeVar("T")


def either(condition: jax.Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """What one of the two returns; the other is not run. Outside of a trace nothing is compiled."""
    if isinstance(condition, Tracer):
        return jax.lax.cond(condition, yes, no)
    return yes() if condition else no()


def euclidean_norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """sqrt(sum |x|**2) over all elements, in float32: right wherever float32 has its value.

    Squares leave float32's range long before the norm does. Where their sum S has, it is made again
    of c x, with a power of two for c, and the root divided by c. For up to 2**31 elements:

        S < 2**-60      c = 2**80: |c x| <= 2**50, and c x > 2**-46 for normal numbers
        S overflows     c = 2**-80: |c x| <= 2**48, and the largest of them is above 2**-32
        otherwise       what S lost to underflow is below 2**-95
    """
    if not arrays:
        return jnp.float32(0)
    wide = arithmetic_dtype(*(x.dtype for x in arrays))
    real = real_dtype(wide)

    def squares(c: jax.Array | None = None) -> jax.Array:
        total = jnp.zeros((), real)
        for x in arrays:
            x = x.astype(wide if jnp.iscomplexobj(x) else real)  # noqa: PLW2901
            total += jnp.sum(abs_squared(x if c is None else c * x))
        return total

    def again() -> jax.Array:
        c = jnp.where(total < 2.0**-60, 2.0**80, 2.0**-80).astype(real)
        return jnp.sqrt(squares(c)) / c

    total = squares()
    is_usual = (total >= 2.0**-60) & jnp.isfinite(total)
    return in_float32(either(is_usual, lambda: jnp.sqrt(total), again))


def in_float32(x: jax.Array) -> jax.Array:
    """x in float32; what is finite stays finite."""
    if x.dtype != jnp.float64:
        return x.astype(jnp.float32)
    most = float(np.finfo(np.float32).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), x).astype(jnp.float32)


def is_far_above(
    x: jax.Array, history: jax.Array, count: jax.Array, factor: jax.Array, least: float
) -> jax.Array:
    """x > mean + factor max(sd, least max|h|), of the last `count` numbers h of a history.

    In units of max|h|, in which no square leaves the range of float32; the mean first and then the
    squares around it, since mean(h**2) - mean(h)**2 cancels. Numbers that are all 0 have no unit:
    nothing is far above them.
    """
    known = jnp.arange(history.size) >= history.size - count
    largest = jnp.max(jnp.abs(history), where=known, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    h = history / unit
    n = jnp.maximum(jnp.minimum(count, history.size), 2).astype(jnp.float32)
    mean = jnp.sum(h, where=known) / n
    sd = jnp.sqrt(jnp.sum(jnp.square(h - mean), where=known) / (n - 1))
    return (largest > 0) & (x / unit > mean + factor * jnp.maximum(sd, least))


def with_newest(history: jax.Array, x: jax.Array) -> jax.Array:
    """The history after x: its oldest number makes room."""
    return jnp.concatenate([history[1:], x[None]])
