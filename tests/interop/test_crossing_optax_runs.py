"""Runs carried over from Optax, and to it, go on as if nothing had happened; Optax is live."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from crossings import (
    AT,
    ODD,
    START,
    assert_close,
    assert_same_types,
    cut,
    optax_data,
    rate,
    restarted,
)
from quick import quick_jit
from record_crossing import HALF, STEPS

import functional_adam as fa

OTHER = {"b1": 0.91, "b2": 0.971, "eps": 3e-7}
LABELS = {"bias": "slow", "kernel": "fast", "scale": "slow"}
MASK = {"bias": False, "kernel": True, "scale": True}


def injected(library):
    return optax.inject_hyperparams(library.adamw)(2e-3, **ODD, weight_decay=rate)


def chained(*members):
    return optax.chain(optax.clip_by_global_norm(3.0), *members)


def parts():
    return optax.scale_by_adam(**ODD), optax.add_decayed_weights(0.037)


WRAPPERS = {  # Optax's, ours
    "schedule": lambda lib: lib.adamw(rate, **ODD, weight_decay=0.037),
    "chain": (
        lambda: chained(optax.trace(0.31), *parts(), optax.scale_by_learning_rate(rate)),
        lambda: chained(optax.trace(0.31), fa.adamw(rate, **ODD, weight_decay=0.037)),
    ),
    "parts": lambda lib: chained(lib.scale_by_adam(**ODD), optax.scale_by_learning_rate(rate)),
    "named_chain": (  # of other names
        lambda: optax.named_chain(
            ("momentum", optax.trace(0.31)),
            ("direction", optax.scale_by_adam(**ODD)),
            ("rate", optax.scale_by_learning_rate(rate)),
        ),
        lambda: optax.named_chain(("momentum", optax.trace(0.31)), ("adam", fa.adam(rate, **ODD))),
    ),
    "masked": lambda lib: optax.masked(lib.adamw(rate, **ODD), MASK),
    "inject": injected,
    "partition": lambda lib: chained(
        optax.partition({"slow": lib.adamw(rate, **ODD), "fast": lib.adam(4e-3, **OTHER)}, LABELS)
    ),
    "MultiSteps": lambda lib: optax.MultiSteps(lib.adam(rate, **ODD), 3).gradient_transformation(),
    "apply_if_finite": lambda lib: optax.apply_if_finite(lib.nadam(rate, **ODD), 3),
    "two in a row": lambda lib: optax.chain(lib.scale_by_adam(**ODD), lib.adam(rate, **OTHER)),
    "amsgrad": lambda lib: lib.amsgrad(rate, **ODD),
    "ademamix": lambda lib: getattr(lib, "contrib", lib).ademamix(rate, **ODD, b3=0.991, alpha=3.7),
    "simplified": lambda lib: getattr(lib, "contrib", lib).simplified_ademamix(
        rate, **ODD, alpha=3.7
    ),
}


def pair(name):
    made = WRAPPERS[name]
    return tuple(f() for f in made) if isinstance(made, tuple) else (made(optax), made(fa))


def runner(tx):
    """Updates and the state after them, the parameters trained along; compiled once."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), updates

    return quick_jit(lambda params, state, grads: jax.lax.scan(step, (params, state), grads))


def middle_of(name, state):
    """What a user may have changed in mid-run."""
    if name == "inject":
        state.hyperparams["learning_rate"] = jnp.full_like(state.hyperparams["learning_rate"], 5e-3)
    return state


def assert_run_goes_on(name, dtype, tolerance):
    """200 steps in one library, 200 in the other, against 400 in the first; both ways."""
    theirs, ours = pair(name)
    grads, params = optax_data(dtype)
    first, second = cut(grads, 0, HALF), cut(grads, HALF, STEPS)
    run = {"theirs": runner(theirs), "ours": runner(ours)}
    start = {"theirs": theirs.init(params), "ours": ours.init(params)}
    cross = {"theirs": fa.from_optax, "ours": fa.to_optax}
    for one, other in (("theirs", "ours"), ("ours", "theirs")):
        (middle, state), _ = run[one](params, start[one], first)
        state = middle_of(name, state)
        crossed = cross[one](state, like=start[other])
        assert_same_types(crossed, start[other])
        (_, last), wanted = run[one](middle, state, second)
        (_, other_last), found = run[other](middle, crossed, second)
        for leaf in wanted:
            assert_close(found[leaf], wanted[leaf], tolerance, 3e-3)
        # Every counter and hyperparameter ends where it would have ended.
        back = cross[other](other_last, like=start[one])
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(last), jax.tree.leaves(back), strict=True
        ):
            if a.ndim == 0 and "scale" not in jax.tree_util.keystr(path):
                np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path))
        assert run[other]._cache_size() == 1


@pytest.mark.parametrize("name", WRAPPERS)
def test_runs_in_float64_cross_to_and_from_optax(name, x64):
    assert_run_goes_on(name, np.float64, 1e-12)


@pytest.mark.parametrize("name", ["schedule", "chain"])
def test_runs_in_float32_cross_to_and_from_optax(name):
    assert_run_goes_on(name, np.float32, 1e-5)


def test_a_schedule_that_begins_at_the_crossing_follows_the_adam_beside_it():
    """Two Adams of different counts in a partition, each with a schedule of its own."""
    grads, params = optax_data(np.float32)
    first = {k: g[0] for k, g in grads.items()}
    rates = {"slow": 3e-3, "fast": 4e-3}
    tx = optax.partition({k: fa.adam(x) for k, x in rates.items()}, LABELS)
    state = tx.init(params)
    inner = dict(state.inner_states)
    for label, count in (("slow", 5), ("fast", 11)):
        masked = inner[label]
        adam = masked.inner_state._replace(count=jnp.array(count, jnp.int32))
        inner[label] = masked._replace(inner_state=adam)
    state = state._replace(inner_states=inner)
    scheduled = optax.partition({k: optax.adam(rate) for k in rates}, LABELS)
    found = fa.to_optax(state, scheduled.init(params)).inner_states
    for label, count in (("slow", 5), ("fast", 11)):
        adam, schedule = found[label].inner_state
        assert int(adam.count) == int(schedule.count) == count
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, params)


def test_a_schedule_that_began_anew_is_refused_and_goes_on_moved():
    """The way out that the message names, against Optax going on."""
    _, params = optax_data(np.float32)
    theirs = optax.adam(rate, **ODD)
    state = restarted(theirs, params, (START, AT))
    message = (
        r"opt_state\[1\].count is 7, but opt_state\[0\].count is 1000, .*"
        r"`lambda n: schedule\(n - 993\)`, and set opt_state\[1\].count to 1000 before"
    )
    with pytest.raises(ValueError, match=message):
        fa.from_optax(state, fa.adam(rate, **ODD).init(params))
    moved = fa.adam(lambda n: rate(n - (START - AT)), **ODD)
    adam, schedule = state
    ours = fa.from_optax(
        (adam, schedule._replace(count=jnp.int32(START))), jax.eval_shape(moved.init, params)
    )
    for _ in range(2):
        wanted, state = theirs.update(params, state, params)
        found, ours = moved.update(params, ours, params)
        for leaf in wanted:
            assert_close(found[leaf], wanted[leaf], 1e-5, 3e-3)
