"""A live state for other parameters: what is kept, what is new, what the late start costs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extended import BIAS, HEAD, NEW, OLD, RATES, TXS, assert_same, live, run, same

import functional_adam as fa


def by_path(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


every_tx = pytest.mark.parametrize("name", TXS)


# ---- What is kept and what is new ----


@every_tx
def test_old_leaves_and_counters_are_kept_and_new_ones_fresh(name):
    tx, params, state = live(name)
    new = {**params, "head": HEAD}
    extended = fa.extend_state(tx, state, params, new)
    assert jax.tree.structure(extended) == jax.tree.structure(tx.init(new))
    old, fresh, got = (by_path(x) for x in (state, tx.init(new), extended))
    assert all("['head']" in path for path in got.keys() - old.keys())
    assert any("['head']" in path for path in got)
    for path, x in got.items():
        assert same(x, fresh[path] if "['head']" in path else old[path]), path
    assert not any(np.any(x) for path, x in got.items() if "['head']" in path)


@every_tx
def test_old_leaves_go_on_as_if_nothing_had_been_added(name):
    tx, params, state = live(name)
    new = {**params, "head": HEAD}
    extended = fa.extend_state(tx, state, params, new)
    alone = run(tx, params, state, (1.1, -0.6))
    together = run(tx, new, extended, (1.1, -0.6))
    for kept, got in zip(map(by_path, alone), map(by_path, together), strict=True):
        assert kept
        for path, x in kept.items():
            assert same(x, got[path]), path


@every_tx
def test_a_layer_in_and_out_again_changes_nothing(name):
    tx, params, state = live(name)
    new = {**params, "head": HEAD}
    extended = fa.extend_state(tx, state, params, new)
    assert_same(fa.extend_state(tx, extended, new, params), state)


def test_a_swap_of_layers():
    tx, params, state = live("adam")
    new = {"dense": params["dense"], "head": HEAD}
    swapped = fa.extend_state(tx, state, params, new)
    assert_same(swapped.mu["dense"], state.mu["dense"])
    assert swapped.mu.keys() == {"dense", "head"}


def test_compensated_parameters_keep_what_they_lack():
    tx = fa.adam(0.003, rounding="compensated", **RATES)
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), NEW)
    old = {"dense": short["dense"]}
    params, state = run(tx, old, tx.init(old))
    assert any(np.any(x) for x in jax.tree.leaves(state.residual))
    extended = fa.extend_state(tx, state, params, short)
    assert_same(extended.residual["dense"], state.residual["dense"])
    assert not np.any(extended.residual["head"]["kernel"])


def test_fresh_moments_begin_where_init_lets_them():
    tx = fa.yogi(0.01, initial_accumulator_value=0.25)
    state = fa.extend_state(tx, tx.init(OLD), OLD, NEW)
    np.testing.assert_array_equal(state.nu["head"]["kernel"], np.full((3, 4), 0.25))


def test_a_mask_may_grow_with_the_parameters():
    mask = {"dense": {"kernel": True, "bias": False}, "gain": False}
    old_tx = fa.adamw(0.03, mask=mask)
    new_tx = fa.adamw(0.03, mask=mask | {"head": {"kernel": True, "bias": False}})
    _, state = run(old_tx, OLD, old_tx.init(OLD))
    assert_same(fa.extend_state(new_tx, state, OLD, NEW).mu["dense"], state.mu["dense"])


def test_injected_numbers_stay_as_they_were_set():
    tx, params, state = live("inject")
    state.hyperparams["weight_decay"] = 0.125
    extended = fa.extend_state(tx, state, params, {**params, "head": HEAD})
    assert extended.hyperparams["weight_decay"] == 0.125


def test_shapes_of_the_old_parameters_are_enough():
    tx, params, state = live("chain")
    new = {**params, "head": HEAD}
    shapes = jax.eval_shape(lambda x: x, params)
    assert_same(fa.extend_state(tx, state, shapes, new), fa.extend_state(tx, state, params, new))


def test_under_jit_it_is_the_same():
    tx, params, state = live("int8")
    new = {**params, "head": HEAD}
    inside = jax.jit(functools.partial(fa.extend_state, tx))(state, params, new)
    assert_same(inside, fa.extend_state(tx, state, params, new))


def test_a_bare_array():
    tx, params = TXS["adam"], jnp.arange(3.0)
    _, state = run(tx, params, tx.init(params))
    assert_same(fa.extend_state(tx, state, params, params), state)
    anew = fa.extend_state(tx, state, params, jnp.ones(5), restart=["params"])
    assert (int(anew.count), anew.mu.shape) == (3, (5,))


# ---- Restarting ----


@every_tx
def test_restarted_leaves_begin_anew_and_only_they(name):
    tx, params, state = live(name)
    new = {**params, "dense": {**params["dense"], "bias": jnp.ones(7)}}
    extended = fa.extend_state(tx, state, params, new, restart=[BIAS])
    old, fresh, got = (by_path(x) for x in (state, tx.init(new), extended))
    assert got.keys() == old.keys()
    for path, x in got.items():
        assert same(x, fresh[path] if "['bias']" in path else old[path]), path


def test_a_leaf_of_the_same_shape_may_begin_anew():
    tx, params, state = live("adam")
    extended = fa.extend_state(tx, state, params, params, restart={BIAS})
    assert not np.any(extended.mu["dense"]["bias"])
    assert not np.any(extended.nu["dense"]["bias"])
    assert_same(extended.mu["dense"]["kernel"], state.mu["dense"]["kernel"])
    assert int(extended.count) == 3


# ---- The late start ----


def updates_of_a_late_leaf(tx, count, gradients):
    """The updates of a leaf that joins at this count."""
    old, new = {"a": jnp.ones(1)}, {"a": jnp.ones(1), "b": jnp.ones(1)}
    state = fa.extend_state(tx, tx.init(old)._replace(count=jnp.int32(count)), old, new)
    found = []
    for g in gradients:
        updates, state = tx.update({"a": jnp.ones(1), "b": jnp.full(1, g)}, state)
        found.append(float(updates["b"][0]))
    return np.array(found)


def test_a_late_leaf_is_too_fast_by_what_the_docstring_says():
    k = np.arange(1, 1001)
    factor = (1 - 0.9**k) / np.sqrt(1 - 0.999**k)
    assert [round(factor[i - 1], 2) for i in (1, 12, 100, 1000)] == [3.16, 6.57, 3.24, 1.26]
    assert factor.argmax() + 1 == 12
    assert factor[0] == pytest.approx(math.sqrt(10))
    found = updates_of_a_late_leaf(fa.adam(0.01), 10**6, [2.5] * 20)
    np.testing.assert_allclose(found, -0.01 * factor[:20], rtol=1e-5)


@pytest.mark.parametrize("count", [0, 9, 99, 999])
def test_the_first_update_at_any_count(count):
    t = count + 1
    factor = (1 - 0.9) / (1 - 0.9**t) * math.sqrt((1 - 0.999**t) / (1 - 0.999))
    found = updates_of_a_late_leaf(fa.adam(0.01), count, [-2.5])
    np.testing.assert_allclose(found, [0.01 * factor], rtol=1e-5)


def test_the_factor_in_the_docstring_makes_them_a_fresh_runs():
    grads = [0.5, -1.5, 2.0, 0.3]
    k = np.arange(1, 5)
    found = updates_of_a_late_leaf(fa.adam(0.01, b1=0.83, b2=0.97), 10**6, grads)
    fresh = updates_of_a_late_leaf(fa.adam(0.01, b1=0.83, b2=0.97), 0, grads)
    np.testing.assert_allclose(found * np.sqrt(1 - 0.97**k) / (1 - 0.83**k), fresh, rtol=1e-5)
    m = v = 0.0  # and that is Adam's, by hand
    for g, u, i in zip(grads, fresh, k, strict=True):
        m, v = 0.83 * m + 0.17 * g, 0.97 * v + 0.03 * g * g
        assert u == pytest.approx(-0.01 * m / (1 - 0.83**i) / math.sqrt(v / (1 - 0.97**i)), 1e-5)


def test_adopt_is_bounded_by_its_clipping_alone():
    # x = clip(g / 0, c) with c = count**(1/4) = 10, and m = (1 - b1) x.
    found = updates_of_a_late_leaf(fa.adopt(0.01, b1=0.83), 10**4, [2.5])
    np.testing.assert_allclose(found, [-0.01 * 0.17 * 10], rtol=1e-5)
