"""The recipes for Optax's wrappers, each of which must do its work."""

import jax
import numpy as np
import optax
import pytest
from modes import switched
from quick import quick_jit
from recipes import STEPS, in_float64, recipe

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def wrapped():
    """{recipe: (losses, parameters, state)}, over fewer steps than the script's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        module = recipe("optax_wrappers")
        patch.setattr(module, "STEPS", STEPS)
        return module.train()


@pytest.fixture(scope="module")
def in_full():
    """The same three times in full: float32, float64, and float64 with Optax's Adam."""
    ours, theirs = recipe("optax_wrappers"), recipe("optax_wrappers")
    theirs.fa = optax
    narrow = ours.train()
    with switched("jax_enable_x64", True):
        return narrow, ours.train(), theirs.train()


WRAPPERS = {  # the counts of each AdamState inside, of 60 calls and of 200
    "chain": [(60, 200)],
    "partition": [(60, 200), (60, 200)],
    "masked": [(60, 200)],
    "multi_steps": [(15, 50)],
    "apply_if_finite": [(59, 199)],
    "inject_hyperparams": [(60, 200)],
    "schedule_free": [(60, 200)],
    "reduce_on_plateau": [(60, 200)],
    "sam": [(60, 200)],
    "sam_transparent": [(30, 100)],
}


def adams_in(state):
    is_adam = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    return list(filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam)))


def test_every_wrapper_is_tested(wrapped):
    assert wrapped.keys() == WRAPPERS.keys()


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_adam_trains(name, wrapped):
    losses, _, state = wrapped[name]
    assert losses[-1] < losses[0] / 1.4
    assert [int(x.count) for x in adams_in(state)] == [short for short, _ in WRAPPERS[name]]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_adam_trains_like_optaxs(name, in_full):
    (losses, params, state), (wide_losses, wide, _), (their_losses, theirs, their_state) = (
        runs[name] for runs in in_full
    )
    assert losses[-1] < losses[0] / 3
    assert [int(x.count) for x in adams_in(state)] == [long for _, long in WRAPPERS[name]]
    assert not adams_in(their_state)

    np.testing.assert_allclose(wide_losses, their_losses, rtol=0, atol=1e-10)
    np.testing.assert_allclose(losses, their_losses, rtol=0, atol=1e-4)
    for narrow, a, b in in_float64(params, wide, theirs):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
        np.testing.assert_allclose(narrow, b, rtol=0, atol=1e-3)


def assert_each_wrapper_did_its_work(runs, steps):
    start = recipe("optax_wrappers").init_params()
    for name in start["hidden"]:
        np.testing.assert_array_equal(
            runs["masked"][1]["hidden"][name], np.float32(start["hidden"][name])
        )
    losses, _, state = runs["apply_if_finite"]
    assert np.flatnonzero(np.isnan(losses)).tolist() == [50]
    assert int(state.total_notfinite) == 1
    schedule = optax.cosine_decay_schedule(1e-2, steps)
    rate = runs["inject_hyperparams"][2].hyperparams["learning_rate"]
    np.testing.assert_allclose(rate, schedule(steps - 1), rtol=1e-6)
    return runs["reduce_on_plateau"][2][1].scale


def test_each_wrapper_did_its_work(wrapped):
    # Plateaus halve the rate, until a tenth is left.
    scale = assert_each_wrapper_did_its_work(wrapped, STEPS)
    assert scale in (0.5, 0.25, 0.125, np.float32(0.1))


@pytest.mark.slow
def test_each_wrapper_did_its_work_in_full(in_full):
    scale = assert_each_wrapper_did_its_work(in_full[0], 200)
    np.testing.assert_allclose(scale, 0.1, rtol=1e-6)
