"""Every factory inside Optax's wrappers, and in a framework's checkpoint."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from family_members import (
    ALPHA,
    BEFORE,
    DECAY,
    EXTRA,
    GRADS,
    MAXIMUM,
    NESTEROV,
    PARAMS,
    PART,
    RATES,
    ROOTED,
    SLOW,
    START,
    adam_state,
    assert_equal,
    assert_row,
    assert_rows,
    at_row,
    each_rule,
    each_structure,
    every_member,
    expected,
    normal_tree,
    part,
    unwrapped,
    walk,
)
from names import MODIFIERS, OF_STATES

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


# Optax ----------------------------------------------------------------------------------------

SHARED = [
    (name, getattr(module, name))
    for module in (optax, optax.contrib)
    for name in fa.__all__
    if inspect.isfunction(getattr(fa, name)) and hasattr(module, name) and name != "apply_updates"
]


def parameters_of(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize(("name", "theirs"), SHARED, ids=[name for name, _ in SHARED])
def test_signature_is_optaxs_with_additions_keyword_only(name, theirs):
    ours, theirs = parameters_of(getattr(fa, name)), parameters_of(theirs)

    def positional(parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [(p.name, p.default) for p in parameters.values() if p.kind is kind]

    wanted = [(n, 1e-3 if n == "learning_rate" else d) for n, d in positional(theirs)]
    assert positional(ours) == wanted
    assert not {p.kind for p in ours.values()} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    absent = {"nesterov"} if name in ("nadam", "nadamw") else set()
    assert set(theirs) - set(ours) == absent
    for key in (p.name for p in theirs.values() if p.kind is p.KEYWORD_ONLY):
        if key == "clip_value_fn":
            for count in (0, 1, 2, 9, 1234):
                clips = (parameters[key].default(count) for parameters in (ours, theirs))
                np.testing.assert_allclose(*clips, rtol=1e-6)
        elif key not in absent:
            assert (ours[key].kind, ours[key].default) == (theirs[key].kind, theirs[key].default)


def test_optax_has_every_member_but_two():
    assert {name for name, _ in SHARED} == set(fa.__all__) - {
        "AdamState",
        "GradientTransformation",
        "__version__",
        "apply_updates",
        "init",
        "update",
        *("BFloat16", "Full", "Int8", "SkipSpikesState"),
        *(OF_STATES | MODIFIERS),
        *("adam_atan2", "laprop"),
    }


@every_member
def test_a_transformation_is_a_pair_that_ignores_extra_arguments(member):
    tx = member.tx()
    init, update = tx
    assert isinstance(tx, fa.GradientTransformation)
    assert list(parameters_of(update))[:3] == ["updates", "state", "params"]
    plain = update(updates=GRADS[0], state=init(PARAMS), params=PARAMS)
    assert_equal(update(GRADS[0], init(PARAMS), PARAMS, value=3.7, grad=GRADS[1]), plain)


@every_member
def test_params_are_needed_for_decay_and_norms_only(member):
    tx = member.tx()
    reasons = {"weight_decay", "l2"} & member.hyper.keys()
    if reasons or member.key in ("lamb", "hyperball"):
        with pytest.raises(ValueError, match=r"needs? the parameters"):
            tx.update(GRADS[0], tx.init(PARAMS))
    else:
        with_params = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
        assert_equal(tx.update(GRADS[0], tx.init(PARAMS)), with_params)


@each_structure
def test_chain_clips_what_a_member_sees(member):
    limit = 0.9
    rows = walk(optax.chain(optax.clip(limit), member.tx()), GRADS[:4], PARAMS)
    clipped = [jax.tree.map(lambda g: np.clip(g, -limit, limit), g) for g in GRADS[:4]]
    assert_equal(unwrapped(rows), walk(member.tx(), clipped, PARAMS))


DIRECTIONS = [
    (fa.scale_by_adam, fa.adamw, DECAY, ROOTED | NESTEROV | BEFORE),
    (fa.scale_by_amsgrad, fa.amsgrad, DECAY, ROOTED | MAXIMUM),
    (fa.scale_by_adamax, fa.adamaxw, DECAY, RATES),
    (fa.scale_by_radam, fa.radam, {}, ROOTED | {"threshold": 4.3}),
    (fa.scale_by_belief, fa.adabelief, {}, ROOTED | NESTEROV),
    (fa.scale_by_yogi, fa.yogi, {}, ROOTED | START),
    (fa.scale_by_adopt, fa.adopt, {}, RATES | NESTEROV),
    (fa.scale_by_ademamix, fa.ademamix, DECAY, SLOW),
]


@pytest.mark.parametrize(("direction", "make", "decay", "hyper"), DIRECTIONS)
def test_a_direction_decayed_and_scaled_is_its_optimizer(direction, make, decay, hyper):
    alpha = ALPHA["learning_rate"]
    decayed = optax.add_decayed_weights(decay["weight_decay"]) if decay else optax.identity()
    tx = optax.chain(direction(**hyper), decayed, optax.scale_by_learning_rate(alpha))
    whole = walk(make(alpha, **hyper, **decay), GRADS, PARAMS)
    assert_rows(unwrapped(walk(tx, GRADS, PARAMS)), whole, alpha)


@each_structure
def test_masked_leaves_pass_through_and_keep_no_state(member):
    rows = walk(optax.masked(member.tx(), PART), GRADS[:3], PARAMS)
    plain = walk(member.tx(), map(part, GRADS[:3]), part(PARAMS))
    for t, (row, want) in enumerate(zip(unwrapped(rows), plain, strict=True)):
        assert_equal(row.updates["layers"][0], GRADS[t]["layers"][0])
        assert_equal(part(row.updates), want.updates)
        assert_equal(jax.tree.leaves(row.state), jax.tree.leaves(want.state))


@each_structure
def test_partition_with_two_of_a_kind(member):
    other = {"b1": 0.61, "b2": 0.913}
    labels = {"b": "this", "layers": ["other", {"w": "this"}]}
    tx = optax.partition({"this": member.tx(), "other": member.tx(**other)}, labels)
    rows = walk(tx, GRADS[:3], PARAMS)
    these = walk(member.tx(), map(part, GRADS[:3]), part(PARAMS))
    matrix = lambda tree: tree["layers"][0]  # noqa: E731
    others = walk(member.tx(**other), map(matrix, GRADS[:3]), matrix(PARAMS))
    for row, this, that in zip(rows, these, others, strict=True):
        assert_equal(part(row.updates), this.updates)
        assert_equal(matrix(row.updates), that.updates)
        for label, want in (("this", this), ("other", that)):
            state = adam_state(row.state.inner_states[label])
            assert_equal(jax.tree.leaves(state), jax.tree.leaves(want.state))


def jitted_walk(tx, grads, params):
    """As `walk`, each step jitted, in one trace."""
    traces = []

    @jax.jit
    def update(updates, state, params):
        traces.append(None)
        return tx.update(updates, state, params)

    rows = walk(fa.GradientTransformation(tx.init, update), grads, params)
    assert len(traces) == 1
    return rows


def strictly(tx):
    """`tx` under strict promotion inside a wrapper that needs another."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("strict"):
            return tx.update(updates, state, params)

    return fa.GradientTransformation(tx.init, update)


@each_structure
def test_multi_steps_is_one_step_on_the_mean_gradient(member):
    params, *grads = (part(tree)["w"] for tree in (PARAMS, *GRADS[:6]))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.MultiSteps(strictly(member.tx()), every_k_schedule=2)
        rows = jitted_walk(tx, grads, params)
    means = [(grads[i] + grads[i + 1]) / np.float32(2) for i in (0, 2, 4)]
    assert_rows(unwrapped(rows[1::2]), walk(member.tx(), means, params), member.alpha)
    assert not any(np.any(row.updates) for row in rows[::2])


@each_structure
def test_apply_if_finite_leaves_the_state_untouched(member):
    params, *grads = (part(tree)["w"] for tree in (PARAMS, *GRADS[:3]))
    bad = np.float32([[0.3, np.nan, 1.0], [-0.2, 0.7, -1.1]])
    tx = optax.apply_if_finite(member.tx(), max_consecutive_errors=3)
    first, *skipped, second, third = jitted_walk(tx, [grads[0], bad, bad, *grads[1:]], params)
    for row in skipped:
        assert_equal(adam_state(row.state), adam_state(first.state))
        assert not np.any(row.updates)
    assert_rows(unwrapped([first, second, third]), walk(member.tx(), grads, params), member.alpha)


@pytest.mark.parametrize("wrap", ["plain", "chain", "multi_steps", "inject"])
@each_structure
def test_tree_map_params_reaches_every_tree_and_not_the_count(member, wrap):
    tx = member.tx()
    if wrap == "chain":
        tx = optax.chain(optax.clip_by_global_norm(2.0), tx)
    elif wrap == "multi_steps":
        tx = optax.MultiSteps(tx, every_k_schedule=2)
    elif wrap == "inject":
        tx = optax.inject_hyperparams(member.make, hyperparam_dtype=jnp.float32)(**member.hyper)
    leaves, treedef = jax.tree.flatten(tx.init(PARAMS))
    state = treedef.unflatten(leaf + i for i, leaf in enumerate(leaves, start=3))
    pair = lambda moment, param: (moment, param)  # noqa: E731
    mapped = optax.tree.map_params(tx, pair, state, PARAMS, transform_non_params=lambda x: x + 100)
    before, after = adam_state(state), adam_state(mapped)
    assert int(after.count) == int(before.count) + 100
    assert_equal(after.mu, jax.tree.map(pair, before.mu, PARAMS))
    assert_equal(after.nu, jax.tree.map(pair, before.nu, PARAMS))
    names = [EXTRA[member.rule][0]] if member.rule in EXTRA else []
    assert sorted(after.extra or {}) == names
    for name in names:
        assert_equal(after.extra[name], jax.tree.map(pair, before.extra[name], PARAMS))


@each_rule
def test_tree_get_finds_every_tree(member):
    rows = walk(optax.chain(optax.clip(1.2), member.tx()), GRADS[:2], PARAMS)
    state = rows[-1].state
    inner = adam_state(state)
    assert optax.tree.get(state, "mu") is inner.mu
    assert optax.tree.get(state, "nu") is inner.nu
    assert int(optax.tree.get(state, "count")) == 2
    for name in ("nu_max", "mu_slow"):
        assert optax.tree.get(state, name) is (inner.extra or {}).get(name)
    if member.rule in EXTRA:
        name = EXTRA[member.rule][0]
        ones = jax.tree.map(jnp.ones_like, PARAMS)
        changed = optax.tree.set(state, **{name: ones})
        assert_equal(adam_state(changed), inner._replace(extra={name: ones}))


@each_structure
def test_split_real_and_imaginary_is_the_run_on_the_pair(member):
    def complex_tree(seed, scale):
        real, imaginary = (normal_tree(100 * seed + i, scale=scale)["layers"][0] for i in (0, 1))
        return {"z": real + np.complex64(1j) * imaginary, "r": normal_tree(seed)["b"]}

    def pair(tree):
        return {"z": (tree["z"].real, tree["z"].imag), "r": tree["r"]}

    params, *grads = (complex_tree(seed, 1.0 + 0.3 * seed) for seed in range(4))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.contrib.split_real_and_imaginary(strictly(member.tx()))
        rows = walk(tx, grads, params)
    plain = walk(member.tx(), map(pair, grads), pair(params))
    for row, want in zip(unwrapped(rows), plain, strict=True):
        assert_equal(pair(jax.tree.map(np.asarray, row.updates)), want.updates)
        assert_equal(jax.tree.leaves(row.state), jax.tree.leaves(want.state))


@each_rule
def test_complex_parameters_follow_the_reference(member):
    draw = lambda seed: normal_tree(seed)["layers"][0]  # noqa: E731
    params, *grads = (draw(60 + i) + np.complex64(1j) * draw(80 + i) for i in range(5))
    rows = walk(member.tx(), grads, params)
    truth = expected(member, grads, np.asarray(params, np.complex128))
    for t, row in enumerate(rows):
        assert_row(row, at_row(truth, t), member.alpha, 1e-6)


# A framework's checkpoint ---------------------------------------------------------------------


@each_structure
def test_a_train_state_survives_msgpack(member):
    serialization = pytest.importorskip("flax.serialization")
    train_state = pytest.importorskip("flax.training.train_state")
    make = functools.partial(train_state.TrainState.create, apply_fn=None, tx=member.tx())
    start = make(params=PARAMS)
    trained = functools.reduce(lambda state, g: state.apply_gradients(grads=g), GRADS[:3], start)
    stored = serialization.to_bytes(trained)
    restored = serialization.from_bytes(make(params=jax.tree.map(jnp.zeros_like, PARAMS)), stored)
    assert isinstance(restored.opt_state, fa.AdamState)
    assert_equal(restored.opt_state, trained.opt_state)
    assert int(restored.opt_state.count) == 3
    later, wanted = (state.apply_gradients(grads=GRADS[3]) for state in (restored, trained))
    assert_equal((later.params, later.opt_state), (wanted.params, wanted.opt_state))
