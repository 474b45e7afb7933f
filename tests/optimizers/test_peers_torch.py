"""The same numbers as PyTorch's on record (`record_torch.py`)."""

import functools

import numpy as np
import pytest
import record_torch

slow = pytest.mark.slow


@functools.cache
def recording():
    return record_torch.load()


def in_one_leaf(tree, lead):
    """All leaves side by side: nothing on record looks beyond an element."""
    flat = [x.reshape((*x.shape[:lead], -1)) for x in tree.values()]
    return {"all": np.concatenate(flat, axis=lead)}


def in_their_leaves(kept, like):
    """As it was before `in_one_leaf`: `like` gives names and shapes."""
    ends = np.cumsum([x.size for x in like.values()])
    parts = np.split(np.asarray(kept["all"]), ends[:-1], axis=-1)
    return {
        name: part.reshape(part.shape[:-1] + x.shape)
        for part, (name, x) in zip(parts, like.items(), strict=True)
    }


TREES = ["amsgrad, decay"]  # run leaf by leaf, as they were recorded
# In float32 a few: float64 shows the equations to more digits.
FLOAT32 = ["adamw", "amsgrad, decay", "adamax", "nadam", "radam, l2"]
CASES = [
    pytest.param(name, dtype, marks=() if dtype == "float64" or name in FLOAT32 else slow)
    for name in record_torch.CASES
    for dtype in record_torch.DTYPES
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_recorded_torch_trajectory_is_ours(name, dtype, request):
    """float32: each update to 1e-5 of a step; float64: the parameters to 1e-12 of a step."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    case, theirs = recording()["cases"][name], recording()["runs"][name][dtype]
    grads, start = recording()["grads"], recording()["params"]
    if name in TREES:
        ours = record_torch.run_ours(case, dtype, grads, start)
    else:
        ours = record_torch.run_ours(case, dtype, in_one_leaf(grads, 1), in_one_leaf(start, 0))
        ours = {key: in_their_leaves(kept, start) for key, kept in ours.items()}
    assert set(ours) == set(theirs) | {"updates"}
    worst = record_torch.differences(ours, theirs, dtype, case, start)
    allowed = record_torch.tolerances(dtype, case.numbers)
    assert all(worst[key] <= allowed[key] for key in worst), f"{worst}, allowed {allowed}"


def test_recording_is_of_the_cases_that_the_script_would_record():
    assert recording()["cases"] == record_torch.CASES


def test_recording_has_no_degenerate_values():
    """Nothing at its default, nothing at rest: such a recording would agree with wrong code."""
    defaults = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    defaults |= {"l2": 0.0, "weight_decay": 0.01, "momentum_decay": 4e-3}  # torch's
    for name, case in recording()["cases"].items():
        assert set(case.numbers) >= {"learning_rate", "b1", "b2", "eps"}
        assert ("weight_decay" in case.numbers) == (name in ("adamw", "amsgrad, decay", "nadamw"))
        assert ("l2" in case.numbers) == name.endswith(", l2")
        assert ("momentum_decay" in case.numbers) == name.startswith("nadam")
        assert all(0 != value != defaults[key] for key, value in case.numbers.items())
        for run in recording()["runs"][name].values():
            assert all(len(p) == len(record_torch.ROWS) for p in run["params"].values())
            assert ("nu_max" in run) == name.startswith("amsgrad")
    zeros = recording()["grads"]["sparse"] == 0
    assert zeros.all(axis=0).any()
    assert 0.5 < zeros.mean() < 1
    assert all((g != 0).all() for name, g in recording()["grads"].items() if name != "sparse")


def test_recorded_options_show():
    """Decay moves what has no gradient, a maximum stays above what it is of, RAdam changes over."""
    start = recording()["params"]["sparse"]
    idle = (recording()["grads"]["sparse"] == 0).all(axis=0)
    for name, case in recording()["cases"].items():
        for run in recording()["runs"][name].values():
            moved = (run["params"]["sparse"] != start)[:, idle]
            assert moved.all() if {"l2", "weight_decay"} & set(case.numbers) else not moved.any()
            for leaf, largest in run.get("nu_max", {}).items():
                assert (largest > 1.03 * run["nu"][leaf]).any()
    for name in ("radam", "radam, l2"):
        after = recording()["runs"][name]["float32"]["params"]["bias"]  # gradients of about 31
        size = np.abs(after - recording()["params"]["bias"]).max(axis=1)
        size /= recording()["cases"][name].numbers["learning_rate"]
        assert (size[:5] > 3).all()
        assert (size[5:] < 3).all()
