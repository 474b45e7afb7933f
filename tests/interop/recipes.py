"""The recipes of examples/frameworks, and transformations that record what they did."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference

import functional_adam as fa

RECIPES = Path(__file__).parents[2] / "examples" / "frameworks"
STEPS = 60
ADAMW = {
    "learning_rate": 0.02,
    "b1": 0.85,
    "b2": 0.97,
    "eps": 1e-3,
    "eps_root": 1e-5,
    "weight_decay": 0.03,
}


def recipe(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Record(NamedTuple):
    """A state, and trees with one row a step."""

    adam: fa.AdamState
    params: Any
    grads: Any
    updates: Any


def recording(tx):
    """`tx`, whose state also keeps what every update was given and what it returned."""

    def init(params):
        rows = jax.tree.map(lambda p: jnp.zeros((STEPS, *p.shape), p.dtype), params)
        return Record(tx.init(params), rows, rows, rows)

    def update(grads, state, params, **extra):
        t = state.adam.count
        updates, adam = tx.update(grads, state.adam, params, **extra)
        rows = (
            jax.tree.map(lambda row, x: row.at[t].set(x), *trees)
            for trees in zip(state[1:], (params, grads, updates), strict=True)
        )
        return updates, Record(adam, *rows)

    return optax.GradientTransformationExtraArgs(init, update)


def in_float64(*trees):
    """The leaves of all trees, side by side."""
    leaves = zip(*map(jax.tree.leaves, trees), strict=True)
    return [[np.asarray(x, np.float64) for x in row] for row in leaves]


def assert_trained_like_reference(record, end, decays=lambda path: True):
    """Updates, moments and count are Adam's; each update was added, `end` being the last sum."""
    assert type(record.adam) is fa.AdamState
    assert int(record.adam.count) == STEPS
    paths = [path for path, _ in jax.tree.leaves_with_path(record.params)]
    leaves = in_float64(*record[1:], record.adam.mu, record.adam.nu, end)
    for path, (theta, g, updates, mu, nu, last) in zip(paths, leaves, strict=True):
        hyperparameters = ADAMW if decays(path) else {**ADAMW, "weight_decay": 0.0}
        truth = reference.adam(g, theta[0], **hyperparameters)
        step = np.maximum(ADAMW["learning_rate"], np.abs(truth.updates))
        assert np.max(np.abs(updates - truth.updates) / step) < 1e-5
        assert np.max(np.abs(mu - truth.mu[-1])) < 1e-6 * np.abs(g).max()
        assert np.max(np.abs(nu - truth.nu[-1])) < 1e-6 * np.abs(g).max() ** 2
        sums = np.concatenate([theta[1:], last[None]])
        np.testing.assert_allclose(sums, theta + updates, rtol=2e-7, atol=2e-8)
