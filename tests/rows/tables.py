"""Runs over a table: batches of rows, the dense gradients that they stand for, ours over them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa

HYPER = dict(learning_rate=0.03, b1=0.87, b2=0.973, eps=3e-3, eps_root=2e-5, weight_decay=0.2)
CATCH_UPS = ["lazy", "moments", "dense"]


class Batches(NamedTuple):
    """Of each step: row numbers and their gradients, the table's gradient, the rows it has seen."""

    rows: np.ndarray
    grads: np.ndarray
    dense: np.ndarray
    seen: np.ndarray


def batches(steps, size, shape, *, seed=0, beyond=3):
    """Rows drawn unevenly, so that some come twice in a step and some after long; padding too."""
    rng = np.random.default_rng(seed)
    height = shape[0]
    rows = (height * rng.random((steps, size)) ** 3).astype(np.int32)
    rows[steps // 3 :, : size // 2] = 0  # the same row again and again, others after long
    rows[:, -1] = height + rng.integers(0, beyond, steps)  # no row of the table
    grads = rng.normal(size=(steps, size, *shape[1:])).astype(np.float32)
    dense = np.zeros((steps, *shape))
    seen = np.zeros((steps, height), bool)
    for t in range(steps):
        for row, g in zip(rows[t], grads[t], strict=True):
            if row < height:
                dense[t, row] += g
                seen[t, row] = True
    return Batches(rows, grads, dense, seen)


def start(shape, dtype=np.float32, seed=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def trained(batch, table, state=None, *, moments="full", rounding="nearest", **how):
    """(table, state) after all steps, as one scan."""
    how |= dict(moments=moments, rounding=rounding)
    if state is None:
        state = fa.init_rows(table, moments=moments, rounding=rounding)

    def step(carry, given):
        table, state = carry
        return fa.update_rows(given[1], given[0], state, table, **how), None

    def run(carry, given):
        return jax.lax.scan(step, carry, given)[0]

    given = jnp.asarray(batch.rows), jnp.asarray(batch.grads, table.dtype)
    return jax.jit(run)((table, state), given)


def flushed(state, table, **how):
    return jax.jit(functools.partial(fa.flush_rows, **how))(state, table)
