"""The scalars to watch a run by, against the same sums in NumPy's float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES, format_named
from quick import quick_jit
from watched import B1, B2, EPS, HYPER, RATE, assert_close, expected, flat, numbers, watch

import functional_adam as fa


def after(tx, steps=6, dtype=np.float32):
    """Updates, state and parameters of a short run."""
    params, step = numbers(0, dtype), quick_jit(tx.update)
    state, updates = tx.init(params), None
    for i in range(steps):
        updates, state = step(numbers(1 + i, dtype), state, params)
        params = fa.apply_updates(params, updates)
    return updates, state, params


def test_every_number_is_what_it_is_said_to_be():
    updates, state, params = after(fa.adamw(RATE, **HYPER, weight_decay=0.3))
    watched = watch(updates, state, params, **HYPER)
    wanted = expected(updates, params, state.mu, state.nu, 6)
    assert 0.1 < wanted["below_eps"] < 0.9
    assert wanted["direction_rms"] < 1
    assert_close(watched, wanted)


def test_eps_root_counts_as_in_the_update():
    updates, state, params = after(fa.adam(RATE, **HYPER, eps_root=3e-4))
    watched = fa.diagnostics(updates, state, params, **HYPER, eps_root=3e-4)
    v_hat = flat(state.nu) / (1 - B2**6) + 3e-4
    direction = flat(state.mu) / (1 - B1**6) / (np.sqrt(v_hat) + EPS)
    np.testing.assert_allclose(watched["direction_rms"], np.sqrt(np.mean(direction**2)), rtol=2e-6)
    np.testing.assert_allclose(watched["below_eps"], np.mean(np.sqrt(v_hat) < EPS), rtol=2e-6)
    # Without decay the direction is the update over the rate.
    np.testing.assert_allclose(flat(updates), -RATE * direction, rtol=1e-5)


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_small_moments_are_read(moments):
    updates, state, params = after(fa.adam(RATE, **HYPER, moments=format_named(moments)))
    watched = watch(updates, state, params, **HYPER)
    full = quick_jit(functools.partial(fa.convert_moments, moments="full"))(state, params)
    wanted = expected(updates, params, full.mu, full.nu, 6)
    if moments == "int8":
        wanted["clipped"] = share_at_end(state)
    assert_close(watched, wanted)


def share_at_end(state):
    """Of all codes, those with nothing beyond them."""
    ends = [np.abs(np.int32(m)) >= 127 for m in jax.tree.leaves(state.mu)]
    ends += [np.asarray(v) == 255 for v in jax.tree.leaves(state.nu)]
    return sum(x.sum() for x in ends) / sum(x.size for x in ends)


def test_clipping_is_seen():
    # A spike far above the rest of its block saturates: its root's code, and no other.
    tx = fa.adam(RATE, **HYPER, moments=CODES)
    params = jnp.zeros((1, 128))
    state, update = tx.init(params), quick_jit(tx.update)
    watched = quick_jit(functools.partial(fa.diagnostics, **HYPER))

    def clipped(updates, state):
        found = watched(updates, state, params)["clipped"]
        assert found == np.float32(share_at_end(state))  # a number of 256ths
        return found

    rng = np.random.default_rng(0)
    for _ in range(5):
        grads = jnp.asarray(rng.normal(size=(1, 128)), jnp.float32)
        updates, state = update(grads, state, params)
    calm = clipped(updates, state)
    updates, state = update(grads.at[0, 3].set(1e9), state, params)
    assert clipped(updates, state) >= calm + 1 / 256
    updates, state = update(grads.at[0, 5].set(np.nan), state, params)
    assert state.mu[0, 5] == -128
    assert clipped(updates, state) >= calm + 2 / 256


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_parameters_are_summed_in_float32(dtype):
    updates, state, params = after(fa.adam(RATE, **HYPER), dtype=dtype)
    large = jax.tree.map(lambda p: p * 500, params)  # squares beyond float16
    assert np.abs(flat(large)).max() > 256
    assert_close(
        watch(updates, state, large, **HYPER),
        expected(updates, large, state.mu, state.nu, 6),
    )


@pytest.mark.usefixtures("x64")
def test_doubles_and_complex_numbers():
    tx, params = fa.adam(RATE, **HYPER), {"z": jnp.array([3 + 4j, 1j]), "x": jnp.array([2.0])}
    updates, state = tx.update(
        {"z": jnp.array([0.1 + 0.3j, 2]), "x": jnp.array([-0.7])}, tx.init(params), params
    )
    watched = watch(updates, state, params, **HYPER)
    assert watched["param_norm"] == np.float32(np.sqrt(30))
    size = np.array([np.sqrt(0.1), 2, 0.7])
    np.testing.assert_allclose(
        watched["direction_rms"], np.sqrt(np.mean((size / (size + EPS)) ** 2)), rtol=2e-7
    )


def test_before_the_first_step_nothing_is_nan():
    tx, params = fa.adam(RATE), numbers(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    watched = fa.diagnostics(zeros, tx.init(params), params, learning_rate=RATE)
    assert (watched["count"], watched["direction_rms"], watched["below_eps"]) == (0, 0, 1)
    assert all(np.isfinite(x) for x in watched.values())


SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, RATE, 5, 40)


def test_the_rate_in_force_is_that_of_the_step():
    # Linear from 0 to 0.03 in 5 steps: the sixth step was made with the value at count 5.
    chain = optax.chain(optax.clip(0.1), fa.adamw(SCHEDULE, **HYPER))
    updates, state, params = after(chain, steps=4)
    found = watch(updates, state, params, learning_rate=SCHEDULE)["learning_rate"]
    np.testing.assert_allclose(found, RATE * 3 / 5, rtol=1e-6)
    assert "learning_rate" not in watch(updates, state, params)


def test_injected_hyperparameters_are_found_wherever_they_are():
    inner = optax.inject_hyperparams(fa.adamw)(SCHEDULE, **HYPER, weight_decay=0.2)
    tx = optax.chain(optax.clip(0.1), optax.apply_if_finite(inner, 3))
    updates, state, params = after(tx, steps=4)
    watched = watch(updates, state, params)
    np.testing.assert_allclose(watched["learning_rate"], RATE * 3 / 5, rtol=1e-6)
    kept = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
    wanted = expected(updates, params, *kept, 4) | {"learning_rate": RATE * 3 / 5}
    assert_close(watched, wanted)
    explicit = watch(updates, state, params, learning_rate=0.5, eps=1e3)
    assert (explicit["learning_rate"], explicit["below_eps"]) == (0.5, 1)


def test_frozen_leaves_count_nowhere():
    params = {"w": jnp.array([3.0, 4.0]), "frozen": None}
    tx = fa.adam(RATE, **HYPER)
    updates, state = tx.update({"w": jnp.array([1.0, 0.1]), "frozen": None}, tx.init(params))
    watched = fa.diagnostics(updates, state, params, **HYPER)
    assert watched["param_norm"] == 5
    assert watched["below_eps"] == 0


def test_it_is_vmapped_over_members():
    rates = jnp.array([0.01, 0.3])

    def member(rate):
        tx = fa.adam(rate, **HYPER)
        updates, state = tx.update(numbers(1), tx.init(numbers(0)))
        return fa.diagnostics(updates, state, numbers(0), learning_rate=rate, **HYPER)

    watched = quick_jit(jax.vmap(member))(rates)
    np.testing.assert_array_equal(watched["learning_rate"], rates)
    np.testing.assert_allclose(watched["update_norm"][1] / watched["update_norm"][0], 30, rtol=1e-5)


def test_nothing_is_zero_and_not_nan():
    tx = fa.adam(RATE, **HYPER)
    for params in ({}, {"w": jnp.zeros((0, 3))}, {"frozen": None}):
        updates, state = tx.update(params, tx.init(params), params)
        watched = fa.diagnostics(updates, state, params, **HYPER)
        assert {name: float(x) for name, x in watched.items()} == dict.fromkeys(watched, 0) | {
            "count": 1
        }


def test_a_step_from_zero_has_no_infinite_ratio():
    zeros = {"w": jnp.zeros(4)}
    tx = fa.adam(RATE, **HYPER)
    updates, state = tx.update({"w": jnp.full(4, 0.7)}, tx.init(zeros), zeros)
    watched = watch(updates, state, zeros, **HYPER)
    assert watched["update_norm"] > RATE
    assert watched["update_to_param"] == watched["param_norm"] == 0
    broken = watch({"w": jnp.array([np.nan, 0, 0, 0])}, state, zeros, **HYPER)
    assert np.isnan(broken["update_to_param"])


@pytest.mark.parametrize("moments", ["full", "bfloat16", "int8"])
def test_leaves_beyond_an_int32_are_counted(moments):
    """In shapes alone: a count kept in 32 bits raises or wraps, hence the dtypes of all sums."""
    tx = fa.adam(RATE, **HYPER, moments=format_named(moments))
    params = {"w": jax.ShapeDtypeStruct((2**16, 2**15 + 128), jnp.float32)}
    state = jax.eval_shape(tx.init, params)
    watch = functools.partial(fa.diagnostics, **HYPER)
    watched = jax.eval_shape(watch, params, state, params)
    assert set(watched) >= {"direction_rms", "below_eps"}
    equations = str(jax.make_jaxpr(watch)(params, state, params)).splitlines()
    sums = [line for line in equations if "= reduce_sum" in line or "= sum" in line]
    assert sums
    assert not [line for line in sums if ":i32" in line.split("=")[0]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": optax.adam(1e-3)}, ValueError, "state must hold one AdamState; found none"),
        ({"state": optax.sgd(0.1, momentum=0.9)}, ValueError, "none.*partition, MultiSteps.*nnx.O"),
        (
            {"state": optax.chain(fa.adam(), fa.adam())},
            ValueError,
            r"found 2: state\[0\], state\[1\]. Pass one",
        ),
        ({"b2": 1.5}, ValueError, r"b2 must be a number in \[0, 1\)"),
        ({"eps": "small"}, TypeError, "eps must be"),
        ({"updates": {"a": 1.0}}, ValueError, r"updates must have the structure of params"),
        (
            {"params": {n: jnp.int32(3) for n in "abc"}},
            TypeError,
            r"params\['a'\] must be a float or complex array; got dtype int32",
        ),
    ],
)
def test_mistakes_are_named(change, error, message):
    params = numbers(0)
    if "state" in change:
        change = {"state": change["state"].init(params)}
    given = dict(updates=params, state=fa.init(params), params=params) | change
    with pytest.raises(error, match=message):
        fa.diagnostics(**given)
