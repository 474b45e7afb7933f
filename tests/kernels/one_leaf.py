"""A step of one leaf in two forms, and how much they may differ.

What is stored of the moments is the same in every bit. An update is a product and a sum, which
LLVM may make in one rounding or in two, as it likes: a float32 parameter may differ in its last
bits, and one of 16 bits where these decide.
"""

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa
from functional_adam._kernels.choice import SWITCH

RATE = 0.004
HYPER = {"learning_rate": RATE, "b1": 0.87, "b2": 0.993, "eps": 1e-7, "weight_decay": 0.03}


def gradients(shape, dtype, steps, *, finite=False):
    """Wild ones, with zeros, a spike, and half-way NaN and infinities, unless `finite`."""
    random = np.random.default_rng(len(shape))
    for t in range(steps):
        g = random.normal(size=shape) * np.exp(2 * random.normal(size=shape)) * 1e-3
        g[random.random(shape) < 0.01] = 0
        g.flat[7] *= 1e4
        if t == steps // 2 and not finite:
            g.flat[5], g.flat[-1], g.flat[-3] = np.nan, np.inf, -np.inf
        yield jnp.asarray(g, dtype)


def stepping(monkeypatch, tx, form):
    """A jitted step in this form."""

    @jax.jit
    def step(params, state, g):
        monkeypatch.setenv(SWITCH, form)  # read when a step is traced
        return fa.step(tx, g, state, params)

    return step


def moments(state):
    kept = state.mu, state.nu, state.nu_scale, state.extra
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(kept)]


def weights(params, state, rounding):
    if rounding == "compensated":
        return np.asarray(fa.master_params(params, state))
    return np.asarray(params, np.float32)


def assert_agree(found, wanted, params, state, rounding, t):
    """(parameters, state) of a step from `params` and `state`."""
    assert moments(found[1]) == moments(wanted[1]), t
    if rounding == "stochastic":  # either neighbour of nearly the same number
        unit = 2.0**-7 if params.dtype == jnp.bfloat16 else 2.0**-10
        np.testing.assert_allclose(*(np.float32(x[0]) for x in (found, wanted)), unit, 2**-24)
        numbers = ~np.isnan(np.float32(found[0]))
        assert np.mean(np.asarray(found[0] != wanted[0])[numbers]) < 0.01
        return
    old, new, other = (weights(*x, rounding) for x in ((params, state), wanted, found))
    size = np.maximum(np.abs(old), np.abs(new)) + RATE  # a step may be a sum itself
    unit = 2.0**-22 if rounding == "nearest" else 2.0**-15  # a code of a bfloat16
    assert np.array_equal(np.isfinite(new), np.isfinite(other))
    within = np.isfinite(new)
    assert (np.abs(other - new)[within] <= unit * size[within]).all(), t
    assert np.mean(other[within] != new[within]) < (0.2 if rounding == "nearest" else 0.01)
