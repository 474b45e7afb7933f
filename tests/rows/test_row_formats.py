"""Rows in every format of moments and weights: the bits of a whole leaf, and what travels."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from quick import quick_jit
from same_bits import assert_same_bits
from tables import HYPER, batches, flushed, start, trained

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")
FORMS = [  # pairwise, catch_up too
    ("full", "nearest", jnp.bfloat16, "moments"),
    ("full", "compensated", jnp.float16, "dense"),
    ("full", "stochastic", jnp.bfloat16, "lazy"),
    ("bfloat16", "nearest", jnp.float32, "dense"),
    ("bfloat16", "split", jnp.bfloat16, "moments"),
    ("int8", "nearest", jnp.float32, "lazy"),
    ("int8", "stochastic", jnp.bfloat16, "dense"),
    ("int8", "compensated", jnp.bfloat16, "moments"),
    ("int8", "split", jnp.float16, "dense"),
]
slow = pytest.mark.slow
MORE = [form for form in FORMS if form not in FORMS[1:7:2]]
DENSE = [pytest.param(*form[:3], marks=[] if form in FORMS[3::3] else slow) for form in FORMS]
NAMES = ["moments", "rounding", "dtype", "catch_up"]
SHAPE = (50, 130)  # two blocks a row, of which the second is not full


@pytest.mark.parametrize(NAMES, [*FORMS[1:7:2], *(pytest.param(*x, marks=slow) for x in MORE)])
def test_all_rows_in_any_order_have_the_bits_of_a_whole_leaf(moments, rounding, dtype, catch_up):
    tx = fa.adamw(**HYPER, moments=moments, rounding=rounding)
    whole, state = start(SHAPE, dtype), tx.init(start(SHAPE, dtype))
    table, by_row = whole, fa.init_rows(whole, moments=moments, rounding=rounding)
    how = HYPER | dict(moments=moments, rounding=rounding, catch_up=catch_up)
    step = jax.jit(lambda g, s, p: fa.step(tx, g, s, p))
    step_rows = jax.jit(lambda g, r, s, t: fa.update_rows(g, r, s, t, **how))
    rng = np.random.default_rng(1)
    for _ in range(3):
        grads = rng.normal(size=SHAPE).astype(np.float32)
        rows = rng.permutation(SHAPE[0])
        whole, state = step(jnp.asarray(grads, dtype), state, whole)
        table, by_row = step_rows(jnp.asarray(grads[rows], dtype), rows, by_row, table)
    assert_same_bits((table, by_row._replace(extra=None)), (whole, state))


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize(("moments", "rounding", "dtype"), DENSE)
def test_waiting_rows_end_where_dense_adam_does(moments, rounding, dtype):
    batch, table = batches(40, 6, SHAPE, seed=2), start(SHAPE, dtype)
    wanted = reference.adam(batch.dense, np.asarray(table, np.float64), **HYPER)
    how = HYPER | dict(moments=moments, rounding=rounding, catch_up="dense")
    found, state = trained(batch, table, **how)
    found, state = flushed(state, found, **how)
    weights = found
    if rounding in ("compensated", "split") and dtype != jnp.float32:
        weights = fa.master_params(found, state)
    error = np.abs(np.asarray(weights, np.float64) - wanted.params[-1])
    moved = np.abs(wanted.params[-1] - wanted.params[0])
    # One unit of 16 bits for a weight that is not kept to more; a few per cent for codes.
    unit = 0.0 if weights is not found or dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    assert np.mean(error) < 0.03 * np.mean(moved) + unit
    assert np.mean(moved) > 0.1


def test_a_row_draws_its_bits_by_its_place_in_the_table():
    # A gradient so small that only chance moves the weights: by place, not by order in the batch.
    table = jnp.ones((300, 40), jnp.bfloat16)
    how = dict(learning_rate=1e-3, rounding="stochastic")
    state = fa.init_rows(table, rounding="stochastic")
    step = jax.jit(lambda g, r: fa.update_rows(g, r, state, table, **how)[0])
    ones = jnp.ones((4, 40), jnp.bfloat16)
    a, b = step(ones, jnp.array([7, 2, 299, 41])), step(ones, jnp.array([299, 300, 41, 7]))
    for row in (7, 299, 41):
        np.testing.assert_array_equal(a[row], b[row])
    assert 3 < int(jnp.sum(a[7] != 1)) < 37
    assert np.any(np.asarray(a[7] != a[41]))


def test_small_tables_keep_float32_under_int8_whatever_the_batch():
    small, large = jnp.zeros((40, 64)), jnp.zeros((80, 64))
    assert fa.init_rows(small, moments="int8").mu.dtype == np.float32
    assert fa.init_rows(large, moments="int8").nu_scale.shape == (80, 1)
    for table, size in ((small, 200), (large, 3)):  # more elements in the batch, and fewer
        state = fa.init_rows(table, moments="int8")
        grads, rows = jnp.ones((size, 64)), jnp.arange(size) % 40
        step = quick_jit(functools.partial(fa.update_rows, moments="int8"))
        _, after = step(grads, rows, state, table)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        assert after.mu.dtype == state.mu.dtype


def test_a_state_of_rows_travels_and_is_measured():
    table, how = start((90, 64)), dict(moments="int8", learning_rate=0.02)
    state = fa.init_rows(table, moments="int8")
    grads = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    table, state = fa.update_rows(grads, np.array([8, 81, 8]), state, table, **how)
    saved = fa.to_state_dict(state)
    loaded = fa.from_state_dict(saved, fa.init_rows(table, moments="int8"))
    assert_same_bits(loaded, state)
    report = fa.memory_report(
        types.SimpleNamespace(init=lambda t: fa.init_rows(t, moments="int8")), table
    )
    assert report.state_bytes == 90 * 64 * 2 + 90 * 2 + 90 * 4 + 4
    assert report.leaves[0].extra == 90 * 4


def test_complex_tables_too():
    rng = np.random.default_rng(3)
    table = jnp.asarray(rng.normal(size=(5, 2)) + 1j * rng.normal(size=(5, 2)), jnp.complex64)
    grads = rng.normal(size=(30, 1, 2)) + 1j * rng.normal(size=(30, 1, 2))
    rows = rng.integers(0, 5, (30, 1))
    dense = np.zeros((30, 5, 2), complex)
    dense[np.arange(30), rows[:, 0]] = grads[:, 0]
    wanted = reference.adam(dense, np.asarray(table), **HYPER).params[-1]
    how, state = HYPER | {"catch_up": "dense"}, fa.init_rows(table)
    step = jax.jit(lambda g, r, s, t: fa.update_rows(g, r, s, t, **how))
    for g, r in zip(grads.astype(np.complex64), rows, strict=True):
        table, state = step(g, r, state, table)
    np.testing.assert_allclose(flushed(state, table, **how)[0], wanted, rtol=3e-6)


@pytest.mark.usefixtures("quickly_compiled")
def test_flushed_rows_keep_every_bit_if_they_miss_nothing():
    how = HYPER | dict(moments="int8", rounding="compensated", catch_up="dense")
    batch, table = batches(9, 6, (70, 130), seed=4), start((70, 130), jnp.bfloat16)
    table, state = trained(batch, table, **how)
    # Scales that would be others if what they belong to were stored once more.
    state = state._replace(nu_scale=state.nu_scale + jnp.uint16(2))
    found, after = flushed(state, table, **how)
    seen = batch.seen[-1]
    rows = [
        jax.tree.map(lambda x: x[seen] if x.ndim else x, tree)
        for tree in ((table, state), (found, after))
    ]
    assert_same_bits(*rows)
    assert np.any(np.asarray(state.mu != after.mu)[~seen])
