"""The Optax contract (DESIGN section 2): every wrapper does with our transformations what it says.

Expected numbers come from `reference.adam` in float64 with the wrapper's work done by hand in
NumPy, or, where state or hyperparameters change in mid-run, from Optax's Adam in float64.
"""

import functools
import inspect
import math
import pickle
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from modes import switched
from quick import quick_jit

import functional_adam as fa

STEPS = 9
RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02, "eps_root": 0.003}
ADAM = {"learning_rate": 0.013, **RATES}
ADAMW = {**ADAM, "weight_decay": 0.07}
OTHER_ADAM = {"learning_rate": 0.04, "b1": 0.7, "b2": 0.93, "eps": 0.005, "eps_root": 0.01}
SLOW = pytest.mark.slow
KEEP = {"bias": False, "layers": [True, {"scale": True}]}


def keep_all_but_bias(params):
    assert len(jax.tree.leaves(params)) == 3
    return KEEP


def _normal_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"bias": (5,), "layers": [(3, 4), {"scale": ()}]}
    return jax.tree.map(
        lambda shape: (scale * np.asarray(rng.standard_normal(shape))).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS = _normal_tree(0)
GRADS = [_normal_tree(seed, [1.0, 0.2, 3.1, 0.07, 1.7][seed % 5]) for seed in range(1, STEPS + 1)]


@pytest.fixture(params=["x32", "x64"])
def either_precision(request):
    """JAX's 64-bit mode off, then on; the arrays are what they are."""
    if request.param == "x64":
        request.getfixturevalue("x64")


# Running and comparing ------------------------------------------------------------------------


class Run(NamedTuple):
    """What stands after each step."""

    updates: list
    params: list
    states: list


class Stepper:
    """A jitted step, which knows how often it was traced."""

    def __init__(self, tx):
        self.traces = 0

        def step(grads, state, params, extra):
            self.traces += 1
            updates, state = tx.update(grads, state, params, **extra)
            return updates, state, optax.apply_updates(params, updates)

        self.step = quick_jit(step)


def run(tx, params, grads, extra_args=None, change_state=lambda t, state: state, step=None) -> Run:
    """A jitted step for each of `grads`; asserts that they share one trace."""
    step = step or Stepper(tx)
    params = jax.tree.map(jnp.asarray, params)
    state, rows = tx.init(params), []
    for t, g in enumerate(grads):
        extra = {name: values[t] for name, values in (extra_args or {}).items()}
        updates, state, params = step.step(g, change_state(t, state), params, extra)
        rows.append((updates, params, state))
    assert step.traces == 1, "the step was traced again"
    return Run(*map(list, zip(*rows, strict=True)))


def oracle(grads, params, **hyperparameters) -> reference.Trajectory:
    """`reference.adam` leaf by leaf: trees with one row a step."""
    leaves, treedef = jax.tree.flatten(params)
    by_leaf = zip(*map(jax.tree.leaves, grads), strict=True)
    columns = [
        reference.adam([np.asarray(g, np.float64) for g in gs], p, **hyperparameters)
        for gs, p in zip(by_leaf, leaves, strict=True)
    ]
    return reference.Trajectory(*(treedef.unflatten(field) for field in zip(*columns, strict=True)))


def row(trees, t):
    return jax.tree.map(lambda x: np.asarray(x)[t], trees)


def kept(tree):
    """The leaves that `KEEP` keeps."""
    return [x for x, keep in zip(*map(jax.tree.leaves, (tree, KEEP)), strict=True) if keep]


def dropped(tree):
    return [x for x, keep in zip(*map(jax.tree.leaves, (tree, KEEP)), strict=True) if not keep]


def assert_close(actual, expected, size=1.0, tolerance=2e-6):
    """Leaf by leaf, relative to `size` or to what is expected, whichever is larger."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.shape(a) == np.shape(e)
        got, truth = np.asarray(a, np.float64), np.asarray(e, np.float64)
        error = np.abs(got - truth) / np.maximum(size, np.abs(truth))
        assert error.max() <= tolerance, f"error {error.max():.1e}: got {got}, expected {truth}"


def assert_equal(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e), strict=True)


def adam_state(state) -> fa.AdamState:
    """The one AdamState inside a wrapper's state."""
    is_adam = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    (found,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    return found


def assert_state(state, truth, count):
    """The AdamState inside `state` is that after `count` steps of `truth`."""
    state = adam_state(state)
    assert state.count.dtype == jnp.int32
    assert int(state.count) == count
    before_any = jax.tree.map(lambda x: np.zeros_like(x[0]), (truth.mu, truth.nu))
    assert_close(
        (state.mu, state.nu), row((truth.mu, truth.nu), count - 1) if count else before_any
    )


def assert_follows(run, truth, learning_rate=ADAM["learning_rate"]):
    """Updates, parameters, both moments and the count, after every step."""
    for t, (updates, params, state) in enumerate(zip(*run, strict=True)):
        assert_close(updates, row(truth.updates, t), learning_rate)
        assert_close(params, row(truth.params, t))
        assert_state(state, truth, t + 1)


# The protocol ---------------------------------------------------------------------------------


def test_a_transformation_is_exactly_a_pair():
    for tx in fa.adam(**ADAM), fa.adamw(**ADAMW), fa.scale_by_adam(**RATES):
        init, update = tx
        assert tx._fields == ("init", "update")
        assert (init, update) == (tx.init, tx.update)


def test_the_third_argument_of_update_is_named_params():
    tx = fa.adamw(**ADAMW)
    parameters = list(inspect.signature(tx.update).parameters.values())
    assert [p.name for p in parameters[:3]] == ["updates", "state", "params"]
    assert parameters[2].default is None
    updates, state = tx.update(updates=GRADS[0], state=tx.init(PARAMS), params=PARAMS)
    truth = oracle(GRADS[:1], PARAMS, **ADAMW)
    assert_close(updates, row(truth.updates, 0), ADAM["learning_rate"])
    assert_state(state, truth, 1)


@pytest.mark.parametrize("name", ["adam", "adamw", "scale_by_adam"])
def test_signature_is_optaxs_with_additions_keyword_only(name):
    ours = inspect.signature(getattr(fa, name)).parameters
    theirs = inspect.signature(getattr(optax, name)).parameters

    def positional(parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [(p.name, p.default) for p in parameters.values() if p.kind is kind]

    expected = [(n, 1e-3 if n == "learning_rate" else d) for n, d in positional(theirs)]
    assert positional(ours) == expected
    for parameter in ours.values():
        assert parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    for parameter in theirs.values():
        assert ours[parameter.name].kind is parameter.kind
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert ours[parameter.name].default == parameter.default


@pytest.mark.parametrize("make", [fa.adam, fa.adamw, fa.scale_by_adam])
def test_transformations_ignore_extra_arguments(make):
    tx = make(**RATES)
    state = tx.init(PARAMS)
    plain = tx.update(GRADS[0], state, PARAMS)
    with_extra = tx.update(GRADS[0], state, PARAMS, value=3.7, grad=GRADS[1], anything="at all")
    assert_equal(with_extra, plain)


def test_plain_update_refuses_extra_arguments():
    with pytest.raises(TypeError, match="value"):
        fa.update(GRADS[0], fa.init(PARAMS), PARAMS, **ADAMW, value=3.7)


def test_optax_is_never_imported_at_run_time():
    code = (
        "import sys; sys.modules['optax'] = None\n"  # any import of it now raises
        "import functional_adam as fa, jax.numpy as jnp\n"
        "import functional_adam._watch.selfcheck\n"
        "tx, p = fa.adamw(0.03), jnp.array([1.5])\n"
        "fa.apply_updates(p, tx.update(p, tx.init(p), p)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_optax_and_our_apply_updates_agree():
    updates, _ = fa.adamw(**ADAMW).update(GRADS[0], fa.init(PARAMS), PARAMS)
    assert_equal(fa.apply_updates(PARAMS, updates), optax.apply_updates(PARAMS, updates))


@pytest.mark.parametrize("params_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("grads_dtype", ["float32", "bfloat16", "float16"])
def test_updates_have_the_wider_dtype(params_dtype, grads_dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, params_dtype), PARAMS)
    grads = jax.tree.map(lambda x: jnp.asarray(x, grads_dtype), GRADS[0])
    adam, adamw = fa.adam(**ADAM), fa.adamw(**ADAMW)
    wider = jnp.promote_types(params_dtype, grads_dtype)
    for tx, given, dtype in (
        (adam, None, jnp.dtype(grads_dtype)),
        (adam, params, wider),
        (adamw, params, wider),
    ):
        updates, _ = jax.eval_shape(tx.update, grads, tx.init(params), given)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {dtype}


def test_params_that_are_given_are_looked_at_where_nothing_needs_them():
    tx = fa.adam(**ADAM)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"params must have the structure of the parameters given"):
        tx.update(GRADS[0], state, {"bias": PARAMS["bias"]})
    with pytest.raises(ValueError, match=r"params\['bias'\] has shape \(4,\), but"):
        tx.update(GRADS[0], state, PARAMS | {"bias": np.zeros(4, np.float32)})
    with pytest.raises(TypeError, match=r"params\['bias'\] must be a float or complex array; got"):
        tx.update(GRADS[0], state, PARAMS | {"bias": np.zeros(5, np.int32)})


def _halving(count):
    return 0.02 * 0.5**count


def test_transformations_and_states_pickle():
    hyperparameters = {**ADAMW, "learning_rate": _halving, "b1": jnp.float32(0.75)}
    tx = pickle.loads(pickle.dumps(fa.adamw(**hyperparameters, mask=keep_all_but_bias)))
    through_pickle = run(
        tx, PARAMS, GRADS, change_state=lambda t, state: pickle.loads(pickle.dumps(state))
    )
    hyperparameters["b1"] = 0.75
    decaying = oracle(GRADS, PARAMS, **hyperparameters)
    assert_close(kept(through_pickle.params[-1]), kept(row(decaying.params, -1)))
    not_decaying = oracle(GRADS, PARAMS, **{**hyperparameters, "weight_decay": 0.0})
    assert_close(dropped(through_pickle.params[-1]), dropped(row(not_decaying.params, -1)))
    assert_state(through_pickle.states[-1], decaying, STEPS)


# Chains ---------------------------------------------------------------------------------------


def _norm(tree):
    return math.sqrt(sum((np.asarray(x, np.float64) ** 2).sum() for x in jax.tree.leaves(tree)))


@pytest.mark.parametrize("chain", ["chain", "named_chain"])
def test_chain_clips_what_adam_sees(chain):
    limit = 3.3
    assert {_norm(g) > limit for g in GRADS} == {True, False}
    members = ("clip", optax.clip_by_global_norm(limit)), ("adam", fa.adamw(**ADAMW))
    if chain == "named_chain":
        tx, key = optax.named_chain(*members), "adam"
    else:
        tx, key = optax.chain(*(member for _, member in members)), 1
    clipped = [
        jax.tree.map(lambda x, g=g: x * min(1.0, limit / _norm(g)), g)
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


# Hyperparameters in the state -----------------------------------------------------------------


def rounded(hyperparameters):
    """The values that float32 arrays of them hold."""
    return {name: float(np.float32(x)) for name, x in hyperparameters.items()}


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
    scheduled = fa.adamw(optax.linear_schedule(0.1, 0.2, 3), weight_decay=_halving, mask=KEEP)
    assert jax.tree.structure(scheduled.init(PARAMS)) == plain


# Wrappers that hold steps back ----------------------------------------------------------------


def _means(grads, k):
    """The mean of each k gradients, in float64."""
    return [
        jax.tree.map(lambda *g: np.mean(np.float64(g), axis=0), *grads[i : i + k])
        for i in range(0, len(grads), k)
    ]


def test_multi_steps_is_one_step_on_the_mean_gradient():
    k = 3
    steps = run(optax.MultiSteps(fa.adamw(**ADAMW), every_k_schedule=k), PARAMS, GRADS)
    truth = oracle(_means(GRADS, k), PARAMS, **ADAMW)
    for t in range(STEPS):
        done = (t + 1) // k
        assert_state(steps.states[t], truth, done)
        assert_close(steps.params[t], row(truth.params, done - 1) if done else PARAMS)
        if (t + 1) % k:
            assert_equal(steps.updates[t], jax.tree.map(np.zeros_like, PARAMS))
        else:
            assert_close(steps.updates[t], row(truth.updates, done - 1), 0.013)


def test_multi_steps_skips_gradients_that_are_not_finite():
    bad = jax.tree.map(lambda g: g * np.float32(np.nan), GRADS[0])
    tx = optax.MultiSteps(
        fa.adamw(**ADAMW), every_k_schedule=2, should_skip_update_fn=optax.skip_not_finite
    )
    steps = run(tx, PARAMS, [GRADS[0], bad, GRADS[1], bad, bad, GRADS[2], GRADS[3]])
    truth = oracle(_means(GRADS[:4], 2), PARAMS, **ADAMW)
    assert_close(steps.updates[2], row(truth.updates, 0), 0.013)
    assert_close(steps.updates[6], row(truth.updates, 1), 0.013)
    for t, count in enumerate([0, 0, 1, 1, 1, 1, 2]):
        assert_state(steps.states[t], truth, count)


def _spoil(tree, value):
    """`tree` with `value` in one place of its matrix."""
    matrix, rest = tree["layers"]
    return {**tree, "layers": [jnp.asarray(matrix).at[1, 2].set(value), rest]}


# Both precisions, and every dtype, once; the other pairs in `make test-all`.
FINITE = [
    ("x32", "bfloat16", "bfloat16"),
    ("x32", "float16", "float16"),
    ("x64", "float32", "float32"),
    ("x64", "bfloat16", "float32"),
]
FINITE += [
    pytest.param("x64" if x == "x32" else "x32", *dtypes, marks=SLOW) for x, *dtypes in FINITE
]


@pytest.mark.parametrize(
    ("either_precision", "params_dtype", "grads_dtype"), FINITE, indirect=["either_precision"]
)
@pytest.mark.usefixtures("either_precision")
def test_apply_if_finite_leaves_the_state_untouched(params_dtype, grads_dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, params_dtype), PARAMS)
    grads = [jax.tree.map(lambda x: jnp.asarray(x, grads_dtype), g) for g in GRADS[:5]]
    bad = _spoil(grads[0], np.nan), _spoil(grads[1], -np.inf)
    steps = run(
        optax.apply_if_finite(fa.adam(**ADAM), max_consecutive_errors=3),
        params,
        [*grads[:2], *bad, *grads[2:], bad[0]],
    )
    truth = oracle(grads, params, **ADAM)
    precision = {"float32": 2e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}[grads_dtype]
    for t, count in enumerate([1, 2, 2, 2, 3, 4, 5, 5]):
        assert_state(steps.states[t], truth, count)
        if t in {2, 3, 7}:
            assert_equal(adam_state(steps.states[t]), adam_state(steps.states[t - 1]))
            assert_equal(steps.updates[t], jax.tree.map(jnp.zeros_like, grads[0]))
        else:
            assert_close(steps.updates[t], row(truth.updates, count - 1), 0.013, precision)


CONDITION = [True, False, True, True, False, False, True, False, True]
BRANCHING = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step < 2),
}


@pytest.mark.parametrize(
    "library", [pytest.param(optax, id="optax", marks=SLOW), pytest.param(fa, id="ours")]
)
@pytest.mark.parametrize("wrapper", BRANCHING)
def test_gradients_of_fewer_bits_are_cast_outside_of_wrappers_that_branch(wrapper, library):
    # Their other branch gives back gradients or zeros in the gradients' dtype.
    make = BRANCHING[wrapper](library.adam(**ADAM))
    grads = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), g) for g in GRADS[:2]]
    with pytest.raises(TypeError, match="branches must have equal output types"):
        make.update(grads[0], make.init(PARAMS), PARAMS)
    widen = optax.stateless(
        lambda g, params: jax.tree.map(lambda x, p: x.astype(p.dtype), g, params)
    )
    steps = run(optax.chain(widen, make), PARAMS, grads)
    assert_close(steps.params[-1], row(oracle(grads, PARAMS, **ADAM).params, -1))


def test_conditionally_transform_passes_gradients_where_it_does_nothing():
    tx = optax.conditionally_transform(fa.adam(**ADAM), lambda step: jnp.array(CONDITION)[step])
    steps = run(tx, PARAMS, GRADS)
    truth = oracle([g for g, do in zip(GRADS, CONDITION, strict=True) if do], PARAMS, **ADAM)
    for t, do in enumerate(CONDITION):
        done = sum(CONDITION[: t + 1])
        assert_state(steps.states[t], truth, done)
        if do:
            assert_close(steps.updates[t], row(truth.updates, done - 1), 0.013)
        else:
            assert_equal(steps.updates[t], GRADS[t])


def test_conditionally_mask_skips_steps():
    tx = optax.conditionally_mask(fa.adamw(**ADAMW), lambda step: jnp.array(CONDITION)[step])
    steps = run(tx, PARAMS, GRADS)
    truth = oracle([g for g, do in zip(GRADS, CONDITION, strict=True) if do], PARAMS, **ADAMW)
    for t, do in enumerate(CONDITION):
        done = sum(CONDITION[: t + 1])
        assert_state(steps.states[t], truth, done)
        assert_close(steps.params[t], row(truth.params, done - 1))
        if not do:
            assert_equal(steps.updates[t], jax.tree.map(np.zeros_like, PARAMS))


@pytest.mark.parametrize(
    ("either_precision", "dtype"),
    [
        ("x32", "bfloat16"),
        ("x64", "float32"),
        pytest.param("x32", "float32", marks=SLOW),
        pytest.param("x64", "bfloat16", marks=SLOW),
    ],
    indirect=["either_precision"],
)
@pytest.mark.usefixtures("either_precision")
def test_nested_wrappers_are_a_valid_scan_carry(dtype):
    make = optax.inject_hyperparams(fa.adamw, static_args=("mask",), hyperparam_dtype=jnp.float32)
    tx = optax.chain(optax.clip(1.1), make(**ADAMW, mask=keep_all_but_bias))
    tx = optax.apply_if_finite(tx, 2) if dtype == "float32" else tx
    tx = optax.MultiSteps(tx, every_k_schedule=3)
    grads = [jax.tree.map(lambda x: jnp.asarray(x, dtype), g) for g in GRADS]

    @quick_jit
    def train(params, state, grads):
        def body(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), grads)[0]

    params, state = train(PARAMS, tx.init(PARAMS), jax.tree.map(lambda *g: jnp.stack(g), *grads))
    means = [
        jax.tree.map(lambda x: np.clip(x, -1.1, 1.1), g)
        for g in _means([jax.tree.map(np.float64, g) for g in grads], 3)
    ]
    decaying, plain = (oracle(means, PARAMS, **rounded(h)) for h in (ADAMW, ADAM))
    # MultiSteps rounds the mean to the gradients' dtype.
    tolerance = {"float32": 2e-6, "bfloat16": 2.0**-8}[dtype]
    close = functools.partial(assert_close, tolerance=tolerance)
    close(kept(params), kept(row(decaying.params, -1)), 0.05)
    close(dropped(params), dropped(row(plain.params, -1)), 0.05)
    inner = adam_state(state)
    assert int(inner.count) == 3
    close((inner.mu, inner.nu), row((plain.mu, plain.nu), -1))


# Wrappers with parameters of their own --------------------------------------------------------


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
        norm = _norm(uphill)
        above = jax.tree.map(lambda p, g, norm=norm: p + rho * g / norm, expected, uphill)
        grads.append(gradient(above))
        truth = oracle(grads, start, **ADAMW)
        expected = row(truth.params, -1)
        assert_close(params, expected)
        assert_state(state.opt_state, truth, count)


# Optax's tree functions -----------------------------------------------------------------------


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
    mu, nu = _normal_tree(50), jax.tree.map(np.square, _normal_tree(51))

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
    tx = fa.adamw(_halving, **RATES, weight_decay=_halving, mask=mask)
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


# A user's script ------------------------------------------------------------------------------


def _losses(adamw, dtype):
    """A training script as Optax's documentation writes them, but for the name `adamw`."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((64, 3)).astype(dtype)
    y = np.sin(x @ rng.standard_normal((3, 2))).astype(dtype)
    params = {
        "w1": 0.5 * rng.standard_normal((3, 16)).astype(dtype),
        "b1": np.zeros(16, dtype),
        "w2": 0.5 * rng.standard_normal((16, 2)).astype(dtype),
    }
    schedule = optax.warmup_cosine_decay_schedule(0.001, 0.03, 10, 120, 0.0005)
    matrices = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        adamw(schedule, b2=0.98, weight_decay=0.02, mask=matrices),
    )
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state):
        def loss_fn(p):
            return jnp.mean((jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(120):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    return np.array(losses)


def test_optax_adamw_replaced_in_one_line_gives_the_same_losses():
    with switched("jax_enable_x64", True):
        expected = _losses(optax.adamw, np.float64)
        np.testing.assert_allclose(_losses(fa.adamw, np.float64), expected, rtol=1e-10)
    assert expected[-1] < 0.1 * expected[0]
    np.testing.assert_allclose(_losses(fa.adamw, np.float32), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_compiled_step_moves_no_more_bytes_than_optaxs(kind):
    """Up to 1 KiB in all, for scalars: the parameters are 4 MiB."""
    params = {"w": jnp.zeros((1024, 1000)), "b": jnp.zeros(1000)}

    def measured(library):
        tx = getattr(library, kind)(3e-4, b1=0.87, b2=0.993)

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return library.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        compiled = jitted.lower(params, tx.init(params), params).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        return cost["bytes accessed"], memory.temp_size_in_bytes

    (accessed, temporary), (accessed_theirs, temporary_theirs) = measured(fa), measured(optax)
    assert accessed <= accessed_theirs + 1024
    assert temporary <= temporary_theirs + 1024
