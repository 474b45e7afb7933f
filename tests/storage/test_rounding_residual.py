"""What rounding to 16 bits leaves out: kept in compensated weights, lost by rounding to nearest."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from codes import format_named
from short_floats import SHORT, pairs, step, unit

import functional_adam as fa
from functional_adam._storage import noise as N
from functional_adam._storage import rounding as R
from functional_adam._storage.residual import master

pytestmark = pytest.mark.usefixtures("strict")


# Landing ------------------------------------------------------------------------------------------

LEARNING_RATE = 3e-3


# What is left out ---------------------------------------------------------------------------------


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
    tx = fa.adamw(0.01, b1=0.7, weight_decay=0.2, rounding=rounding, moments=format_named(moments))
    params = {"a": jnp.ones(3, jnp.float16), "b": jnp.ones(5, at_init)}
    state = tx.init(params)
    params["b"] = params["b"].astype(now)
    was = "bfloat16" if rounding == "stochastic" else "a float of 16 bits"
    wanted = rf"params\['b'\] is float32 now; it was {was} at init.*apply_updates"
    if now == "bfloat16":
        wanted = (
            r"params\['b'\] is bfloat16, but state.residual\['b'\] is None: the parameter was wider"
        )
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


# Codes of a master weight -------------------------------------------------------------------------

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
        found.append((landed, master(landed, code)))
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
    landed, weight = map(np.float64, all_landings(x, name))
    code = unit(landed, name) / 256
    assert (np.abs(weight - x[:, None]) <= code).all()
    assert (np.abs(landed - weight) <= 128 * code).all()
    assert (np.abs(weight.mean(1) - x) <= code.mean(1) / 60).all()


@pytest.mark.parametrize("name", SHORT)
def test_a_compensated_weight_out_of_range_is_infinite_with_no_code(name):
    largest = np.float64(ml_dtypes.finfo(SHORT[name]).max)
    x = largest + unit(largest, name) * np.array([0.6, 1.0]) if name == "float16" else []
    x = np.float32([*x, np.inf])
    for sign in (1, -1):
        landed, weight = map(np.float64, all_landings(sign * x, name))
        assert (landed == sign * np.inf).all()
        assert (weight == sign * np.inf).all()
