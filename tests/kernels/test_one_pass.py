"""Kernels, interpreted on the CPU, against the plain form of the same step: the same bits."""

import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from one_leaf import HYPER, assert_agree, gradients, stepping

import functional_adam as fa
from functional_adam._kernels.choice import HAS_KERNELS

STEPS = 4
pytestmark = pytest.mark.skipif(not HAS_KERNELS, reason="kernels need jax 0.7.2")

FORMS = ["interpret gpu", "interpret tpu"]
# Rows that do not fill a tile, planes, one row, merged axes, blocks of 64, last blocks not full,
# rows of several tiles, and of several tiles of scales.
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
    (9, 33 * 128),
    (3, 257 * 128 - 5),
]
ROUNDINGS = [
    ("nearest", "float32"),
    ("compensated", "bfloat16"),
    ("stochastic", "float16"),
    ("split", "bfloat16"),
]


CASES = [
    *((shape, *ROUNDINGS[n % 3], FORMS[n % 2]) for n, shape in enumerate(SHAPES)),
    *((SHAPES[0], *rounding, form) for rounding in ROUNDINGS[1:] for form in FORMS),
    (SHAPES[0], *ROUNDINGS[0], FORMS[1]),
    *((shape, *ROUNDINGS[0], FORMS[1]) for shape in SHAPES[-2:]),
    ((21, 48), *ROUNDINGS[0], FORMS[0]),
    ((13,), *ROUNDINGS[0], FORMS[1]),  # float16, above, has no kernel there
]
PRODUCT = [(s, *r, form) for s in SHAPES for r in ROUNDINGS for form in FORMS]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in PRODUCT if case not in CASES]


@pytest.mark.parametrize(("shape", "rounding", "dtype", "form"), CASES + SLOW, ids=str)
def test_a_kernel_gives_the_bits_of_the_plain_form(shape, rounding, dtype, form, monkeypatch):
    tx = fa.adamw(moments=CODES, rounding=rounding, **HYPER)
    plain, kernel = (stepping(monkeypatch, tx, name) for name in ("off", form))
    params = jnp.asarray(np.random.default_rng(9).normal(size=shape) * 0.02, dtype)
    state = tx.init(params)
    for t, g in enumerate(gradients(shape, dtype, STEPS)):
        found = kernel(params, state, g)
        wanted = plain(params, state, g)
        assert_agree(found, wanted, t)
        params, state = wanted


@pytest.mark.parametrize("form", [pytest.param(FORMS[0], marks=pytest.mark.slow), FORMS[1]])
def test_a_kernel_has_what_members_and_modifiers_make_of_a_step(form, monkeypatch):
    hyper = {name: x for name, x in HYPER.items() if name != "eps"}
    tx = fa.cautious_weight_decay(fa.adam_atan2(moments=CODES, rounding="compensated", **hyper))
    plain, kernel = (stepping(monkeypatch, tx, name) for name in ("off", form))
    params = jnp.asarray(np.random.default_rng(9).normal(size=SHAPES[0]), jnp.bfloat16)
    state = tx.init(params)
    for t, g in enumerate(gradients(SHAPES[0], "bfloat16", 2)):
        found = kernel(params, state, g)
        wanted = plain(params, state, g)
        assert_agree(found, wanted, t)
        params, state = wanted
