"""Every refusal of an argument: what raises, when, and that the message says what to do."""

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
    unasked = rf"^state\.{names[0][:2]}\['w'\] is float16, .*pass {names[0]}=\"float16\" if you"
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
        (jnp.full(3, 0.7), "float64 and state.nu is float32"),
        (jnp.full(3, 0.7 + 0.2j), "complex128 and state.nu is float32"),
    ):
        state = fa.init(params)
        fa.update(params, state)
        state = state._replace(nu=state.nu.astype(jnp.float32))
        with pytest.raises(ValueError, match=rf"^state\.mu is {dtypes}, but without mu_dt"):
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


@pytest.mark.parametrize("name", ["learning_rate", "eps", "eps_root", "weight_decay"])
def test_a_number_that_float32_makes_infinite_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}=1e\+39 is infinite in float32"):
        plain_update(**{name: 1e39})
