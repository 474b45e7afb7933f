"""Kernels, interpreted, on 8 devices: the bits of one device, and no leaf is gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import EXPLICIT, HYPER, mesh_of

import functional_adam as fa
from functional_adam import _mesh
from functional_adam._kernels import cpu
from functional_adam._kernels.choice import HAS_KERNELS, SWITCH

COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
CASES = [  # shape, how it is divided over a mesh of 2 x 4, the form
    ((16, 1024), P("data", "model"), "interpret gpu"),
    ((16, 1024), P(None, ("data", "model")), "interpret tpu"),
    ((4, 8, 256), P("data", None, None), "interpret tpu"),
    ((4, 8, 256), P(None, "model", "data"), "interpret gpu"),
    ((2, 4, 8, 128), P("data", "model", None, None), "interpret gpu"),  # the plain form
    ((2048,), P("model"), "interpret tpu"),
    ((64, 2048), P("data", "model"), "on"),
    ((64, 2048), P(None, ("data", "model")), "on"),
]


def stepped(form, shape, sharding, monkeypatch, moments=CODES):
    """Parameters and state after two steps, and the program."""
    monkeypatch.setenv(SWITCH, form)
    monkeypatch.setattr(cpu, "_PIECE", 4096)
    tx = fa.adamw(**HYPER, moments=moments)
    random = np.random.default_rng(5)
    numbers = [jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(3)]
    params, *grads = (jax.device_put(x, sharding) for x in numbers)
    state = tx.init(params)
    step = jax.jit(lambda params, state, g: fa.step(tx, g, state, params))
    program = step.lower(params, state, grads[0]).compile().as_text()
    for g in grads:
        params, state = step(params, state, g)
    return params, state, program


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize(("shape", "spec", "form"), CASES, ids=str)
def test_a_divided_leaf_has_the_bits_of_one_device(shape, spec, form, kind, monkeypatch):
    if kind == "Explicit" and not EXPLICIT:
        pytest.skip("explicit axes need a newer JAX")
    sharding = NamedSharding(mesh_of("2x4", kind), spec)
    params, state, program = stepped(form, shape, sharding, monkeypatch)
    alone, wanted, _ = stepped("off", shape, None, monkeypatch)
    assert not COLLECTIVE.search(program)
    if form == "on" and HAS_KERNELS:
        assert " while(" in program  # piece by piece; older JAX takes the plain form on a mesh
    for name in ("mu", "nu", "nu_scale"):
        found, right = getattr(state, name), np.asarray(getattr(wanted, name))
        # A parameter may differ in its last bits, and the second step's moments with it.
        assert np.mean(np.asarray(found) != right) < 0.002, name
    np.testing.assert_allclose(params, alone, rtol=1e-5, atol=1e-6)
    assert params.sharding.is_equivalent_to(sharding, len(shape))
    assert state.mu.sharding.is_equivalent_to(sharding, len(shape))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_divided_moments_of_16_bits_are_those_of_one_device(kind, monkeypatch):
    if kind == "Explicit" and not EXPLICIT:
        pytest.skip("explicit axes need a newer JAX")
    sharding = NamedSharding(mesh_of("2x4", kind), P("model", "data"))
    params, state, program = stepped("on", (64, 2048), sharding, monkeypatch, "bfloat16")
    alone, wanted, _ = stepped("off", (64, 2048), None, monkeypatch, "bfloat16")
    assert not COLLECTIVE.search(program)
    assert program.count('inlineable="false"') == 3
    for name in ("mu", "nu"):
        found, right = (np.asarray(getattr(x, name), np.float32) for x in (state, wanted))
        assert np.mean(found != right) < 0.002, name
        assert getattr(state, name).sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(params, alone, rtol=1e-5, atol=1e-6)
    assert params.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize("form", ["off", "on", "interpret tpu"])
@pytest.mark.skipif(not EXPLICIT, reason="explicit axes need a newer JAX")
def test_on_explicit_axes_a_step_lies_like_the_state(form, monkeypatch):
    """Also where the gradient is on every device in full, or without kernels on automatic axes."""
    monkeypatch.setenv(SWITCH, form)
    explicit, auto = mesh_of("2x4", "Explicit"), mesh_of("2x4", "Auto")
    tx, sharding = fa.adamw(**HYPER, moments=CODES), NamedSharding(explicit, P(None, "model"))
    numbers = np.random.default_rng(8).normal(size=(2, 24, 1024)).astype(np.float32)
    params, g = jax.device_put(numbers[0], sharding), numbers[1]
    state = tx.init(params)
    step = jax.jit(lambda params, state, g: fa.step(tx, g, state, params))
    update = jax.jit(lambda params, state, g: tx.update(g, state, params))
    elsewhere = [NamedSharding(explicit, P(None, None))]
    if form == "off":  # in a program that XLA divides as a function says, JAX wants a single mesh
        elsewhere.append(NamedSharding(auto, P("data")))
    wanted = step(params, state, jax.device_put(g, sharding))
    for other in elsewhere:
        there = jax.device_put(g, other)
        assert update(params, state, there)[0].sharding == sharding
        found = step(params, state, there)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert x.sharding == y.sharding
            np.testing.assert_array_equal(x, y)


def lowered_for_tpus(step, *arguments):
    """The text of a program for TPUs, on the mesh of the arguments."""
    return export.export(jax.jit(step), platforms=["tpu"])(*arguments).mlir_module()


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_tpus_get_a_kernel_where_a_trace_knows_how_a_leaf_is_divided(kind):
    if kind == "Explicit" and not EXPLICIT:
        pytest.skip("explicit axes need a newer JAX")
    tx = fa.adamw(**HYPER, moments=CODES, rounding="compensated")
    sharding = NamedSharding(mesh_of("2x4", kind), P("data", "model"))
    params = jax.device_put(jnp.ones((16, 1024), jnp.bfloat16), sharding)
    text = lowered_for_tpus(lambda p, s, g: fa.step(tx, g, s, p), params, tx.init(params), params)
    assert ("tpu_custom_call" in text) == (kind == "Explicit")
    assert "CustomSPMDPartitioning" not in text  # of which TPUs know nothing


@pytest.mark.skipif(not EXPLICIT, reason="explicit axes need a newer JAX")
def test_axes_made_explicit_for_a_step_are_enough():
    mesh, spec = mesh_of("2x4", "Auto"), P("data", "model")
    tx = fa.adamw(**HYPER, moments=CODES)
    params = jax.device_put(jnp.ones((16, 1024)), NamedSharding(mesh, spec))
    state, specs = tx.init(params), jax.tree.map(lambda x: x.spec, fa.state_shardings(tx, params))
    step = jax.sharding.explicit_axes(
        lambda p, s, g: fa.step(tx, g, s, p), in_sharding=(spec, specs, spec)
    )
    with jax.set_mesh(mesh):
        assert "tpu_custom_call" in lowered_for_tpus(step, params, state, params)
        found, kept = jax.jit(step)(params, state, params)
    wanted, right = jax.jit(lambda p, s, g: fa.step(tx, g, s, p))(params, state, params)
    np.testing.assert_array_equal(kept.mu, right.mu)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_what_a_step_returns_inside_shard_map_differs_as_its_part_does():
    tx, mesh = fa.adamw(**HYPER, moments=CODES), mesh_of("8")
    params = jnp.asarray(np.random.default_rng(7).normal(size=(8, 128)), jnp.float32)
    state, spec = tx.init(params), P("data")
    specs = jax.tree.map(lambda x: spec if x.ndim else P(), state)

    def of_part(params, state, g):
        found, kept = fa.step(tx, g, state, params)
        return found, kept, jax.lax.psum(found, "data")

    inside = jax.shard_map(
        of_part, mesh=mesh, in_specs=(spec, specs, spec), out_specs=(spec, specs, P())
    )
    found, _, total = jax.jit(inside)(params, state, params)
    np.testing.assert_allclose(total[0], found.sum(0), rtol=1e-5)
    text = lowered_for_tpus(inside, params, state, params)
    assert ("tpu_custom_call" in text) == HAS_KERNELS


def test_moments_of_different_gradients_are_no_replicas():
    tx, mesh, params = fa.adamw(**HYPER, moments=CODES), mesh_of("8"), jnp.ones((8, 128))
    state, g = tx.init(params), jnp.asarray(np.random.default_rng(8).normal(size=(64, 128)))
    nothing = jax.tree.map(lambda _: P(), state)

    def of_part(params, state, g):
        return fa.step(tx, g, state, params)[1].mu

    inside = functools.partial(
        jax.shard_map, of_part, mesh=mesh, in_specs=(P(), nothing, P("data"))
    )
    found = jax.jit(inside(out_specs=P("data")))(params, state, g)
    wanted = jax.vmap(of_part, (None, None, 0))(params, state, g.reshape(8, 8, 128))
    np.testing.assert_array_equal(found, wanted.reshape(64, 128))
    with pytest.raises(ValueError, match="out_specs"):  # as if all were the same
        jax.jit(inside(out_specs=P()))(params, state, g)


@pytest.mark.parametrize(
    ("axes", "spec", "wanted"),
    [
        ({"a": 2, "b": 4}, P("b", "a"), P("model", "data")),
        ({"a": 2, "b": 2, "c": 2}, P(("b", "c")), P("model")),
        ({"a": 2, "b": 2, "c": 2}, P("a", None, ("b", "c")), P("data", None, "model")),
        ({"a": 2, "b": 2, "c": 2}, P(("a", "b", "c")), P(("data", "model"))),
        ({"a": 2, "b": 2, "c": 2}, P("b", "a"), P(None, "data")),  # half an axis
        ({"a": 8}, P(None, "a"), P(None, ("data", "model"))),
        ({"a": 4, "b": 2}, P("a"), P()),  # an axis and a half
    ],
    ids=str,
)
def test_a_sharding_in_the_terms_of_a_mesh(axes, spec, wanted):
    other = Mesh(np.reshape(jax.devices(), tuple(axes.values())), tuple(axes))
    named = functools.partial(_mesh.named, sharding=NamedSharding(other, spec), shape=(16, 24, 32))
    mesh = mesh_of("2x4")
    assert named(mesh).is_equivalent_to(NamedSharding(mesh, wanted), 3)
    assert named(mesh).mesh == mesh
    without = named(Mesh(np.empty((), object), ()))  # XLA's, of a program without a mesh
    for size, part in zip((16, 24, 32), without.shard_shape((16, 24, 32)), strict=True):
        assert part in (size, size // 8)


def test_inside_shard_map_each_device_steps_its_part(monkeypatch):
    monkeypatch.setenv(SWITCH, "on")
    mesh = mesh_of("8")
    tx, params = fa.adamw(**HYPER, moments=CODES), jnp.ones((8, 256))
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


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.skipif(not EXPLICIT, reason="explicit axes need a newer JAX")
def test_inside_shard_map_over_some_axes_xla_divides_over_the_others(kind, monkeypatch):
    mesh, tx = mesh_of("2x4", kind), fa.adamw(**HYPER, moments=CODES)
    sharding = NamedSharding(mesh, P("data", "model"))
    numbers = np.random.default_rng(6).normal(size=(2, 16, 1024)).astype(np.float32)
    params, g = (jax.device_put(x, sharding) for x in numbers)
    state = tx.init(params)
    spec = jax.tree.map(lambda x: P("data") if x.ndim else P(), state)
    found = {}
    for form in ("on", "off"):
        monkeypatch.setenv(SWITCH, form)
        inside = jax.shard_map(
            lambda params, state, g: fa.step(tx, g, state, params),
            mesh=mesh,
            axis_names={"data"},
            in_specs=(P("data"), spec, P("data")),
            out_specs=(P("data"), spec),
        )
        found[form] = jax.jit(inside)(params, state, g)
        assert found[form][0].sharding.is_equivalent_to(sharding, 2)
    jax.tree.map(np.testing.assert_array_equal, found["on"], found["off"])
