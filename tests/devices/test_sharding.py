"""Shardings of the state, on 8 devices: the tests are in `sharded_cases.py`."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
# Two processes, so that two cores share the work.
PARTS = {"updates": "ten_updates", "the rest": "not ten_updates"}


@pytest.mark.parametrize("part", PARTS)
def test_on_8_devices(part):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", PARTS[part]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, HERE / "sharded_cases.py"],
        check=False,
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
