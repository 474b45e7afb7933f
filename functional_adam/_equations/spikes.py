"""What tells a spike: the norm of all gradients, and how far a number is above those before it.

A history is an array of numbers, the newest last; the first of them are 0 until there are as many.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._branch import either
from functional_adam._types import arithmetic_dtype, real_dtype


def euclidean_norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """sqrt(sum |x|**2) over all elements, in float32: right wherever float32 has its value.

    Squares leave the range of their dtype long before the norm does. Where their sum overflows, or
    is below 2**-60 (of up to 2**31 elements underflow takes at most 2**-95), it is made again in
    units of the largest element. One pass over the arrays is usual, then.
    """
    if not arrays:
        return jnp.float32(0)
    real = real_dtype(arithmetic_dtype(*(x.dtype for x in arrays)))
    parts = [y.astype(real) for x in arrays for y in _parts(x)]

    def again() -> jax.Array:
        unit = _unit(functools.reduce(jnp.maximum, (_largest(x) for x in parts)))
        return unit * jnp.sqrt(_total([jnp.sum(jnp.square(x / unit)) for x in parts]))

    total = _total([jnp.sum(jnp.square(x)) for x in parts])
    is_usual = (total >= 2.0**-60) & jnp.isfinite(total)
    return in_float32(either(is_usual, lambda: jnp.sqrt(total), again))


def _parts(x: jax.Array) -> list[jax.Array]:
    return [x.real, x.imag] if jnp.iscomplexobj(x) else [x]


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0)


def _unit(largest: jax.Array) -> jax.Array:
    """A unit for numbers of which this is the largest: at most 2**28 of them, and 2**-26 at least.

    XLA may multiply by its reciprocal, which for the largest floats is subnormal, on CPUs 0.
    """
    most = 2.0 ** (jnp.finfo(largest.dtype).maxexp - 28)
    return jnp.clip(largest, 1 / most, most)


def _total(numbers: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, numbers)


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

    In a unit in which no square leaves the range of float32; the mean first and then the squares
    around it, since mean(h**2) - mean(h)**2 cancels. Nothing is far above numbers that are all 0,
    which say nothing of what is usual.
    """
    known = jnp.arange(history.size) >= history.size - count
    largest = _largest(history)
    unit = _unit(largest)
    h = history / unit
    n = jnp.maximum(jnp.minimum(count, history.size), 2).astype(jnp.float32)
    mean = jnp.sum(h, where=known) / n
    sd = jnp.sqrt(jnp.sum(jnp.square(h - mean), where=known) / (n - 1))
    spread = jnp.maximum(sd, least * (largest / unit))
    return (largest > 0) & (x / unit > mean + factor * spread)


def with_newest(history: jax.Array, x: jax.Array) -> jax.Array:
    """The history after x: its oldest number makes room."""
    return jnp.concatenate([history[1:], x[None]])
