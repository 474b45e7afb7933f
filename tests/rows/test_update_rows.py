"""`update_rows` and `flush_rows`: the three ways to catch up, against a reference in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import quick_jit
from same_bits import assert_same_bits
from tables import CATCH_UPS, HYPER, batches, flushed, start, trained

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict", "quickly_compiled")
SHAPE = (11, 2, 3)
slow = pytest.mark.slow


def truth(batch, table, catch_up, **hyper):
    return reference.adam_of_rows(batch.dense, batch.seen, np.asarray(table), catch_up, **hyper)


@pytest.mark.parametrize("catch_up", CATCH_UPS)
def test_a_run_is_that_of_the_reference(catch_up, x64):
    batch, table = batches(60, 5, SHAPE), start(SHAPE, np.float64)
    hyper = HYPER | {"eps_placement": "before_correction"}  # the other is in the next test
    wanted = truth(batch, table, catch_up, **hyper)
    found, state = trained(batch, table, catch_up=catch_up, **hyper)
    # Rows that the last step has not seen still lack what they have missed.
    current = {"lazy": slice(None)}.get(catch_up, batch.seen[-1])
    np.testing.assert_allclose(found[current], wanted.params[-1][current], rtol=1e-11, atol=1e-13)
    for name in ("mu", "nu"):
        moment, right = getattr(state, name), getattr(wanted, name)[-1]
        np.testing.assert_allclose(moment[current], right[current], rtol=1e-11, atol=1e-15)
    assert state.count == 60
    ages = [max(np.flatnonzero(column), default=-1) + 1 for column in batch.seen.T]
    assert min(ages) < 48  # or nothing would have waited
    np.testing.assert_array_equal(state.extra["last"], ages)


@pytest.mark.parametrize("catch_up", ["moments", "dense"])
def test_flushed_everything_is_as_if_no_row_had_waited(catch_up, x64):
    batch, table = batches(60, 5, SHAPE), start(SHAPE, np.float64)
    wanted = truth(batch, table, catch_up, **HYPER)
    how = HYPER | {"catch_up": catch_up}
    found, state = trained(batch, table, **how)
    found, state = flushed(state, found, **how)
    np.testing.assert_array_equal(state.extra["last"], np.full(SHAPE[0], 60))
    np.testing.assert_allclose(state.mu, wanted.mu[-1], rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(state.nu, wanted.nu[-1], rtol=1e-11, atol=1e-15)
    if catch_up == "dense":
        np.testing.assert_allclose(found, wanted.params[-1], rtol=1e-11, atol=1e-13)
    assert_same_bits(flushed(state, found, **how), (found, state))  # nothing is missed twice


def test_the_three_ways_differ():
    batch, table = batches(60, 5, SHAPE), start(SHAPE)
    ends = [truth(batch, table, catch_up, **HYPER).params[-1] for catch_up in CATCH_UPS]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(ends[a] - ends[b]).max() > HYPER["learning_rate"]


def warm(count):
    """Neither constant nor smooth, and 0 at first."""
    count = jnp.asarray(count, jnp.float32)
    return jnp.where(count < 17, 0.002 * count, 0.05 / (1 + 0.03 * count))


def decaying(count):
    return 0.4 / (1 + 0.1 * jnp.asarray(count, jnp.float32))


@pytest.mark.parametrize(
    "hyper",
    [
        pytest.param({"learning_rate": warm}, id="rate"),
        pytest.param({"b1": 0.0, "eps": 1e-9}, id="no-momentum"),
        pytest.param({"learning_rate": warm, "weight_decay": 0.0}, id="no-decay", marks=slow),
        pytest.param({"weight_decay": decaying}, id="decay", marks=slow),
        pytest.param({"eps": 0.7}, id="large-eps", marks=slow),
    ],
)
def test_dense_replays_schedules_and_whatever_eps(hyper):
    batch, table = batches(80, 3, (9, 4), seed=3), start((9, 4))
    how = HYPER | hyper | {"catch_up": "dense"}
    found, state = trained(batch, table, **how)
    found, state = flushed(state, found, **how)
    wanted = reference.adam(batch.dense, np.asarray(table), **(HYPER | hyper))
    np.testing.assert_allclose(found, wanted.params[-1], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(state.nu, wanted.nu[-1], rtol=2e-6, atol=1e-9)


def test_flushed_a_dense_state_goes_on_in_update_and_back():
    batch, table = batches(20, 4, (7, 3), seed=8), start((7, 3))
    how = HYPER | {"catch_up": "dense"}
    found, state = trained(batch, table, **how)
    found, state = flushed(state, found, **how)
    plain = state._replace(extra=None)
    grads = jnp.asarray(np.random.default_rng(4).normal(size=(7, 3)), jnp.float32)
    updates, plain = jax.jit(lambda s, p: fa.update(grads, s, p, **HYPER))(plain, found)
    rows = jnp.arange(7)[::-1]  # all of them, in another order
    one_more = jax.jit(lambda g, r, s, t: fa.update_rows(g, r, s, t, **how))
    after, state = one_more(grads[::-1], rows, state, found)
    np.testing.assert_allclose(after, fa.apply_updates(found, updates), rtol=1e-6)
    back = plain._replace(extra={"last": jnp.full(7, plain.count)})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, state)


def test_rows_take_their_gradients_from_a_loss_over_optax(standard):
    # Dense Adam by Optax, over a loss that reads rows, is what "dense" comes to.
    table, how = start((13, 4)), dict(learning_rate=0.04, b1=0.83, b2=0.96, eps=1e-5)
    tokens = np.random.default_rng(2).integers(0, 13, (30, 2, 3))
    goal = start((13, 4), seed=9)

    def loss(read, tokens):
        return jnp.sum((read - goal[tokens]) ** 2 * (1 + tokens[..., None]))

    @jax.jit
    def step(table, state, tokens):
        # A loss at weights that are behind would not be that of dense Adam.
        table, state = fa.flush_rows(state, table, catch_up="dense", **how)
        grads = jax.grad(loss)(table[tokens], tokens)
        return fa.update_rows(grads, tokens, state, table, catch_up="dense", **how)

    tx = optax.adam(**how)

    @jax.jit
    def dense_step(dense, state, tokens):
        grads = jax.grad(lambda table: loss(table[tokens], tokens))(dense)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(dense, updates), state

    state, dense, theirs = fa.init_rows(table), table, tx.init(table)
    for row in tokens:
        table, state = step(table, state, row)
        dense, theirs = dense_step(dense, theirs, row)
    table, _ = flushed(state, table, catch_up="dense", **how)
    np.testing.assert_allclose(table, dense, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=6, max_size=6),
    catch_up=st.sampled_from(CATCH_UPS),
    seed=st.integers(0, 99),
)
def test_whatever_rows_come(rows, catch_up, seed):
    # Of seven rows; numbers from 7 to 9 are padding.
    rng = np.random.default_rng(seed)
    rows, grads = np.array(rows, np.int32), rng.normal(size=(6, 4, 2)).astype(np.float32)
    dense, seen = np.zeros((6, 8, 2)), np.zeros((6, 8), bool)
    np.add.at(dense, (np.arange(6)[:, None], np.minimum(rows, 7)), grads)
    np.put_along_axis(seen, np.minimum(rows, 7), True, axis=1)
    table, state = start((7, 2)), fa.init_rows(start((7, 2)))
    wanted = reference.adam_of_rows(
        dense[:, :7], seen[:, :7], np.asarray(table), catch_up, **HYPER
    ).params[-1]
    for r, g in zip(rows, grads, strict=True):
        table, state = _STEPS[catch_up](g, r, state, table)
    current = seen[-1, :7] | (catch_up == "lazy")
    np.testing.assert_allclose(table[current], wanted[current], rtol=3e-6, atol=3e-6)


def _step(catch_up):
    return quick_jit(lambda g, r, s, t: fa.update_rows(g, r, s, t, catch_up=catch_up, **HYPER))


_STEPS = {catch_up: _step(catch_up) for catch_up in CATCH_UPS}
