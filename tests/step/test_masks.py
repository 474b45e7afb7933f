"""Decay masks: what is called, what is a tree, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

X = np.ones(2, np.float32)


@pytest.mark.parametrize("leaf", [1, 0.5, "w", jnp.array(True), np.array([True])])
def test_a_mask_holds_booleans(leaf):
    with pytest.raises(TypeError, match=r"^mask\['w'\] must be True or False; got "):
        fa.adamw(mask={"w": leaf})
    tx = fa.adamw(mask=lambda params: {"w": leaf})
    with pytest.raises(TypeError, match=r"^mask\['w'\] must be True or False; got "):
        tx.init({"w": X})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"a": True}, r"mask\['b'\] is missing"),
        ({"a": True, "b": True, "c": False}, r"mask\['c'\] does not belong there"),
        ({"a": {"z": True}, "b": True}, r"mask\['a'\] is a node of type dict, where a leaf"),
        ([True, False], r"mask is a node of type list, where a node of type dict belongs"),
        ({"a": True, "b": [True]}, r"mask\['b'\] is a node of type list, where .* dict"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_at_init_and_update(mask, message):
    params = {"a": X, "b": {"c": X}}
    for tx in (fa.adamw(mask=mask), fa.adamw(mask=lambda _: mask)):
        with pytest.raises(ValueError, match=rf"^mask must be a prefix of .*: {message}"):
            tx.init(params)
        with pytest.raises(ValueError, match=rf"^mask must be a prefix of .*: {message}"):
            tx.update(params, fa.init(params), params)


def test_a_mask_of_none_for_an_array_is_refused():
    with pytest.raises(TypeError, match=r"^mask has None"):
        fa.adamw(mask={"a": None, "b": True}).init({"a": X, "b": X})
    fa.adamw(mask={"a": None, "b": True}).init({"a": None, "b": X})


# What is called, and what is a tree -----------------------------------------------------------

MASKED = [fa.adamw, fa.adamaxw, fa.ademamix, fa.amsgrad, fa.lamb, fa.nadamw]


def decayed(tx, params):
    """Which leaves move although their gradients are 0."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    return jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)


@pytest.fixture
def model():
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    return eqx.filter(mlp, eqx.is_inexact_array)


@pytest.mark.parametrize("make", MASKED)
def test_a_callable_module_of_booleans_is_a_tree(make, model):
    mask = jax.tree.map(lambda p: p.ndim > 1, model)
    assert callable(mask)
    assert jax.tree.leaves(mask) == [True, False] * 2
    found = decayed(make(0.03, weight_decay=0.4, mask=mask), model)
    assert jax.tree.leaves(found) == [True, False] * 2


def test_a_callable_module_of_array_booleans_is_no_function(model):
    mask = jax.tree.map(lambda p: jnp.array(p.ndim > 1), model)
    with pytest.raises(TypeError, match=r"mask.layers\[0\].weight must be True or False; got Arr"):
        fa.adamw(mask=mask)


def test_a_function_may_return_a_callable_module(model):
    tx = fa.adamw(0.03, weight_decay=0.4, mask=lambda m: jax.tree.map(lambda p: p.ndim > 1, m))
    assert jax.tree.leaves(decayed(tx, model)) == [True, False] * 2


def below(least, params):
    return jax.tree.map(lambda p: p.ndim >= least, params)


class Matrices:
    def __call__(self, params):
        return below(2, params)

    def method(self, params):
        return below(2, params)


def module_without_leaves():
    eqx = pytest.importorskip("equinox")

    class Ranks(eqx.Module):
        least: int = eqx.field(static=True)

        def __call__(self, params):
            return below(self.least, params)

    return Ranks(2)


FUNCTIONS = {
    "lambda": lambda: lambda params: below(2, params),
    "partial": lambda: functools.partial(below, 2),
    "partial of a boolean": lambda: functools.partial(lambda b, params: below(1 + b, params), True),
    # A tree, whose leaf is the boolean, but no tree of parameters.
    "module of a function and a boolean": lambda: pytest.importorskip("equinox").Partial(
        lambda p, more: below(1 + more, p), more=True
    ),
    "tree_util.Partial": lambda: jax.tree_util.Partial(lambda b, p: below(1 + b, p), True),
    "object": Matrices,
    "method": lambda: Matrices().method,
    "module without leaves": module_without_leaves,
}


@pytest.mark.parametrize("mask", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_every_kind_are_called(mask):
    tx = fa.adamw(0.03, weight_decay=0.4, mask=mask())
    params = {"w": jnp.ones((2, 1)), "b": jnp.ones(2)}
    assert decayed(tx, params) == {"w": True, "b": False}


def test_a_jitted_function_is_called_and_makes_arrays_which_are_refused():
    tx = fa.adamw(mask=jax.jit(lambda params: jax.tree.map(lambda p: p.ndim > 1, params)))
    with pytest.raises(TypeError, match=r"^mask\['b'\] must be True or False; got Array"):
        tx.init({"w": jnp.ones((2, 1)), "b": jnp.ones(2)})


# One boolean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MASKED)
@pytest.mark.parametrize("value", [True, False, np.bool_(False)])
def test_one_boolean_beside_a_decay_is_refused(make, value):
    wanted = (
        rf"^mask={value} makes (every|no) parameter decay: .* instead.*static_args=\(\"mask\",\)"
    )
    for decay in (0.03, jnp.float32(0.0), lambda count: 0.0):
        with pytest.raises(ValueError, match=wanted):
            make(0.02, weight_decay=decay, mask=value)
    make(0.02, weight_decay=0.0, mask=value)  # nothing decays, whatever the mask


def test_one_boolean_is_refused_by_the_plain_update():
    with pytest.raises(ValueError, match=r"^mask=False makes no parameter decay"):
        fa.update(X, fa.init(X), X, weight_decay=0.03, mask=False)


@pytest.mark.parametrize(
    "mask",
    [
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        lambda params: jax.tree.map(lambda p: p.ndim < 2, params),
        lambda params: jax.tree_util.tree_map_with_path(lambda path, _: "b" not in path, params),
        lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    ],
)
def test_a_mask_function_under_inject_hyperparams_is_refused(mask):
    optax = pytest.importorskip("optax")
    params = {"w": jnp.ones((2, 1)), "b": jnp.ones(2)}
    tx = optax.inject_hyperparams(fa.adamw)(0.02, weight_decay=0.3, mask=mask)
    with pytest.raises(ValueError, match=r"^mask=(True|False) .*static_args=\(\"mask\",\)"):
        tx.init(params)
    named = optax.inject_hyperparams(fa.adamw, static_args=("mask",))
    tx = named(0.02, weight_decay=0.3, mask=mask)
    expected = jax.tree.map(bool, mask(params))
    assert decayed(tx, params) == expected
