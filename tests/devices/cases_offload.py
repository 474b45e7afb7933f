"""Moments in the host's memory on 8 devices: the bits of one device, each part on its own host."""

import functools

import jax
import pytest
from jax.sharding import PartitionSpec as P
from sharded import (
    EXPLICIT,
    MODES,
    differing,
    lies_as,
    mesh_of,
    numbers,
    on_one_device,
    one_step,
    run,
    shardings_on,
    step_alone,
    zero_step,
)

import functional_adam as fa
from functional_adam import _host

pytestmark = pytest.mark.skipif(not _host.HAS_SPACES, reason="older JAX: no jax.memory")

CASES = [
    ("2x4", "Auto", "data", "bfloat16 compensated"),
    ("8", "Auto", "data", "full nearest"),
    *([("2x4", "Explicit", "data", "full split")] if EXPLICIT else []),
    pytest.param("2x4", "Auto", None, "int8 nearest", marks=pytest.mark.slow),
    pytest.param("4x2", "Auto", "data", "int8 stochastic", marks=pytest.mark.slow),
]


def prepared(mode, mesh, zero, leaves):
    """(params, what `offload` returns, a state of it on the mesh, the parameters' shardings)."""
    tx, of_params = MODES[mode], shardings_on(mesh)
    params = jax.device_put(numbers(0), of_params)
    shardings = fa.state_shardings(tx, params, zero_axis=zero)
    offloaded = fa.offload(tx, params, shardings, leaves=leaves)
    state = jax.jit(offloaded.tx.init, out_shardings=offloaded.shardings)(params)
    return params, offloaded, state, of_params


@pytest.mark.parametrize(("name", "kind", "zero", "mode"), CASES)
def test_updates_are_those_of_one_device_in_every_bit(name, kind, zero, mode):
    leaves = ["matrix|vector", 0]
    params, offloaded, state, of_params = prepared(mode, mesh_of(name, kind), zero, leaves)
    step = functools.partial(one_step, offloaded.tx)
    if kind == "Explicit":
        step = functools.partial(zero_step, offloaded.tx, of_params, offloaded.device_shardings)
    out = of_params, offloaded.shardings
    step = jax.jit(step, out_shardings=out, donate_argnums=(0, 1))
    found = run(step, params, state, of_params)
    assert lies_as(found, out)
    assert step._cache_size() == 1
    assert differing(found, on_one_device(mode)) == {}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(found[1].mu)} == {
        "device",
        "pinned_host",
    }


def test_the_bytes_that_wait_are_counted_by_device():
    def waiting(zero, least):
        offloaded = prepared("full nearest", mesh_of("8"), zero, least)[1]
        return {k for k, x in offloaded.shardings.mu.items() if x.memory_kind == "pinned_host"}

    # Two moments of 4 bytes an element. Of 65,536 elements a device has an eighth: of `matrix` by
    # itself, of `vector` by ZeRO-1. `half` has twice as many.
    assert waiting("data", 65536) == {"half", "matrix", "vector"}
    assert waiting("data", 65537) == {"half"}
    assert waiting(None, 65537) == {"half", "vector"}


def test_each_device_steps_its_own_part_under_shard_map():
    mesh = mesh_of("8")
    params, offloaded, state, _ = prepared("full nearest", mesh, None, "vector")
    vector = {"vector": params["vector"]}
    state = state._replace(**{k: {"vector": getattr(state, k)["vector"]} for k in ("mu", "nu")})
    step = functools.partial(one_step, offloaded.tx)
    step = jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P())
    new, after = jax.jit(step)(vector, state, {"vector": numbers(1)["vector"]})
    wanted, _ = step_alone("full nearest")(
        numbers(0), MODES["full nearest"].init(numbers(0)), numbers(1)
    )
    assert differing(new["vector"], wanted["vector"]) == {}
    assert after.mu["vector"].sharding.memory_kind == "pinned_host"
