"""Every refusal of the family's own arguments: what raises, and what it says.

`test_check_*.py` have those of `adam`, `adamw` and `update`; here each factory must refuse what its
signature lets in, in words that name the argument, what was given and what would be right.
"""

import functools
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family_factories import CALLS, FACTORIES, TREE, X, arguments, decaying, having

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

RANGES = {
    "b1": "a number in [0, 1)",
    "b2": "a number in [0, 1)",
    "b3": "a number in [0, 1)",
    "threshold": "a finite number >= 4",
    **dict.fromkeys(
        [
            "a",
            "alpha",
            "b",
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
    "rounding": "'nearest' or 'stochastic' or 'compensated' or 'split'",
}
OTHERS = {"mask", "mu_dtype", "nu_dtype", "overrides"}


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
def test_what_need_not_decay_is_told_how_to_only_if_it_does(how):
    for factory in (fa.adabelief, fa.adopt, fa.amsgrad, fa.radam, fa.yogi):
        with pytest.raises(ValueError, match=rf"^.*{next(iter(how))}.*weight_decay"):
            factory(**how)
        factory(**how, weight_decay=0.3)


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
    "radam": {"maximum"},
    "adabelief": {"l2", "eps_placement"},
    "yogi": {"l2", "nesterov", "eps_placement"},
    "lamb": {"l2", "independent_weight_decay", "nesterov", "eps_placement"},
    "adopt": {"l2", "eps_root", "eps_placement"},
    "ademamix": {"l2", "nesterov", "eps_placement"},
    "simplified_ademamix": {"b3", "l2", "nesterov", "eps_placement"},
    "laprop": {"l2", "nesterov", "eps_root", "eps_placement"},
    "adam_atan2": {"l2", "nesterov", "eps", "eps_root", "eps_placement"},
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
        (lambda: optax.chain(optax.clip(1.0), fa.adam()), "an object of type .*to the member"),
        (lambda: optax.masked(fa.adam(), {"a": True}), "an object of type .*to the member"),
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
        ValueError,
        match=r"^tx already has cautious applied: .* once, as in cautious\(\w+\(\.\.\.\)\)",
    ):
        fa.cautious(once)
