"""What tests of rounding share: dtypes of 16 bits, all their numbers, and a rounded step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from functional_adam._storage import rounding as R

SHORT = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def pairs(names, first, second):
    """The product of two choices, of which the short suite takes each choice once."""
    quick = set(zip(first, second, strict=True))
    cases = itertools.product(first, second)
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        names, [pytest.param(*case, marks=() if case in quick else slow) for case in cases]
    )


def every(name):
    """All finite numbers of a dtype, in order, without the subnormals that XLA's CPU flushes."""
    infinity = {"bfloat16": 0x7F80, "float16": 0x7C00}[name]
    patterns = np.arange(infinity, dtype=np.uint16)
    x = np.concatenate([patterns[:0:-1] | np.uint16(2**15), patterns]).view(SHORT[name])
    wide = np.abs(x.astype(np.float64))
    return x[(wide >= 2.0**-126) | (wide == 0)]


def unit(theta, name):
    """The distance of numbers at theta: 2**-7 or 2**-10 of its power of two."""
    bits, least = {"bfloat16": (7, -126), "float16": (10, -14)}[name]
    power = np.floor(np.log2(np.maximum(np.abs(np.float64(theta)), 2.0**least)))
    return 2.0 ** (power - bits)


@functools.partial(jax.jit, static_argnums=1)
def stochastic(x, name, random):
    random = jnp.broadcast_to(random, x.shape)
    return R.stochastic(x, np.dtype(SHORT[name]), random)


def enclosing(grid, x):
    """The numbers of an ordered grid at or below and at or above x, or its ends."""
    grid, x = grid.astype(np.float64), np.asarray(x, np.float64)
    above = grid[np.searchsorted(grid, x).clip(0, len(grid) - 1)]
    below = grid[(np.searchsorted(grid, x, side="right") - 1).clip(0)]
    return below, above


def step(tx, grads, theta, state=None):
    theta = jnp.asarray(theta)
    return jax.jit(tx.update)(jnp.asarray(grads), state or tx.init(theta), theta)
