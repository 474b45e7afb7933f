"""Kernels, interpreted on the CPU, against the plain form of the same step: all bits.

What is stored is the same in every bit. A float32 parameter may differ in its last bit, and its
residual by one code: LLVM fuses a product and a sum of the plain form into one rounding or does
not, as it likes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa
from functional_adam._kernels.choice import SWITCH

HYPER = {"b1": 0.87, "b2": 0.993, "eps": 1e-7, "weight_decay": 0.03}
STEPS = 5
FORMS = ["interpret gpu", "interpret tpu"]
# Rows that do not fill a tile, planes, one row, merged axes, blocks of 64, blocks that are not full.
SHAPES = [(33, 256), (3, 5, 128), (1024,), (8, 384), (9, 3, 3, 128), (7, 64), (6, 200)]
ROUNDINGS = [("nearest", "float32"), ("compensated", "bfloat16"), ("stochastic", "float16")]


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


def trajectory(monkeypatch, form, shape, rounding, dtype, make=fa.adamw, **hyper):
    """Parameters and what is stored, after every step."""
    monkeypatch.setenv(SWITCH, form)
    tx = make(0.004, moments="int8", rounding=rounding, **HYPER | hyper)
    start = np.random.default_rng(9).normal(size=shape) * 0.02
    params = {"w": jnp.asarray(start, dtype)}
    state = tx.init(params)
    step = jax.jit(lambda params, state, g: fa.step(tx, {"w": g}, state, params))
    for g in gradients(shape, dtype):
        params, state = step(params, state, g)
        residual = None if rounding != "compensated" else np.asarray(state.residual["w"], int)
        stored = state.mu["w"], state.nu["w"], state.nu_scale["w"]
        yield np.asarray(params["w"]), residual, [np.asarray(x) for x in stored]


def bits(x):
    return x.view({2: np.int16, 4: np.int32}[x.dtype.itemsize]).astype(np.int64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rounding", "dtype"), ROUNDINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_gives_the_bits_of_the_plain_form(form, rounding, dtype, shape, monkeypatch):
    plain = list(trajectory(monkeypatch, "off", shape, rounding, dtype))
    found = list(trajectory(monkeypatch, form, shape, rounding, dtype))
    for t, ((p, residual, stored), (q, other, kept)) in enumerate(zip(plain, found, strict=True)):
        assert [x.tobytes() for x in kept] == [x.tobytes() for x in stored], t
        apart = np.abs(bits(q) - bits(p))
        assert apart.max() <= 1, t
        if residual is not None:  # one code less and the next number, or the same
            assert np.abs(other - residual)[apart == 0].max() <= 1, t
