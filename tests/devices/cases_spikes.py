"""`skip_spikes` on a mesh: all devices agree on what is off, and skipping moves nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import (
    EXPLICIT,
    MODES,
    differing,
    lies_as,
    mesh_of,
    numbers,
    shardings_on,
)

import functional_adam as fa

GUARD = dict(factor=4.0, window=5, warmup=2, judge="grad_norm")
# One element is off, so that one device alone holds it: all must skip the step.
PLAN = {3: ("matrix", 1e30), 4: ("vector", np.nan), 6: ("half", -np.inf)}


def one_step(tx, way, params, state, grads):
    if way == "step":
        return fa.step(tx, grads, state, params)
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state


SLOW = pytest.mark.slow
CASES = [
    ("Auto", "bfloat16 compensated", "step", None),
    pytest.param(
        *("Explicit", "full nearest", "update", None),
        marks=pytest.mark.skipif(not EXPLICIT, reason="explicit axes need a newer JAX"),
    ),
    pytest.param("Auto", "full split", "step", "data", marks=SLOW),
    pytest.param("Auto", "bfloat16 stochastic", "update", "data", marks=SLOW),
]


@pytest.mark.parametrize(("kind", "mode", "way", "zero"), CASES)
def test_a_skipped_step_leaves_no_trace_on_any_device(kind, mode, way, zero):
    mesh, tx = mesh_of("2x4", kind), fa.skip_spikes(MODES[mode], **GUARD)
    places = shardings_on(mesh)
    start = jax.device_put(numbers(0), places)
    shardings = fa.state_shardings(tx, start, zero_axis=zero)
    step = jax.jit(functools.partial(one_step, tx, way), out_shardings=(places, shardings))
    init = tx.init if zero is None else jax.jit(tx.init, out_shardings=shardings)
    params, state = start, init(start)
    assert lies_as(state, shardings)
    theta, clean = params, state  # the run without bad steps
    for i in range(7):
        grads = dict(numbers(1 + i % 2))
        if i in PLAN:
            name, value = PLAN[i]
            grads[name] = grads[name].copy()
            grads[name].flat[-777] = value
        before = params, state.inner_state
        params, state = step(params, state, jax.device_put(grads, places))
        assert lies_as((params, state), (places, shardings))
        assert bool(state.last_accepted) is (i not in PLAN)
        if i in PLAN:
            assert differing((params, state.inner_state), before) == {}
        else:
            theta, clean = step(theta, clean, jax.device_put(grads, places))
    assert (state.skipped, clean.skipped) == (3, 0)
    assert differing((params, state.inner_state), (theta, clean.inner_state)) == {}
    norms = [np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in numbers(n).values())) for n in (1, 2)]
    np.testing.assert_allclose(state.grad_norms, [0, *np.take(norms, [0, 1, 0, 1])], rtol=1e-5)
    assert step._cache_size() == 1


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="older JAX checks less")
def test_under_shard_map_numbers_of_one_device_are_refused():
    mesh, spec, tx = mesh_of("8"), P("data"), fa.skip_spikes(fa.adam(0.03), **GUARD)
    params = jax.device_put(np.ones(64, np.float32), NamedSharding(mesh, spec))
    specs = jax.tree.map(lambda sharding: sharding.spec, fa.state_shardings(tx, params))
    step = functools.partial(one_step, tx, "step")  # judges by the norm of its part
    options = dict(mesh=mesh, in_specs=(spec, specs, spec), out_specs=(spec, specs))
    with pytest.raises(ValueError, match="replicat"):
        jax.jit(jax.shard_map(step, **options))(params, tx.init(params), params)


@pytest.mark.parametrize("check_vma", [False, True])
def test_under_shard_map_a_norm_of_all_parts_makes_devices_agree(check_vma):
    mesh, spec = mesh_of("8"), P("data")
    tx = fa.skip_spikes(fa.adam(0.03, b1=0.8), **GUARD)
    params = jax.device_put(np.linspace(-1, 1, 64, dtype=np.float32), NamedSharding(mesh, spec))
    state = tx.init(params)
    specs = jax.tree.map(lambda sharding: sharding.spec, fa.state_shardings(tx, params))

    def step(way, params, state, grads):
        # The squares of all devices, not of one part.
        norm = jnp.sqrt(jax.lax.psum(jnp.sum(grads**2), "data"))
        if way == "step":
            return fa.step(tx, grads, state, params, grad_norm=norm)
        updates, state = tx.update(grads, state, params, grad_norm=norm)
        return fa.apply_updates(params, updates), state

    options = dict(mesh=mesh, in_specs=(spec, specs, spec), out_specs=(spec, specs))
    for way in ("step", "update"):
        mapped = jax.jit(
            jax.shard_map(functools.partial(step, way), **options, check_vma=check_vma)
        )
        theta, kept = params, state
        for i in range(5):
            grads = np.ones(64, np.float32)
            grads[3] = 100.0 if i == 4 else 1.0  # on the first device
            before = theta, kept.inner_state
            theta, kept = mapped(theta, kept, jax.device_put(grads, NamedSharding(mesh, spec)))
        assert (kept.skipped, kept.accepted) == (1, 4)
        assert differing((theta, kept.inner_state), before) == {}
        np.testing.assert_allclose(kept.grad_norms[1:], 8.0, rtol=1e-6)
