"""Steps that `skip_spikes` leaves out leave no trace: not a bit, whatever a state is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import format_named
from modes import switched
from quick import quick_jit
from same_bits import assert_same_bits

import functional_adam as fa

HYPER = dict(learning_rate=0.03, b1=0.85, b2=0.97, eps=1e-6, weight_decay=0.2)
GUARD = dict(factor=4.0, window=9, warmup=3, max_consecutive=4)
SHAPES = {"a": (3, 150), "b": (5,), "large": (16, 640)}  # a CPU takes codes of the last in pieces
STEPS = 9
PLAN = {0: np.nan, 4: 30.0, 5: np.nan, 8: np.inf}  # what the loss is instead
MODES = [
    ("full", "nearest", "update"),
    ("bfloat16", "stochastic", "update"),
    ("int8", "compensated", "step"),
    ("full", "split", "update"),
    pytest.param("full", "nearest", "step", marks=pytest.mark.slow),
    pytest.param("bfloat16", "stochastic", "step", marks=pytest.mark.slow),
    pytest.param("int8", "compensated", "update", marks=pytest.mark.slow),
]
WAYS = ("step", "update")


def dtype_of(rounding):
    return {"nearest": jnp.float32, "split": jnp.float16}.get(rounding, jnp.bfloat16)


def numbers(seed, dtype, members=()):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=members + shape) * 0.3, dtype)
        for name, shape in SHAPES.items()
    }


def start(dtype):
    """Parameters with zeros of either sign, infinities and, where adding keeps them, subnormals."""
    params = numbers(0, dtype)
    odd = [-0.0, 0.0, -1e-7 if dtype == jnp.float16 else -1e-30, np.inf, -2.0]
    return {**params, "b": jnp.asarray(odd, dtype)}


def stream(dtype, plan=PLAN):
    for i in range(STEPS):
        yield i in plan, plan.get(i, 2.0 + 0.1 * (i % 3)), numbers(1 + i, dtype)


def transformation(moments, rounding):
    return fa.adamw(**HYPER, moments=format_named(moments), rounding=rounding)


def one_step(tx, way, params, state, grads, loss):
    if way == "step":
        return fa.step(tx, grads, state, params, value=loss)
    updates, state = tx.update(grads, state, params, value=loss)
    return fa.apply_updates(params, updates), state


@pytest.mark.parametrize(("moments", "rounding", "way"), MODES)
def test_a_skipped_step_leaves_no_trace(moments, rounding, way):
    dtype = dtype_of(rounding)
    tx = fa.skip_spikes(transformation(moments, rounding), judge="loss", **GUARD)
    step = quick_jit(functools.partial(one_step, tx, way))
    params, state = start(dtype), tx.init(start(dtype))
    theta, kept = start(dtype), tx.init(start(dtype))  # the run without the skipped steps
    for off, loss, grads in stream(dtype):
        before = params, state.inner_state
        params, state = step(params, state, grads, loss)
        assert bool(state.last_accepted) != off
        if off:
            assert_same_bits((params, state.inner_state), before)
        else:
            theta, kept = step(theta, kept, grads, loss)
        assert_same_bits((params, state.inner_state), (theta, kept.inner_state))
    assert (state.skipped, state.accepted, state.inner_state.count) == (4, STEPS - 4, STEPS - 4)
    assert kept.skipped == 0
    assert step._cache_size() == 1


@pytest.mark.parametrize("way", WAYS)
def test_without_a_trace_steps_are_the_same(way):
    tx = fa.skip_spikes(optax.chain(optax.clip(0.1), fa.adam(0.03)), judge="loss", **GUARD)
    params = {"w": jnp.array([-0.0, 2.0, 1e-40])}
    state = tx.init(params)
    before, (params, state) = params, one_step(tx, way, params, state, params, np.nan)
    assert not state.last_accepted
    # XLA for CPUs adds subnormal numbers as zeros; `fa.step` adds nothing.
    kept = before if way == "step" else {"w": before["w"][:2]}
    assert_same_bits({"w": params["w"][: kept["w"].size]}, kept)


@pytest.mark.parametrize(("moments", "rounding"), [("bfloat16", "compensated")])
def test_within_a_scan(moments, rounding):
    dtype = dtype_of(rounding)
    tx = fa.skip_spikes(transformation(moments, rounding), judge="loss", **GUARD)

    @quick_jit
    def run(params, state, losses, grads):
        def body(kept, row):
            return one_step(tx, "step", *kept, *row), None

        return jax.lax.scan(body, (params, state), (grads, losses))[0]

    def end(rows):
        losses, grads = jnp.float32([x for _, x, _ in rows]), [g for *_, g in rows]
        stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
        return run(start(dtype), tx.init(start(dtype)), losses, stacked)

    rows = list(stream(dtype))
    (found, state), (wanted, clean) = end(rows), end([row for row in rows if not row[0]])
    assert_same_bits((found, state.inner_state), (wanted, clean.inner_state))
    assert_same_bits(state.losses, clean.losses)
    assert (state.skipped, clean.skipped) == (4, 0)


@pytest.mark.parametrize(("moments", "rounding"), [("bfloat16", "compensated")])
def test_of_many_runs_one_skips_and_the_others_go_on(moments, rounding):
    members, ill, dtype = 3, 1, dtype_of(rounding)
    inner = transformation(moments, rounding)
    tx = fa.skip_spikes(inner, **GUARD)
    step = quick_jit(jax.vmap(functools.partial(one_step, tx, "step")))
    params = wanted = numbers(0, dtype, (members,))
    state, kept = jax.vmap(tx.init)(params), jax.vmap(tx.init)(params)
    for i in range(6):
        losses = jnp.float32([2.0, 1.0 + 0.01 * i, -3.0])
        grads = numbers(1 + i, dtype, (members,))
        # The ill one's gradient is far off in the fifth step and its loss in the sixth.
        bad = {**grads, "b": grads["b"].at[ill].multiply(1e5 if i == 4 else 1)}
        params, state = step(params, state, bad, losses.at[ill].add(50.0 if i == 5 else 0))
        wanted, kept = step(wanted, kept, grads, losses)
        if i == 3:
            before = jax.tree.map(lambda x: x[ill], (params, state.inner_state))
    np.testing.assert_array_equal(state.skipped, [0, 2, 0])
    np.testing.assert_array_equal(state.inner_state.count, [6, 4, 6])
    for member in range(members):
        found, good = (
            jax.tree.map(lambda x, n=member: x[n], tree)
            for tree in ((params, state.inner_state), (wanted, kept.inner_state))
        )
        assert_same_bits(found, before if member == ill else good)


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="older XLA puts a branch's results aside")
def test_nothing_is_copied_and_gradients_are_read_once_more():
    params = {"w": jnp.ones((256, 512)), "v": jnp.ones((3, 700))}
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    tx = fa.adamw(**HYPER)

    def memory(tx):
        step = jax.jit(functools.partial(one_step, tx, "step"), donate_argnums=(0, 1))
        compiled = step.lower(params, tx.init(params), params, 1.0).compile()
        used, costs = compiled.memory_analysis(), compiled.cost_analysis()
        costs = costs[0] if isinstance(costs, list) else costs
        results = used.output_size_in_bytes - used.alias_size_in_bytes
        return used.temp_size_in_bytes, results, costs["bytes accessed"]

    (temporary, results, moved), (_, _, alone) = memory(fa.skip_spikes(tx)), memory(tx)
    assert temporary < 20_000  # two histories and what is made of them
    assert results < 300  # pointers: all else lies where it was
    # Once more, and twice where squares leave their range: XLA counts that branch too.
    assert moved - alone < 3.3 * size


@pytest.mark.parametrize("way", WAYS)
def test_an_update_is_of_the_type_of_any_other(way):
    """Complex, weakly typed and missing leaves, in a trace or not."""
    params = {"z": jnp.array([1 - 2j, complex(-0.0, -0.0)]), "weak": jnp.asarray(3.0), "n": None}
    tx = fa.skip_spikes(fa.adam(0.1), judge="loss", window=4, warmup=2)
    for call in (one_step, quick_jit(one_step, static_argnums=(0, 1))):
        theta, state = params, tx.init(params)
        for loss in (1.0, 1.0, np.nan):
            before, (theta, state) = theta, call(tx, way, theta, state, params, loss)
        assert_same_bits(theta, before)
        assert theta["weak"].weak_type
        assert not state.last_accepted


def test_no_number_on_the_way_is_nan_or_infinite():
    tx = fa.skip_spikes(optax.scale(-0.1), window=3, warmup=2)
    params = jnp.array([1.0, 0.0])
    with switched("jax_debug_infs", True), switched("jax_debug_nans", True), jax.disable_jit():
        state = tx.init(params)
        for loss in (0.0, 1.0, 60.0):
            params, state = one_step(tx, "step", params, state, loss * params, loss)
    assert state.skipped == 1
