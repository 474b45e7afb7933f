"""Kernels, interpreted, on 8 devices: the bits of one device, and no leaf is gathered."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import EXPLICIT, HYPER, mesh_of

import functional_adam as fa
from functional_adam._kernels.choice import SWITCH

COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
CASES = [  # shape, how it is divided over a mesh of 2 x 4, the form
    ((16, 1024), P("data", "model"), "interpret gpu"),
    ((16, 1024), P(None, ("data", "model")), "interpret tpu"),
    ((4, 8, 256), P("data", None, None), "interpret tpu"),
    ((4, 8, 256), P(None, "model", "data"), "interpret gpu"),
    ((2, 4, 8, 128), P("data", "model", None, None), "interpret gpu"),  # the plain form
    ((2048,), P("model"), "interpret tpu"),
]


def stepped(form, shape, sharding, monkeypatch):
    """Moments after two steps, and the collectives of the program."""
    monkeypatch.setenv(SWITCH, form)
    tx = fa.adamw(**HYPER, moments="int8")
    random = np.random.default_rng(5)
    numbers = [jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(3)]
    params, *grads = (jax.device_put(x, sharding) for x in numbers)
    state = tx.init(params)
    step = jax.jit(lambda params, state, g: fa.step(tx, g, state, params))
    sent = COLLECTIVE.findall(step.lower(params, state, grads[0]).compile().as_text())
    for g in grads:
        params, state = step(params, state, g)
    return params, state, sent


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize(("shape", "spec", "form"), CASES, ids=str)
def test_a_divided_leaf_has_the_bits_of_one_device(shape, spec, form, kind, monkeypatch):
    if kind == "Explicit" and not EXPLICIT:
        pytest.skip("explicit axes need a newer JAX")
    sharding = NamedSharding(mesh_of("2x4", kind), spec)
    params, state, sent = stepped(form, shape, sharding, monkeypatch)
    alone, wanted, _ = stepped("off", shape, None, monkeypatch)
    assert sent == []
    for name in ("mu", "nu", "nu_scale"):
        found, right = getattr(state, name), np.asarray(getattr(wanted, name))
        # A parameter may differ in its last bits, and the second step's moments with it.
        assert np.mean(np.asarray(found) != right) < 0.002, name
    np.testing.assert_allclose(params, alone, rtol=1e-5, atol=1e-6)
    assert params.sharding.is_equivalent_to(sharding, len(shape))
    assert state.mu.sharding.is_equivalent_to(sharding, len(shape))


def test_inside_shard_map_each_device_steps_its_part(monkeypatch):
    monkeypatch.setenv(SWITCH, "on")
    mesh = mesh_of("8")
    tx, params = fa.adamw(**HYPER, moments="int8"), jnp.ones((8, 256))
    state, spec = jax.vmap(tx.init)(params), P("data")
    step = jax.vmap(lambda params, state, g: fa.step(tx, g, state, params))

    def of_part(params, state, g):
        found, kept = fa.step(tx, g[0], jax.tree.map(lambda x: x[0], state), params[0])
        return jax.tree.map(lambda x: x[None], (found, kept))

    inside = jax.shard_map(of_part, mesh=mesh, in_specs=spec, out_specs=spec)
    g = jnp.asarray(np.random.default_rng(4).normal(size=(8, 256)), jnp.float32)
    found, kept = jax.jit(inside)(params, state, g)
    wanted, right = jax.jit(step)(params, state, g)
    np.testing.assert_array_equal(kept.nu, right.nu)
    np.testing.assert_array_equal(kept.mu, right.mu)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
