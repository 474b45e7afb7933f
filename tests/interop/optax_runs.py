"""Runs of our transformations in Optax's wrappers, and what they are compared with.

Expected numbers come from `reference.adam` in float64 with the wrapper's work done by hand in
NumPy, or, where state or hyperparameters change in mid-run, from Optax's Adam in float64.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference
from quick import quick_jit

import functional_adam as fa

STEPS = 9
RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02, "eps_root": 0.003}
ADAM = {"learning_rate": 0.013, **RATES}
ADAMW = {**ADAM, "weight_decay": 0.07}
KEEP = {"bias": False, "layers": [True, {"scale": True}]}


def keep_all_but_bias(params):
    assert len(jax.tree.leaves(params)) == 3
    return KEEP


def normal_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"bias": (5,), "layers": [(3, 4), {"scale": ()}]}
    return jax.tree.map(
        lambda shape: (scale * np.asarray(rng.standard_normal(shape))).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = normal_tree(0)
GRADS = [normal_tree(seed, [1.0, 0.2, 3.1, 0.07, 1.7][seed % 5]) for seed in range(1, STEPS + 1)]


class Run(NamedTuple):
    """What stands after each step."""

    updates: list
    params: list
    states: list


class Stepper:
    """A jitted step, which knows how often it was traced."""

    def __init__(self, tx):
        self.traces = 0

        def step(grads, state, params, extra):
            self.traces += 1
            updates, state = tx.update(grads, state, params, **extra)
            return updates, state, optax.apply_updates(params, updates)

        self.step = quick_jit(step)


def run(tx, params, grads, extra_args=None, change_state=lambda t, state: state, step=None) -> Run:
    """A jitted step for each of `grads`; asserts that they share one trace."""
    step = step or Stepper(tx)
    params = jax.tree.map(jnp.asarray, params)
    state, rows = tx.init(params), []
    for t, g in enumerate(grads):
        extra = {name: values[t] for name, values in (extra_args or {}).items()}
        updates, state, params = step.step(g, change_state(t, state), params, extra)
        rows.append((updates, params, state))
    assert step.traces == 1, "the step was traced again"
    return Run(*map(list, zip(*rows, strict=True)))


def oracle(grads, params, **hyperparameters) -> reference.Trajectory:
    """`reference.adam` leaf by leaf: trees with one row a step."""
    leaves, treedef = jax.tree.flatten(params)
    by_leaf = zip(*map(jax.tree.leaves, grads), strict=True)
    columns = [
        reference.adam([np.asarray(g, np.float64) for g in gs], p, **hyperparameters)
        for gs, p in zip(by_leaf, leaves, strict=True)
    ]
    return reference.Trajectory(*(treedef.unflatten(field) for field in zip(*columns, strict=True)))


def row(trees, t):
    return jax.tree.map(lambda x: np.asarray(x)[t], trees)


def kept(tree):
    """The leaves that `KEEP` keeps."""
    return [x for x, keep in zip(*map(jax.tree.leaves, (tree, KEEP)), strict=True) if keep]


def dropped(tree):
    return [x for x, keep in zip(*map(jax.tree.leaves, (tree, KEEP)), strict=True) if not keep]


def assert_close(actual, expected, size=1.0, tolerance=2e-6):
    """Leaf by leaf, relative to `size` or to what is expected, whichever is larger."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.shape(a) == np.shape(e)
        got, truth = np.asarray(a, np.float64), np.asarray(e, np.float64)
        error = np.abs(got - truth) / np.maximum(size, np.abs(truth))
        assert error.max() <= tolerance, f"error {error.max():.1e}: got {got}, expected {truth}"


def assert_equal(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e), strict=True)


def adam_state(state) -> fa.AdamState:
    """The one AdamState inside a wrapper's state."""
    is_adam = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    (found,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    return found


def assert_state(state, truth, count):
    """The AdamState inside `state` is that after `count` steps of `truth`."""
    state = adam_state(state)
    assert state.count.dtype == jnp.int32
    assert int(state.count) == count
    before_any = jax.tree.map(lambda x: np.zeros_like(x[0]), (truth.mu, truth.nu))
    assert_close(
        (state.mu, state.nu), row((truth.mu, truth.nu), count - 1) if count else before_any
    )


def assert_follows(run, truth, learning_rate=ADAM["learning_rate"]):
    """Updates, parameters, both moments and the count, after every step."""
    for t, (updates, params, state) in enumerate(zip(*run, strict=True)):
        assert_close(updates, row(truth.updates, t), learning_rate)
        assert_close(params, row(truth.params, t))
        assert_state(state, truth, t + 1)


def halving(count):
    return 0.02 * 0.5**count


def norm_of(tree):
    return math.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(tree)))


def rounded(hyperparameters):
    """The values that float32 arrays of them hold."""
    return {name: float(np.float32(x)) for name, x in hyperparameters.items()}
