"""The example scripts, run as a reader would run them: in a process of their own."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import functional_adam as fa

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ["quickstart.py", "train_digits.py"]
# 30 steps: an epoch of 22 and a part. Neither stop nor checkpoint falls on the epoch's end.
SETTINGS = {"steps": 30, "batch_size": 64, "learning_rate": 0.003, "weight_decay": 0.2, "seed": 3}
SHORT = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
SHORT += ["--save-every", "7", "--checkpoint", "run"]


def run(script, *args, cwd):
    """Run a script in a process of its own; return what it printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
    environment.pop("FORCE_COLOR", None)  # Rich would take the pipe for a terminal
    command = [sys.executable, EXAMPLES / script, *map(str, args)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def exit_of(monkeypatch):
    """A function that runs a script in this process, for speed, and returns what it exits with."""

    def run_here(script, *args, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
        return stopped.value.code

    return run_here


def accuracies(output):
    """`{run: (training, held out)}` in percent, from the printed table."""
    rows = re.findall(r"(AdamW|SGD)\b.*?([\d.]+)%.*?([\d.]+)%", output)
    return {name: (float(training), float(held_out)) for name, training, held_out in rows}


def assert_png(path):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_describes_the_script(script, tmp_path):
    output = run(script, "--help", cwd=tmp_path)
    assert output.startswith(f"usage: {script}")
    assert not list(tmp_path.iterdir())


def test_quickstart_prints_the_reference_losses(tmp_path):
    data = json.loads((EXAMPLES / "single_sample_regression.json").read_text(encoding="utf-8"))
    output = run("quickstart.py", cwd=tmp_path)
    rows = [line.split() for line in output.splitlines()[1:]]
    assert [epoch for epoch, _, _ in rows] == list(data["reference_loss"])
    assert len(rows) == 10
    for epoch, loss, reference in rows:
        assert re.fullmatch(r"\d\.\d{6}", loss)
        assert float(reference) == data["reference_loss"][epoch]
        assert round(1e6 * float(loss)) == pytest.approx(round(1e6 * float(reference)), abs=1)
        assert float(loss) == pytest.approx(data["float64_loss"][epoch], abs=1.5e-6)


def test_quickstart_fails_when_a_loss_is_missed(exit_of, tmp_path):
    data = json.loads((EXAMPLES / "single_sample_regression.json").read_text(encoding="utf-8"))
    data["reference_loss"]["25"] += 2e-6
    (tmp_path / "single_sample_regression.json").write_text(json.dumps(data), encoding="utf-8")
    script = shutil.copy(EXAMPLES / "quickstart.py", tmp_path)
    message = exit_of(script, cwd=tmp_path)  # a string: printed, and exit status 1
    assert message == "These epochs' losses are not the reference's: 25."


def test_a_full_run_reaches_its_goal(tmp_path):
    found = accuracies(run("train_digits.py", cwd=tmp_path))
    assert found.keys() == {"AdamW", "SGD"}
    assert found["AdamW"][0] > 99.5
    assert found["AdamW"][1] >= 97
    assert found["SGD"][1] > 94  # plain SGD is tuned, not a straw man
    assert_png(tmp_path / "digits.png")


def test_a_full_run_that_misses_its_goal_fails(exit_of, tmp_path):
    args = ["--batch-size", 1437, "--learning-rate", 1e-4]  # 40 epochs of one step
    message = exit_of(EXAMPLES / "train_digits.py", *args, cwd=tmp_path)
    assert re.fullmatch(r"AdamW's held-out accuracy is [\d.]+%, below 97%\.", message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "--batch-size: must be a finite number from 1 to 1437, not 0"),
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--output", "missing/digits.png"], "is not a file in an existing directory"),
    ],
)
def test_bad_values_get_clear_errors(args, message, exit_of, tmp_path, capsys):
    assert exit_of(EXAMPLES / "train_digits.py", *args, cwd=tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A short run without interruption: its directory and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    output = run("train_digits.py", *SHORT, cwd=folder)
    return folder, output


@pytest.fixture(scope="module")
def train_digits():
    """The script as a module, to read its checkpoints with its own code."""
    spec = importlib.util.spec_from_file_location("train_digits", EXAMPLES / "train_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def newest(train_digits):
    """A function from a checkpoint directory to its newest (step, params, state, history)."""

    def restore(directory):
        params = jax.tree.map(lambda p: p.astype(np.float32), train_digits.init_params(0))
        return train_digits.Checkpoints(directory, SETTINGS).restore(params, fa.init(params))

    return restore


def test_a_resumed_run_ends_on_the_same_bits(straight, newest, tmp_path):
    folder, output = straight
    stopped = run("train_digits.py", *SHORT, "--stop-after", 17, cwd=tmp_path)
    assert "Stopped early" in stopped
    assert not (tmp_path / "digits.png").exists()
    step, *_ = newest(tmp_path / "run")
    assert step == 14  # the last multiple of 7 before 17
    resumed = run("train_digits.py", *SHORT, cwd=tmp_path)
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


def test_another_setting_does_not_resume(straight, exit_of):
    folder, _ = straight
    message = exit_of(EXAMPLES / "train_digits.py", *SHORT, "--seed", 4, cwd=folder)
    assert "'seed': 3" in message


def test_a_short_run_draws_and_prints(straight):
    folder, output = straight
    assert accuracies(output).keys() == {"AdamW", "SGD"}
    assert_png(folder / "digits.png")
