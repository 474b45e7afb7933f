"""Hyperparameters of some leaves inside Optax's wrappers, and in states that travel.

A wrapper's part is compared with the same transformation alone, whose leaves
`optimizers/test_overrides.py` compares with the reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

NAMES = ("embed", "head", "norm")
RULES = [("embed|norm", dict(weight_decay=0.0)), (r"^head/", dict(learning_rate=0.05, b1=0.71))]
HYPER = dict(learning_rate=0.013, b1=0.83, eps=0.02, weight_decay=0.07)


def tree(seed):
    rng = np.random.default_rng(seed)
    draw = lambda: np.float32(rng.standard_normal((2, 3)))  # noqa: E731
    return {"body": draw(), "embed": draw(), "head": {"w": draw()}, "norm": draw()}


PARAMS, GRADS = tree(0), [tree(seed) for seed in range(1, 4)]


def make(**changes):
    return fa.adamw(**{**HYPER, "overrides": RULES, **changes})


def run(tx, grads=tuple(GRADS), params=PARAMS):
    """The updates and the state after these steps."""
    state, each = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params)
        each.append(updates)
    return each, state


def assert_same(found, wanted):
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def assert_close(found, wanted):
    """Of two programs, in which a compiler may round otherwise."""
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


PLAIN, STATE = run(make())


def test_in_a_chain_and_under_apply_if_finite():
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.apply_if_finite(optax.chain(optax.scale(2.0), make()), 3)
        doubled = [jax.tree.map(lambda x: x / 2, g) for g in GRADS]
        assert_close(run(tx, doubled)[0], PLAIN)


def test_multi_steps_is_one_step_on_the_mean():
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = run(optax.MultiSteps(make(), 2), [g for g in GRADS for _ in range(2)])
    assert_close(updates[1::2], PLAIN)


@pytest.mark.parametrize("overrides", [RULES, lambda path, _: dict(RULES[path[:4] == "head"][1])])
def test_injected_hyperparameters_are_those_of_the_other_leaves(overrides):
    if callable(overrides):
        inner = lambda path, leaf: {} if path == "body" else overrides(path, leaf)  # noqa: E731
    else:
        inner = overrides
    inject = optax.inject_hyperparams(
        fa.adamw, static_args=("overrides",), hyperparam_dtype=jnp.float32
    )
    tx = inject(**HYPER, overrides=inner)
    state = tx.init(PARAMS)
    assert set(state.hyperparams) >= HYPER.keys()
    state.hyperparams["learning_rate"] = jnp.float32(0.9)
    updates, _ = tx.update(GRADS[0], state, PARAMS)
    wanted, _ = run(make(learning_rate=0.9), GRADS[:1])
    assert_close(updates, wanted[0])


def test_a_list_needs_no_static_argument_and_its_numbers_can_be_injected():
    def two_rates(rate, head):
        return make(learning_rate=rate, overrides=[("head", dict(learning_rate=head))])

    tx = optax.inject_hyperparams(two_rates)(rate=0.1, head=0.2)
    state = tx.init(PARAMS)
    state.hyperparams["head"] = jnp.float32(0.7)
    updates, _ = tx.update(GRADS[0], state, PARAMS)
    wanted = [run(make(learning_rate=x, overrides=None), GRADS[:1])[0][0] for x in (0.1, 0.7)]
    np.testing.assert_allclose(updates["body"], wanted[0]["body"], rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["w"], wanted[1]["head"]["w"], rtol=1e-5)
    listed = optax.inject_hyperparams(fa.adamw)(**HYPER, overrides=RULES)
    listed.update(GRADS[0], listed.init(PARAMS), PARAMS)


# Paths in masked and partition are those of the whole tree; a rule must match a leaf that is left.


def test_masked_leaves_have_their_paths_in_the_whole_tree():
    mask = {"body": True, "embed": False, "head": True, "norm": True}
    updates, _ = run(optax.masked(make(), mask))
    for found, wanted, g in zip(updates, PLAIN, GRADS, strict=True):
        assert_same(found, {**wanted, "embed": g["embed"]})
    with pytest.raises(ValueError, match=r"^overrides\[1\] .* the leaves are 'body', 'embed', 'no"):
        optax.masked(make(), {**mask, "head": False, "embed": True}).init(PARAMS)


def test_partition_has_rules_for_each_part():
    labels = {"body": "a", "embed": "a", "head": "b", "norm": "b"}
    for wrap in (optax.partition, optax.multi_transform):
        tx = wrap({"a": make(overrides=RULES[:1]), "b": make()}, labels)
        assert_same(run(tx)[0], PLAIN)


def test_map_params_and_a_step_without_trace_of_the_wrapper():
    state = optax.tree.map_params(make(), lambda x: x + 1, STATE)
    assert_same(state.mu, jax.tree.map(lambda x: x + 1, STATE.mu))


# States ---------------------------------------------------------------------------------------


def test_a_file_does_not_know_of_overrides():
    flat = fa.to_state_dict(STATE, tx=make())
    restored = fa.from_state_dict(flat, fa.init(PARAMS), tx=fa.adamw(**HYPER))
    assert_same(restored, STATE)
    assert_same(fa.from_state_dict(fa.to_state_dict(STATE), STATE, tx=make()), STATE)


def test_optaxs_state_goes_in_and_out():
    theirs = optax.adamw(1e-3)
    there = fa.to_optax(STATE, like=theirs.init(PARAMS))
    assert_same(fa.from_optax(there, like=make().init(PARAMS)), STATE)


def test_a_new_layer_may_have_a_rule_of_its_own():
    params = {**PARAMS, "late": {"w": np.ones((2, 3), np.float32)}}
    tx = make(overrides=[*RULES, ("late", dict(learning_rate=0.5))])
    state = fa.extend_state(tx, STATE, PARAMS, params)
    assert int(state.count) == len(GRADS)
    assert not np.any(state.mu["late"]["w"])
    assert_same({k: x for k, x in state.nu.items() if k != "late"}, STATE.nu)
    # A layer taken out takes its rule with it.
    fewer = {k: x for k, x in PARAMS.items() if k != "head"}
    with pytest.raises(ValueError, match=r"^overrides\[1\] \('\^head/'\) matches no leaf"):
        fa.extend_state(make(), STATE, PARAMS, fewer)
    assert "head" not in fa.extend_state(make(overrides=RULES[:1]), STATE, PARAMS, fewer).mu
