"""Before JAX begins: eight devices on one CPU, and what both ways of a step are run with."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
