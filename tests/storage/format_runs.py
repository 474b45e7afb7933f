"""Runs in the small formats of moments, and how two of them are compared."""

import jax
import numpy as np
import pytest

SMALL = ["int8", "bfloat16"]
slow = pytest.mark.slow


def scanned(tx, grads, params=None, see=lambda state: None):
    """(updates, what `see` sees of the state) of every step, and the last state, as one scan."""
    first = jax.tree.map(lambda g: g[0], grads)
    state = tx.init(first if params is None else params)

    def body(state, g):
        u, state = tx.update(g, state, params)
        return state, (u, see(state))

    last, (updates, seen) = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(state, grads)
    return jax.tree.map(np.asarray, (updates, seen)), last


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(x, **axes):
    return np.sqrt(np.mean(np.square(np.float64(x)), **axes))


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
