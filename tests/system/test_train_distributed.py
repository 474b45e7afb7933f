"""The example `train_distributed.py`, in this process: it goes on from what a death left.

`test_faults.py` does the same with real processes, several at once, and for longer.
"""

import argparse
import random
import shutil
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from faults import assert_same_bits, files_of, final, kill_while_saving, started, truncate
from modes import switched
from running import called, example, run_here, status_of

STEPS = 48
ARGS = ("--moments", "bfloat16", "--rounding", "stochastic", "--learning-rate", "0.007")
ARGS += ("--seed", 3, "--steps", STEPS, "--save-every", 12, "--checkpoint", "run")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The directory of a run that nothing interrupts, and its end."""
    folder = tmp_path_factory.mktemp("straight")
    printed = run_here("train_distributed.py", *ARGS, cwd=folder)
    assert "Training from step 0 on 1 devices, 1 processes." in printed
    found = final(folder / "run")
    assert found[0] == found[1]["state"]["count"] == STEPS
    return folder, found


def test_a_run_killed_in_the_middle_of_a_save_ends_on_the_same_bits(straight, tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    args = [run if arg == "run" else arg for arg in ARGS]
    with started(log, *args, JAX_DISABLE_MOST_OPTIMIZATIONS="1") as process:
        saved = run / "12"
        deadline = time.monotonic() + 240
        while not saved.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        kill_while_saving(process, run, log, 0, 0)
        process.wait()
    printed = run_here("train_distributed.py", *ARGS, cwd=tmp_path)
    assert "Training from step 0" not in printed
    assert_same_bits(final(run), straight[1])


def test_a_run_goes_on_from_before_the_damage(straight, tmp_path):
    run = shutil.copytree(straight[0] / "run", tmp_path / "run")
    for path in files_of(run / str(STEPS)):  # of a single one, the end may be unused
        truncate(path, random.Random(STEPS))
    printed = run_here("train_distributed.py", *ARGS, cwd=tmp_path)
    assert f"Refused the checkpoint of step {STEPS}: " in printed
    assert f"Training from step {STEPS - 12} " in printed
    assert_same_bits(final(run), straight[1])


def test_a_directory_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "run").touch()
    status, _ = status_of("train_distributed", *ARGS, cwd=tmp_path)
    assert status == 2
    assert "argument --checkpoint: run is not a directory" in capsys.readouterr().err


class LeftError(Exception):
    """The process would have ended."""


@pytest.fixture
def script(monkeypatch):
    """The script as a module whose `leave` raises."""
    module = example("train_distributed")

    def leave(message, status):
        raise LeftError(message, status)

    monkeypatch.setattr(module, "leave", leave)
    return module


@pytest.mark.parametrize(
    ("good", "status", "goes_on"), [(STEPS, 0, f"step {STEPS}"), (12, 1, "step 12")]
)
def test_a_save_that_failed_is_in_the_last_words(
    good, status, goes_on, script, monkeypatch, tmp_path
):
    def fit(_, __, checkpoints, ___):
        checkpoints.good, checkpoints.failed = good, 36
        return 0.5

    monkeypatch.setattr(script, "fit", fit)
    with called(Path(script.__file__), *ARGS, cwd=tmp_path), pytest.raises(LeftError) as left:
        script.main()
    assert left.value.args == (f"Saved: {goes_on}, of {STEPS}.", status)


def test_where_another_process_is_gone_this_one_leaves(script, monkeypatch, tmp_path):
    def fit(*_):
        raise RuntimeError("Gloo: connection closed by peer")

    monkeypatch.setattr(script, "fit", fit)
    monkeypatch.setattr(script, "join", lambda _: None)
    args = (*ARGS, "--processes", 2, "--coordinator", "127.0.0.1:1")
    with called(Path(script.__file__), *args, cwd=tmp_path), pytest.raises(LeftError) as left:
        script.main()
    message, status = left.value.args
    assert status == 75
    assert message.startswith("A process is gone, or failed: Gloo: connection closed by peer\n")
    assert message.endswith("The same command goes on from the beginning.")


# ---- Joining ----

JOINING = {"devices": None, "processes": 2, "process_id": 1, "coordinator": "127.0.0.1:1"}


def join(script, monkeypatch, initialize, wait):
    """Join as one of two; how `jax.distributed.initialize` was called."""
    calls = []

    def record(*args, **options):
        calls.append((args, options))
        initialize()

    monkeypatch.setattr(jax.distributed, "initialize", record)
    with switched("jax_enable_preemption_service", True):
        script.join(argparse.Namespace(**JOINING, wait=wait))
        assert not jax.config.values["jax_enable_preemption_service"]
    return calls


def test_a_process_that_never_comes_is_not_waited_for(monkeypatch):
    module, left, gone = example("train_distributed"), [], threading.Event()

    def leave(*args):
        left.append(args)
        gone.set()

    monkeypatch.setattr(module, "leave", leave)
    join(module, monkeypatch, lambda: gone.wait(20), 0.1)
    assert left == [("Not all 2 processes came within 0.1 s.", 75)]


def test_once_all_have_come_the_clock_stops_and_silence_is_noticed(script, monkeypatch):
    alive = threading.active_count()
    ((args, options),) = join(script, monkeypatch, lambda: None, 30)
    assert args == ("127.0.0.1:1", 2, 1)
    assert options == {"initialization_timeout": 40, "heartbeat_timeout_seconds": 10}
    deadline = time.monotonic() + 20
    while threading.active_count() > alive:  # the timer's thread, which was cancelled
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_address_where_nobody_is_is_named(script, monkeypatch):
    def fail():
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there.")

    with pytest.raises(LeftError) as left:
        join(script, monkeypatch, fail, 30)
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):  # the end of the process would have stopped it
            thread.cancel()
    said = "No processes could meet at 127.0.0.1:1: DEADLINE_EXCEEDED: nobody there"
    assert left.value.args == (said, 1)


# ---- Spawning: children that need no JAX ----

CHILD = """
import os, pathlib, signal, sys, time
words = sys.argv[1:]
name = words[words.index("--process-id") + 1]
pathlib.Path(name).write_text(f"{os.getpid()} {os.fstat(0).st_mode} {' '.join(words)}")
"""


@pytest.fixture
def spawn(script, monkeypatch, tmp_path):
    """A function that spawns two children which run some code; the status, and what they wrote."""

    def spawned(code):
        child = tmp_path / "child.py"
        child.write_text(CHILD + code)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(child), "--steps", "7"])
        monkeypatch.setattr(script, "HEARTBEAT", -3.5)  # half a second for the rest to notice
        status = script.spawn(argparse.Namespace(spawn=2))
        return status, [(tmp_path / name).read_text().split(" ", 2) for name in "01"]

    return spawned


def test_spawned_processes_know_each_other(spawn):
    status, found = spawn("")
    assert status == 0
    addresses = set()
    for i, (_, mode, line) in enumerate(found):
        assert stat.S_ISFIFO(int(mode))  # by its end they learn that their parent is gone
        *words, option, number = line.split()
        assert (option, number) == ("--process-id", str(i))
        assert words[:5] == ["--steps", "7", "--processes", "2", "--spawned"]
        addresses.add(tuple(words[5:]))
    ((option, address),) = addresses
    assert option == "--coordinator"
    assert address.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("end", "status", "meaning"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 75, "killed by SIGKILL"),
        ("sys.exit(3)", 3, "exit status 3"),
    ],
)
def test_spawned_processes_end_together(end, status, meaning, spawn, capsys):
    code = f"while not pathlib.Path('0').exists(): time.sleep(0.01)\nif name == '1': {end}\n"
    found, children = spawn(code + "time.sleep(60)")
    assert found == status
    said = capsys.readouterr().err
    assert f"Process 1 ended: {meaning}.\n" in said
    assert "The same command goes on from the newest good checkpoint." in said
    assert not any(Path(f"/proc/{pid}").exists() for pid, *_ in children)


def test_a_spawned_process_ends_with_its_parent(monkeypatch):
    module, left, gone = example("train_distributed"), [], threading.Event()

    class Pipe:
        """Standard input that ends when the parent does."""

        ended = threading.Event()

        def read(self):
            assert self.ended.wait(20)

    def leave(*args):
        left.append(args)
        gone.set()

    monkeypatch.setattr(module, "leave", leave)
    monkeypatch.setattr(sys, "stdin", Pipe())
    module.die_with_parent()
    assert not gone.wait(0.05)
    Pipe.ended.set()
    assert gone.wait(20)
    assert left == [("The process that spawned this one is gone.", 75)]


def test_ctrl_c_is_passed_on(spawn):
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        status, children = spawn("time.sleep(60)")
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid, *_ in children)
