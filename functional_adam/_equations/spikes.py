"""Detects spikes: the global norm of the gradients, and whether a number is far above recent ones.

A history is an array of numbers with the newest last. Zeros fill its front until it is full.
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
    """sqrt(sum |x|**2) over all elements, in float32: correct wherever float32 can hold the norm.

    Squares leave the range of their dtype long before the norm does. If their sum overflows or is
    below 2**-60, it is computed once more in units of the largest element. (Underflow of up to
    2**31 elements loses at most 2**-95.) Otherwise one pass over the arrays is enough.
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
    """A unit in which `largest`, if it is a normal number, lies between 2**-26 and 2**28.

    It is `largest` itself, clipped: XLA may multiply by the reciprocal of the unit, which for the
    largest floats would be subnormal, and thus 0 on CPUs.
    """
    most = 2.0 ** (jnp.finfo(largest.dtype).maxexp - 28)
    return jnp.clip(largest, 1 / most, most)


def _total(numbers: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, numbers)


def in_float32(x: jax.Array) -> jax.Array:
    """x in float32; finite numbers stay finite."""
    if x.dtype != jnp.float64:
        return x.astype(jnp.float32)
    most = float(np.finfo(np.float32).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -most, most), x).astype(jnp.float32)


def is_far_above(
    x: jax.Array, history: jax.Array, count: jax.Array, factor: jax.Array, least: float
) -> jax.Array:
    """x > mean(h) + factor * max(sd(h), least * max|h|), h being the last `count` numbers.

    Numbers are in a unit in which no square leaves the range of float32. The deviation is computed
    from h - mean(h), because mean(h**2) - mean(h)**2 cancels. The result is False if all of h is 0,
    which does not show what is usual.
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
    """The history with x as its newest number and without its oldest."""
    return jnp.concatenate([history[1:], x[None]])
