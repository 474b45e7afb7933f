"""The devices that programs are compiled for; none of them has to be present."""

from __future__ import annotations

import os
from typing import Any

# Do not ask a metadata server for a TPU, and let several processes load the TPU compiler at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}
TARGETS = (*TOPOLOGIES, "h100")

# The properties of an H100 SXM that XLA's compiler needs.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  model_str: "sm_9.0a with 84942979072B RAM, 132 cores"
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(target: str) -> list[Any]:
    """The devices of a target, one of `TARGETS`. Call `prepare` first."""
    from jax.experimental import topologies

    if target in TOPOLOGIES:
        described = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target])
    else:
        # The plugin needs `topology` in the form hosts x … x GPUs.
        described = topologies.get_topology_desc(
            platform="cuda", topology_name=target, topology="1x4x1", target_config=H100
        )
    return list(described.devices)


def compile_gpu(traced: Any) -> Any:
    """Lower a traced function for GPUs and compile it for an H100.

    Trace it with shardings of TPUs. JAX's GPU topologies have no host memory, so their shardings
    lose the information that an array is on the host.
    """
    import numpy as np
    from jax._src import compiler
    from jax._src.lib import _jax

    (device, *_) = devices("h100")
    executable = device.client.compile(
        traced.lower(lowering_platforms=("cuda",)).compiler_ir(),
        _jax.DeviceList((device,)),
        compiler.get_compile_options(
            num_replicas=1, num_partitions=1, device_assignment=np.array([[device.id]])
        ),
    )
    return _Compiled(executable)


class _Compiled:
    """Gives a program that JAX's own `compile` has not made the methods that are read here."""

    def __init__(self, executable: Any) -> None:
        self.executable = executable

    def as_text(self) -> str:
        return self.executable.hlo_modules()[0].to_string()

    def memory_analysis(self) -> Any:
        return self.executable.get_compiled_memory_stats()


def prepare() -> None:
    """Set what the compilers read from the environment. Call it before JAX is imported."""
    os.environ.update(ENVIRONMENT)
