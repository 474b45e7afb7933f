"""Every refusal of a tree or a state: what raises, when, and that the message says what to do."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

X = np.ones(2, np.float32)

FROZEN = [
    (jnp.arange(3), "int32"),
    (jnp.array([True, False]), "bool"),
    (np.zeros(3, jax.dtypes.float0), "float0"),
    (jax.random.key(0), "key<fry>"),
    (7, "int32"),
]


@pytest.mark.parametrize(
    ("leaf", "dtype"), FROZEN, ids=[d for _, d in FROZEN[:-1]] + ["python int"]
)
def test_what_cannot_be_trained_is_named_with_its_path_and_a_way_out(leaf, dtype):
    message = rf"\['dense'\]\[0\] must be a float or complex array; got dtype {dtype}.*optax.masked"
    good = {"dense": [jnp.ones(jnp.shape(leaf))]}
    bad = {"dense": [leaf]}
    with pytest.raises(TypeError, match="^params" + message):
        fa.init(bad)
    with pytest.raises(TypeError, match="^grads" + message):
        fa.update(bad, fa.init(good))
    with pytest.raises(TypeError, match="^params" + message):
        fa.update(good, fa.init(good), bad, weight_decay=0.1)


@pytest.mark.parametrize("leaf", [jnp.sin, "relu", object()])
def test_what_is_no_array_points_to_filtering(leaf):
    with pytest.raises(TypeError, match=r"^params\['f'\] must be an array; got .*equinox.filter"):
        fa.init({"f": leaf})


Pair = collections.namedtuple("Pair", ["left", "right"])

STRUCTURES = [
    ({"a": X}, {"a": X, "b": X}, r"\['b'\] is missing"),
    ({"a": X, "b": X}, {"a": X}, r"\['b'\] does not belong there"),
    ({"a": {"c": X}}, {"a": {"d": X}}, r"\['a'\]\['c'\] does not belong there"),
    ({"a": X}, {"a": {"c": X}}, r"\['a'\] is a leaf, where a node of type dict belongs"),
    ({"a": None}, {"a": {"c": X}}, r"\['a'\] is None, where a node of type dict belongs"),
    ({"a": {"c": X}}, {"a": X}, r"\['a'\] is a node of type dict, where a leaf belongs"),
    ({"a": [X, X]}, {"a": (X, X)}, r"\['a'\] is a node of type list, where .* tuple belongs"),
    ({"a": [X, X, X]}, {"a": [X, X]}, r"\['a'\]\[2\] does not belong there"),
    ([X, [X, [X]]], [X, [X, [X, X]]], r"\[1\]\[1\]\[1\] is missing"),
    ((X, X), Pair(X, X), r" is a node of type tuple, where a node of type .*Pair belongs"),
    (Pair(X, {"k": X}), Pair(X, {"j": X}), r"\.right\['k'\] does not belong there"),
    (None, {"a": X}, r" is None, where a node of type dict belongs"),
]


@pytest.mark.parametrize(("given", "wanted", "message"), STRUCTURES)
def test_a_wrong_structure_names_the_first_differing_path(given, wanted, message):
    state = fa.init(wanted)
    with pytest.raises(ValueError, match=r"^grads must have the structure of .*: grads" + message):
        fa.update(given, state)
    if given is not None:
        with pytest.raises(
            ValueError, match=r"^params must have the structure of .*: params" + message
        ):
            fa.update(wanted, state, given, weight_decay=0.1)
    with pytest.raises(
        ValueError, match=r"^updates must have the structure of .*: updates" + message
    ):
        fa.apply_updates(wanted, given)


def test_the_first_of_many_differences_is_named():
    wanted = dict.fromkeys("cdefghij", X)
    for given, message in [
        (dict.fromkeys("defghij", X), r"grads\['c'\] is missing"),
        (wanted | {"a": X, "b": X, "k": X}, r"grads\['a'\] does not belong there"),
    ]:
        with pytest.raises(ValueError, match=message):
            fa.update(given, fa.init(wanted))
    ordered = collections.OrderedDict
    with pytest.raises(ValueError, match=r"grads has different static data or order of keys"):
        fa.update(ordered(b=X, a=X), fa.init(ordered(a=X, b=X)))


def test_a_long_value_is_cut():
    with pytest.raises(TypeError, match=r"^learning_rate must be .{,250}\.\.\. of type dict\.$"):
        fa.adam({f"layer {i}": X for i in range(100)})


def test_deep_trees_are_checked_without_recursion():
    deep = mask = X
    for _ in range(500):
        deep = [deep]
    for _ in range(499):
        mask = [True] if mask is X else [mask]
    fa.adamw(mask=mask).init(deep)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 3)])
def test_nothing_is_broadcast(shape):
    params = {"dense": {"kernel": jnp.ones(3)}}
    other = {"dense": {"kernel": jnp.ones(shape)}}
    state = fa.init(params)
    message = rf"\['dense'\]\['kernel'\] has shape {re.escape(str(shape))}, but .* has shape \(3,\)"
    with pytest.raises(ValueError, match="^grads" + message):
        fa.update(other, state)
    with pytest.raises(ValueError, match="^params" + message):
        fa.update(params, state, other, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"^state.nu" + message):
        fa.update(params, state._replace(nu=other))


def test_a_gradient_for_a_parameter_that_is_none_is_refused():
    state = fa.init({"a": None, "b": X})
    with pytest.raises(ValueError, match=r"^grads\['a'\] is an array, but the parameter .* None"):
        fa.update({"a": X, "b": X}, state)


def test_a_decaying_parameter_that_is_none_beside_its_gradient_is_refused():
    state = fa.init({"a": X, "b": X})
    with pytest.raises(TypeError, match=r"^params\['a'\] must be an array; got None"):
        fa.update({"a": X, "b": X}, state, {"a": None, "b": X}, weight_decay=0.1)


def test_a_complex_gradient_of_a_real_parameter_is_refused():
    z = jnp.ones(2, jnp.complex64)
    with pytest.raises(
        TypeError, match=r"^grads\['a'\] is complex64, but .* is float32: .*all real or"
    ):
        fa.update({"a": z}, fa.init({"a": jnp.ones(2)}))
    with pytest.raises(TypeError, match=r"^grads\['a'\] is complex64, .*leave mu_dtype None"):
        fa.update({"a": z}, fa.init({"a": z}, mu_dtype="float32"))
    with pytest.raises(TypeError, match=r"^params\['a'\] is complex64, but .* is float32"):
        fa.update({"a": X}, fa.init({"a": X}), {"a": z}, weight_decay=0.1)
    with pytest.raises(TypeError, match=r"^grads\['a'\] is float32, but .* is complex64"):
        fa.update({"a": X}, fa.init({"a": z}))


def test_the_plain_update_refuses_what_it_would_not_use():
    state = fa.init({"a": X})
    with pytest.raises(ValueError, match=r"^params must have .*: params is a leaf"):
        fa.update({"a": X}, state, 1e-1)
    for params in (None, {"a": X}):
        with pytest.raises(ValueError, match=r"^mask must be a prefix of the parameters"):
            fa.update({"a": X}, state, params, mask={"b": True})


def test_decay_without_parameters_says_what_to_pass():
    tx = fa.adamw()
    for call in (
        lambda: tx.update(X, tx.init(X)),
        lambda: fa.update(X, fa.init(X), weight_decay=0.1),
        lambda: fa.update(X, fa.init(X), weight_decay=jnp.float32(0.0)),
        lambda: fa.update(X, fa.init(X), weight_decay=lambda count: 0.1),
    ):
        with pytest.raises(
            ValueError, match=r"^weight_decay needs .* update\(grads, state, params\)"
        ):
            call()
    fa.adamw(weight_decay=0).update(X, tx.init(X))


@pytest.mark.parametrize(
    "state", [None, (), {"count": 0}, (fa.init(X),), tuple(fa.init(X)), fa.init(X).mu]
)
def test_a_foreign_state_is_refused(state):
    with pytest.raises(TypeError, match=r"^state must be an AdamState.*; got "):
        fa.update(X, state)


def test_a_batched_state_points_to_vmap():
    batched = jax.vmap(fa.init)(jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"^state.count .*\(4,\).*jax.vmap"):
        fa.update(jnp.ones((4, 2)), batched)


@pytest.mark.parametrize("count", [None, 3, jnp.float32(0), jnp.int8(3), jnp.uint32(1)])
def test_a_count_of_another_type_is_refused(count):
    with pytest.raises(TypeError, match=r"^state.count must be an int32 array.*; got "):
        fa.update(X, fa.init(X)._replace(count=count))


@pytest.mark.parametrize("name", ["mu", "nu"])
def test_a_state_of_another_dtype_than_asked_for_is_refused(name):
    tx = fa.adam(**{f"{name}_dtype": "bfloat16"})
    with pytest.raises(ValueError, match=rf"^state.{name}\['a'\] is float32, but {name}_dtype=bfl"):
        tx.update({"a": X}, fa.init({"a": X}))
    short = fa.init({"a": X}, **{f"{name}_dtype": "bfloat16"})
    with pytest.raises(ValueError, match=rf"^state.{name}\['a'\] is bfloat16, but {name}_dtype=f"):
        fa.adam(**{f"{name}_dtype": "float32"}).update({"a": X}, short)


def test_an_error_leaves_the_state_as_it_was():
    params = {"a": X, "b": X}
    tx = fa.adamw()
    state = tx.init(params)
    kept = jax.tree.map(np.array, state)
    with pytest.raises(ValueError, match=r"grads\['b'\]"):
        tx.update({"a": X, "b": np.ones(3, np.float32)}, state, params)
    jax.tree.map(np.testing.assert_array_equal, state, kept)
