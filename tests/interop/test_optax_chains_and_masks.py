"""Chains and parts of a tree: every wrapper does with our transformations what it says."""

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
    assert_close,
    assert_equal,
    assert_follows,
    assert_state,
    dropped,
    keep_all_but_bias,
    kept,
    norm_of,
    oracle,
    row,
    run,
)

import functional_adam as fa

OTHER_ADAM = {"learning_rate": 0.04, "b1": 0.7, "b2": 0.93, "eps": 0.005, "eps_root": 0.01}
SLOW = pytest.mark.slow


# Chains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", ["chain", "named_chain"])
def test_chain_clips_what_adam_sees(chain):
    limit = 3.3
    assert {norm_of(g) > limit for g in GRADS} == {True, False}
    members = ("clip", optax.clip_by_global_norm(limit)), ("adam", fa.adamw(**ADAMW))
    if chain == "named_chain":
        tx, key = optax.named_chain(*members), "adam"
    else:
        tx, key = optax.chain(*(member for _, member in members)), 1
    clipped = [
        jax.tree.map(lambda x, g=g: x * min(1.0, limit / norm_of(g)), g)
        for g in (jax.tree.map(np.float64, g) for g in GRADS)
    ]
    steps = run(tx, PARAMS, GRADS)
    assert_follows(steps, oracle(clipped, PARAMS, **ADAMW))
    assert isinstance(steps.states[-1][key], fa.AdamState)


def test_scale_by_adam_is_neither_scaled_nor_signed():
    truth = oracle(GRADS, PARAMS, **ADAM)
    steps = run(fa.scale_by_adam(**RATES), PARAMS, GRADS)
    for t, updates in enumerate(steps.updates):
        expected = jax.tree.map(lambda u: u / -ADAM["learning_rate"], row(truth.updates, t))
        assert_close(updates, expected)
        assert_state(steps.states[t], truth, t + 1)


def test_scale_by_adam_in_the_middle_of_a_chain():
    tx = optax.chain(
        optax.clip(0.9),
        fa.scale_by_adam(**RATES),
        optax.scale_by_schedule(lambda count: -0.011 / (count + 3)),
    )
    clipped = [jax.tree.map(lambda g: np.clip(np.float64(g), -0.9, 0.9), g) for g in GRADS]
    truth = oracle(clipped, PARAMS, learning_rate=lambda t: 0.011 / (t + 3), **RATES)
    assert_follows(run(tx, PARAMS, GRADS), truth, 0.011 / 3)


@pytest.mark.parametrize("nesterov", [False, True])
def test_scale_by_adam_then_decay_then_learning_rate_is_adamw(nesterov):
    assembled = optax.chain(
        fa.scale_by_adam(**RATES, nesterov=nesterov),
        optax.add_decayed_weights(ADAMW["weight_decay"]),
        optax.scale_by_learning_rate(ADAMW["learning_rate"]),
    )
    truth = oracle(GRADS, PARAMS, **ADAMW, nesterov=nesterov)
    for tx in assembled, fa.adamw(**ADAMW, nesterov=nesterov):
        assert_follows(run(tx, PARAMS, GRADS), truth)


@pytest.mark.parametrize(
    "name",
    ["adamw", pytest.param("adam", marks=SLOW), pytest.param("scale_by_adam", marks=SLOW)],
)
def test_nesterov_in_float64_equals_optaxs(name):
    hyperparameters = {"adam": ADAM, "adamw": ADAMW, "scale_by_adam": RATES}[name]
    with switched("jax_enable_x64", True):
        params, *grads = (jax.tree.map(np.float64, tree) for tree in (PARAMS, *GRADS))
        ours, theirs = (
            run(getattr(library, name)(**hyperparameters, nesterov=True), params, grads)
            for library in (fa, optax)
        )
    for t in range(STEPS):
        assert_close(ours.updates[t], theirs.updates[t], 0.013, tolerance=1e-12)
        for moment in "mu", "nu":
            states = (optax.tree.get(r.states[t], moment) for r in (ours, theirs))
            assert_close(*states, tolerance=1e-13)


def test_chain_with_a_missing_gradient_skips_that_leaf():
    tx = optax.chain(optax.clip_by_global_norm(100.0), fa.adamw(**ADAMW))
    updates, before = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    updates, after = tx.update({**GRADS[1], "bias": None}, before, params)
    truth = oracle(GRADS[:2], PARAMS, **ADAMW)
    assert_close(updates["layers"], row(truth.updates["layers"], 1), ADAM["learning_rate"])
    assert_close(
        (after[1].mu["layers"], after[1].nu["layers"]),
        row((truth.mu["layers"], truth.nu["layers"]), 1),
    )
    assert_equal(updates["bias"], np.zeros_like(PARAMS["bias"]))
    assert_equal(
        (after[1].mu["bias"], after[1].nu["bias"]), (before[1].mu["bias"], before[1].nu["bias"])
    )
    assert int(after[1].count) == 2


def test_reduce_on_plateau_after_adam_gets_its_value():
    losses = [3.0, 2.5, 2.6, 2.7, 2.4, 2.45, 2.5, 1.1, 1.2]
    scales = [1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.09, 0.09, 0.09]  # after two steps without gain
    tx = optax.chain(
        fa.adamw(**ADAMW), optax.contrib.reduce_on_plateau(factor=0.3, patience=2, rtol=1e-3)
    )
    truth = oracle(
        GRADS, PARAMS, **{**ADAMW, "learning_rate": lambda t: ADAM["learning_rate"] * scales[t]}
    )
    assert_follows(run(tx, PARAMS, GRADS, {"value": losses}), truth)


# Parts of a tree ------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [KEEP, keep_all_but_bias], ids=["tree", "function"])
def test_masked_leaves_pass_through_and_keep_no_state(mask):
    steps = run(optax.masked(fa.adamw(**ADAMW), mask), PARAMS, GRADS)
    truth = oracle([kept(g) for g in GRADS], kept(PARAMS), **ADAMW)
    for t in range(STEPS):
        assert_equal(dropped(steps.updates[t]), dropped(GRADS[t]))
        assert_close(kept(steps.updates[t]), row(truth.updates, t), ADAM["learning_rate"])
        assert_state(steps.states[t], truth, t + 1)  # as many moments as leaves kept


def _matrices(params):
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


@pytest.mark.parametrize("decay_mask", [_matrices(PARAMS), _matrices], ids=["tree", "function"])
def test_a_decay_mask_inside_masked_meets_its_holes(decay_mask):
    steps = run(optax.masked(fa.adamw(**ADAMW, mask=decay_mask), KEEP), PARAMS, GRADS)
    grads = [kept(g) for g in GRADS]
    decaying, plain = (oracle(grads, kept(PARAMS), **h) for h in (ADAMW, ADAM))
    for t in range(STEPS):
        matrix, scale = kept(steps.updates[t])
        assert_close(matrix, decaying.updates[0][t], ADAM["learning_rate"])
        assert_close(scale, plain.updates[1][t], ADAM["learning_rate"])
        assert_state(steps.states[t], decaying, t + 1)


def test_partition_with_two_adams_and_a_frozen_part():
    tx = optax.partition(
        {
            "decayed": fa.adamw(**ADAMW),
            "other": fa.adam(**OTHER_ADAM),
            "frozen": optax.set_to_zero(),
        },
        {"bias": "other", "layers": ["decayed", {"scale": "frozen"}]},
    )
    steps = run(tx, PARAMS, GRADS)
    truth = {
        "decayed": oracle([g["layers"][:1] for g in GRADS], PARAMS["layers"][:1], **ADAMW),
        "other": oracle([[g["bias"]] for g in GRADS], [PARAMS["bias"]], **OTHER_ADAM),
    }
    for t, (updates, params, state) in enumerate(zip(*steps, strict=True)):
        assert_close(updates["layers"][:1], row(truth["decayed"].updates, t), 0.013)
        assert_close([updates["bias"]], row(truth["other"].updates, t), 0.04)
        assert_equal(updates["layers"][1]["scale"], np.float32(0))
        assert_equal(params["layers"][1], PARAMS["layers"][1])
        for label, expected in truth.items():
            assert_state(state.inner_states[label], expected, t + 1)


def test_selective_transform_freezes():
    freeze = jax.tree.map(lambda keep: not keep, KEEP)
    tx = optax.selective_transform(fa.adamw(**ADAMW), freeze_mask=freeze)
    steps = run(tx, PARAMS, GRADS)
    truth = oracle([kept(g) for g in GRADS], kept(PARAMS), **ADAMW)
    for t in range(STEPS):
        assert_equal(dropped(steps.params[t]), dropped(PARAMS))
        assert_close(kept(steps.updates[t]), row(truth.updates, t), ADAM["learning_rate"])
        assert_close(kept(steps.params[t]), row(truth.params, t))
        assert_state(steps.states[t], truth, t + 1)


def test_flatten_gives_adam_one_long_vector():
    def flat(tree):
        return [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])]

    steps = run(optax.flatten(fa.adamw(**ADAMW)), PARAMS, GRADS)
    truth = oracle([flat(g) for g in GRADS], flat(PARAMS), **ADAMW)
    for t in range(STEPS):
        assert_close(flat(steps.updates[t]), row(truth.updates, t), ADAM["learning_rate"])
        assert_state(steps.states[t], truth, t + 1)
