"""Shardings of the state, on 8 devices: the tests are in `cases_*.py`."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
# Two processes, so that two cores share the work. The first compares bits of different programs and
# reads what the compiler made, hence compiles as users do; of the second compiling is all the time.
PARTS = {
    "updates": (("updates", "costs"), "0"),
    "the rest": (("placement", "within", "flax"), "1"),
}


def run_cases(names, *options, quickly="0"):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": quickly,
    }
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(HERE / f"cases_{name}.py" for name in names)],
        check=False,
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def test_every_case_is_run():
    found = {path.stem.removeprefix("cases_") for path in HERE.glob("cases_*.py")}
    assert found == {name for names, _ in PARTS.values() for name in names}


@pytest.mark.parametrize("part", PARTS)
def test_on_8_devices(part):
    names, quickly = PARTS[part]
    run_cases(names, quickly=quickly)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_more_on_8_devices(part):
    names, _ = PARTS[part]
    run_cases(names, "-m", "slow")
    if part == "the rest":  # compiled as for users, too
        run_cases(names)
