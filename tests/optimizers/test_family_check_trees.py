"""Every refusal of the family's parameters, states and gradients: what raises, and what it says."""

import collections
import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family_factories import CALLS, FACTORIES, TREE, X, arguments, decaying, having

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


# Parameters -----------------------------------------------------------------------------------

L2 = [name for name in CALLS if "l2" in arguments(name)]
NEEDY = {  # made so that `update` needs the parameters, and why
    **{f"{name}(l2)": (FACTORIES[name](l2=0.21), "l2") for name in L2 if name != "update"},
    **{
        f"{name}(weight_decay)": (FACTORIES[name](weight_decay=0.21), "weight_decay")
        for name in FACTORIES
        if "weight_decay" in arguments(name) and name != "lamb"
    },
    "lamb": (fa.lamb(), "lamb"),
    "cautious(lamb)": (fa.cautious(fa.lamb()), "lamb"),
    "hyperball": (fa.hyperball(fa.adam()), "hyperball"),
    "cautious(adam(l2))": (fa.cautious(fa.adam(l2=0.21)), "l2"),
}
needy = pytest.mark.parametrize(("tx", "why"), NEEDY.values(), ids=NEEDY)


def test_a_start_that_a_moment_cannot_hold_is_refused():
    for start, dtype, nu_dtype in ((1e39, "float32", None), (1e5, "float16", "float16")):
        for factory in (fa.yogi, fa.scale_by_yogi):
            tx = factory(initial_accumulator_value=start, nu_dtype=nu_dtype)
            said = rf"initial_accumulator_value={re.escape(repr(start))} is infinite in {dtype}"
            with pytest.raises(ValueError, match=said):
                tx.init(jnp.ones(2))


def test_a_bound_without_clipping_is_refused():
    for factory in (fa.adopt, fa.scale_by_adopt):
        for bound in (2.0, lambda count: 2.0):
            with pytest.raises(
                ValueError, match=r"^clip_value_fn has no effect with use_clipping=False"
            ):
                factory(clip_value_fn=bound, use_clipping=False)
        factory(clip_value_fn=2.0)


@needy
def test_what_needs_the_parameters_says_why_and_how(tx, why):
    message = rf"^{why} needs the parameters: call update\(grads, state, params\)"
    if why not in ("lamb", "hyperball"):
        message += rf", or pass {why}=0\.0\.$"
    with pytest.raises(ValueError, match=message):
        tx.update(TREE, tx.init(TREE))


def test_all_that_needs_the_parameters_is_named():
    state = fa.amsgrad().init(X)
    message = r"^weight_decay and l2 need the parameters: .*, or pass weight_decay=0.0, l2=0.0\.$"
    with pytest.raises(ValueError, match=message):
        fa.amsgrad(l2=0.1, weight_decay=0.1).update(X, state)
    message = r"^lamb and weight_decay need the parameters: call update\(grads, state, params\)\.$"
    with pytest.raises(ValueError, match=message):
        fa.lamb(weight_decay=0.1).update(X, fa.init(X))


@pytest.mark.parametrize("name", L2)
def test_l2_needs_parameters_unless_it_is_known_to_be_zero(name):
    def call(l2):
        if name == "update":
            return fa.update(X, fa.init(X), l2=l2)
        tx = FACTORIES[name](l2=l2)
        return tx.update(X, tx.init(X))

    for l2 in (0.1, jnp.float32(0.0), lambda count: 0.1):
        with pytest.raises(ValueError, match=r"^l2 needs the parameters"):
            call(l2)
    for l2 in (0, 0.0, np.float32(0)):
        call(l2)


@needy
def test_parameters_of_another_structure_are_refused(tx, why):
    state = tx.init(TREE)
    for params, said in [
        ({"a": X}, r"params\['b'\] is missing"),
        (TREE | {"c": X}, r"params\['c'\] does not belong there"),
        ({"a": X, "b": X}, r"params\['b'\] is a leaf, where a node of type list belongs"),
        (X, r"params is a leaf, where a node of type dict belongs"),
    ]:
        with pytest.raises(ValueError, match=rf"^params must have the structure of .*: {said}"):
            tx.update(TREE, state, params)


@needy
def test_parameters_of_another_shape_or_kind_are_refused(tx, why):
    state = tx.init(TREE)
    for shape in [(3, 2), (3,), (1, 3), ()]:
        params = {"a": X, "b": [np.ones(shape, np.float32)]}
        said = rf"has shape {re.escape(str(shape))}, but state.mu.* has shape \(2, 3\)"
        with pytest.raises(ValueError, match=rf"^params\['b'\]\[0\] {said}"):
            tx.update(TREE, state, params)
    for leaf, said in [
        (None, "must be an array; got None"),
        (np.ones((2, 3), np.complex64), "is complex64, but .* is float32"),
        (np.ones((2, 3), np.int32), "must be a float or complex array; got dtype int32"),
    ]:
        with pytest.raises(TypeError, match=rf"^params\['b'\]\[0\] {said}"):
            tx.update(TREE, state, {"a": X, "b": [leaf]})


# States ---------------------------------------------------------------------------------------

KEEPS = {"amsgrad": "nu_max", "scale_by_amsgrad": "nu_max"} | {
    "ademamix": "mu_slow",
    "scale_by_ademamix": "mu_slow",
}
STATES = {
    None: fa.adam().init(TREE),
    "nu_max": fa.amsgrad().init(TREE),
    "mu_slow": fa.ademamix().init(TREE),
}


@pytest.mark.parametrize("factory", CALLS)
@pytest.mark.parametrize("kept", STATES, ids=str)
def test_a_state_of_another_variant_is_refused(factory, kept):
    keeps = KEEPS.get(factory)
    update = fa.update if factory == "update" else FACTORIES[factory]().update
    if keeps == kept:
        update(TREE, STATES[kept], TREE)
        return
    holds = f"the trees ['{kept}']" if kept else "no trees"
    wanted = f"the trees ['{keeps}']" if keeps else "no trees"
    named = {"update": "adam", "adamw": "adam", "nadamw": "nadam", "adamaxw": "adamax"}
    name = named.get(factory, factory.removeprefix("scale_by_").replace("belief", "adabelief"))
    name = name.replace("adaadabelief", "adabelief")
    message = re.escape(f"state.extra holds {holds}, but {name} needs {wanted} there: ")
    with pytest.raises(ValueError, match=f"^{message}.*`init` of the same transformation"):
        update(TREE, STATES[kept], TREE)


@pytest.mark.parametrize("factory", KEEPS)
def test_further_or_fewer_trees_are_refused(factory):
    tx, name = FACTORIES[factory](), KEEPS[factory]
    state = tx.init(TREE)
    both = {"nu_max": state.nu, "mu_slow": state.mu}
    for extra, holds in [
        (both, r"the trees \['nu_max', 'mu_slow'\]"),
        ({1: state.nu, "x": state.nu}, r"the trees \[1, 'x'\]"),
        ({}, "no trees"),
        ({"nu_maximum": state.nu}, r"the trees \['nu_maximum'\]"),
    ]:
        with pytest.raises(ValueError, match=rf"^state.extra holds {holds}, but .*\['{name}'\]"):
            tx.update(TREE, state._replace(extra=extra), TREE)


def with_leaf(state, name, leaf):
    """`state` with another leaf in its tree `name`."""
    return state._replace(extra={name: {"a": state.extra[name]["a"], "b": [leaf]}})


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("factory", KEEPS)
def test_a_leaf_of_a_further_tree_that_does_not_fit_is_named(factory, wrap):
    tx, name = FACTORIES[factory](), KEEPS[factory]
    state, update = tx.init(TREE), wrap(tx.update)
    path = rf"^state.extra\['{name}'\]\['b'\]\[0\]"
    for shape in [(3, 2), (3,), (1, 3), ()]:
        with pytest.raises(ValueError, match=rf"{path} has shape {re.escape(str(shape))}, but "):
            update(TREE, with_leaf(state, name, jnp.zeros(shape)), TREE)
    for dtype in (jnp.bfloat16, jnp.complex64):
        leaf = jnp.zeros((2, 3), dtype)
        with pytest.raises(
            ValueError, match=rf"{path} is {leaf.dtype}, but must have .* moment, float32"
        ):
            update(TREE, with_leaf(state, name, leaf), TREE)
    with pytest.raises(TypeError, match=rf"{path} must be a float or complex array; got .*int32"):
        update(TREE, with_leaf(state, name, jnp.zeros((2, 3), jnp.int32)), TREE)
    with pytest.raises(TypeError, match=rf"{path} must be an array; got None"):
        update(TREE, with_leaf(state, name, None), TREE)


@pytest.mark.parametrize("factory", ["update", "adam", "amsgrad"])
@pytest.mark.parametrize("extra", [X, [X, X], "nu_max", collections.OrderedDict(nu_max=TREE)])
def test_extra_is_none_or_a_dict(factory, extra):
    update = fa.update if factory == "update" else FACTORIES[factory]().update
    state = fa.init(TREE)._replace(extra=extra)
    given = type(extra).__name__
    with pytest.raises(TypeError, match=f"^state.extra must be None or a dict .*got {given}"):
        update(TREE, state)


@pytest.mark.parametrize("factory", KEEPS)
def test_a_further_tree_of_another_structure_is_named(factory):
    tx, name = FACTORIES[factory](), KEEPS[factory]
    state = tx.init(TREE)
    for tree, said in [
        ({"a": X}, r"\['b'\] is missing"),
        (TREE | {"c": X}, r"\['c'\] does not belong there"),
        ({"a": X, "b": [X, X]}, r"\['b'\]\[1\] does not belong there"),
        (None, "is None, where a node of type dict belongs"),
        (X, "is a leaf, where a node of type dict belongs"),
    ]:
        path = rf"state.extra\['{name}'\]"
        message = rf"^{path} must have the structure of state.mu: {path}.*{said}"
        with pytest.raises(ValueError, match=message):
            tx.update(TREE, state._replace(extra={name: tree}), TREE)


@having({"mu_dtype", "nu_dtype"})
def test_a_state_of_another_dtype_than_asked_for_is_refused(factory, argument):
    moment = argument.removesuffix("_dtype")
    message = rf"^state.{moment}\['a'\] is float32, but {argument}=bfloat16 was given"
    if factory == "update":
        update, state = lambda *a: fa.update(*a, **{argument: "bfloat16"}), fa.init(TREE)
    else:
        make = FACTORIES[factory]
        update, state = make(**{argument: "bfloat16"}).update, make().init(TREE)
    with pytest.raises(ValueError, match=message):
        update(TREE, state, TREE)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_foreign_state_is_refused(factory):
    tx = FACTORIES[factory]()
    state = tx.init(X)
    for foreign in (None, (), {"count": 0}, (state,), tuple(state), state.mu, optax.EmptyState()):
        with pytest.raises(TypeError, match=r"^state must be an AdamState.*; got "):
            tx.update(X, foreign, X)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_batched_state_points_to_vmap(factory):
    tx = FACTORIES[factory]()
    batch = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"^state.count .*\(4,\).*jax.vmap"):
        tx.update(batch, jax.vmap(tx.init)(batch), batch)


# Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", FACTORIES)
def test_gradients_that_do_not_fit_are_named(factory):
    tx = FACTORIES[factory]()
    state = tx.init(TREE)
    with pytest.raises(ValueError, match=r"^grads must have the structure .*: grads\['b'\] is mis"):
        tx.update({"a": X}, state, TREE)
    with pytest.raises(ValueError, match=r"^grads\['b'\]\[0\] has shape \(3,\), but .* \(2, 3\)"):
        tx.update({"a": X, "b": [np.ones(3, np.float32)]}, state, TREE)
    with pytest.raises(TypeError, match=r"^grads\['a'\] is complex64, but .* is float32"):
        tx.update(TREE | {"a": X.astype(np.complex64)}, state, TREE)
    with pytest.raises(TypeError, match=r"^grads\['a'\] must be a float or complex array; .*int32"):
        tx.update(TREE | {"a": X.astype(np.int32)}, state, TREE)


@pytest.mark.parametrize("factory", FACTORIES)
def test_what_cannot_be_trained_is_refused_at_init(factory):
    tx = FACTORIES[factory]()
    for leaf, said in [
        (np.arange(3), "a float or complex array; got dtype int"),
        ("w", "an array"),
    ]:
        with pytest.raises(TypeError, match=rf"^params\['b'\]\[0\] must be {said}"):
            tx.init({"a": X, "b": [leaf]})


# Nothing is changed ---------------------------------------------------------------------------


@pytest.mark.parametrize("factory", FACTORIES)
def test_no_argument_is_changed_by_an_update_or_an_error(factory):
    hyper = decaying(factory)
    hyper |= {"mask": {"a": True, "b": [False]}} if "mask" in arguments(factory) else {}
    tx = FACTORIES[factory](**hyper)
    # NumPy arrays, which could be written to.
    given = [jax.tree.map(np.array, tree) for tree in (TREE, tx.init(TREE), TREE)]
    kept = copy.deepcopy((given, hyper))
    grads, state, params = given

    _, after = tx.update(grads, state, params)
    assert int(after.count) == 1

    short = [np.ones(3, np.float32)]  # the first leaf is good: has it been used?
    with pytest.raises(ValueError, match=r"^grads\['b'\]\[0\] has shape"):
        tx.update(grads | {"b": short}, state, params)
    with pytest.raises(ValueError, match=r"^state.nu\['b'\]\[0\] has shape"):
        tx.update(grads, state._replace(nu=state.nu | {"b": short}), params)

    assert jax.tree.structure((given, hyper)) == jax.tree.structure(kept)
    jax.tree.map(np.testing.assert_array_equal, (given, hyper), kept)


@pytest.mark.parametrize("factory", KEEPS)
def test_an_update_or_an_error_leaves_the_dict_of_further_trees_alone(factory):
    tx, name = FACTORIES[factory](), KEEPS[factory]
    state = tx.init(TREE)
    extra = state.extra
    tree = extra[name]
    _, after = tx.update(TREE, state, TREE)
    with pytest.raises(ValueError, match=r"^grads\['b'\]\[0\] has shape"):
        tx.update(TREE | {"b": [X]}, state, TREE)
    assert state.extra is extra
    assert extra == {name: tree}
    assert extra[name] is tree
    assert after.extra is not extra
