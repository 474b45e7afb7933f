"""Kernels, interpreted on the CPU, against the plain form of the same step.

What is stored is the same in every bit, and so are parameters of 16 bits. Decay is a product and a
sum, which LLVM may make in one rounding or in two: a float32 parameter may differ in its last bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES

import functional_adam as fa
from functional_adam._kernels.choice import HAS_KERNELS, SWITCH

HYPER = {"b1": 0.87, "b2": 0.993, "eps": 1e-7, "weight_decay": 0.03}
STEPS = 4
pytestmark = pytest.mark.skipif(not HAS_KERNELS, reason="kernels need jax 0.7.2")

FORMS = ["interpret gpu", "interpret tpu"]
# Rows that do not fill a tile, planes, one row, merged axes, blocks of 64, last blocks not full.
SHAPES = [
    (33, 256),
    (3, 5, 128),
    (1024,),
    (8, 384),
    (9, 3, 3, 128),
    (7, 64),
    (5, 250),
    (1000,),
    (9, 200),
    (21, 48),
    (3, 7, 100),
    (13,),
    (2, 4, 12, 9),
]
ROUNDINGS = [
    ("nearest", "float32"),
    ("compensated", "bfloat16"),
    ("stochastic", "float16"),
    ("split", "bfloat16"),
]


def gradients(shape, dtype):
    """Wild ones, with zeros, a spike, and from the third step on NaN and infinities."""
    random = np.random.default_rng(len(shape))
    for t in range(STEPS):
        g = random.normal(size=shape) * np.exp(2 * random.normal(size=shape)) * 1e-3
        g[random.random(shape) < 0.01] = 0
        g.flat[7] *= 1e4
        if t == 2:
            g.flat[5], g.flat[-1], g.flat[-3] = np.nan, np.inf, -np.inf
        yield jnp.asarray(g, dtype)


def stepping(monkeypatch, form, rounding):
    """The transformation, and a jitted step of one leaf in this form."""
    monkeypatch.setenv(SWITCH, form)
    tx = fa.adamw(0.004, moments=CODES, rounding=rounding, **HYPER)

    @jax.jit
    def step(params, state, g):
        monkeypatch.setenv(SWITCH, form)  # read when a step is traced
        return fa.step(tx, g, state, params)

    return tx, step


def stored(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


CASES = [
    *((shape, *ROUNDINGS[n % 3], FORMS[n % 2]) for n, shape in enumerate(SHAPES)),
    *((shape, *ROUNDINGS[3], FORMS[n % 2]) for n, shape in enumerate(SHAPES[1:3])),
    *((SHAPES[0], *rounding, form) for rounding in ROUNDINGS[1:] for form in FORMS),
    (SHAPES[0], *ROUNDINGS[0], FORMS[1]),
]
PRODUCT = [(s, *r, form) for s in SHAPES for r in ROUNDINGS for form in FORMS]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in PRODUCT if case not in CASES]


@pytest.mark.parametrize(("shape", "rounding", "dtype", "form"), CASES + SLOW, ids=str)
def test_a_kernel_gives_the_bits_of_the_plain_form(shape, rounding, dtype, form, monkeypatch):
    tx, plain = stepping(monkeypatch, "off", rounding)
    _, kernel = stepping(monkeypatch, form, rounding)
    params = jnp.asarray(np.random.default_rng(9).normal(size=shape) * 0.02, dtype)
    state = tx.init(params)
    for t, g in enumerate(gradients(shape, dtype)):
        found, kept = kernel(params, state, g)
        old = np.float32(params)
        params, state = plain(params, state, g)
        assert stored(kept) == stored(state), t
        new, other = np.float32(params), np.float32(found)
        if rounding != "nearest":
            np.testing.assert_array_equal(other, new)
            continue
        size = np.maximum(np.abs(old), np.abs(new))
        assert np.array_equal(np.isfinite(new), np.isfinite(other))
        within = np.isfinite(new)
        assert (np.abs(other - new)[within] <= 2.0**-22 * size[within]).all(), t
        assert np.mean(other[within] != new[within]) < 0.2
