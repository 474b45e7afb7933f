"""Wrappers with parameters of their own: lookahead, schedule-free, sharpness-aware."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_runs import (
    ADAM,
    ADAMW,
    GRADS,
    PARAMS,
    RATES,
    STEPS,
    assert_close,
    assert_state,
    norm_of,
    oracle,
    row,
    run,
)
from quick import quick_jit

import functional_adam as fa


@pytest.mark.parametrize("reset_state", [False, True])
def test_lookahead(reset_state):
    k, slow_step = 3, 0.4
    # The oracle cannot follow a jump of the parameters, so no decay where the state lives on.
    make, hyperparameters = (fa.adamw, ADAMW) if reset_state else (fa.adam, ADAM)
    tx = optax.lookahead(make(**hyperparameters), k, slow_step, reset_state)
    steps = run(tx, optax.LookaheadParams.init_synced(PARAMS), GRADS)
    slow = jax.tree.map(np.float64, PARAMS)
    for start in range(0, STEPS, k):
        since = start if reset_state else 0
        period = oracle(GRADS[since : start + k], slow, **hyperparameters)
        fast = slow
        for t in range(start, start + k):
            fast = jax.tree.map(np.add, fast, row(period.updates, t - since))
            if t == start + k - 1:
                slow = jax.tree.map(lambda s, f: s + slow_step * (f - s), slow, fast)
                fast = slow
            assert_close(steps.params[t].fast, fast)
            assert_close(steps.params[t].slow, slow)
            synced = reset_state and t == start + k - 1
            assert_state(steps.states[t], period, 0 if synced else t + 1 - since)


def test_schedule_free_by_hand():
    b1 = 0.8
    alpha = optax.linear_schedule(0.004, 0.04, 5)
    tx = optax.contrib.schedule_free(
        fa.adam(alpha, **{**RATES, "b1": 0.35}), learning_rate=alpha, b1=b1
    )
    steps = run(tx, PARAMS, GRADS)
    truth = oracle(
        GRADS,
        PARAMS,
        **{**RATES, "b1": 0.35},
        learning_rate=lambda t: 0.004 + 0.036 * min(t, 5) / 5,
    )
    x = z = jax.tree.map(np.float64, PARAMS)
    total = 0.0
    for t in range(STEPS):
        weight = (0.004 + 0.036 * min(t + 1, 5) / 5) ** 2  # its own count starts at 1
        total += weight
        z = jax.tree.map(np.add, z, row(truth.updates, t))
        x = jax.tree.map(lambda x, z, c=weight / total: (1 - c) * x + c * z, x, z)
        y = jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, x, z)
        assert_close(steps.params[t], y)
        assert_close(steps.states[t].z, z)
        assert_close(optax.contrib.schedule_free_eval_params(steps.states[t], steps.params[t]), x)
        assert_state(steps.states[t], truth, t + 1)


def test_schedule_free_converges():
    curvature = np.geomspace(0.05, 5.0, 8, dtype=np.float32)
    target = np.random.default_rng(7).standard_normal(8).astype(np.float32)
    loss = lambda p: 0.5 * (curvature * (p - target) ** 2).sum()  # noqa: E731
    tx = optax.contrib.schedule_free(fa.adam(0.1, b1=0.0, b2=0.97), learning_rate=0.1, b1=0.9)

    @quick_jit
    def train(params):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry, _ = jax.lax.scan(body, (params, tx.init(params)), length=400)
        return optax.contrib.schedule_free_eval_params(carry[1], carry[0])

    start = jnp.zeros(8)
    assert loss(train(start)) < 1e-3 * loss(start)


@pytest.mark.parametrize("opaque_mode", [False, True])
def test_sharpness_aware_minimisation(opaque_mode):
    rho = 0.3
    curvature = {"a": np.float32([0.4, 1.3, 3.0]), "b": np.float32([[2.2]])}
    start = {"a": np.float32([1.0, -0.7, 0.3]), "b": np.float32([[0.9]])}

    def gradient(params):
        return jax.tree.map(lambda c, p: c * p**3, curvature, params)

    tx = optax.contrib.sam(
        fa.adamw(**ADAMW),
        optax.chain(optax.contrib.normalize(), optax.sgd(rho)),
        opaque_mode=opaque_mode,
    )

    @quick_jit
    def step(params, state):
        extra = {"grad_fn": lambda p, i: gradient(p)} if opaque_mode else {}
        updates, state = tx.update(gradient(params), state, params, **extra)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(jax.tree.map(jnp.asarray, start))
    expected, grads = jax.tree.map(np.float64, start), []
    for count in range(1, 7):
        for _ in range(1 if opaque_mode else 2):  # otherwise up and down are calls of their own
            params, state = step(params, state)
        uphill = gradient(expected)
        norm = norm_of(uphill)
        above = jax.tree.map(lambda p, g, norm=norm: p + rho * g / norm, expected, uphill)
        grads.append(gradient(above))
        truth = oracle(grads, start, **ADAMW)
        expected = row(truth.params, -1)
        assert_close(params, expected)
        assert_state(state.opt_state, truth, count)
