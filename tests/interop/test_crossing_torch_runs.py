"""Runs carried over from PyTorch, and to it, go on as if nothing had happened.

PyTorch's run is on record (`record_crossing.py`), and repeated where it is installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import record_crossing
from crossings import assert_close, cut
from record_crossing import CASES, DTYPES, HALF, ROWS, STEPS, handed_back, run_ours, taken_over
from record_torch import tolerances

import functional_adam as fa


@functools.cache
def recording():
    return record_crossing.load()


@pytest.fixture(params=DTYPES)
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def settings_of(name):
    """The settings of each leaf."""
    return {leaf: settings for leaves, settings in CASES[name].groups for leaf in leaves}


def rates_of(name):
    """What `tolerances` takes, the slowest of the groups."""
    b1, b2 = np.max([settings["betas"] for _, settings in CASES[name].groups], 0)
    return {"b1": b1, "b2": b2}


def assert_steps(name, dtype, ours, theirs, start):
    """1e-5 of a step in float32, 1e-12 of one in float64 for the sum of all steps."""
    updates, after = ours
    for leaf, settings in settings_of(name).items():
        found, wanted = after[leaf], theirs[leaf]
        if dtype == "float32":  # where parameters are put back: see `record_torch`
            found, wanted = updates[leaf], theirs[leaf].astype(np.float64) - start[leaf]
        if dtype == "float32":
            assert_close(found, wanted, 1e-5, settings["lr"])
        else:
            assert np.abs(found - wanted).max() <= 1e-12 * settings["lr"]


def assert_states(name, dtype, ours, theirs):
    """Torch's state dicts: the same keys, types and steps, moments to `tolerances`."""
    allowed = tolerances(dtype, rates_of(name))
    assert set(ours["state"]) >= set(theirs["state"])
    assert ours["param_groups"] == theirs["param_groups"]
    for i, wanted in theirs["state"].items():
        found = ours["state"][i]
        assert set(found) == set(wanted)
        for key, x in found.items():
            assert type(x) is np.ndarray
            assert x.flags.writeable
            assert x.shape == wanted[key].shape
            assert x.dtype == (np.float32 if key == "step" else dtype)
        assert found["step"] == wanted["step"]
        root = np.sqrt(wanted["exp_avg_sq"].astype(np.float64))
        error = np.abs(found["exp_avg"].astype(np.float64) - wanted["exp_avg"])
        assert (error <= allowed["mu"] * root).all()
        for key in set(wanted) - {"step", "exp_avg"}:
            assert_close(found[key], wanted[key], allowed["nu"])


def test_torch_run_on_record_is_taken_over(name, dtype):
    tape = recording()[name][dtype]
    grads, start = recording()["grads"], recording()["start"]
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    params = start if dtype == "float32" else tape["before"]
    state = taken_over(name, tape[HALF], jax.tree.map(lambda p: jnp.asarray(p, dtype), start))
    updates, after, state = run_ours(name, dtype, state, cut(grads, HALF, STEPS), params, start)
    rows = jax.tree.map(lambda x: x[ROWS - HALF], (updates, after))
    assert_steps(name, dtype, rows, tape["params"], start)
    assert_states(name, dtype, handed_back(name, state, tape[HALF]), tape[STEPS])


def test_groups_on_record_become_overrides_of_one_optimizer(name, dtype):
    tape, grads = recording()[name][dtype], recording()["grads"]
    start = {leaf: recording()["start"][leaf] for leaf in record_crossing.leaves_of(name)}
    params = start if dtype == "float32" else tape["before"]
    names = {"names": record_crossing.NAMES} if CASES[name].named else {}
    rules = fa.overrides_from_torch(tape[HALF], start, **names)
    make = {"adamw": fa.adamw, "amsgrad": fa.amsgrad}[name.partition(",")[0]]
    more = {"maximum": "before_correction"} if make is fa.amsgrad else {}
    of_dtype = jax.tree.map(lambda p: jnp.asarray(p, dtype), start)
    state = fa.from_torch(tape[HALF], of_dtype, transform=record_crossing.turned, **names)
    run = cut(grads, HALF, STEPS), params, start, make(overrides=rules, **more)
    updates, after, _ = run_ours(name, dtype, state, *run)
    rows = jax.tree.map(lambda x: x[ROWS - HALF], (updates, after))
    assert_steps(name, dtype, rows, tape["params"], start)


def test_what_is_handed_to_torch_is_what_it_would_hold(name, dtype):
    """Of our run from the first step on, at both recorded steps."""
    tape = recording()[name][dtype]
    grads, start = recording()["grads"], recording()["start"]
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    state = record_crossing.ours(name).init(jax.tree.map(lambda p: jnp.asarray(p, dtype), start))
    params = start
    fresh = {"state": {}, "param_groups": tape[HALF]["param_groups"]}
    for begin, end in ((0, HALF), (HALF, STEPS)):
        part = cut(grads, begin, end)
        _, after, state = run_ours(name, dtype, state, part, params, start)
        params = start if dtype == "float32" else {k: x[-1] for k, x in after.items()}
        assert_states(name, dtype, handed_back(name, state, fresh), tape[end])


def test_recording_shows_what_it_is_for():
    """It is of these cases; with groups, names, a maximum, and a parameter without a gradient."""
    assert recording()["cases"] == CASES
    for name in CASES:
        for tape in recording()[name].values():
            for steps in (HALF, STEPS):
                held = tape[steps]["state"]
                assert all(s["step"] == steps for s in held.values())
                kernel = next(s for s in held.values() if s["exp_avg"].ndim == 2)
                assert kernel["exp_avg"].shape == (3, 5)
                for s in held.values():
                    assert ("max_exp_avg_sq" in s) == name.startswith("amsgrad")
                    if "max_exp_avg_sq" in s:
                        assert (s["max_exp_avg_sq"] > 1.05 * s["exp_avg_sq"]).any()
    first, second = (recording()[name]["float32"][HALF] for name in CASES)
    assert [g["param_names"] for g in first["param_groups"]] == [
        ["linear.weight"],
        ["scale", "linear.bias"],
    ]
    assert set(second["state"]) == {0, 1, 2}
    assert [g["params"] for g in second["param_groups"]] == [[0, 1], [2, 3]]


def test_a_torch_run_is_taken_over_live(name, dtype):
    """200 steps there, 200 here; torch goes on as well, and neither writes into the other."""
    pytest.importorskip("torch")
    grads, start = record_crossing.data()
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    theirs = record_crossing.Torch(name, dtype, start)
    after = theirs.run(cut(grads, 0, HALF))
    params = start if dtype == "float32" else {k: x[-1] for k, x in after.items()}
    cast = jax.tree.map(lambda p: jnp.asarray(p, dtype), start)
    state = taken_over(name, theirs.optimizer.state_dict(), cast)
    wanted = theirs.run(cut(grads, HALF, STEPS))
    *ours, state = run_ours(name, dtype, state, cut(grads, HALF, STEPS), params, start)
    assert_steps(name, dtype, ours, wanted, start)
    state_dict = record_crossing.plain(theirs.optimizer.state_dict())
    assert_states(name, dtype, handed_back(name, state, state_dict), state_dict)


def test_our_run_goes_on_in_torch_live(name, dtype):
    """200 steps here, 200 there, against 400 here."""
    torch = pytest.importorskip("torch")
    grads, start = record_crossing.data()
    start = {leaf: start[leaf] for leaf in record_crossing.leaves_of(name)}
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), start)
    state = record_crossing.ours(name).init(params)
    _, after, state = run_ours(name, dtype, state, cut(grads, 0, HALF), params, start)
    middle = start if dtype == "float32" else {k: x[-1] for k, x in after.items()}
    *ours, _ = run_ours(name, dtype, state, cut(grads, HALF, STEPS), middle, start)

    theirs = record_crossing.Torch(name, dtype, middle)
    state_dict = handed_back(name, state, theirs.optimizer.state_dict())
    state_dict["state"] = jax.tree.map(torch.as_tensor, state_dict["state"])
    theirs.optimizer.load_state_dict(state_dict)
    assert_steps(name, dtype, ours, theirs.run(cut(grads, HALF, STEPS)), start)


def test_bfloat16_tensors_are_taken_over_live():
    torch = pytest.importorskip("torch")
    p = torch.full((2, 3), 0.7, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam([p], betas=(0.83, 0.97))
    p.grad = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    optimizer.step()
    state = fa.from_torch(optimizer.state_dict(), jnp.zeros((2, 3), jnp.bfloat16))
    wanted = optimizer.state[p]["exp_avg"].float().numpy()
    assert state.mu.dtype == np.float32
    np.testing.assert_array_equal(state.mu, wanted)
    assert wanted.all(where=np.arange(6).reshape(2, 3) > 0)
