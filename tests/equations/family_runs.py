"""Gradients, parameters, and a run of the tests of the family's numbers."""

import functools

import jax
import numpy as np

STEPS, SIZE = 3000, 1024


@functools.cache
def gradients(steps=STEPS, size=SIZE):
    return np.random.default_rng(0).standard_normal((steps, size)).astype(np.float32)


@functools.cache
def parameters(size=SIZE):
    return (0.7 * np.random.default_rng(1).standard_normal(size)).astype(np.float32)


def run(tx, grads, params):
    """(updates of every step, last state); the parameters stay where they are."""

    def body(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    state, updates = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(tx.init(params), grads)
    return np.asarray(updates), state
