"""Every refusal of the family's own arguments, trees and states: what raises, and what it says.

`test_check` has those of `adam`, `adamw` and `update`; here each factory must refuse what its
signature lets in, in words that name the argument, what was given and what would be right.
"""

import collections
import copy
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from names import OF_STATES

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

FACTORIES = {
    name: getattr(fa, name)
    for name in fa.__all__
    if inspect.isfunction(getattr(fa, name))
    and name not in ("init", "update", "apply_updates", "cautious")
    and name not in OF_STATES
}
# Calls that bind arguments as a factory does, `update` among them.
CALLS = FACTORIES | {"update": lambda **hyper: fa.update(X, fa.init(X), X, **hyper)}
X = np.float32([0.7, -1.3])
TREE = {"a": X, "b": [np.ones((2, 3), np.float32)]}

RANGES = {
    "b1": "a number in [0, 1)",
    "b2": "a number in [0, 1)",
    "b3": "a number in [0, 1)",
    "threshold": "a finite number >= 4",
    **dict.fromkeys(
        [
            "alpha",
            "clip_value_fn",
            "eps",
            "eps_root",
            "initial_accumulator_value",
            "l2",
            "learning_rate",
            "momentum_decay",
            "weight_decay",
        ],
        "a finite number >= 0",
    ),
}
SCHEDULED = {"alpha", "b3", "clip_value_fn", "l2", "learning_rate", "weight_decay"}
FLAGS = {
    "bias_correction_mu",
    "bias_correction_nu",
    "independent_weight_decay",
    "nesterov",
    "use_clipping",
}
CHOICES = {
    **dict.fromkeys(["eps_placement", "maximum"], "'after_correction' or 'before_correction'"),
    "moments": "'full' or 'bfloat16' or 'int8'",
    "rounding": "'nearest' or 'stochastic' or 'compensated'",
}
OTHERS = {"mask", "mu_dtype", "nu_dtype"}


def arguments(name):
    return inspect.signature(fa.update if name == "update" else FACTORIES[name]).parameters


def having(names):
    """(factory, argument) for each argument of `names` that a factory has."""
    cases = [(name, argument) for name in CALLS for argument in arguments(name)]
    return pytest.mark.parametrize(
        ("factory", "argument"), [case for case in cases if case[1] in names]
    )


def test_every_argument_is_looked_at_here():
    known = {*RANGES, *FLAGS, *CHOICES, *OTHERS}
    assert {argument for name in FACTORIES for argument in arguments(name)} == known


# Numbers --------------------------------------------------------------------------------------


@having(RANGES)
def test_a_number_out_of_range_names_argument_range_and_value(factory, argument):
    low = 3 if argument == "threshold" else -0.1
    for value in (low, -3, np.float32(-1), float("nan"), float("inf"), -np.inf):
        message = (
            f"^{argument} must be {re.escape(RANGES[argument])}.*; got {re.escape(repr(value))}"
        )
        with pytest.raises(ValueError, match=message):
            CALLS[factory](**{argument: value})


@having({"b1", "b2", "b3"})
def test_a_decay_rate_of_one_or_more_is_refused(factory, argument):
    for value in (1, 1.0, np.float64(1.5)):
        with pytest.raises(ValueError, match=rf"^{argument} must be a number in \[0, 1\)"):
            CALLS[factory](**{argument: value})


def test_the_threshold_of_radam_may_be_four_and_not_less():
    below = np.nextafter(4.0, 0.0)
    for make in (fa.radam, fa.scale_by_radam):
        with pytest.raises(ValueError, match=r"^threshold must be a finite number >= 4 .*; got "):
            make(threshold=below)
        make(threshold=4)


@having(RANGES)
def test_a_value_of_the_wrong_type_names_argument_and_type(factory, argument):
    none_is_a_value = arguments(factory)[argument].default is None
    values = ["0.1", "nan", True, np.True_, 1j, [0.1], {"a": 0.1}, jnp.ones((), bool)]
    for value in values + [None] * (not none_is_a_value):
        with pytest.raises(TypeError, match=rf"^{argument} must be .*; got "):
            CALLS[factory](**{argument: value})


@having(RANGES)
def test_an_array_of_values_points_to_vmap(factory, argument):
    with pytest.raises(ValueError, match=rf"^{argument} .* shape \(2,\).*jax.vmap"):
        CALLS[factory](**{argument: jnp.array([5.1, 5.2])})
    with pytest.raises(TypeError, match=rf"^{argument} must be .*; got .* of type numpy.ndarray"):
        CALLS[factory](**{argument: np.array([5.1, 5.2])})


@having(RANGES.keys() - SCHEDULED)
def test_what_may_be_no_schedule_says_so(factory, argument):
    with pytest.raises(TypeError, match=rf"^{argument} must be .* scalar; got <function"):
        CALLS[factory](**{argument: lambda count: 5.0})


BAD_RETURNS = [
    (-0.1, ValueError, "-0.1"),
    (float("nan"), ValueError, "nan"),
    (None, TypeError, "None of type NoneType"),
    ("0.1", TypeError, "'0.1' of type str"),
    (jnp.ones(3), ValueError, r"an array of shape \(3,\).*jax.vmap"),
    (jnp.ones((), bool), TypeError, "an array of dtype bool"),
]


@having(SCHEDULED)
def test_what_a_schedule_returns_is_checked(factory, argument):
    wanted = re.escape(RANGES[argument])
    for value, error, given in BAD_RETURNS + [(1.0, ValueError, "1.0")] * (argument == "b3"):
        with pytest.raises(error, match=rf"^{argument}\(count\) must be {wanted}.*; got {given}"):
            use(factory, **{argument: lambda _, value=value: value})


def use(factory, **hyper):
    """Make and update once."""
    if factory == "update":
        return CALLS["update"](**hyper)
    tx = FACTORIES[factory](**hyper)
    return tx.update(X, tx.init(X), X)


@having({"b1", "b2", "b3"})
def test_a_decay_rate_that_float32_rounds_to_one_raises_where_it_is_used(factory, argument):
    with pytest.raises(ValueError, match=rf"^{argument}=0.999999999 is 1 in float32.* at most 0.9"):
        use(factory, **{argument: 1 - 1e-9})


@having(RANGES.keys() - {"b1", "b2", "b3", "initial_accumulator_value"})
def test_a_number_that_float32_makes_infinite_is_refused(factory, argument):
    with pytest.raises(ValueError, match=rf"^{argument}=1e\+39 is infinite in float32"):
        use(factory, **{argument: 1e39})


# Flags and choices ----------------------------------------------------------------------------


def decaying(factory):
    """What makes it decay, if it can: arguments that say how to decay need it."""
    return {"weight_decay": 0.3} if "weight_decay" in arguments(factory) else {}


@having(FLAGS)
def test_flags_are_booleans(factory, argument):
    for value in (None, 1, 0, "yes", np.True_, jnp.array(True)):
        with pytest.raises(TypeError, match=rf"^{argument} must be True or False; got "):
            CALLS[factory](**decaying(factory), **{argument: value})


@having(CHOICES)
def test_choices_name_what_may_be_chosen(factory, argument):
    message = f"^{argument} must be {CHOICES[argument]}"
    for value in ("before", "After_correction", "int4", ""):
        with pytest.raises(ValueError, match=f"{message}; got {re.escape(repr(value))}"):
            CALLS[factory](**{argument: value})
    for value in (True, None, 1, ["after_correction"], {}):
        with pytest.raises(TypeError, match=f"{message}.*; got {re.escape(repr(value))}"):
            CALLS[factory](**{argument: value})


@pytest.mark.parametrize("make", [fa.amsgrad, fa.scale_by_amsgrad])
def test_a_maximum_of_corrected_moments_is_not_corrected_again(make):
    message = "^eps_placement='before_correction' needs maximum=\"before_correction\""
    with pytest.raises(ValueError, match=message):
        make(eps_placement="before_correction")
    with pytest.raises(ValueError, match=message):
        make(maximum="after_correction", eps_placement="before_correction")
    make(maximum="before_correction", eps_placement="before_correction")
    make(maximum="before_correction")


@pytest.mark.parametrize("how", [{"mask": {"a": True}}, {"independent_weight_decay": True}])
def test_amsgrad_is_told_how_to_decay_only_if_it_decays(how):
    with pytest.raises(ValueError, match=rf"^.*{next(iter(how))}.*weight_decay"):
        fa.amsgrad(**how)
    fa.amsgrad(**how, weight_decay=0.3)


@having({"mu_dtype", "nu_dtype"})
def test_moment_dtypes_are_float_dtypes(factory, argument):
    for dtype in (jnp.int8, "int32", bool, "nonsense", 3, np.float16(0)):
        with pytest.raises(TypeError, match=rf"^{argument} must be None or a float dtype"):
            CALLS[factory](**{argument: dtype})
    with pytest.raises(ValueError, match=rf"^{argument}=float64 needs 64-bit mode"):
        CALLS[factory](**{argument: "float64"})


@pytest.mark.parametrize("factory", [name for name in CALLS if "mask" in arguments(name)])
def test_masks_are_prefixes_of_booleans(factory):
    with pytest.raises(TypeError, match=r"^mask\['a'\] must be True or False; got 1 "):
        CALLS[factory](**decaying(factory), mask={"a": 1, "b": True})
    if factory == "update":
        return
    for mask in ({"a": True}, lambda _: {"a": True}):
        tx = FACTORIES[factory](**decaying(factory), mask=mask)
        with pytest.raises(ValueError, match=r"^mask must be a prefix .*: mask\['b'\] is missing"):
            tx.init(TREE)
        with pytest.raises(ValueError, match=r"^mask must be a prefix .*: mask\['b'\] is missing"):
            tx.update(TREE, FACTORIES[factory]().init(TREE), TREE)


# Arguments that are not there -----------------------------------------------------------------

DECAY = {"weight_decay", "mask", "independent_weight_decay"}
# What each could be thought to have and does not, because it would not honour it.
ABSENT = {
    "adam": DECAY | {"bias_correction_mu", "maximum"},
    "adamw": {"l2"},
    "nadam": DECAY | {"nesterov"},
    "nadamw": {"l2", "nesterov"},
    "amsgrad": {"nesterov"},
    "adamax": DECAY | {"eps_root", "eps_placement", "nesterov"},
    "adamaxw": {"l2", "eps_root", "eps_placement", "nesterov"},
    "radam": DECAY,
    "adabelief": DECAY | {"l2", "eps_placement"},
    "yogi": DECAY | {"l2", "nesterov", "eps_placement"},
    "lamb": {"l2", "independent_weight_decay", "nesterov", "eps_placement"},
    "adopt": DECAY | {"l2", "eps_root", "eps_placement"},
    "ademamix": {"l2", "nesterov", "eps_placement"},
    **{
        name: DECAY | {"l2", "learning_rate", "rounding"}
        for name in FACTORIES
        if name.startswith("scale_by_")
    },
}
ABSENT["scale_by_adamax"] |= {"eps_root", "eps_placement", "nesterov"}
ABSENT["scale_by_adopt"] |= {"eps_root", "eps_placement"}
ABSENT["update"] = {"threshold", "b3", "momentum_decay", "initial_accumulator_value"}


@pytest.mark.parametrize("factory", ABSENT)
def test_what_a_factory_would_not_honour_it_does_not_take(factory):
    unknown = {"betas", "amsgrad", "lr", "fused"}
    for argument in ABSENT[factory] | unknown:
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{argument}'"):
            CALLS[factory](**{argument: True if argument in FLAGS else 0.1})


def test_the_list_of_absent_arguments_is_of_all_factories():
    assert ABSENT.keys() == CALLS.keys()


# What cautious takes --------------------------------------------------------------------------


def foreign_partial():
    """Of our class, its update a partial as ours are, and yet not from a factory."""
    init, update = optax.adam(1e-3)
    return fa.GradientTransformation(init, functools.partial(update))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: optax.adam(1e-3), "an object of type optax.*GradientTransformation.*the member"),
        (lambda: optax.chain(optax.clip(1.0), fa.adam()), "an object of type .*wrap the member"),
        (lambda: optax.masked(fa.adam(), {"a": True}), "an object of type .*wrap the member"),
        (lambda: fa.adam, "the function adam: call it first"),
        (lambda: optax.adam, "the function adam: call it first"),
        (lambda: fa.adam().update, "call it first|an object of type functools.partial"),
        (foreign_partial, "an object of type .*GradientTransformation"),
        (lambda: None, "an object of type .*NoneType"),
        (lambda: "adam", "an object of type .*str"),
        (lambda: tuple(fa.adam()), "an object of type .*tuple"),
    ],
)
def test_cautious_takes_what_a_factory_made(given, said):
    with pytest.raises(
        TypeError, match=rf"^cautious needs .*such as cautious\(adamw\(\)\).*{said}"
    ):
        fa.cautious(given())


@pytest.mark.parametrize("factory", FACTORIES)
def test_cautious_is_not_cautious_twice(factory):
    once = fa.cautious(FACTORIES[factory]())
    with pytest.raises(
        ValueError, match=r"^tx is cautious already: cautious\(\w+\(...\)\) will do"
    ):
        fa.cautious(once)


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
            with pytest.raises(ValueError, match=r"^clip_value_fn .* needs use_clipping=True"):
                factory(clip_value_fn=bound, use_clipping=False)
        factory(clip_value_fn=2.0)


@needy
def test_what_needs_the_parameters_says_why_and_how(tx, why):
    message = rf"^{why} needs the parameters: call update\(grads, state, params\)"
    if why != "lamb":
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
    holds = f"the trees ['{kept}']" if kept else "nothing"
    wanted = f"the trees ['{keeps}']" if keeps else "nothing"
    named = {"update": "adam", "adamw": "adam", "nadamw": "nadam", "adamaxw": "adamax"}
    name = named.get(factory, factory.removeprefix("scale_by_").replace("belief", "adabelief"))
    name = name.replace("adaadabelief", "adabelief")
    message = re.escape(f"state.extra holds {holds}, but {name} keeps {wanted} there: ")
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
        ({}, "nothing"),
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
        with pytest.raises(ValueError, match=rf"{path} is {leaf.dtype}, but .* is float32"):
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
    message = rf"^state.{moment}\['a'\] is float32, but {argument}=bfloat16 was asked for"
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
