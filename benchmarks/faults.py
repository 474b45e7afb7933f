"""Kill, damage and starve a training run far more often than the tests do. Takes minutes.

Prints the table of docs/reliability.md, and fails where a run ends on other bits.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "system"), str(ROOT / "examples")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import train_distributed  # noqa: E402
from checkpoints import Checkpoints  # noqa: E402
from faults import (  # noqa: E402
    assert_same_bits,
    ended,
    files_of,
    final,
    finish_pair,
    flip,
    kill_often,
    lose_one,
    newest,
    started,
    straight,
    until_begun,
)
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402
from train_digits import number  # noqa: E402

import functional_adam as fa  # noqa: E402

SMALL = ("--moments", "int8", "--rounding", "compensated", "--seed", 3, "--save-every", 12)
PAIR = (*SMALL, "--steps", 400)


def kills(folder: Path, count: int) -> str:
    """SIGKILL of a run of one process."""
    args = (*SMALL, "--steps", 140 * count)
    expected = straight(folder / "straight", *args)
    found, hits = kill_often(folder / "killed", count, 1, *args)
    assert_same_bits(found, expected)
    return f"{hits} in the middle of a save; all end on the bits of the uninterrupted run"


def interrupts(folder: Path, count: int) -> str:
    """Ctrl-C of a run of one process."""
    run, log, rng = folder / "run", folder / "log", random.Random(4)
    seconds = []
    for _ in track(range(count), "interrupts"):
        with started(log, "--checkpoint", run, *SMALL, "--steps", 10**6) as process:
            until_begun(process, log)
            time.sleep(rng.uniform(0, 5))
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            status, output = ended(process, log, 15)
            seconds.append(time.monotonic() - start)
        step = newest(run)
        last = "the beginning" if step is None else f"step {step}"
        assert status == 130, output
        assert f"The same command goes on from {last}." in output
    return (
        f"all said from where the run can go on, after {np.median(seconds):.1f} s (median), "
        f"{max(seconds):.1f} s (longest)"
    )


def deaths(folder: Path, count: int) -> str:
    """SIGKILL of one of two processes, the coordinator and the worker in turn."""
    expected = straight(folder / "straight", *PAIR, "--devices", 2)
    rng, stays = random.Random(2), []
    for i in track(range(count), "deaths"):
        place = folder / str(i)
        place.mkdir()
        stays.append(lose_one(place, i % 2, signal.SIGKILL, rng.uniform(0, 3), *PAIR)[0])
        assert_same_bits(finish_pair(place, *PAIR)[1], expected)
    return (
        f"the other left after {np.median(stays):.1f} s (median), {max(stays):.1f} s (longest); "
        "all restarts end on the bits of one process with two devices"
    )


def flips(folder: Path, count: int) -> str:
    """One bit changed in a file of the newest checkpoint of a run."""
    straight(folder / "straight", *SMALL, "--steps", 60)
    settings = argparse.Namespace(seed=3, rounding="compensated")
    target, _ = train_distributed.fresh(fa.adamw(moments="int8", rounding="compensated"), settings)
    run, refused, rng = folder / "straight" / "run", 0, random.Random(3)
    notes = Checkpoints(run, {}).read(60, target).notes["settings"]
    trees = {step: Checkpoints(run, notes).read(step, target).tree for step in (48, 60)}
    names = [path.relative_to(run) for path in files_of(run / "60")]
    for _ in track(range(count), "flips"):
        copy = shutil.copytree(run, folder / "copy")
        flip(copy / rng.choice(names), rng)
        found = Checkpoints(copy, notes, lambda _: None).restore(target)
        assert_same_bits((0, found.tree), (0, trees[found.step]))
        refused += found.step == 48
        shutil.rmtree(copy)
    return f"{refused} refused for the checkpoint before, {count - refused} without effect"


def full_disk(folder: Path, kibibytes: int) -> str:
    """A file system that has room for some checkpoints, and less than the run wants."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return "skipped: only root may mount a small file system"
    try:
        with started(folder / "log", "--checkpoint", disk / "run", *SMALL, "--steps", 120) as run:
            status, output = ended(run, folder / "log")
        assert status == 1
        assert "No space left on device" in output
        step, _ = final(disk / "run")
        subprocess.run([*mount[:4], "remount,size=100m", *mount[5:]], check=True)
        with started(folder / "log", "--checkpoint", disk / "run", *SMALL, "--steps", 120) as run:
            status, output = ended(run, folder / "log")
        assert status == 0, output
        assert f"Training from step {step} " in output
        assert_same_bits(final(disk / "run"), straight(folder / "room", *SMALL, "--steps", 120))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return f"trained to the end, kept step {step}; went on from there when there was room"


def main() -> None:
    """Every fault, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    faults = {
        "kills": (kills, 40),
        "interrupts": (interrupts, 20),
        "deaths": (deaths, 10),
        "flips": (flips, 500),
        "full-disk": (full_disk, 1000),
    }
    for name, (act, count) in faults.items():
        help = f"{act.__doc__} (default: {count})"
        parser.add_argument(f"--{name}", type=number(int, 0), default=count, help=help)
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    table = Table("fault", "times", "what became of it", "seconds")
    with tempfile.TemporaryDirectory() as folder:
        for name, (act, _) in faults.items():
            count = getattr(args, name.replace("-", "_"))
            if count:
                place, start = Path(folder) / name, time.monotonic()
                place.mkdir()
                outcome = act(place, count)
                seconds = f"{time.monotonic() - start:.0f}"
                print(f"{name}: {outcome} ({seconds} s)", flush=True)
                table.add_row(act.__doc__, str(count), outcome, seconds)
    Console().print(table)


if __name__ == "__main__":
    main()
