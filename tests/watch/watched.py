"""A run to watch, and what `diagnostics` says of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from quick import quick_jit

import functional_adam as fa

RATE, B1, B2, EPS = 0.03, 0.85, 0.97, 0.05
HYPER = dict(b1=B1, b2=B2, eps=EPS)
SHAPES = {"a": (7, 150), "b": (5,), "c": ()}


def numbers(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(0.05 * rng.normal(size=s) * np.exp(rng.normal(size=s)), dtype)
        for name, s in SHAPES.items()
    }


def watch(updates, state, params, **options):
    """`fa.diagnostics`, compiled: one operation after the other takes longer."""
    return quick_jit(functools.partial(fa.diagnostics, **options))(updates, state, params)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def expected(updates, params, m, v, t):
    v_hat = flat(v) / (1 - B2**t)
    direction = flat(m) / (1 - B1**t) / (np.sqrt(v_hat) + EPS)
    u, theta = (np.linalg.norm(flat(x)) for x in (updates, params))
    return {
        "count": t,
        "update_norm": u,
        "param_norm": theta,
        "update_to_param": u / theta,
        "direction_rms": np.sqrt(np.mean(direction**2)),
        "below_eps": np.mean(np.sqrt(v_hat) < EPS),
    }


def assert_close(found, wanted, rtol=2e-6):
    assert found.keys() == wanted.keys()  # `jit` sorts them
    for name, value in found.items():
        assert value.shape == ()
        assert value.dtype == (jnp.int32 if name == "count" else jnp.float32)
        np.testing.assert_allclose(value, wanted[name], rtol=rtol, err_msg=name)
