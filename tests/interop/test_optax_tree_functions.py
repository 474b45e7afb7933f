"""Optax's tree functions find the moments and the count, and change them."""

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
    adam_state,
    assert_close,
    assert_equal,
    halving,
    keep_all_but_bias,
    kept,
    normal_tree,
    oracle,
    row,
    run,
)

import functional_adam as fa


def test_tree_get_finds_moments_and_count():
    tx = optax.chain(optax.clip(1.2), fa.adamw(**ADAMW))
    state = run(tx, PARAMS, GRADS[:4]).states[-1]
    clipped = [jax.tree.map(lambda g: np.clip(np.float64(g), -1.2, 1.2), g) for g in GRADS[:4]]
    truth = oracle(clipped, PARAMS, **ADAMW)
    assert_close(optax.tree.get(state, "mu"), row(truth.mu, -1))
    assert_close(optax.tree.get(state, "nu"), row(truth.nu, -1))
    assert int(optax.tree.get(state, "count")) == 4
    assert isinstance(optax.tree.get(state, "AdamState"), fa.AdamState)


def test_tree_set_changes_the_next_step():
    mu, nu = normal_tree(50), jax.tree.map(np.square, normal_tree(51))

    def next_update(make, dtype):
        mu_nu = [jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in (mu, nu)]
        params, grads = (jax.tree.map(dtype, tree) for tree in (PARAMS, GRADS[0]))
        tx = optax.chain(optax.clip(1.2), make(**ADAM))
        count = jnp.array(17, jnp.int32)
        state = optax.tree.set(tx.init(params), mu=mu_nu[0], nu=mu_nu[1], count=count)
        updates, state = tx.update(grads, state, params)
        return updates, optax.tree.get(state, "mu"), optax.tree.get(state, "nu")

    with switched("jax_enable_x64", True):
        expected = jax.tree.map(np.asarray, next_update(optax.adam, np.float64))
    updates, *moments = next_update(fa.adam, np.float32)
    assert_close(updates, expected[0], ADAM["learning_rate"])
    assert_close(moments, list(expected[1:]))


@pytest.mark.parametrize("mask", [None, KEEP, keep_all_but_bias], ids=["none", "tree", "function"])
@pytest.mark.parametrize("wrap", ["plain", "chain", "multi_steps", "inject"])
def test_tree_map_params_reaches_both_moments_and_not_the_count(wrap, mask):
    tx = fa.adamw(halving, **RATES, weight_decay=halving, mask=mask)
    if wrap == "chain":
        tx = optax.chain(optax.clip_by_global_norm(2.0), tx)
    elif wrap == "multi_steps":
        tx = optax.MultiSteps(tx, every_k_schedule=2)
    elif wrap == "inject":
        make = optax.inject_hyperparams(fa.adamw, static_args="mask", hyperparam_dtype=jnp.float32)
        tx = make(**ADAMW, mask=mask)
    leaves, treedef = jax.tree.flatten(tx.init(PARAMS))
    state = treedef.unflatten(leaf + i for i, leaf in enumerate(leaves, start=3))
    mapped = optax.tree.map_params(
        tx,
        lambda moment, param: (moment, param),
        state,
        PARAMS,
        transform_non_params=lambda x: x + 100,
    )
    before, after = adam_state(state), adam_state(mapped)
    pair_up = functools.partial(jax.tree.map, lambda moment, param: (moment, param))
    assert_equal(after.mu, pair_up(before.mu, PARAMS))
    assert_equal(after.nu, pair_up(before.nu, PARAMS))
    assert int(after.count) == int(before.count) + 100


def test_tree_map_params_of_a_masked_adam():
    tx = optax.masked(fa.adamw(**ADAMW), KEEP)
    state = run(tx, PARAMS, GRADS[:3]).states[-1]
    mapped = adam_state(
        optax.tree.map_params(
            tx,
            lambda moment, param: moment if isinstance(moment, optax.MaskedNode) else param,
            state,
            PARAMS,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
    )
    assert_equal((mapped.mu, mapped.nu), (kept(PARAMS), kept(PARAMS)))
    assert int(mapped.count) == 3
