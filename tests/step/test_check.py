"""Every refusal: what raises, when, and that the message says what to do."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

X = np.ones(2, np.float32)

NUMBERS = {
    "learning_rate": (fa.adam, fa.adamw),
    "b1": (fa.adam, fa.adamw, fa.scale_by_adam),
    "b2": (fa.adam, fa.adamw, fa.scale_by_adam),
    "eps": (fa.adam, fa.adamw, fa.scale_by_adam),
    "eps_root": (fa.adam, fa.adamw, fa.scale_by_adam),
    "weight_decay": (fa.adamw,),
}
CASES = [(name, factory) for name, factories in NUMBERS.items() for factory in factories]


def plain_update(**hyper):
    params = jnp.ones(2)
    return fa.update(params, fa.init(params), params, **hyper)


def every_way(name, factory):
    return (factory, plain_update) if factory is NUMBERS[name][0] else (factory,)


@pytest.mark.parametrize(("name", "factory"), CASES)
@pytest.mark.parametrize("value", [-0.1, -3, np.float32(-1), float("nan"), float("inf"), np.inf])
def test_a_number_out_of_range_names_argument_range_and_value(name, factory, value):
    allowed = "in [0, 1)" if name in ("b1", "b2") else ">= 0"
    message = f"^{name} must be .*{re.escape(allowed)}.*; got {re.escape(repr(value))}"
    for call in every_way(name, factory):
        with pytest.raises(ValueError, match=message):
            call(**{name: value})


@pytest.mark.parametrize("name", ["b1", "b2"])
@pytest.mark.parametrize("value", [1, 1.0, 1.5, np.float64(1)])
def test_a_decay_rate_of_one_or_more_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be a number in \[0, 1\)"):
        fa.adam(**{name: value})


@pytest.mark.parametrize(("name", "factory"), CASES)
@pytest.mark.parametrize(
    "value",
    [None, "0.1", True, np.True_, 1j, [0.1], {"a": 0.1}, jnp.ones((), bool), 1j + np.ones(())],
)
def test_a_value_of_the_wrong_type_names_argument_and_type(name, factory, value):
    for call in every_way(name, factory):
        with pytest.raises(TypeError, match=rf"^{name} must be .*; got "):
            call(**{name: value})


RATES = [("b1", fa.adam), ("b2", fa.adamw), ("b2", fa.scale_by_adam), ("b3", fa.ademamix)]
INTO_A_RATE = r"hyperparam_dtype=jnp.float32"


@pytest.mark.parametrize(("name", "factory"), RATES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_decay_rate_of_16_bits_is_refused_by_its_dtype(name, factory, dtype):
    wanted = rf"^{name} must not be {dtype}, in which 0.9999 is 1.*{INTO_A_RATE}"
    value = jnp.asarray(0.75, dtype)  # though this one is exact
    with pytest.raises(TypeError, match=wanted):
        factory(**{name: value})
    with pytest.raises(TypeError, match=wanted):
        jax.eval_shape(lambda b: factory(**{name: b}).init(X), value)
    factory(**{name: jnp.asarray(0.75, "float32")})
    factory(**{name: np.float16(0.75)})  # NumPy's are known by value
    with pytest.raises(ValueError, match=rf"^{name} must be a number in \[0, 1\)"):
        factory(**{name: np.float16(0.9999)})


def test_a_scheduled_decay_rate_of_16_bits_is_refused():
    tx = fa.ademamix(b3=lambda count: jnp.bfloat16(0.9))
    with pytest.raises(TypeError, match=r"^b3\(count\) must not be bfloat16"):
        tx.update(X, tx.init(X))


@pytest.mark.parametrize("name", ["eps", "eps_root"])
def test_an_eps_that_cannot_be_small_is_refused_by_its_dtype(name):
    with pytest.raises(TypeError, match=rf"^{name} must not be float16, in which 1e-8 is 0"):
        fa.adam(**{name: jnp.float16(0.25)})
    fa.adam(**{name: jnp.bfloat16(1e-8)})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_inject_hyperparams_of_a_16_bit_model_raises_and_says_how(dtype):
    optax = pytest.importorskip("optax")
    params = jnp.asarray(X, dtype)
    with pytest.raises(TypeError, match=INTO_A_RATE):
        optax.inject_hyperparams(fa.adamw)(0.02).init(params)
    tx = optax.inject_hyperparams(fa.adamw, hyperparam_dtype=jnp.float32)(0.02, b2=0.9999)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(np.float32(updates), -0.02, rtol=2**-7)


@pytest.mark.parametrize(("name", "factory"), CASES)
def test_an_array_of_values_points_to_vmap(name, factory):
    for call in every_way(name, factory):
        with pytest.raises(ValueError, match=rf"^{name} .* shape \(2,\).*jax.vmap"):
            call(**{name: jnp.array([0.1, 0.2])})
        with pytest.raises(TypeError, match=rf"^{name} must be "):
            call(**{name: np.array([0.1, 0.2])})


@pytest.mark.parametrize("name", ["b1", "b2", "eps", "eps_root"])
def test_only_learning_rate_and_decay_may_be_schedules(name):
    with pytest.raises(TypeError, match=rf"^{name} must be .*; got <function.*inject_hyperparams"):
        fa.adam(**{name: lambda count: 0.1})


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_what_a_schedule_returns_is_checked(name):
    params = jnp.ones(2)
    for value, error in [(-0.1, ValueError), (None, TypeError), (jnp.ones(3), ValueError)]:
        tx = fa.adamw(**{name: lambda _, value=value: value})
        with pytest.raises(error, match=rf"^{name}\(count\) must be "):
            tx.update(params, tx.init(params), params)


def test_a_decay_rate_that_float32_rounds_to_one_raises_where_it_is_used(x64):
    b2 = 1 - 1e-9
    tx = fa.adam(b2=b2)
    ones = jnp.ones(2, jnp.float32)
    with pytest.raises(ValueError, match=r"^b2=0.999999999 is 1 in float32.* at most 0.99999994"):
        tx.update(ones, tx.init(ones))
    wide = jnp.full(2, 0.3, jnp.float64)
    u, _ = tx.update(wide, tx.init(wide))
    np.testing.assert_allclose(u, -1e-3, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [None, 1, "yes", np.True_])
def test_flags_are_booleans(nesterov):
    for factory in (fa.adam, fa.adamw, fa.scale_by_adam, plain_update):
        with pytest.raises(TypeError, match=r"^nesterov must be True or False; got "):
            factory(nesterov=nesterov)


@pytest.mark.parametrize("name", ["mu_dtype", "nu_dtype"])
@pytest.mark.parametrize(
    "dtype",
    [jnp.int8, "int32", bool, "nonsense", 3, lambda count: 0.1, np.float16(0), jnp.bfloat16(3)],
)
def test_moment_dtypes_are_float_dtypes(name, dtype):
    init = lambda **kw: fa.init(jnp.ones(2), **kw)  # noqa: E731
    for factory in (fa.adam, fa.adamw, fa.scale_by_adam, plain_update, init):
        with pytest.raises(TypeError, match=rf"^{name} must be None or a float dtype"):
            factory(**{name: dtype})


def test_the_second_moment_is_real():
    with pytest.raises(TypeError, match=r"^nu_dtype must be None or a float dtype"):
        fa.adam(nu_dtype=jnp.complex64)


@pytest.mark.parametrize("name", ["mu_dtype", "nu_dtype"])
def test_a_64_bit_moment_needs_64_bit_mode(name):
    with pytest.raises(ValueError, match=rf"^{name}=float64 needs 64-bit mode.*jax_enable_x64"):
        fa.adam(**{name: "float64"})


@pytest.mark.parametrize("names", [("mu_dtype",), ("nu_dtype",), ("mu_dtype", "nu_dtype")])
def test_moments_of_16_bits_are_taken_where_they_were_asked_for(names):
    params, grads = {"w": jnp.full((2, 3), 0.7)}, {"w": jnp.full((2, 3), 0.4)}
    asked = dict.fromkeys(names, "float16")
    state = fa.init(params, **asked)
    fa.update(grads, state, **asked)
    fa.adam(moments=fa.Full(**asked)).update(grads, state)
    unasked = rf"^state\.{names[0][:2]}\['w'\] is float16, .*pass {names[0]}=\"float16\" if it is"
    of_amsgrad = state._replace(extra={"nu_max": state.nu})
    for call, given in (
        (fa.update, state),
        (fa.adam().update, state),
        (fa.scale_by_adam().update, state),
        (fa.amsgrad().update, of_amsgrad),
    ):
        with pytest.raises(ValueError, match=unasked):
            call(grads, given)


def test_one_moment_that_lost_half_its_precision_is_told(x64):
    for params, dtypes in (
        (jnp.full(3, 0.7), "float64 and state.nu float32"),
        (jnp.full(3, 0.7 + 0.2j), "complex128 and state.nu float32"),
    ):
        state = fa.init(params)
        fa.update(params, state)
        state = state._replace(nu=state.nu.astype(jnp.float32))
        with pytest.raises(ValueError, match=rf"^state\.mu is {dtypes}: without mu_dtype and nu_"):
            fa.update(params, state)
        fa.update(params, state, nu_dtype="float32")


def test_unknown_arguments_are_refused_by_update_and_accepted_by_a_transformation():
    params = jnp.ones(2)
    with pytest.raises(TypeError, match="value"):
        plain_update(value=1.0)
    tx = fa.adam()
    tx.update(params, tx.init(params), params, value=1.0)
    for factory in (fa.adam, fa.adamw, fa.scale_by_adam):
        with pytest.raises(TypeError, match="betas"):  # the rest is in test_keywords.py
            factory(betas=(0.9, 0.999))


# Trees ----------------------------------------------------------------------------------------

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
    with pytest.raises(ValueError, match=r"grads has other static data, or another order of keys"):
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


@pytest.mark.parametrize("name", ["learning_rate", "eps", "eps_root", "weight_decay"])
def test_a_number_that_float32_makes_infinite_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}=1e\+39 is infinite in float32"):
        plain_update(**{name: 1e39})


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
