"""Rounding to 16 bits: on average right, exactly on the grid, and what is left out kept."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import reference
from modes import switched
from short_floats import SHORT, enclosing, every, pairs, step, stochastic

import functional_adam as fa
from functional_adam._storage import noise as N
from functional_adam._storage import rounding as R

pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture
def standard():
    """Standard promotion after all: Optax adds what differs in dtype."""
    with switched("jax_numpy_dtype_promotion", "standard"):
        yield


RANDOM = np.random.default_rng(30).integers(0, 2**32, 4, dtype=np.uint32)
BITS = [np.uint32(0), np.uint32(2**32 - 1), *RANDOM]


# One number ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT)
def test_a_number_goes_to_one_of_its_two_neighbours_and_to_both(name):
    grid, rng = every(name), np.random.default_rng(31)
    spread = np.float32(grid[[0, -1]]).astype(np.float64)
    x = rng.choice([-1, 1], 20_000) * 2.0 ** rng.uniform(-30, np.log2(spread[1]), 20_000)
    x = np.concatenate([x, rng.uniform(-1e-6, 1e-6, 2000)]).astype(np.float32)
    x = x[np.abs(x) >= 2.0**-126]
    below, above = enclosing(grid, x)
    got = np.stack(
        [
            np.float64(stochastic(x, name, rng.integers(0, 2**32, x.size, dtype=np.uint32)))
            for _ in "12"
        ]
    )
    assert ((got == below) | (got == above)).all()
    inside = below < above
    assert 0.45 < (got == above)[:, inside].mean() < 0.55
    toward_zero = np.where(np.abs(below) < np.abs(above), below, above)
    np.testing.assert_array_equal(np.float64(stochastic(x, name, np.uint32(0))), toward_zero)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", SHORT)
def test_what_fits_is_not_changed(name, bits):
    x = every(name)
    got = stochastic(x.astype(np.float32), name, bits)
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(got).view(np.uint16), x.view(np.uint16))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", SHORT)
def test_the_largest_stays_finite_and_what_is_not_finite_passes(name, bits):
    largest = float(ml_dtypes.finfo(SHORT[name]).max)
    beyond = min(largest * 1.0019, float(np.finfo(np.float32).max))
    x = np.float32([largest, beyond, -beyond, np.inf, -np.inf, np.nan, 0.0])
    want = [largest, largest, -largest, np.inf, -np.inf, np.nan, 0.0]
    np.testing.assert_array_equal(np.float32(stochastic(x, name, bits)), np.float32(want))


COUNTS, ELEMENTS = 50_000, 128
# Off by this much at most, for one element: what windows leave, and five standard errors.
STREAM_ERRORS = {"nu": lambda _: 1e-3, "theta": lambda p: 5 * np.sqrt(p * (1 - p) / COUNTS)}


@pairs(("name", "stream"), SHORT, STREAM_ERRORS)
def test_the_mean_over_many_counts_is_the_number(name, stream):
    grid = every(name)
    at = np.searchsorted(grid.astype(np.float64), [0.37, 3e-3, 700.0])
    low, high = (grid[i].astype(np.float64) for i in (at, at + 1))
    x = (low + np.array([0.013, 0.62, 0.39]) * (high - low)).astype(np.float32)
    x = np.broadcast_to(x[:, None], (3, ELEMENTS))

    def body(ups, count):
        random = getattr(N.random_bits(N.step_noise(count), jnp.uint32(77), x.shape), stream)
        got = R.stochastic(jnp.asarray(x), np.dtype(SHORT[name]), random)
        return ups + (got.astype(jnp.float32) > x).astype(jnp.int32), None

    start = jnp.zeros(x.shape, jnp.int32)
    ups, _ = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(1, COUNTS + 1)))(start)
    part = (np.float64(x[:, :1]) - low[:, None]) / (high - low)[:, None]
    error, most = np.abs(np.asarray(ups) / COUNTS - part), STREAM_ERRORS[stream](part)
    # float16 drops 13 bits, of which the mean can be off by half of the last: 6e-5.
    assert (error < most + 6e-5).all()
    error = np.abs(np.asarray(ups).mean(axis=1) / COUNTS - part[:, 0])
    assert (error < np.ravel(most) / ELEMENTS**0.5 + 6e-5).all()


# Landing ------------------------------------------------------------------------------------------

LEARNING_RATE = 3e-3


def moderate(theta, seed):
    """Gradients of either sign over six octaves."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], theta.size)
    return np.float32(signs * 2.0 ** rng.uniform(-3, 3, theta.size))


@pairs(("rounding", "name"), ["stochastic", "compensated"], SHORT)
def test_an_update_lands_exactly_on_the_grid_beside_its_goal(rounding, name, standard):
    theta = every(name)
    grads = moderate(theta, 32)
    first, last = theta[[0, -1]].astype(np.float64)
    for learning_rate in (LEARNING_RATE, 1.7):
        # The first step of b1 = b2 = 0 is -alpha g / (|g| + eps).
        tx = fa.adam(learning_rate, b1=0.0, b2=0.0, eps=1.3, rounding=rounding)
        u, _ = step(tx, grads, theta)
        assert u.dtype == jnp.float32
        mine, theirs = fa.apply_updates(theta, u), optax.apply_updates(jnp.asarray(theta), u)
        np.testing.assert_array_equal(mine, theirs)
        got = np.asarray(mine).astype(np.float64)
        # Nothing is left to round when it is applied, but where one is so much larger that
        # both do not fit into 24 bits.
        sizes = np.sort(np.abs([np.float64(theta), got]), axis=0)
        close = sizes[1] <= {"bfloat16": 2.0**15, "float16": 2.0**12}[name] * sizes[0]
        np.testing.assert_array_equal((np.float32(theta) + np.asarray(u))[close], got[close])
        goal = theta.astype(np.float64) - learning_rate * grads / (np.abs(grads) + 1.3)
        slack = 1e-6 * learning_rate + 1e-7 * np.abs(goal)  # what float32 makes of the goal
        low, _ = enclosing(theta, (goal - slack).clip(first, last))
        _, high = enclosing(theta, (goal + slack).clip(first, last))
        assert ((low <= got) & (got <= high)).all()


@pytest.mark.parametrize("name", SHORT)
def test_compensated_parameters_are_the_nearest_numbers(name):
    theta = every(name)
    theta = theta[np.abs(theta.astype(np.float64)) < 1e4]
    grads = moderate(theta, 33)
    tx = fa.adam(LEARNING_RATE, b1=0.0, b2=0.0, eps=1.3, rounding="compensated")
    u, _ = step(tx, grads, theta)
    got = np.asarray(fa.apply_updates(theta, u)).astype(np.float64)
    goal = theta.astype(np.float64) - LEARNING_RATE * grads / (np.abs(grads) + 1.3)
    low, high = enclosing(theta, goal)
    least = np.minimum(goal - low, high - goal)
    # Of two neighbours that are equally near, but for a 256th, the upper one may be taken.
    nearest = np.abs(got - goal) <= least * (1 + 1e-3) + 1e-6 * np.abs(goal) + 1e-9
    upper = (got == high) & (np.abs(got - goal) <= least + (high - low) / 128)
    assert (nearest | upper).all()
    assert nearest.mean() > 0.99


# What is left out ---------------------------------------------------------------------------------


def unit(theta, name):
    """The distance of numbers at theta: 2**-7 or 2**-10 of its power of two."""
    bits, least = {"bfloat16": (7, -126), "float16": (10, -14)}[name]
    power = np.floor(np.log2(np.maximum(np.abs(np.float64(theta)), 2.0**least)))
    return 2.0 ** (power - bits)


@pytest.mark.parametrize("name", SHORT)
def test_master_weights_are_within_a_code_of_the_exact_ones(name):
    rng = np.random.default_rng(34)
    theta = (3 * rng.standard_normal(5000)).astype(SHORT[name])
    grads = rng.standard_normal((3, 5000)).astype(np.float32)
    tx = fa.adamw(LEARNING_RATE, b1=0.7, b2=0.9, weight_decay=0.3, rounding="compensated")
    state, update = tx.init(jnp.asarray(theta)), jax.jit(tx.update)
    m = v = 0.0
    params, weights = jnp.asarray(theta), theta.astype(np.float64)
    for t, g in enumerate(grads, start=1):
        u, state = update(g, state, params)
        params = fa.apply_updates(params, u)
        m, v = 0.7 * m + 0.3 * np.float64(g), 0.9 * v + 0.1 * np.float64(g) ** 2
        direction = m / (1 - 0.7**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        exact = weights - LEARNING_RATE * (direction + 0.3 * weights)
        weights = np.float64(fa.master_params(params, state))
        code = unit(params, name) / 256
        assert (np.abs(weights - exact) <= code + 1e-6 * (LEARNING_RATE + np.abs(exact))).all()
        # Which are not all those of a code: what is rounded is rounded both ways.
        assert 0.3 < (weights > exact).mean() < 0.7
        assert np.abs((weights - exact) / code).mean() > 0.2


STEPS, WIDTH = 2000, 512
# Of a unit, a step. A float32 weight cannot take smaller ones: it has 16 bits more, or 13.
PARTS = {"bfloat16": 1e-3, "float16": 8e-3}


def trained(rounding, name="bfloat16", up=False):
    """(start, end, end's parameters, state, way that all have gone) of equal steps one way."""
    rng = np.random.default_rng(35)
    theta = jnp.asarray((1 + 0.99 * rng.uniform(size=WIDTH)).astype(SHORT[name]))
    theta = theta.at[: WIDTH // 2].set(-theta[: WIDTH // 2])
    rate = PARTS[name] * unit(1.0, name)
    tx = fa.adam(rate, b1=0.7, rounding=rounding)
    grads = jnp.asarray(np.float32(0.3 + rng.uniform(size=WIDTH)) * np.float32(-1 if up else 1))

    def body(carry, _):
        params, state = carry
        u, state = tx.update(grads, state, params)
        return (fa.apply_updates(params, u), state), None

    run = jax.jit(lambda c: jax.lax.scan(body, c, length=STEPS)[0])
    params, state = run((theta, tx.init(theta)))
    return np.float64(theta), np.float64(params), params, state, rate * STEPS


@pairs(("up", "name"), [False, True], SHORT)
def test_steps_far_below_half_a_unit_add_up_in_compensated_weights(name, up):
    start, _, params, state, way = trained("compensated", name, up)
    moved = (start - np.float64(fa.master_params(params, state))) * (-1 if up else 1)
    assert moved.mean() == pytest.approx(way, rel=0.02)
    assert np.abs(moved / way - 1).max() < 0.05


@pytest.mark.parametrize("name", SHORT)
def test_steps_far_below_half_a_unit_add_up_on_average_when_rounded_stochastically(name):
    start, end, *_, way = trained("stochastic", name)
    assert (start - end).mean() == pytest.approx(way, rel=0.05)


def test_steps_far_below_half_a_unit_are_lost_when_rounded_to_nearest():
    start, end, *_ = trained("nearest")
    np.testing.assert_array_equal(start, end)


def test_other_parameters_take_the_plain_step():
    rng = np.random.default_rng(36)
    params = {
        "wide": jnp.asarray(rng.standard_normal(40), jnp.float32),
        "short": jnp.asarray(rng.standard_normal(40), jnp.bfloat16),
        "complex": jnp.asarray(rng.standard_normal(3) + 1j, jnp.complex64),
    }
    grads = jax.tree.map(lambda x: 0.3 * x * x, params)
    grads["wide"] = grads["wide"].astype(jnp.bfloat16)
    plain = fa.adamw(0.01, b1=0.7, weight_decay=0.2)
    want, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    for rounding in ("stochastic", "compensated"):
        tx = fa.adamw(0.01, b1=0.7, weight_decay=0.2, rounding=rounding)
        u, state = jax.jit(tx.update)(grads, tx.init(params), params)
        assert (u["wide"].dtype, u["short"].dtype) == (jnp.float32, jnp.float32)
        for name in ("wide", "complex"):
            np.testing.assert_array_equal(u[name], want[name])
        assert u["complex"].dtype == jnp.complex64
        assert (state.residual["wide"], state.residual["complex"]) == (None, None)
        kept = state.residual["short"]
        if rounding == "compensated":
            assert (kept.shape, kept.dtype) == ((40,), jnp.int8)
            weights = fa.master_params(params, state)
            assert weights["wide"] is params["wide"]
            assert weights["short"].dtype == jnp.float32
        else:
            assert (kept.shape, kept.dtype) == ((), jnp.bfloat16)


@pytest.mark.parametrize(
    ("now", "at_init", "moments", "rounding"),
    [
        ("float32", "bfloat16", "full", "stochastic"),
        ("float32", "bfloat16", "int8", "compensated"),
        ("bfloat16", "float32", "full", "compensated"),
        ("bfloat16", "float32", "bfloat16", "stochastic"),
    ],
)
def test_a_parameter_that_has_changed_its_dtype_is_refused(rounding, moments, now, at_init):
    tx = fa.adamw(0.01, b1=0.7, weight_decay=0.2, rounding=rounding, moments=moments)
    params = {"a": jnp.ones(3, jnp.float16), "b": jnp.ones(5, at_init)}
    state = tx.init(params)
    params["b"] = params["b"].astype(now)
    was = "bfloat16" if rounding == "stochastic" else "a float of 16 bits"
    wanted = rf"params\['b'\] is float32 now; it was {was} at init.*apply_updates"
    if now == "bfloat16":
        wanted = r"params\['b'\] is bfloat16, but state.residual\['b'\] is None: at init it was"
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match=wanted):
            update(params, state, params)
    fine = {"a": params["a"], "b": None}  # a frozen leaf is not looked at
    _, state = tx.update(fine, state, params)
    assert state.count == 1


def test_one_kind_of_16_bits_in_place_of_the_other_is_refused_where_the_state_tells_them():
    tx = fa.adam(0.01, b1=0.7, rounding="stochastic")
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    state, other = tx.init(params), {"a": jnp.ones(3, jnp.float16)}
    with pytest.raises(ValueError, match=r"params\['a'\] is float16 now; it was bfloat16 at init"):
        tx.update(other, state, other)


def test_a_bare_addition_is_found_out(standard):
    eqx = pytest.importorskip("equinox")  # adds so: float32 and bfloat16 make a float32 parameter
    for rounding in ("stochastic", "compensated"):
        tx = fa.adam(0.01, b1=0.7, rounding=rounding)
        model = eqx.nn.Linear(3, 2, dtype=jnp.bfloat16, key=jax.random.key(0))
        updates, state = tx.update(model, tx.init(model), model)
        kept = fa.apply_updates(model, updates)
        assert kept.weight.dtype == jnp.bfloat16
        tx.update(kept, state, kept)
        widened = eqx.apply_updates(model, updates)
        with pytest.raises(ValueError, match=r"params.weight is float32 now; it was .*fa.apply_up"):
            tx.update(widened, state, widened)


def test_decay_acts_on_the_master_weights_where_the_mask_says():
    theta = jnp.asarray([1.0, -1.5, 0.375, 8.0], jnp.bfloat16)
    codes = jnp.asarray([100, -77, 0, 127], jnp.int8)
    params = {"a": theta, "b": theta}
    tx = fa.adamw(
        0.5, b1=0.7, weight_decay=0.3, mask={"a": True, "b": False}, rounding="compensated"
    )
    state = tx.init(params)._replace(residual={"a": codes, "b": codes})
    start = np.float64(theta) + np.float64(codes) * unit(theta, "bfloat16") / 256
    zero = jax.tree.map(jnp.zeros_like, params)
    u, state = jax.jit(tx.update)(zero, state, params)
    params = fa.apply_updates(params, u)
    weights = fa.master_params(params, state)
    for name, want in (("a", start * (1 - 0.5 * 0.3)), ("b", start)):
        error = np.abs(np.float64(weights[name]) - want)
        assert (error <= unit(params[name], "bfloat16") / 256 + 1e-6).all()
    np.testing.assert_array_equal(params["b"], theta)
    np.testing.assert_array_equal(state.residual["b"], codes)


def test_the_error_of_a_parameter_that_jumps_is_not_carried_over():
    # 2**16 times larger or smaller in a step: theta + u is still on the grid.
    theta = jnp.asarray([1e-8, 300.0, -1e-9, 0.0], jnp.bfloat16)
    tx = fa.adam(300.0, b1=0.7, rounding="compensated")
    u, state = step(tx, jnp.asarray([1.0, 1.0, -2.0, 3.0]), theta)
    params = fa.apply_updates(theta, u)
    weights = np.float64(fa.master_params(params, state))
    want = np.float64(theta) - 300 * np.array([1, 1, -1, 1])
    np.testing.assert_allclose(weights, want, atol=300 * 2.0**-7 / 256)


# Use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_rounding_needs_the_parameters(rounding):
    theta = jnp.ones(3, jnp.bfloat16)
    tx = fa.adam(rounding=rounding)
    message = f'rounding="{rounding}" needs the parameters: .* or pass rounding="nearest"'
    with pytest.raises(ValueError, match=message):
        tx.update(theta, tx.init(theta))


def test_unknown_roundings_are_refused():
    for make in (fa.adam, lambda **kwargs: fa.init(jnp.ones(2), **kwargs)):
        with pytest.raises(ValueError, match="rounding must be 'nearest' or 'stochastic' or 'comp"):
            make(rounding="up")
        with pytest.raises(TypeError, match="rounding must be 'nearest' or"):
            make(rounding=True)


def test_a_state_with_or_without_residual_is_refused_where_it_does_not_belong():
    theta = jnp.ones(3, jnp.bfloat16)
    without, with_it = fa.init(theta), fa.init(theta, rounding="compensated")
    for rounding in ("stochastic", "compensated"):
        for grads, state in ((theta, without), ({"w": theta}, fa.init({"w": theta}))):
            wanted = r"residual.* is None: at init it was wider, or the state was made with round"
            with pytest.raises(ValueError, match=wanted):
                fa.update(grads, state, grads, rounding=rounding)
    for kept in (with_it, fa.init(theta, rounding="stochastic")):
        with pytest.raises(ValueError, match='residual is a tree, but rounding="nearest" was'):
            fa.update(theta, kept, theta)
    way_out = r".*another rounding.*state._replace\(residual=tx.init\(params\).residual\)"
    with pytest.raises(ValueError, match=r"state.residual must be a zero; got codes" + way_out):
        fa.update(theta, with_it, theta, rounding="stochastic")
    stochastic_state = fa.init(theta, rounding="stochastic")
    with pytest.raises(ValueError, match=r"state.residual must be codes; got a zero" + way_out):
        fa.update(theta, stochastic_state, theta, rounding="compensated")
    with pytest.raises(ValueError, match=r"state.residual is None: only a state made with"):
        fa.master_params(theta, without)
    with pytest.raises(ValueError, match=r"state must hold an AdamState; got none, in \{'res"):
        fa.master_params(theta, {"residual": theta})


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_a_derivative_through_a_rounded_parameter_raises(rounding):
    theta = jnp.ones(3, jnp.bfloat16)
    tx = fa.adam(0.1, rounding=rounding)
    with pytest.raises(TypeError, match="Cannot differentiate through"):
        jax.grad(lambda g: tx.update(g, tx.init(theta), theta)[0].sum())(jnp.ones(3))


def wrapped(kind, tx):
    if kind == "MultiSteps":
        return optax.MultiSteps(tx, every_k_schedule=2)
    return optax.apply_if_finite(tx, 3)


@pytest.mark.parametrize(
    ("kind", "moments"), [("MultiSteps", "int8"), ("apply_if_finite", "bfloat16")]
)
def test_wrappers_that_add_or_select_updates_keep_them_on_the_grid(kind, moments, standard):
    rng = np.random.default_rng(37)
    start = jnp.asarray(rng.standard_normal((2, 128)), jnp.bfloat16)
    tx = fa.adamw(LEARNING_RATE, b1=0.7, weight_decay=0.1, moments=moments, rounding="compensated")
    outer = wrapped(kind, tx)
    params, state, update = start, outer.init(start), jax.jit(outer.update)
    grads = rng.standard_normal((6, 2, 128)).astype(np.float32)
    for g in grads:
        u, state = update(jnp.asarray(g), state, params)
        after = optax.apply_updates(params, u)
        landed = np.float32(params) + np.float32(u)
        np.testing.assert_array_equal(np.float32(after), landed)
        params = after
    mean = (grads[::2] + grads[1::2]) / 2 if kind == "MultiSteps" else grads
    want = reference.adam(
        mean, np.float64(start), learning_rate=LEARNING_RATE, b1=0.7, weight_decay=0.1
    ).params[-1]
    inner = state.inner_opt_state if kind == "MultiSteps" else state.inner_state
    weights = np.float64(fa.master_params(params, inner))
    moved = np.sqrt(np.mean((want - np.float64(start)) ** 2))
    assert np.sqrt(np.mean((weights - want) ** 2)) < 0.1 * moved


def test_apply_if_finite_refuses_short_gradients_as_updates_are_wider(standard):
    theta = jnp.ones((2, 128), jnp.bfloat16)
    outer = wrapped("apply_if_finite", fa.adamw(moments="bfloat16", rounding="compensated"))
    state = outer.init(theta)
    with pytest.raises(TypeError, match=r"(?s)float32\[2,128\].*bfloat16\[2,128\]"):
        outer.update(theta, state, theta)


@pairs(("dtype", "sign"), [jnp.bfloat16, jnp.float16], [1, -1])
def test_compensated_weights_do_not_drift_where_a_code_would_be_128(dtype, sign):
    # Steps of half the weight's spacing, so that half-way points are met all the time. Clipped to
    # 127 there, weights sank by half a code in 256 steps: 15 standard errors here.
    n, steps = 20_000, 400
    theta = jnp.asarray(sign * np.random.default_rng(0).uniform(0.45, 0.95, n), dtype)
    code, spacing = jnp.zeros(n, jnp.int8), float(jnp.finfo(dtype).eps) / 2

    @jax.jit
    def walked(theta, code):
        def step(kept, i):
            theta, code, moved = kept
            w = R.master(theta, code)
            x = w + spacing * jnp.sin(0.37 * i + 0.01 * jnp.arange(n, dtype=jnp.float32))
            random = N.random_bits(N.step_noise(i.astype(jnp.int32) + 1), N.leaf_key("['w']"), (n,))
            u, code = R.round_update(R.ROUNDINGS["compensated"], x, theta, random)
            return ((theta.astype(jnp.float32) + u).astype(dtype), code, moved + (x - w)), None

        return jax.lax.scan(step, (theta, code, jnp.zeros(n)), jnp.arange(float(steps)))[0]

    *end, moved = walked(theta, code)
    drift = np.float64(R.master(*end)) - np.float64(theta) - np.float64(moved)
    assert abs(drift.mean()) < 5 * drift.std() / n**0.5
    assert drift.std() < 2 * steps**0.5 * spacing / 256  # one rounding of a code a step


@pytest.mark.parametrize(("rounding", "allowed"), [("stochastic", 0), ("compensated", 1e-5)])
def test_weights_that_go_to_and_fro_do_not_drift(rounding, allowed):
    # Steps of a quarter of a unit at a power of two, below which the grid is twice as fine. By bits
    # that know of each other stochastic weights sank by 1.2 % in 2,000 steps, 25 standard errors;
    # codes have such bits still, and sink by 6e-6.
    n, steps, rate = 2**14, 2000, 0.26 * unit(1.0, "bfloat16")
    theta = jnp.ones(n, jnp.bfloat16)
    tx = fa.adam(rate, b1=0.0, b2=0.0, rounding=rounding)  # a step is -rate * sign(g)

    def body(kept, key):
        params, state, moved = kept
        g = jax.random.rademacher(key, (n,), jnp.bfloat16)
        u, state = tx.update(g, state, params)
        return (fa.apply_updates(params, u), state, moved - g.astype(jnp.float32)), None

    start = theta, tx.init(theta), jnp.zeros(n)
    keys = jax.random.split(jax.random.key(41), steps)
    params, state, moved = jax.jit(lambda *given: jax.lax.scan(body, *given)[0])(start, keys)
    end = params if rounding == "stochastic" else fa.master_params(params, state)
    drift = np.float64(end) - 1 - rate * np.float64(moved)
    assert abs(drift.mean()) < 3 * drift.std() / n**0.5 + allowed
    # A rounding a step: of a unit, or of a 256th of it.
    spread = steps**0.5 * unit(1.0, "bfloat16") / (2 if rounding == "stochastic" else 512)
    assert 0.3 * spread < drift.std() < 1.2 * spread


# Codes that a master weight may be away from its parameter; a half-way point is 128.
CODES = np.array([-127.3, -64.0, -20.3, -1 / 256, 0.0, 0.3, 64.5, 126.9, 127.6])


@functools.partial(jax.jit, static_argnums=1)
def all_landings(x, name):
    """Parameter and master weight for every byte of random bits, from the parameter 0 on."""
    dtype, byte = SHORT[name], jnp.arange(256, dtype=jnp.uint32) << 24
    x, theta = (jnp.broadcast_to(a[:, None], (len(x), 256)) for a in (x, x.astype(dtype)))
    found = []
    for half in (0x20000000, 0xE0000000):  # below and above half
        theta_bits = jnp.full(x.shape, half, jnp.uint32)
        code_bits = jnp.broadcast_to(byte, x.shape)
        bits = N.RandomBits(None, None, code=code_bits, theta=theta_bits, extra={})
        u, code = R.round_update(R.ROUNDINGS["compensated"], x, theta, bits)
        landed = (theta.astype(jnp.float32) + u).astype(dtype)
        found.append((landed, R.master(landed, code)))
    return [jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", SHORT)
def test_a_master_weight_is_right_on_average_over_its_bits_up_to_the_ends_of_the_range(name, sign):
    info = ml_dtypes.finfo(SHORT[name])
    largest, least = np.float64(info.max), np.float64(info.tiny)
    thetas = [1.0, 1 + info.eps, 2 - info.eps, 1.37, largest, largest / (1 + info.eps)]
    if name == "float16":  # whose subnormals XLA keeps
        thetas += [3 * least, least, 0.37 * least, 5 * np.float64(info.smallest_subnormal)]
    theta = np.array(thetas).astype(SHORT[name]).astype(np.float64)
    x = (theta[:, None] + CODES * unit(theta, name)[:, None] / 256).ravel()
    x = np.float32(sign * x[x <= largest + unit(largest, name) * 127 / 256])
    landed, master = map(np.float64, all_landings(x, name))
    code = unit(landed, name) / 256
    assert (np.abs(master - x[:, None]) <= code).all()
    assert (np.abs(landed - master) <= 128 * code).all()
    assert (np.abs(master.mean(1) - x) <= code.mean(1) / 60).all()


@pytest.mark.parametrize("name", SHORT)
def test_a_compensated_weight_out_of_range_is_infinite_with_no_code(name):
    largest = np.float64(ml_dtypes.finfo(SHORT[name]).max)
    x = largest + unit(largest, name) * np.array([0.6, 1.0]) if name == "float16" else []
    x = np.float32([*x, np.inf])
    for sign in (1, -1):
        landed, master = map(np.float64, all_landings(sign * x, name))
        assert (landed == sign * np.inf).all()
        assert (master == sign * np.inf).all()
