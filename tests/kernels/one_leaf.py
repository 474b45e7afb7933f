"""A step of one leaf in two forms, which have the same bits.

A float32 parameter may differ in its last: a moment is a sum of products, which LLVM may round once
or twice, as it likes.
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


# Older compilers round some sums of products once in one form and twice in another.
EXACT = jax.__version_info__ >= (0, 7, 2)


def assert_agree(found, wanted, t):
    """(parameters, state) of a step have the same bits, but the last of some float32 parameters."""
    if not EXACT:
        kept = [jax.tree.leaves(x[1]._replace(residual=None)) for x in (found, wanted)]
        for a, b in zip(*kept, strict=True):
            assert np.mean(np.asarray(a) != np.asarray(b)) < 0.002, t
        return
    assert moments(found[1]) == moments(wanted[1]), t
    residuals = (x[1].residual for x in (found, wanted))
    jax.tree.map(np.testing.assert_array_equal, *residuals)
    new, other = (np.float32(x[0]) for x in (wanted, found))
    if wanted[0].dtype != np.float32:
        np.testing.assert_array_equal(other, new, str(t))
        return
    assert np.array_equal(np.isfinite(new), np.isfinite(other))
    within = np.isfinite(new)
    gap = np.abs(other - new)[within]
    step = 7.3 * RATE  # at most; it may be a difference of such
    assert (gap <= 2.0**-23 * (np.abs(new) + step)[within]).all(), t
    assert np.mean(gap > 0) < 0.2
