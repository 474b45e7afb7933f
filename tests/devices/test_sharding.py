"""Shardings of the state, on 8 devices: the tests are in `cases_*.py`."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
DEVICES = "--xla_force_host_platform_device_count=8"
# Compiling is most of the time, and with the older emitters and few optimizations takes a fourth.
QUICK = f"{DEVICES} --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true"
# Two processes, so that two cores share the work.
PARTS = {
    "updates": ("updates", "costs"),
    "the rest": ("placement", "within", "flax", "kernels", "spikes", "offload", "rows"),
}


def run_cases(names, *options, quick=False):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK if quick else DEVICES,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(quick)),
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
    assert found == {name for names in PARTS.values() for name in names}


@pytest.mark.parametrize("part", PARTS)
def test_on_8_devices(part):
    run_cases(PARTS[part], quick=True)


def test_updates_compiled_as_for_users_on_8_devices():
    run_cases(["updates"], "-k", "2x4-Explicit and not int8 or small_parts or any_parts and full")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_everything_compiled_as_for_users_on_8_devices(part):
    run_cases(PARTS[part], "-m", "")
