"""Runs of `examples/train_distributed.py` that are started, watched and killed.

For `test_faults.py`, `test_train_distributed.py`, and for `benchmarks/faults.py`, which does the
same more often.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

SCRIPT = Path(__file__).parents[2] / "examples" / "train_distributed.py"
BEGUN = "Training from step"
# A run is started some thirty times; half of its short life would go into compiling the same again.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
PATIENCE = 240  # seconds for what takes ten on an idle machine


@contextlib.contextmanager
def started(log, *args, stdin=None, **variables):
    """A process of the script, its output in the file `log`; nothing of it is left afterwards."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    command = [sys.executable, SCRIPT, *map(str, args)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=stdin, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def pair(folder, *args, wait=PATIENCE):
    """Two processes that train as one, each of one device."""
    with socket.socket() as held, contextlib.ExitStack() as stack:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # JAX's server may share it
        held.bind(("127.0.0.1", 0))
        shared = ["--processes", 2, "--coordinator", f"127.0.0.1:{held.getsockname()[1]}"]
        shared += ["--wait", wait, *args]
        yield [
            stack.enter_context(started(folder / f"log{i}", "--process-id", i, *shared))
            for i in range(2)
        ]


def ended(process, log, seconds=PATIENCE):
    """The exit status, and what was printed."""
    try:
        return process.wait(seconds), log.read_text()
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running after {seconds} s: {log.read_text()}") from None


def until(condition, process, log, seconds=PATIENCE):
    """Whether it came true before the process ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    return True


def until_begun(process, log):
    found = until(lambda: BEGUN in log.read_text(), process, log)
    assert found, log.read_text()


@contextlib.contextmanager
def held(process):
    """The process stands still."""
    process.send_signal(signal.SIGSTOP)
    assert process.returncode is None, "the process is over"
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def saving(run, since):
    """Whether a checkpoint is written whose writing began after the time `since`."""
    with contextlib.suppress(FileNotFoundError):  # finished, while we look
        return any("tmp" in p.name and p.stat().st_ctime > since for p in run.iterdir())
    return False


def kill_while_saving(process, run, log, since, delay):
    """Kill a process in the middle of a save, however slowly we see it."""
    while True:
        assert until(lambda: saving(run, since), process, log), log.read_text()
        time.sleep(delay)
        with held(process):
            if saving(run, since):
                process.kill()
                return


def newest(run):
    """The newest checkpoint's step, or None."""
    names = [path.name for path in run.iterdir()] if run.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def final(run):
    """The newest checkpoint's step and arrays, as Orbax reads them."""
    step = newest(run)
    path = run.resolve() / str(step) / "arrays"
    with ocp.StandardCheckpointer() as reader:
        shapes = reader.metadata(path).item_metadata.tree
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)  # for no device
        return step, reader.restore(path, like)


def assert_same_bits(found, expected):
    assert found[0] == expected[0]
    assert jax.tree.structure(found[1]) == jax.tree.structure(expected[1])
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def straight(folder, *args):
    """The final checkpoint of a run that nothing interrupts."""
    folder.mkdir()
    with started(folder / "log", "--checkpoint", folder / "run", *args) as process:
        status, output = ended(process, folder / "log")
    assert status == 0, output
    return final(folder / "run")


def kill_often(folder, kills, seed, *args):
    """Kill a run `kills` times, at least half of them during a save; its end, and how many were."""
    rng, hits = random.Random(seed), 0
    folder.mkdir()
    run, log = folder / "run", folder / "log"
    for number in range(kills):
        since = time.time()
        with started(log, "--checkpoint", run, *args) as process:
            if number % 4 != 3:  # the fourth may be killed while it still starts
                until_begun(process, log)
            if number % 2:
                time.sleep(rng.uniform(0, 1))
                assert process.poll() is None, f"over before kill {number}: {log.read_text()}"
                process.kill()
            else:
                kill_while_saving(process, run, log, since, rng.uniform(0, 0.1))
            process.wait()
            hits += saving(run, since)
    with started(log, "--checkpoint", run, *args) as process:
        status, output = ended(process, log)
    assert status == 0, output
    return final(run), hits


def lose_one(folder, who, how, delay, *args, after=None):
    """Send one of a pair a signal; how long the other stayed, its status, and what it printed.

    It is sent `delay` seconds after they have begun, or after the checkpoint of step `after`.
    """
    with pair(folder, "--checkpoint", folder / "run", *args) as processes:
        until_begun(processes[0], folder / "log0")
        if after is not None:
            saved = folder / "run" / str(after)
            assert until(saved.exists, processes[0], folder / "log0")
        time.sleep(delay)
        assert processes[who].poll() is None
        processes[who].send_signal(how)
        start = time.monotonic()
        status, output = ended(processes[1 - who], folder / f"log{1 - who}", 60)
        return time.monotonic() - start, status, output


def finish_pair(folder, *args):
    """Start the pair again, and let it come to its end."""
    with pair(folder, "--checkpoint", folder / "run", *args) as processes:
        for i, process in enumerate(processes):
            status, output = ended(process, folder / f"log{i}")
            assert status == 0, output
    begun = int(re.search(rf"{BEGUN} (\d+)", (folder / "log0").read_text())[1])
    return begun, final(folder / "run")


# ---- Damage ----


def flip(path, rng):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path, rng):
    path.unlink()


def files_of(folder):
    """The files that hold something, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
