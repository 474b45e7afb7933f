"""Make one mistake at a time in a copy of the tree, and see whether the tests notice.

    python tools/mutate.py                   every mutation of tools/mutations/*.toml
    python tools/mutate.py --list            their numbers and names
    python tools/mutate.py --room step       those of one room
    python tools/mutate.py --only 12         one, by its number or its name

A mutation replaces one text of one file of the package. First the tests that it names must pass
without it; then they run with it. Where all of them still pass, the whole room runs. Slow tests
stay out, as in `make test`; `--all` takes them in. Exit status: 0 if all were killed, else 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
LISTS = ROOT / "tools" / "mutations"
PACKAGE = "functional_adam"
LIMIT = 1800  # seconds: a mutation that never ends is no answer
EIGHT_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
WHERE = "import importlib.util as u; print(u.find_spec('functional_adam').origin)"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake: in `file` of the package, `new` in place of `old`, which occurs there once."""

    room: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()  # see `located`; none: the whole room

    @property
    def path(self) -> str:
        """The file, from the root of the repository."""
        return f"{PACKAGE}/{self.file}"

    @property
    def narrow(self) -> tuple[str, ...]:
        """What runs first."""
        return tuple(found for test in self.tests for found in located(test)) or self.whole

    @property
    def whole(self) -> tuple[str, ...]:
        """Its room, and those that the named tests are in."""
        rooms = (self.room, *(re.split("::|/", test)[0] for test in self.tests))
        return tuple(f"tests/{room}" for room in dict.fromkeys(rooms))

    def applied(self, text: str) -> str:
        """`text` of the file with the mistake in it."""
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self}: {self.path} has the old text {found} times, not once")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        """Room and name."""
        return f"{self.room}/{self.name}"


def located(test: str) -> list[str]:
    """A path within tests/, or `room::test_name` in whichever files of the room have it."""
    room, _, name = test.partition("::")
    if not name:
        return [f"tests/{test}"]
    files = sorted((ROOT / "tests" / room).glob("*.py"))
    found = [file for file in files if f"def {name}(" in file.read_text()]
    if not found:
        raise SystemExit(f"tests/{room} has no {name}")
    return [f"{file.relative_to(ROOT)}::{name}" for file in found]


class Result(NamedTuple):
    """What became of a run."""

    verdict: str  # "killed", "SURVIVED" or "ERROR"
    said: str  # the test that failed, or pytest's words


def mutations(folder: pathlib.Path = LISTS) -> list[Mutation]:
    """All of them: a file a room, a table a mutation."""
    return [
        Mutation(path.stem, name, **fields | {"tests": tuple(fields.get("tests", ()))})
        for path in sorted(folder.glob("*.toml"))
        for name, fields in tomllib.loads(path.read_text()).items()
    ]


def chosen(all_of_them: Sequence[Mutation], rooms: list[str], only: list[str]) -> list[Mutation]:
    """Those of these rooms, or those with these numbers or names; all where nothing is said."""
    for room in set(rooms) - {m.room for m in all_of_them}:
        raise SystemExit(f"no room {room!r} in {LISTS}")
    known = {str(number) for number, _ in enumerate(all_of_them, 1)}
    known |= {m.name for m in all_of_them} | set(map(str, all_of_them))
    for one in set(only) - known:
        raise SystemExit(f"no mutation {one!r}: see --list")
    return [
        m
        for number, m in enumerate(all_of_them, 1)
        if (not rooms or m.room in rooms)
        and (not only or {str(number), m.name, str(m)} & set(only))
    ]


# ---- Copies ----


def copied(root: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """All files of the working tree that git does not ignore, in `to`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # else deleted, and not committed yet
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, to / name)
    return to


def environment(copy: pathlib.Path, room: str) -> dict[str, str]:
    """In which Python imports the copy, and leaves no compiled file of an earlier mistake there."""
    mine = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    mine["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take a third of a short run
    return os.environ | mine | (EIGHT_DEVICES if room == "devices" else {})


def check_import(copy: pathlib.Path, room: str) -> None:
    """What the tests import is the copy, not an installed package."""
    command = [sys.executable, "-c", WHERE]
    environ = environment(copy, room)
    done = subprocess.run(
        command, cwd=copy, env=environ, check=True, capture_output=True, text=True
    )
    if pathlib.Path(done.stdout.strip()).resolve().parents[1] != copy.resolve():
        raise SystemExit(f"tests would import {done.stdout.strip()}, not the copy in {copy}")


# ---- Runs ----


def tested(copy: pathlib.Path, room: str, tests: Iterable[str], slow: bool) -> Result:
    """The tests of a copy up to the first that fails."""
    options = ["-q", "-x", "--tb=short", "--no-header", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(["-m", ""] if slow else []), *tests]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment(copy, room),
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return Result("ERROR", f"still running after {LIMIT} s")
    lines = done.stdout.splitlines()
    if done.returncode in (0, 5):  # all passed, or all are slow and none ran
        return Result("SURVIVED", lines[-1] if lines else "")
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode == 1 and failed:
        return Result("killed", failed[0].partition(" - ")[0].removeprefix("FAILED "))
    # Not one test ran: a mistake that any import shows, or tests that do not exist.
    return Result("ERROR", done.stdout[-3000:] + done.stderr[-1000:])


@functools.cache
def check_control(room: str, tests: tuple[str, ...], slow: bool) -> None:
    """Without a mistake these tests pass; anything else would pass for a kill."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(ROOT, pathlib.Path(folder))
        check_import(copy, room)
        result = tested(copy, room, tests, slow)
    if result.verdict != "SURVIVED":
        raise SystemExit(f"{room}: without any mutation: {result.verdict} {result.said}")


def judged(mutation: Mutation, slow: bool, narrow: bool) -> Result:
    """What becomes of one mutation in a copy of its own."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(ROOT, pathlib.Path(folder))
        check_import(copy, mutation.room)
        file = copy / mutation.path
        file.write_text(mutation.applied(file.read_text()))
        result = tested(copy, mutation.room, mutation.narrow, slow)
        if result.verdict != "SURVIVED" or narrow or mutation.narrow == mutation.whole:
            return result
        check_control(mutation.room, mutation.whole, slow)
        wider = tested(copy, mutation.room, mutation.whole, slow)
        return Result(wider.verdict, f"{wider.said} (not by the tests that it names)")


def report(
    these: Sequence[Mutation], jobs: int, slow: bool, narrow: bool
) -> Iterator[tuple[Mutation, Result]]:
    """Judge these, printing a line each."""

    def timed(mutation: Mutation) -> tuple[Result, float]:
        start = time.perf_counter()
        return judged(mutation, slow, narrow), time.perf_counter() - start

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for mutation, (result, seconds) in zip(these, pool.map(timed, these), strict=True):
            print(f"{result.verdict:8} {seconds:5.0f} s  {mutation}: {result.said}", flush=True)
            yield mutation, result


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose, check that all is well without, mutate, count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print numbers and names, run nothing")
    parser.add_argument("--room", action="append", default=[], help="a room; may be repeated")
    parser.add_argument("--only", action="append", default=[], help="a number or a name")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at a time")
    parser.add_argument("--all", action="store_true", help="with the slow tests")
    parser.add_argument("--narrow", action="store_true", help="without the rest of the room")
    args = parser.parse_args(arguments)
    listed = mutations()
    these = chosen(listed, args.room, args.only)
    if args.list:
        for mutation in these:
            print(f"{listed.index(mutation) + 1:3}  {mutation}  {mutation.path}")
        return 0
    for room in dict.fromkeys(m.room for m in these):
        tests = dict.fromkeys(test for m in these if m.room == room for test in m.narrow)
        check_control(room, tuple(tests), args.all)
        print(f"{room}: {len(tests)} tests or files pass without any mutation", flush=True)
    found = list(report(these, args.jobs, args.all, args.narrow))
    bad = [str(mutation) for mutation, result in found if result.verdict != "killed"]
    print(f"{len(found) - len(bad)} of {len(found)} killed" + "".join(f"\n  not: {m}" for m in bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
