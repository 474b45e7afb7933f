"""A live state for other parameters: what is kept, what is new, what the late start costs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick_jit

import functional_adam as fa

RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02}
OLD = {
    "dense": {"kernel": jnp.linspace(-1, 2, 6).reshape(2, 3), "bias": jnp.arange(3.0) + 0.3},
    "gain": jnp.float32(0.7),
}
HEAD = {"kernel": jnp.linspace(0.2, 1, 12).reshape(3, 4), "bias": None}
NEW = {**OLD, "head": HEAD}


def gradients(params, scale):
    return jax.tree.map(lambda p: (p * scale + 0.1).astype(p.dtype), params)


@functools.partial(quick_jit, static_argnums=0)
def step(tx, params, state, scale):
    updates, state = tx.update(gradients(params, scale), state, params)
    return fa.apply_updates(params, updates), state


def run(tx, params, state, scales=(0.7, -1.3, 0.4)):
    for scale in scales:
        params, state = step(tx, params, state, scale)
    return params, state


def by_path(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(map(same, jax.tree.leaves(a), jax.tree.leaves(b)))


def only_kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path[-1]), params)


def labels(params):
    kinds = {True: "kernel", False: "other"}
    return jax.tree.map(kinds.get, only_kernels(params))


ADAMW = fa.adamw(0.03, weight_decay=0.1, **RATES)
TXS = {
    "adam": fa.adam(0.03, **RATES),
    "bfloat16": fa.adam(0.03, **RATES, moments="bfloat16"),
    "int8": fa.adam(0.03, **RATES, moments="int8"),
    "amsgrad": fa.amsgrad(0.03, **RATES),
    "ademamix": fa.ademamix(0.03),
    "chain": optax.chain(optax.clip(0.9), optax.trace(0.4), ADAMW),
    "named_chain": optax.named_chain(("clip", optax.clip(0.9)), ("adam", ADAMW)),
    "masked": optax.masked(ADAMW, only_kernels),
    "inject": optax.inject_hyperparams(fa.adamw)(lambda count: 0.1 / (1 + count), **RATES),
    "partition": optax.partition({"kernel": ADAMW, "other": fa.adam(0.2)}, labels),
    "MultiSteps": optax.MultiSteps(ADAMW, 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(ADAMW, 3),
}
every_tx = pytest.mark.parametrize("name", TXS)


@functools.cache
def live(name):
    tx = TXS[name]
    return tx, *run(tx, OLD, tx.init(OLD))


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


BIAS = "params['dense']['bias']"


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


# ---- Errors ----


def changed(**leaves):
    return {**OLD, "dense": {**OLD["dense"], **leaves}}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            changed(bias=jnp.ones(7)),
            r"params\['dense'\]\['bias'\] has shape \(7,\) in new_params, but \(3,\) in "
            r"old_params. To begin its moments anew, pass restart=\[\"params\['dense'\]\['bias'"
            r"\]\"\]",
        ),
        (
            changed(bias=jnp.ones(3, jnp.bfloat16)),
            r"params\['dense'\]\['bias'\] is bfloat16 in new_params, but float32 in old_params. To",
        ),
    ],
)
def test_a_changed_leaf_is_refused(new, message):
    tx, _, state = live("adam")
    with pytest.raises(ValueError, match=message):
        fa.extend_state(tx, state, OLD, new)


@pytest.mark.parametrize(
    ("restart", "error", "message"),
    [
        (BIAS, TypeError, "restart must be a collection of paths"),
        (len, TypeError, "restart must be a collection of paths"),
        ([3], TypeError, "restart must hold strings; got 3"),
        (
            ["['dense']['bias']"],
            ValueError,
            r"restart has \"\['dense'\]\['bias'\]\", which .* write it as "
            r"\"params\['dense'\]\['bias'\]\"",
        ),
        (["bias"], ValueError, r"restart has 'bias', which .* write it as .*\['dense'\]\['bias'\]"),
        (
            ["params['lost']"],
            ValueError,
            r"restart has \"params\['lost'\]\", which is not the path",
        ),
    ],
)
def test_restart_must_name_parameters(restart, error, message):
    tx, _, state = live("adam")
    with pytest.raises(error, match=message):
        fa.extend_state(tx, state, OLD, NEW, restart=restart)


ADAM = TXS["adam"]
OTHERS = {
    "another chain": (TXS["chain"], r"old_state has no leaf \[\d\]\.\w+.*, which tx.init makes"),
    "another format": (
        TXS["int8"],
        r"old_state\.mu\['dense'\].* is float32, but tx.init makes int8",
    ),
    "another dtype": (
        fa.adam(mu_dtype="bfloat16"),
        r"old_state\.mu\['.* is float32, but tx.init makes bfloat16",
    ),
    "another variant": (TXS["amsgrad"], r"old_state has no leaf \.extra\['nu_max'\]"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_transformation_is_refused(name):
    tx, message = OTHERS[name]
    with pytest.raises(ValueError, match=message + ".*must be a state of tx for old_params"):
        fa.extend_state(tx, ADAM.init(OLD), OLD, NEW)


def test_nothing_but_gone_parameters_is_dropped():
    state = TXS["amsgrad"].init(OLD)
    with pytest.raises(ValueError, match=r"a leaf \.extra\['nu_max'\].*, which tx.init does not"):
        fa.extend_state(ADAM, state, OLD, NEW)
    with pytest.raises(ValueError, match=r"a leaf \.mu\['gain'\], which tx.init does not"):
        fa.extend_state(ADAM, ADAM.init(OLD), {"dense": OLD["dense"]}, {"dense": OLD["dense"]})


def test_another_block_size_is_refused():
    wide = {"w": jnp.ones((2, 256))}
    small, large = (fa.adam(moments=fa.Int8(block_size=n)) for n in (32, 64))
    with pytest.raises(ValueError, match=r"nu_scale\['w'\] has shape \(2, 8\), but .* \(2, 4\)"):
        fa.extend_state(large, small.init(wide), wide, wide)


def test_a_parameter_that_moves_between_partitions_is_refused():
    _, params, state = live("partition")
    moved = optax.partition({"kernel": ADAMW, "other": fa.adam(0.2)}, lambda p: "other")
    with pytest.raises(ValueError, match=r"old_state has no leaf .*\['kernel'\]"):
        fa.extend_state(moved, state, params, {**params, "head": HEAD})


def test_tx_must_be_a_transformation():
    with pytest.raises(TypeError, match="tx must be a gradient transformation with an init"):
        fa.extend_state(fa.adam, ADAM.init(OLD), OLD, NEW)


def test_layers_in_boxes_come_and_go():
    linen = pytest.importorskip("flax.linen")

    def boxed(shape):
        return linen.Partitioned(jnp.ones(shape, jnp.bfloat16), names=(None,) * len(shape))

    tx = fa.adamw(0.1, b1=0.8, moments="int8", rounding="compensated")
    small = {"w": boxed((3, 40))}
    large = small | {"head": boxed((5, 2))}
    _, state = quick_jit(tx.update)(large, tx.init(large), large)
    shrunk = fa.extend_state(tx, state, large, small)
    assert_same(shrunk.nu_scale, {"w": state.nu_scale["w"]})
    assert_same(shrunk.residual, {"w": state.residual["w"]})
    grown = fa.extend_state(tx, shrunk, small, large)
    assert jax.tree.structure(grown) == jax.tree.structure(state)
    assert_same(grown.mu["w"], state.mu["w"])
    assert not np.any(grown.nu_scale["head"])
    for moments in ("full", "bfloat16"):
        there = quick_jit(functools.partial(fa.convert_moments, moments=moments))(state, large)
        back = quick_jit(functools.partial(fa.convert_moments, moments="int8"))(there, large)
        assert jax.tree.structure(back) == jax.tree.structure(state)
