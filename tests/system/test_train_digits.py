"""The example `train_digits.py`: it reaches its goal, and resumes on the same bits."""

import re

import jax
import numpy as np
import pytest
from running import assert_png, example, run, run_here, status_of

import functional_adam as fa

# 30 steps: an epoch of 22 and a part. Neither stop nor checkpoint falls on the epoch's end.
SETTINGS = {"steps": 30, "batch_size": 64, "learning_rate": 0.003, "weight_decay": 0.2, "seed": 3}
SHORT = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
SHORT += ["--save-every", "7", "--checkpoint", "run"]


def accuracies(output):
    """`{run: (training, held out)}` in percent, from the printed table."""
    rows = re.findall(r"(AdamW)\b.*?([\d.]+)%.*?([\d.]+)%", output)
    return {name: (float(training), float(held_out)) for name, training, held_out in rows}


@pytest.mark.slow
def test_a_full_run_reaches_its_goal(tmp_path):
    found = accuracies(run("train_digits.py", cwd=tmp_path))
    assert found["AdamW"][0] > 99.5
    assert found["AdamW"][1] >= 97
    assert_png(tmp_path / "digits.png")


def test_a_full_run_that_misses_its_goal_fails(monkeypatch, tmp_path):
    args = ["--batch-size", 1437, "--learning-rate", 1e-4]  # 40 epochs of one step
    monkeypatch.setattr(example("train_digits"), "draw", lambda *_: None)
    message, _ = status_of("train_digits", *args, cwd=tmp_path)
    assert re.fullmatch(r"AdamW's held-out accuracy is [\d.]+%, below 97%\.", message)


@pytest.fixture(scope="module", params=[run_here, pytest.param(run, marks=pytest.mark.slow)])
def way(request):
    """How a script is run: in this process, or in one of its own."""
    return request.param


@pytest.fixture(scope="module")
def straight(way, tmp_path_factory):
    """A short run without interruption: its directory and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, way("train_digits.py", *SHORT, cwd=folder)


def newest(directory):
    """A checkpoint directory's newest (step, params, state, history)."""
    train_digits = example("train_digits")
    params = jax.tree.map(lambda p: p.astype(np.float32), train_digits.init_params(0))
    checkpoints = train_digits.Checkpoints(directory, SETTINGS)
    step, arrays, notes = checkpoints.restore((params, fa.init(params)))
    return step, *arrays, [train_digits.Measure(*row) for row in notes["history"]]


def test_a_resumed_run_ends_on_the_same_bits(way, straight, tmp_path):
    folder, output = straight
    stopped = way("train_digits.py", *SHORT, "--stop-after", 17, cwd=tmp_path)
    assert "Stopped early" in stopped
    assert not (tmp_path / "digits.png").exists()
    step, *_ = newest(tmp_path / "run")
    assert step == 14  # the last multiple of 7 before 17
    resumed = way("train_digits.py", *SHORT, cwd=tmp_path)
    assert "Resuming from step 14" in resumed
    assert accuracies(resumed) == accuracies(output)

    expected, found = newest(folder / "run"), newest(tmp_path / "run")
    assert found[0] == expected[0] == 30
    assert found[3] == expected[3]
    assert [row.step for row in found[3]] == [0, 22]  # the first is from before the stop
    assert isinstance(found[2], fa.AdamState)
    assert found[2].count == 30
    expected_leaves, expected_tree = jax.tree.flatten(expected[1:3])
    found_leaves, found_tree = jax.tree.flatten(found[1:3])
    assert found_tree == expected_tree
    assert len(found_leaves) == 3 * 6 + 1  # parameters, mu and nu of three layers; count
    for a, b in zip(found_leaves, expected_leaves, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert np.any(a)


def test_another_setting_does_not_resume(straight):
    folder, _ = straight
    message, _ = status_of("train_digits", *SHORT, "--seed", 4, cwd=folder)
    assert "'seed': 3" in message


def test_a_short_run_draws_and_prints(straight):
    folder, output = straight
    found = accuracies(output)
    assert min(found["AdamW"]) > 90  # from 10 by chance
    assert_png(folder / "digits.png")
