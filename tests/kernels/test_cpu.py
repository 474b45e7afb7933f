"""The forms for the CPU against the plain form of the same step, and what they need besides."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES, format_named
from jax import export
from one_leaf import HYPER, RATE, assert_agree, gradients, stepping

import functional_adam as fa
from functional_adam._kernels import cpu
from functional_adam._kernels.choice import SWITCH

STEPS = 50
ROUNDINGS = [("nearest", "float32"), ("compensated", "bfloat16"), ("stochastic", "float16")]
SHAPES = [
    (33, 256),  # equal pieces
    (67, 128),  # a last piece of 3 blocks
    (30, 200),  # rows whose last block is padded
    (9001,),  # a last block that is not full
    (5, 130, 12),  # merged axes, rows as units
    (24, 3, 3, 64),  # blocks of 64
]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(cpu, "_PIECE", 2048)
    monkeypatch.setattr(cpu, "_LEAST", 256)


def start(tx, shape, dtype):
    params = jnp.asarray(np.random.default_rng(9).normal(size=shape) * 0.02, dtype)
    return params, tx.init(params)


def assert_steps_agree(monkeypatch, tx, shape, rounding, dtype, **options):
    plain, pieces = (stepping(monkeypatch, tx, form) for form in ("off", "on"))
    params, state = start(tx, shape, dtype)
    for t, g in enumerate(gradients(shape, dtype, STEPS, **options)):
        found, wanted = pieces(params, state, g), plain(params, state, g)
        assert_agree(found, wanted, t)
        params, state = wanted


CASES = [(shape, *ROUNDINGS[n % 3]) for n, shape in enumerate(SHAPES)]
CASES += [(SHAPES[1], *rounding) for rounding in ROUNDINGS]
PRODUCT = [(shape, *rounding) for shape in SHAPES for rounding in ROUNDINGS]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in PRODUCT if case not in CASES]


@pytest.mark.parametrize(("shape", "rounding", "dtype"), [*dict.fromkeys(CASES), *SLOW], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_codes_in_pieces_are_those_of_the_plain_form(shape, rounding, dtype, monkeypatch):
    tx = fa.adamw(moments=CODES, rounding=rounding, **HYPER)
    assert_steps_agree(monkeypatch, tx, shape, rounding, dtype)


RATES = {"learning_rate": RATE, "b1": 0.87, "b2": 0.993}
FAMILY = {
    "adamw": functools.partial(fa.adamw, **HYPER),
    "l2": functools.partial(fa.adam, **RATES, l2=0.02),
    "nadam": functools.partial(fa.nadam, **RATES),
    "amsgrad": functools.partial(fa.amsgrad, **RATES),
    "adabelief": functools.partial(fa.adabelief, **RATES),
    "adopt": functools.partial(fa.adopt, **RATES),
    "ademamix": functools.partial(fa.ademamix, **RATES),
    "adam_atan2": functools.partial(fa.adam_atan2, **RATES),
    "lamb": functools.partial(fa.lamb, **RATES),
    "cautious": lambda **kwargs: fa.cautious(fa.adam(**RATES, **kwargs)),
    "hyperball": lambda **kwargs: fa.hyperball(fa.adam(**RATES, **kwargs), stacked=1),
}
WHOLE = ("lamb", "cautious", "hyperball")  # of which one NaN makes all of a leaf NaN


@pytest.mark.parametrize(
    ("name", "rounding", "dtype"),
    [
        *((name, *ROUNDINGS[0]) for name in ("l2", "amsgrad", "adopt", "cautious")),
        ("adamw", "stochastic", "bfloat16"),
        *(
            pytest.param(name, *ROUNDINGS[0], marks=pytest.mark.slow)
            for name in ("adamw", "nadam", "adabelief", "ademamix", "lamb")
        ),
    ],
)
@pytest.mark.usefixtures("small_pieces")
def test_moments_of_16_bits_one_after_the_other_are_those_of_the_plain_form(
    name, rounding, dtype, monkeypatch
):
    tx = FAMILY[name](moments="bfloat16", rounding=rounding)
    assert_steps_agree(monkeypatch, tx, (33, 256), rounding, dtype, finite=name in WHOLE)


@pytest.mark.parametrize(
    ("name", "rounding", "dtype"),
    [
        *((name, *ROUNDINGS[0]) for name in ("adam_atan2", "lamb", "cautious", "hyperball")),
        pytest.param("nadam", *ROUNDINGS[0], marks=pytest.mark.slow),
        ("nadam", "split", "bfloat16"),  # which shows each bit of the weight
    ],
)
@pytest.mark.usefixtures("small_pieces")
def test_members_of_the_family_have_the_codes_of_the_plain_form(name, rounding, dtype, monkeypatch):
    tx = FAMILY[name](moments=CODES, rounding=rounding)
    assert_steps_agree(monkeypatch, tx, (33, 256), rounding, dtype, finite=name in WHOLE)


@pytest.mark.parametrize("moments", ["int8", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 128), (3, 0)])
def test_leaves_without_pieces_take_the_plain_form(moments, shape, monkeypatch):
    tx = fa.adamw(moments=format_named(moments), **HYPER)
    params, state = jnp.full(shape, 0.3), tx.init(jnp.full(shape, 0.3))
    found, wanted = (
        stepping(monkeypatch, tx, form)(params, state, params * 0.7) for form in ("on", "off")
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# ---- Costs ----

LARGE = (4096, 4096)
# To write a piece of an array of 16-bit floats, older XLA for the CPU widens all of it. Parameters
# are then carried as their bits, in an array of their own.
OF_BITS = 2 if jax.__version_info__ < (0, 12) else 0
TEMPORARIES = {  # bytes for each parameter: with and without these forms, at least
    ("bfloat16", "nearest"): (0.01, 3.9),
    ("int8", "nearest"): (0.2, 6),
    ("int8", "compensated"): (0.2 + OF_BITS, 9),
}


def compiled(tx, dtype, form, monkeypatch):
    params = jax.ShapeDtypeStruct(LARGE, dtype)
    state = jax.eval_shape(tx.init, params)

    def step(params, state, g):
        monkeypatch.setenv(SWITCH, form)
        return fa.step(tx, g, state, params)

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


def copied(program):
    """The sizes of the arrays that it copies."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", program.as_text())
    return [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]


@pytest.mark.parametrize(("moments", "rounding"), TEMPORARIES)
def test_a_donated_step_copies_no_leaf_and_needs_little_besides(moments, rounding, monkeypatch):
    tx = fa.adamw(moments=format_named(moments), rounding=rounding, **HYPER)
    dtype = "float32" if rounding == "nearest" else "bfloat16"
    most, plain = TEMPORARIES[moments, rounding]
    program = compiled(tx, dtype, "on", monkeypatch)
    size = math.prod(LARGE)
    assert program.memory_analysis().temp_size_in_bytes <= most * size
    assert max(copied(program)) <= 128
    if dtype == "bfloat16":  # all of the array is widened to write a piece of it
        assert not re.search(r"f32\[131072,128\]\S* dynamic-update-slice\(", program.as_text())
    off = compiled(tx, dtype, "off", monkeypatch)
    assert off.memory_analysis().temp_size_in_bytes >= plain * size


@pytest.mark.parametrize("name", ["amsgrad", "adabelief", "adopt"])
def test_results_take_the_place_of_what_no_later_one_needs(name, monkeypatch):
    program = compiled(FAMILY[name](moments="bfloat16"), "float32", "on", monkeypatch)
    assert program.memory_analysis().temp_size_in_bytes <= 0.01 * math.prod(LARGE)


def test_an_update_of_16_bit_moments_is_left_to_xla(monkeypatch):
    tx, params = FAMILY["adamw"](moments="bfloat16"), jax.ShapeDtypeStruct(LARGE, jnp.float32)
    state = jax.eval_shape(tx.init, params)

    def step(params, state, g):
        monkeypatch.setenv(SWITCH, "on")
        updates, state = tx.update(g, state, params)
        return fa.apply_updates(params, updates), state

    program = jax.jit(step).lower(params, state, params).compile()
    # Added in the loop that makes it.
    assert program.memory_analysis().temp_size_in_bytes <= 0.01 * math.prod(LARGE)


# ---- Under JAX's transformations ----


def both(monkeypatch, moments, use):
    """What `use(step, params, state, g)` gives, with these forms and without."""
    tx = fa.adamw(moments=format_named(moments), **HYPER)
    given = start(tx, (33, 256), "float32")
    g = jnp.asarray(np.random.default_rng(4).normal(size=(33, 256)), jnp.float32)
    results = []
    for form in ("on", "off"):
        monkeypatch.setenv(SWITCH, form)
        results.append(use(lambda p, s, g: fa.step(tx, g, s, p), *given, g))
    return results


def assert_close(found, wanted):
    (params, state), (right, kept) = found, wanted
    np.testing.assert_array_equal(state.count, kept.count)
    for name in ("mu", "nu"):  # of later steps, as parameters may differ in their last bits
        a, b = (np.float32(getattr(x, name)) for x in (state, kept))
        assert np.mean(a != b) < 0.01
    np.testing.assert_allclose(params, right, rtol=1e-5, atol=1e-6)


def scanned(step, params, state, g):
    def body(carry, k):
        return step(*carry, k * g), None

    return jax.jit(lambda *start: jax.lax.scan(body, start, jnp.array([1.0, -0.3, 2.0])))(
        params, state
    )[0]


def looped(step, params, state, g):
    def run(*start):
        return jax.lax.fori_loop(0, 3, lambda i, carry: step(*carry, g / (i + 1)), start)

    return jax.jit(run)(params, state)


def eager(step, params, state, g):
    return step(*step(params, state, g), -g)


def exported(step, params, state, g):
    return export.export(jax.jit(step))(params, state, g).call(params, state, g)


def trained(step, params, state, g):
    @jax.jit
    def train(params, state):
        return step(params, state, jax.grad(lambda p: jnp.sum(g * jnp.sin(p)))(params))

    return train(params, state)


@pytest.mark.parametrize(
    ("use", "moments"),
    [
        (scanned, "int8"),
        (looped, "bfloat16"),
        (eager, "bfloat16"),
        (exported, "int8"),
        (trained, "int8"),
        *(
            pytest.param(use, moments, marks=pytest.mark.slow)
            for use, moments in (
                (scanned, "bfloat16"),
                (looped, "int8"),
                (eager, "int8"),
                (exported, "bfloat16"),
                (trained, "bfloat16"),
            )
        ),
    ],
)
@pytest.mark.usefixtures("small_pieces")
def test_a_step_works_wherever_a_function_of_arrays_does(use, moments, monkeypatch):
    assert_close(*both(monkeypatch, moments, use))


@pytest.mark.usefixtures("small_pieces")
def test_vmap_maps_the_plain_form(monkeypatch):
    def mapped(step, params, state, g):
        two = jax.tree.map(lambda x: jnp.stack([x, x]), (params, state))
        return jax.jit(jax.vmap(step))(*two, jnp.stack([g, -2 * g]))

    found, wanted = both(monkeypatch, "bfloat16", mapped)
    assert_close(found, wanted)
    assert not np.array_equal(found[0][0], found[0][1])


@pytest.mark.usefixtures("small_pieces")
def test_a_derivative_by_the_parameter_is_that_of_decay(monkeypatch):
    def slopes(step, params, state, g):
        return jax.jit(jax.grad(lambda p: step(p, state, g)[0].sum()))(params)

    for found in both(monkeypatch, "bfloat16", slopes):
        np.testing.assert_allclose(found, 1 - RATE * HYPER["weight_decay"], rtol=1e-6)


@pytest.mark.usefixtures("small_pieces")
def test_a_derivative_by_the_gradient_is_refused(monkeypatch):
    def slopes(step, params, state, g):
        return jax.grad(lambda g: step(params, state, g)[1].mu.sum().astype(float))(g)

    with pytest.raises(TypeError, match='Cannot differentiate through moments="int8", moments="bf'):
        both(monkeypatch, "bfloat16", slopes)
