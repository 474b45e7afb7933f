"""A live state for other parameters: what is refused, and what the message names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES, format_named
from extended import ADAMW, BIAS, HEAD, NEW, OLD, TXS, assert_same, live
from quick import quick_jit

import functional_adam as fa


def changed(**leaves):
    return {**OLD, "dense": {**OLD["dense"], **leaves}}


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            changed(bias=jnp.ones(7)),
            r"params\['dense'\]\['bias'\] has shape \(7,\) in new_params, but \(3,\) in "
            r"old_params. To restart its moments at zero, pass restart=\[\"params\['dense'\]"
            r"\['bias'\]\"\]",
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
            r"restart has \"\['dense'\]\['bias'\]\", which .* Did you mean "
            r"\"params\['dense'\]\['bias'\]\"",
        ),
        (
            ["bias"],
            ValueError,
            r"restart has 'bias', which .* Did you mean .*\['dense'\]\['bias'\]",
        ),
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
    small, large = (fa.adam(moments=fa.Int8(block_size=n, min_size=0)) for n in (32, 64))
    with pytest.raises(ValueError, match=r"nu_scale\['w'\] has shape \(2, 8\), but .* \(2, 4\)"):
        fa.extend_state(large, small.init(wide), wide, wide)


def test_a_parameter_that_moves_between_partitions_is_refused():
    _, params, state = live("partition")
    moved = optax.partition({"kernel": ADAMW, "other": fa.adam(0.2)}, lambda p: "other")
    with pytest.raises(ValueError, match=r"old_state has no leaf .*\['kernel'\]"):
        fa.extend_state(moved, state, params, {**params, "head": HEAD})


def test_tx_must_be_a_transformation():
    with pytest.raises(TypeError, match="tx must be a gradient transformation, such as adam"):
        fa.extend_state(fa.adam, ADAM.init(OLD), OLD, NEW)


def test_layers_in_boxes_come_and_go():
    linen = pytest.importorskip("flax.linen")

    def boxed(shape):
        return linen.Partitioned(jnp.ones(shape, jnp.bfloat16), names=(None,) * len(shape))

    tx = fa.adamw(0.1, b1=0.8, moments=CODES, rounding="compensated")
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
        there = quick_jit(functools.partial(fa.convert_moments, moments=format_named(moments)))(
            state, large
        )
        back = quick_jit(functools.partial(fa.convert_moments, moments=CODES))(there, large)
        assert jax.tree.structure(back) == jax.tree.structure(state)
