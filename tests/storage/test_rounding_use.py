"""Rounded updates in use: what is refused, wrappers, and how far weights drift."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from codes import format_named
from short_floats import pairs, unit

import functional_adam as fa
from functional_adam._storage import noise as N
from functional_adam._storage import rounding as R
from functional_adam._storage.residual import master

pytestmark = pytest.mark.usefixtures("strict")


# Landing ------------------------------------------------------------------------------------------

LEARNING_RATE = 3e-3


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
            wanted = r"residual.* is None: the parameter was wider at init, or the state was made w"
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
    with pytest.raises(
        ValueError, match=r"state.residual is None: only rounding=\"compensated\" or"
    ):
        fa.master_params(theta, without)
    with pytest.raises(ValueError, match=r"state must hold an AdamState; found none in \{'res"):
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
    tx = fa.adamw(
        LEARNING_RATE,
        b1=0.7,
        weight_decay=0.1,
        moments=format_named(moments),
        rounding="compensated",
    )
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
            w = master(theta, code)
            x = w + spacing * jnp.sin(0.37 * i + 0.01 * jnp.arange(n, dtype=jnp.float32))
            random = N.random_bits(N.step_noise(i.astype(jnp.int32) + 1), N.leaf_key("['w']"), (n,))
            u, code = R.round_update(R.ROUNDINGS["compensated"], x, theta, random)
            return ((theta.astype(jnp.float32) + u).astype(dtype), code, moved + (x - w)), None

        return jax.lax.scan(step, (theta, code, jnp.zeros(n)), jnp.arange(float(steps)))[0]

    *end, moved = walked(theta, code)
    drift = np.float64(master(*end)) - np.float64(theta) - np.float64(moved)
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
