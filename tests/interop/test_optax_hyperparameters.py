"""Hyperparameters in the state, as Optax injects them, and schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from modes import switched
from optax_runs import (
    ADAM,
    ADAMW,
    GRADS,
    KEEP,
    PARAMS,
    RATES,
    STEPS,
    Run,
    Stepper,
    assert_close,
    assert_follows,
    assert_state,
    dropped,
    halving,
    keep_all_but_bias,
    kept,
    oracle,
    rounded,
    row,
    run,
)

import functional_adam as fa

# Hyperparameters in the state -----------------------------------------------------------------


@pytest.mark.parametrize(("make", "hyperparameters"), [(fa.adam, ADAM), (fa.adamw, ADAMW)])
def test_inject_hyperparams_traces_every_number(make, hyperparameters):
    steps = run(optax.inject_hyperparams(make)(**hyperparameters), PARAMS, GRADS)
    injected = steps.states[-1].hyperparams
    assert injected.keys() == hyperparameters.keys()
    assert all(isinstance(x, jax.Array) for x in injected.values())
    assert_follows(steps, oracle(GRADS, PARAMS, **rounded(hyperparameters)))


def test_inject_hyperparams_into_scale_by_adam():
    tx = optax.chain(optax.inject_hyperparams(fa.scale_by_adam)(**RATES), optax.scale(-0.013))
    assert_follows(run(tx, PARAMS, GRADS), oracle(GRADS, PARAMS, **rounded(ADAM)))


CHANGED = {
    "learning_rate": 0.031,
    "b1": 0.55,
    "b2": 0.89,
    "eps": 0.3,
    "eps_root": 0.07,
    "weight_decay": 1.3,
}


def test_inject_hyperparams_changed_between_steps():
    start, changed = rounded(ADAMW), rounded(CHANGED)
    unchanged = oracle(GRADS, PARAMS, **start).updates
    ours_tx = optax.inject_hyperparams(fa.adamw)(**start)
    theirs_tx = optax.inject_hyperparams(optax.adamw)(**start)
    our_step, their_step = Stepper(ours_tx), Stepper(theirs_tx)
    when = 4
    for name, value in changed.items():

        def change(t, state, name=name, value=value):
            if t == when:
                state.hyperparams[name] = jnp.asarray(value, state.hyperparams[name].dtype)
            return state

        ours = run(ours_tx, PARAMS, GRADS, change_state=change, step=our_step)
        with switched("jax_enable_x64", True):
            params, *grads = (jax.tree.map(np.float64, tree) for tree in (PARAMS, *GRADS))
            theirs = run(theirs_tx, params, grads, change_state=change, step=their_step)
        for t in range(STEPS):
            assert_close(ours.updates[t], theirs.updates[t], 0.013)
            for moment in "mu", "nu":
                assert_close(*(optax.tree.get(r.states[t], moment) for r in (ours, theirs)))
        moved = jax.tree.map(
            lambda u, v: np.abs(u - v).max(), ours.updates[when], row(unchanged, when)
        )
        assert min(jax.tree.leaves(moved)) > 1e-3 * ADAM["learning_rate"], name


def test_inject_hyperparams_with_schedules():
    alpha, decay = optax.linear_schedule(0.03, 0.002, 6), optax.exponential_decay(0.2, 3, 0.4)
    tx = optax.inject_hyperparams(fa.adamw)(alpha, **RATES, weight_decay=decay)
    truth = oracle(
        GRADS,
        PARAMS,
        learning_rate=lambda t: 0.03 + (0.002 - 0.03) * min(t, 6) / 6,
        weight_decay=lambda t: 0.2 * 0.4 ** (t / 3),
        **rounded(RATES),
    )
    steps = run(tx, PARAMS, GRADS)
    assert_follows(steps, truth, 0.002)
    assert_close(steps.states[2].hyperparams["learning_rate"], 0.03 - 0.028 * 2 / 6, 1e-3)


def test_inject_hyperparams_with_a_static_mask():
    tx = optax.inject_hyperparams(fa.adamw, static_args=("mask",))(**ADAMW, mask=keep_all_but_bias)
    steps = run(tx, PARAMS, GRADS)
    decaying = oracle(GRADS, PARAMS, **rounded(ADAMW))
    plain = oracle(GRADS, PARAMS, **rounded(ADAM))
    for t in range(STEPS):
        assert_close(kept(steps.updates[t]), kept(row(decaying.updates, t)), 0.013)
        assert_close(dropped(steps.updates[t]), dropped(row(plain.updates, t)), 0.013)
        assert_state(steps.states[t], decaying, t + 1)


def test_inject_hyperparams_of_float32_for_bfloat16_parameters():
    hyperparameters = {**ADAMW, "b1": 0.9, "b2": 0.9993}
    assert float(jnp.bfloat16(hyperparameters["b2"])) == 1.0
    to_bfloat16 = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.bfloat16))
    params, *grads = map(to_bfloat16, (PARAMS, *GRADS))
    make = optax.inject_hyperparams(fa.adamw, hyperparam_dtype=jnp.float32)
    steps = run(make(**hyperparameters), params, grads)
    alpha, decay = ADAMW["learning_rate"], ADAMW["weight_decay"]
    truth = oracle(grads, params, **rounded({**hyperparameters, "weight_decay": 0.0}))
    for t, before in enumerate([params, *steps.params[:-1]]):
        expected = jax.tree.map(
            lambda u, p: u - alpha * decay * np.float64(p), row(truth.updates, t), before
        )
        assert_close(steps.updates[t], expected, 1e-6, tolerance=2.0**-8)
        assert_state(steps.states[t], truth, t + 1)


@pytest.mark.parametrize("array", [jnp.array, np.array], ids=["jax", "numpy"])
def test_inject_hyperparams_with_a_mask_as_an_array_raises(array):
    with pytest.raises(TypeError, match=r'static_args=\("mask",\)'):
        optax.inject_hyperparams(fa.adamw)(**ADAMW, mask=array(True)).init(PARAMS)


# Schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        optax.warmup_cosine_decay_schedule(0.0, 0.03, 3, 8, 0.001),
        optax.exponential_decay(0.03, 2, 0.7, staircase=True),
        optax.join_schedules(
            [optax.linear_schedule(0.001, 0.03, 4), optax.constant_schedule(0.03)], [4]
        ),
        optax.piecewise_constant_schedule(0.03, {2: 0.3, 5: 0.5}),
        optax.sgdr_schedule(
            [{"init_value": 0.002, "peak_value": 0.03, "decay_steps": 4, "warmup_steps": 1}] * 3
        ),
    ],
    ids=["warmup_cosine", "exponential", "joined", "piecewise", "sgdr"],
)
def test_a_schedule_sees_the_count_before_the_step(schedule):
    values = [float(schedule(t)) for t in range(STEPS + 1)]
    assert len({*values}) > 2
    truth = oracle(GRADS, PARAMS, **{**ADAMW, "learning_rate": lambda t: values[t]})
    steps = run(fa.adamw(schedule, **RATES, weight_decay=0.07), PARAMS, GRADS)
    assert_follows(steps, truth, 0.03)


def test_schedules_for_learning_rate_and_decay_are_called_with_0_first():
    seen = {"learning_rate": [], "weight_decay": []}

    def schedule(name, start):
        def value(count):
            seen[name].append(int(count))
            return start / (1 + 0.3 * count)

        return value

    alpha, decay = schedule("learning_rate", 0.02), schedule("weight_decay", 0.3)
    tx = fa.adamw(alpha, **RATES, weight_decay=decay)
    params, state, rows = PARAMS, tx.init(PARAMS), []
    for g in GRADS:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        rows.append((updates, params, state))
    truth = oracle(
        GRADS,
        PARAMS,
        learning_rate=lambda t: 0.02 / (1 + 0.3 * t),
        weight_decay=lambda t: 0.3 / (1 + 0.3 * t),
        **RATES,
    )
    assert_follows(Run(*map(list, zip(*rows, strict=True))), truth, 0.02)
    assert seen == {name: list(range(STEPS)) for name in seen}


def test_schedules_and_masks_leave_the_state_as_it_is():
    plain = jax.tree.structure(fa.adam(**ADAM).init(PARAMS))
    scheduled = fa.adamw(optax.linear_schedule(0.1, 0.2, 3), weight_decay=halving, mask=KEEP)
    assert jax.tree.structure(scheduled.init(PARAMS)) == plain
