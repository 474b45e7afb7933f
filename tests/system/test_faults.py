"""Real processes that die and disks that are full: the run goes on to the same bits.

All of these are slow. Their short siblings are in `test_train_distributed.py`, where one process is
killed, and in `test_checkpoints.py`.
"""

import os
import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults import (
    assert_same_bits,
    ended,
    files_of,
    final,
    finish_pair,
    held,
    kill_often,
    lose_one,
    newest,
    pair,
    started,
    straight,
    truncate,
    until,
    until_begun,
)

pytestmark = pytest.mark.slow
SMALL = ("--moments", "int8", "--rounding", "compensated", "--learning-rate", "0.007")
# Nearly all of a run's time goes into its checkpoints: with many, it is not over before a test that
# waits for its turn on a busy machine has seen what it waits for; with few, it ends at once.
STEPS = 480
LONG = (*SMALL, "--steps", STEPS, "--save-every", 15)
QUICK = (*LONG, "--save-every", STEPS // 2)
PAIRED = (*SMALL, "--steps", 150, "--save-every", 30)  # two processes are slow by themselves


# ---- Processes ----


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One process with two devices."""
    return straight(tmp_path_factory.mktemp("faults") / "straight", *PAIRED, "--devices", 2)


def test_two_processes_are_one_with_two_devices(uninterrupted, tmp_path):
    args = ("--checkpoint", tmp_path / "run", *PAIRED, "--spawn", 2)
    with started(tmp_path / "log", *args, stdin=subprocess.DEVNULL) as process:
        status, output = ended(process, tmp_path / "log")
    assert status == 0, output
    assert "Training from step 0 on 2 devices, 2 processes." in output
    assert_same_bits(final(tmp_path / "run"), uninterrupted)
    assert uninterrupted[0] == uninterrupted[1]["state"]["count"] == 150


@pytest.mark.parametrize("who", [0, 1], ids=["coordinator", "worker"])
def test_when_a_process_is_killed_the_other_leaves_and_the_run_goes_on(
    who, uninterrupted, tmp_path
):
    delay = random.Random(who).uniform(0, 0.5)
    seconds, status, output = lose_one(tmp_path, who, signal.SIGKILL, delay, *PAIRED, after=30)
    assert seconds < 15
    assert status in (75, -signal.SIGABRT)  # ours, or JAX's if it sees the coordinator go first
    assert "The same command goes on from" in output or "another task died" in output
    begun, found = finish_pair(tmp_path, *PAIRED)
    assert 30 <= begun < 150
    assert_same_bits(found, uninterrupted)


def test_a_process_that_is_silent_is_given_up(tmp_path):
    seconds, status, output = lose_one(tmp_path, 1, signal.SIGSTOP, 0.1, *LONG, "--steps", 10**6)
    assert 5 < seconds < 45  # ten seconds without a heartbeat, and what a busy machine adds
    assert status in (75, -signal.SIGABRT)
    assert "The same command goes on from" in output or "another task died" in output


def test_spawned_processes_end_together(tmp_path):
    args = ("--checkpoint", tmp_path / "run", "--spawn", 2, "--steps", 10**6)
    with started(tmp_path / "log", *args, stdin=subprocess.DEVNULL) as process:
        until_begun(process, tmp_path / "log")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        status, output = ended(process, tmp_path / "log", 20)
    assert status == 75
    assert "Process 1 ended: killed by SIGKILL." in output
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_spawned_processes_end_with_their_parent(tmp_path):
    args = ("--checkpoint", tmp_path / "run", "--spawn", 2, "--steps", 10**6)
    with started(tmp_path / "log", *args, stdin=subprocess.DEVNULL) as process:
        until_begun(process, tmp_path / "log")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 15
        while any(alive(child) for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that ended may wait as a zombie for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_never_comes_is_not_waited_for(who, tmp_path):
    with pair(tmp_path, "--checkpoint", tmp_path / "run", wait=6) as processes:
        processes[1 - who].kill()
        status, output = ended(processes[who], tmp_path / f"log{who}", 30)
    assert status == 75
    assert "Not all 2 processes came within 6 s." in output


def test_ctrl_c_is_answered(tmp_path):
    args = ("--checkpoint", tmp_path / "run", *LONG, "--steps", 10**6)
    with started(tmp_path / "log", *args) as process:
        assert until((tmp_path / "run" / "30").exists, process, tmp_path / "log")
        process.send_signal(signal.SIGINT)
        status, output = ended(process, tmp_path / "log", 15)
    assert status == 130
    found = re.search(r"Interrupted. The same command goes on from step (\d+)\.", output)
    assert found, output
    assert 30 <= int(found[1]) <= newest(tmp_path / "run")


# ---- Kills ----


def test_a_run_killed_again_and_again_ends_on_the_same_bits(tmp_path):
    args = (*SMALL, "--steps", 420, "--save-every", 12, "--seed", 3)
    expected = straight(tmp_path / "straight", *args)
    found, hits = kill_often(tmp_path / "killed", 4, 0, *args)
    assert_same_bits(found, expected)
    assert hits >= 2  # these died in the middle of a save


def test_a_run_goes_on_from_before_the_damage(uninterrupted, tmp_path):
    args = ("--checkpoint", tmp_path / "run", *PAIRED, "--devices", 2)
    with started(tmp_path / "log", *args) as process:
        assert until((tmp_path / "run" / "60").exists, process, tmp_path / "log")
    step = newest(tmp_path / "run")
    for path in files_of(tmp_path / "run" / str(step)):  # of a single one, the end may be unused
        truncate(path, random.Random(step))
    with started(tmp_path / "log", *args) as process:
        status, output = ended(process, tmp_path / "log")
    assert status == 0
    assert f"Refused the checkpoint of step {step}: " in output
    assert f"Training from step {step - 30} " in output
    assert_same_bits(final(tmp_path / "run"), uninterrupted)


# ---- Disks ----


def test_a_full_disk_costs_no_more_than_the_checkpoints(tmp_path):
    args = ("--checkpoint", tmp_path / "run", *LONG)
    log, unlimited = tmp_path / "log", (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with started(log, *args) as process:
        assert until((tmp_path / "run" / "30").exists, process, log)
        # No file may become as large as a checkpoint's: a full disk without filling one.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
        assert until(lambda: "could not be saved" in log.read_text(), process, log)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        status, output = ended(process, log)
    assert status == 0, output
    assert "File too large. Training goes on; if it stopped, it could go on from step" in output
    assert f"Saved: step {STEPS}, of {STEPS}." in output
    assert_same_bits(final(tmp_path / "run"), straight(tmp_path / "straight", *QUICK))


def test_a_directory_that_cannot_be_written_loses_nothing_saved(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    args = ("--checkpoint", run, *LONG)
    with started(tmp_path / "log", *args) as process:
        assert until((run / "60").exists, process, tmp_path / "log")
        with held(process):
            run.rename(away)
            run.touch()  # a file, where even root can write no directory
        status, output = ended(process, tmp_path / "log")
    assert status == 1
    assert "could not be saved: [Errno 20] Not a directory" in output
    saved, kept = int(output.rpartition("Saved: step ")[2].split(",")[0]), newest(away)
    # The newest may have been moved away before Orbax was done with it.
    assert 45 <= saved <= kept < STEPS
    run.unlink()
    away.rename(run)
    with started(tmp_path / "log", "--checkpoint", run, *QUICK) as process:
        status, output = ended(process, tmp_path / "log")
    assert status == 0
    assert f"Training from step {kept} " in output
