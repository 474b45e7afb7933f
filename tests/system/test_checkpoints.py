"""The example `checkpoints.py`: what is damaged is refused, and what cannot be saved is named."""

import os
import random
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from faults import assert_same_bits, delete, files_of, flip, truncate
from running import example

import functional_adam as fa

SETTINGS = {"seed": 3}
TX = fa.adamw(0.007, b1=0.85, b2=0.97, moments=CODES, rounding="compensated")


@pytest.fixture(scope="module")
def module():
    return example("checkpoints")


@jax.jit
def step_of(tree, scale):
    grads = jax.tree.map(lambda p: (p * scale + 0.3).astype(p.dtype), tree["params"])
    updates, state = TX.update(grads, tree["state"], tree["params"])
    return {"params": fa.apply_updates(tree["params"], updates), "state": state}


@pytest.fixture(scope="module")
def written(module, tmp_path_factory):
    """A directory of three checkpoints, and the trees they hold."""
    folder = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(1)
    params = {
        "w": jnp.asarray(rng.normal(size=(6, 300)), jnp.bfloat16),
        "b": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    tree = {"params": params, "state": TX.init(params)}
    checkpoints, trees = module.Checkpoints(folder, SETTINGS), {}
    for step in (10, 20, 30):
        tree = trees[step] = step_of(tree, 0.1 * step)
        checkpoints.save(step, tree, {"loss": 0.1234})
    checkpoints.finish()
    assert (checkpoints.good, checkpoints.failed) == (30, None)
    return folder, trees


def restored(module, folder, target, settings=SETTINGS):
    """What is restored, and what is said of it."""
    said = []
    found = module.Checkpoints(folder, settings, said.append).restore(target)
    return found, said


def check_damaged(module, folder, trees, damaged=30):
    """The newest is restored as it was, or refused for the one before; returns whether refused."""
    found, said = restored(module, folder, trees[30])
    assert found.step in (damaged, damaged - 10)
    assert_same_bits((0, found.tree), (0, jax.tree.map(np.asarray, trees[found.step])))
    assert found.notes == {"loss": 0.1234, "settings": SETTINGS}
    refused = found.step != damaged
    assert [line.startswith(f"Refused the checkpoint of step {damaged}: ") for line in said] == (
        [True] * refused
    )
    assert (folder / str(damaged)).exists() != refused
    assert (folder / f"refused-{damaged}").exists() == refused
    return refused


def test_undamaged_files_are_read(module, written, tmp_path):
    folder, trees = written
    copy = shutil.copytree(folder, tmp_path / "run")
    assert not check_damaged(module, copy, trees)
    assert restored(module, tmp_path / "none", trees[30]) == (None, [])


@pytest.mark.parametrize("flips", [20, pytest.param(64, marks=pytest.mark.slow)])
def test_flipped_bits_never_get_into_a_run(flips, module, written, tmp_path):
    folder, trees = written
    rng, refused = random.Random(0), 0
    names = [path.relative_to(folder) for path in files_of(folder / "30")]
    assert len(names) > 5
    for number in range(flips):
        copy = shutil.copytree(folder, tmp_path / str(number))
        flip(copy / names[number % len(names)], rng)
        refused += check_damaged(module, copy, trees)
        shutil.rmtree(copy)
    assert flips / 8 < refused < flips * 7 / 8  # a part of each file is never read


@pytest.mark.parametrize("damage", [truncate, delete])
def test_whatever_file_is_damaged_the_run_falls_back(damage, module, written, tmp_path):
    folder, trees = written
    refused = 0
    for number, path in enumerate(files_of(folder / "30")):
        copy = shutil.copytree(folder, tmp_path / str(number))
        damage(copy / path.relative_to(folder), random.Random(number))
        refused += check_damaged(module, copy, trees)
    assert refused > 3


def test_an_empty_directory_is_no_checkpoint(module, written, tmp_path):
    folder, trees = written
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "40").mkdir()
    found, said = restored(module, copy, trees[30])
    assert found.step == 30
    assert len(said) == 1
    assert said[0].startswith("Refused the checkpoint of step 40: ")


def test_notes_are_under_the_digest(module, written, tmp_path):
    folder, trees = written
    copy = shutil.copytree(folder, tmp_path / "run")
    notes = copy / "30" / "notes" / "metadata"
    text = notes.read_text()
    assert "0.1234" in text
    notes.write_text(text.replace("0.1234", "0.1235"))
    assert check_damaged(module, copy, trees)


def test_where_nothing_is_good_nothing_begins(module, written, tmp_path):
    folder, trees = written
    copy = shutil.copytree(folder, tmp_path / "run")
    for step in (10, 20, 30):
        shutil.rmtree(copy / str(step) / "arrays")
    with pytest.raises(module.CheckpointError, match=r"No checkpoint in .* is good; to start over"):
        restored(module, copy, trees[30])
    assert sorted(path.name for path in copy.iterdir()) == ["10", "20", "30"]  # nothing is moved


def test_another_model_and_other_settings_are_refused(module, written, tmp_path):
    folder, trees = written
    copy = shutil.copytree(folder, tmp_path / "run")
    with pytest.raises(module.CheckpointError, match=r"has other settings: .*'seed': 3"):
        restored(module, copy, trees[30], {"seed": 4})
    wider = trees[30] | {"params": {"w": jnp.ones((6, 300)), "b": jnp.ones(7)}}  # float32
    with pytest.raises(module.CheckpointError, match="No checkpoint in"):
        restored(module, copy, wider)


# ---- Disks and interrupts ----


@pytest.fixture
def saved(module, tmp_path):
    """A directory with a checkpoint of step 10, the tree in it, and what is said from then on."""
    tree, said = {"w": np.random.default_rng(5).normal(size=70)}, []
    checkpoints = module.Checkpoints(tmp_path / "run", SETTINGS, said.append)
    checkpoints.save(10, tree, {})
    checkpoints.finish()
    return checkpoints, tree, said


class Full:
    """A manager of checkpoints, as Orbax's is on a full disk."""

    def __init__(self, *, at_once):
        self.at_once = at_once

    def save(self, step, args):
        if self.at_once:
            raise OSError(27, "File too large")

    def wait_until_finished(self):
        raise ValueError("Error writing: File too large [tensorstore_spec='...']")


@pytest.mark.parametrize("at_once", [False, True])
def test_a_full_disk_costs_no_more_than_the_checkpoint(at_once, saved):
    checkpoints, tree, said = saved
    checkpoints.manager = Full(at_once=at_once)
    checkpoints.save(20, tree, {})
    checkpoints.finish()
    (line,) = said
    assert line.startswith("Step 20 could not be saved: ")
    assert line.endswith(
        "File too large. Training goes on; if it stopped, it could go on from step 10."
    )
    assert (checkpoints.good, checkpoints.failed, checkpoints.pending) == (10, 20, None)
    checkpoints.save(30, tree, {})
    checkpoints.finish()
    assert (checkpoints.good, len(said)) == (30, 1)
    found = checkpoints.restore(tree)
    assert_same_bits((found.step, found.tree), (30, tree))


def test_ctrl_c_says_where_the_run_can_go_on(saved, monkeypatch, capfd):
    def end(status):
        raise SystemExit(status)

    checkpoints, tree, _ = saved
    monkeypatch.setattr(os, "_exit", end)
    before = signal.getsignal(signal.SIGINT)
    checkpoints.answer_interrupts()
    try:
        for start, step in (("step 10", None), ("step 20", 20)):
            if step:
                checkpoints.save(step, tree, {})
                checkpoints.finish()
            with pytest.raises(SystemExit) as stopped:
                signal.raise_signal(signal.SIGINT)
            assert stopped.value.code == 130
            said = capfd.readouterr().err
            assert said.strip() == f"Interrupted. The same command goes on from {start}."
    finally:
        signal.signal(signal.SIGINT, before)
