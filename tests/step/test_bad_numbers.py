"""Gradients that are NaN or infinite: what `optax.apply_if_finite` keeps out, and what not.

A skipped step must leave no trace: neither in parameters nor in the state, whose random bits go by
its count. Skipped steps on 8 devices are in `cases_within.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import format_named
from modes import switched
from same_bits import assert_same_bits

import functional_adam as fa
from functional_adam import _scalars
from functional_adam._storage import int8

HYPER = dict(learning_rate=0.03, b1=0.85, b2=0.97, eps=1e-6, weight_decay=0.2)
# Each format and each rounding; what skips a step sees leaves alone.
MODES = [
    ("full", "nearest"),
    ("bfloat16", "stochastic"),
    ("int8", "compensated"),
    ("full", "compensated"),
]
every_mode = pytest.mark.parametrize(("moments", "rounding"), MODES)
SHAPES = {"a": (3, 150), "b": (5,)}  # a block of 128 and a part of one in each row
BAD_PLACE = (1, 140)  # of "a"
STEPS = 9
PLANS = {  # what the gradient of one element is, by step
    "nan": {4: np.nan},
    "inf": {4: np.inf},
    "minus inf": {4: -np.inf},
    "several in a row": {3: np.nan, 4: np.inf, 5: -np.inf, 6: np.nan},
    "first": {0: np.nan},
    "last": {STEPS - 1: np.inf},
    "first, middle and last": {0: -np.inf, 1: np.nan, 4: np.nan, 7: np.inf, STEPS - 1: np.nan},
}
every_plan = pytest.mark.parametrize("plan", PLANS)


def numbers(seed, dtype, members=()):
    """A tree of numbers, over some six orders of magnitude."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            rng.normal(size=members + shape) * np.exp(2 * rng.normal(size=members + shape)), dtype
        )
        for name, shape in SHAPES.items()
    }


def dtype_of(rounding):
    return jnp.float32 if rounding == "nearest" else jnp.bfloat16


def spoiled(grads, value, place=BAD_PLACE):
    return {**grads, "a": grads["a"].at[place].set(value)}


MOST = 4  # bad steps in a row that are skipped


@functools.cache
def transformation(moments, rounding):
    return optax.apply_if_finite(
        fa.adamw(**HYPER, moments=format_named(moments), rounding=rounding), MOST
    )


def one_step(tx, params, state, grads):
    # Updates of rounded parameters are float32, and `apply_if_finite` wants gradients to be so too.
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state


@functools.cache
def jitted(tx):
    return jax.jit(functools.partial(one_step, tx))


def stream(rounding, plan):
    """The gradients of each step, with bad numbers where the plan says so."""
    for i in range(STEPS):
        grads = numbers(1 + i, dtype_of(rounding))
        yield i in plan, spoiled(grads, plan[i]) if i in plan else grads


@every_plan
@every_mode
def test_a_bad_step_leaves_no_trace(moments, rounding, plan):
    plan, tx = PLANS[plan], transformation(moments, rounding)
    start = numbers(0, dtype_of(rounding))
    params, state = start, tx.init(start)
    theta, inner = start, tx.init(start)  # the run without bad steps
    for bad, grads in stream(rounding, plan):
        before = params, state.inner_state
        params, state = jitted(tx)(params, state, grads)
        assert bool(state.last_finite) != bad
        if bad:
            assert_same_bits((params, state.inner_state), before)
        else:
            assert state.inner_state.count == before[1].count + 1
            theta, inner = jitted(tx)(theta, inner, grads)
            assert_same_bits((params, state.inner_state), (theta, inner.inner_state))
    assert (state.total_notfinite, inner.total_notfinite) == (len(plan), 0)
    assert state.inner_state.count == STEPS - len(plan)
    assert jitted(tx)._cache_size() == 1


@pytest.mark.parametrize(("moments", "rounding"), [("bfloat16", "compensated")])
def test_a_bad_step_leaves_no_trace_within_a_scan(moments, rounding):
    tx, plan = transformation(moments, rounding), PLANS["first, middle and last"]
    rows = list(stream(rounding, plan))[:8]  # of which four are bad

    @jax.jit
    def four_steps(params, state, grads):
        body = lambda kept, g: (one_step(tx, *kept, g), None)  # noqa: E731
        return jax.lax.scan(body, (params, state), grads)[0]

    def end(grads):
        params = numbers(0, dtype_of(rounding))
        state = tx.init(params)
        for i in range(0, len(grads), 4):
            four = jax.tree.map(lambda *g: jnp.stack(g), *grads[i : i + 4])
            params, state = four_steps(params, state, four)
        return params, state.inner_state

    assert_same_bits(end([g for _, g in rows]), end([g for bad, g in rows if not bad]))


MEMBERS, ILL = 3, 1


@pytest.mark.parametrize(
    ("moments", "rounding"), [("full", "nearest"), ("bfloat16", "compensated")]
)
def test_a_member_with_bad_steps_touches_no_other_and_loses_just_these(moments, rounding):
    tx, dtype = transformation(moments, rounding), dtype_of(rounding)
    plan = {2: np.nan, 3: np.inf, 5: -np.inf, STEPS - 1: np.nan}
    step = jax.jit(jax.vmap(functools.partial(one_step, tx)))

    def end(grads):
        params = numbers(0, dtype, (MEMBERS,))
        state = jax.vmap(tx.init)(params)
        for g in grads:
            params, state = step(params, state, g)
        return params, state

    def of(member, params, state):
        return jax.tree.map(lambda x: x[member], (params, state.inner_state))

    clean = [numbers(1 + i, dtype, (MEMBERS,)) for i in range(STEPS)]
    bad = [spoiled(g, plan[i], (ILL, *BAD_PLACE)) if i in plan else g for i, g in enumerate(clean)]
    found, wanted = end(bad), end(clean)
    for member in set(range(MEMBERS)) - {ILL}:
        assert_same_bits(of(member, *found), of(member, *wanted))
    np.testing.assert_array_equal(found[1].total_notfinite, [0, len(plan), 0])
    np.testing.assert_array_equal(found[1].inner_state.count, [STEPS, STEPS - len(plan), STEPS])
    without = end([g for i, g in enumerate(clean) if i not in plan])
    assert_same_bits(of(ILL, *found), of(ILL, *without))


@pytest.mark.parametrize(("moments", "rounding"), MODES[:3])
def test_after_too_many_bad_steps_optax_lets_the_next_one_through(moments, rounding):
    tx = transformation(moments, rounding)
    params = numbers(0, dtype_of(rounding))
    state, grads = tx.init(params), numbers(1, dtype_of(rounding))
    params, state = jitted(tx)(params, state, grads)
    for _ in range(MOST):
        before = params, state.inner_state
        params, state = jitted(tx)(params, state, spoiled(grads, np.nan))
        assert_same_bits((params, state.inner_state), before)
    params, state = jitted(tx)(params, state, spoiled(grads, np.nan))
    assert (state.inner_state.count, state.notfinite_count) == (2, MOST + 1)
    # Now it is in the state, in this element alone, and no good gradient takes it out again.
    for _ in range(2):
        full = fa.convert_moments(state.inner_state, params, moments="full")
        for tree in (params, full.mu, full.nu) if moments != "int8" else (params, full.mu):
            assert [tuple(x) for x in np.argwhere(~np.isfinite(np.float32(tree["a"])))] == [
                BAD_PLACE
            ]
            assert np.isnan(np.float32(tree["a"])[BAD_PLACE])
            assert np.all(np.isfinite(np.float32(tree["b"])))
        params, state = jitted(tx)(params, state, grads)
    assert state.last_finite


ORDINARY = [
    ("adam", "full", "nearest", 0.0, 0.97),
    ("adam", "bfloat16", "compensated", 0.85, 0.0),
    ("adamw", "full", "compensated", 0.0, 0.97),
    ("nadam", "bfloat16", "nearest", 0.85, 0.0),
    ("nadamw", "full", "stochastic", 0.0, 0.97),
    ("amsgrad", "bfloat16", "stochastic", 0.0, 0.97),
    ("adamax", "full", "compensated", 0.85, 0.0),
    ("radam", "full", "nearest", 0.85, 0.0),
    ("adabelief", "bfloat16", "nearest", 0.85, 0.0),
    ("yogi", "full", "nearest", 0.0, 0.97),
    ("lamb", "full", "nearest", 0.0, 0.97),
    ("adopt", "bfloat16", "stochastic", 0.85, 0.0),
    ("ademamix", "full", "nearest", 0.0, 0.0),
]


@pytest.mark.parametrize("traced", [False, True])
def test_an_ordinary_step_makes_no_infinity_on_its_way(traced):
    # Without jit the result of each operation is looked at.
    g = jnp.asarray([0.3, -2.0, 0.0])
    with switched("jax_debug_infs", True), jax.disable_jit():
        for name, moments, rounding, b1, b2 in ORDINARY:
            if traced:
                if (moments, rounding) != ("full", "nearest"):
                    continue
                b1, b2 = jnp.float32(b1), jnp.float32(b2)  # noqa: PLW2901
            tx = getattr(fa, name)(
                1e-3, b1=b1, b2=b2, moments=format_named(moments), rounding=rounding
            )
            params = jnp.asarray([1.0, -0.3, 0.0], jnp.bfloat16)
            state = tx.init(params)
            for _ in range(2):
                u, state = tx.update(g, state, params)
                params = fa.apply_updates(params, u)


def test_codes_of_zeros_make_no_infinity_on_their_way():
    # All of an int8 step, operation by operation, takes ten seconds; this is what overflowed.
    r, units = jnp.zeros((2, 16)), jnp.asarray([[0], [127]], jnp.int32)
    with switched("jax_debug_infs", True), jax.disable_jit():
        code = int8.ratio_code(r, units, jnp.float32(7.3), jnp.full((2, 16), 5, jnp.uint32))
        np.testing.assert_array_equal(int8.ratio(code, units), r)


@pytest.mark.parametrize("b", [0.0, 1e-12, 0.3, 0.5, 0.7, 0.999])
def test_the_logarithm_of_a_traced_rate_is_as_that_of_a_number(b):
    b = float(np.float32(b))
    given, traced = (_scalars._rate("b1", x, np.dtype(np.float32)) for x in (b, jnp.float32(b)))
    np.testing.assert_allclose(traced.log, given.log, rtol=3e-7)
    assert np.isfinite(given.log * np.float32(2**31))  # times the largest count
    assert b or np.exp(given.log) == 0
