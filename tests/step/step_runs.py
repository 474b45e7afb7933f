"""Runs of an optimizer over normal gradients, and the unit that their errors are measured in."""

import functools

import jax
import numpy as np
import reference

STEPS = 10_000


@functools.cache
def normal_gradients(steps=STEPS, size=1024, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, size)).astype(np.float32)


def run(tx, grads, params=None):
    """(updates of every step, last state) of `tx`; `params` stay as they are."""
    state = tx.init(grads[0] if params is None else params)

    def body(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    state, updates = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(state, grads)
    return np.asarray(updates), state


def assert_within(updates, truth, learning_rate, rms, worst):
    error = reference.units(updates, truth, learning_rate)
    by_step = np.sqrt((error**2).mean(axis=1))
    assert by_step.max() <= rms, f"rms {by_step.max():.2f} u at t = {by_step.argmax() + 1}"
    assert error.max() <= worst, f"max {error.max():.1f} u"


def run_stack(tx, grads):
    body = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
    return jax.lax.scan(body, tx.init(grads[0]), grads)[1]
