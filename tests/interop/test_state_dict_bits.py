"""A tree as a flat dict: every bit back through every store, on the devices where the target is."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES
from quick import quick_jit
from state_dict_stores import RATES, STORES, assert_same_bits, through

import functional_adam as fa

all_stores = pytest.mark.parametrize("store", STORES)


# ---- Trees ----


def params_of(*dtypes):
    """One leaf of each dtype, and of the last ones of no axis and of no element."""
    leaves = [((3, 130), dtype) for dtype in dtypes] + [((), dtypes[-1]), ((0, 4), dtypes[-1])]
    rng = np.random.default_rng(7)
    return {
        f"{np.dtype(dtype).name}/{i}": jnp.asarray(rng.standard_normal(shape), dtype)
        for i, (shape, dtype) in enumerate(leaves)
    } | {"frozen": None}


def after_two_steps(tx, params):
    """A state in mid-run, with no moment at a special value."""
    tree = {"params": params, "state": tx.init(params)}
    for scale in (0.7, -1.3):
        tree = step(tx, tree, scale)
    return tree


@functools.partial(quick_jit, static_argnums=0)
def step(tx, tree, scale):
    grads = jax.tree.map(lambda p: (p * scale + scale).astype(p.dtype), tree["params"])
    updates, state = tx.update(grads, tree["state"], tree["params"])
    return {"params": fa.apply_updates(tree["params"], updates), "state": state}


SHORT = (jnp.bfloat16, jnp.float16, jnp.float32)
RUNS = {
    "full": (fa.adamw(0.03, **RATES), SHORT),
    "short mu": (fa.adam(0.03, **RATES, mu_dtype="bfloat16"), (jnp.float32,)),
    "bfloat16": (fa.adam(0.03, **RATES, moments="bfloat16"), SHORT),
    "int8": (fa.adam(0.03, **RATES, moments=CODES), SHORT),
    "residual": (fa.adam(0.03, **RATES, moments=CODES, rounding="compensated"), SHORT),
    "split": (fa.adam(0.03, **RATES, rounding="split"), SHORT),
    "complex": (fa.adam(0.03, **RATES), (jnp.complex64,)),
    "amsgrad": (fa.amsgrad(0.03, **RATES, moments="bfloat16"), SHORT),
    "ademamix": (fa.ademamix(0.03), (jnp.float32,)),
    "optax": (
        optax.chain(
            optax.clip_by_global_norm(1.7),
            optax.inject_hyperparams(fa.adamw)(lambda count: 0.1 / (1 + count), **RATES),
        ),
        (jnp.float32,),
    ),
    "masked": (
        optax.masked(fa.adam(0.03), lambda p: {k: k.endswith("0") for k in p}),
        (jnp.float32,),
    ),
}


@functools.cache
def run(name):
    tx, dtypes = RUNS[name]
    return tx, after_two_steps(tx, params_of(*dtypes))


# ---- The same in every bit ----


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_back_in_every_bit(name):
    tx, tree = run(name)
    shapes = {"params": tree["params"], "state": jax.eval_shape(tx.init, tree["params"])}
    for store in STORES:
        for target in (tree, shapes):
            assert_same_bits(through(store, tree, target), tree)


@all_stores
@pytest.mark.usefixtures("x64")
def test_64_bits_come_back_in_every_bit(store):
    tree = after_two_steps(fa.adam(0.03, **RATES), params_of(jnp.float64, jnp.complex128))
    assert {x.dtype.name for x in jax.tree.leaves(tree)} == {"float64", "complex128", "int32"}
    assert_same_bits(through(store, tree), tree)


@all_stores
def test_every_pattern_of_16_bits_comes_back(store):
    patterns = np.arange(2**16, dtype=np.uint16)  # NaNs, infinities and subnormals among them
    dtypes = ("bfloat16", "float16", "uint16", "int16")
    tree = {name: patterns.view(jnp.dtype(name)) for name in dtypes}
    tree |= {"int8": patterns.view(np.int8), "uint8": patterns.view(np.uint8)}
    restored = through(store, tree)
    assert_same_bits(restored, tree)
    assert all(isinstance(x, jax.Array) for x in restored.values())


@all_stores
def test_random_patterns_of_wide_numbers_come_back(store):
    raw = np.random.default_rng(3).integers(0, 2**32, 4096, dtype=np.uint32)
    raw[:2] = 0x7F800001, 0xFFC12345  # a signalling NaN, and one with a payload
    dtypes = ("float32", "int32", "uint32", "complex64")
    tree = {name: raw.view(name) for name in dtypes} | {"bool": raw % 2 == 0}
    assert_same_bits(through(store, tree), tree)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_other_small_dtypes_come_back(dtype):
    tree = [jnp.asarray(np.arange(7), dtype), jnp.asarray(3, dtype)]
    assert_same_bits(through("npz", tree), tree)


@all_stores
def test_typed_scalars_and_a_bare_array(store):
    tree = (np.float32(0.1), np.int8(-3), jnp.asarray(2.5, jnp.bfloat16), np.True_, None, {})
    assert_same_bits(through(store, tree), tree)
    bare = jnp.arange(3.0)
    assert_same_bits(through(store, bare), bare)


def test_arrays_in_any_layout_and_byte_order():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tree = {"F": np.asfortranarray(x), "part": x[:, ::2, 1], "big": x.astype(">f4")}
    for store in STORES:
        restored = through(store, tree)
        for name, wanted in tree.items():
            np.testing.assert_array_equal(restored[name], wanted)


@pytest.mark.parametrize("name", ["full", "int8", "residual"])
def test_a_run_goes_on_from_what_came_back_bit_for_bit(name):
    tx, tree = run(name)

    def go_on(tree):
        for scale in (0.4, -0.9, 2.1):
            tree = step(tx, tree, scale)
        return tree

    assert_same_bits(go_on(through("npz", tree)), go_on(tree))


def test_weak_types_and_so_compilations_stay():
    tree = {"weak": [jnp.full(3, 0.7), jnp.asarray(2), jnp.asarray(1j)], "strong": jnp.ones(3)}
    traced = []
    f = jax.jit(lambda tree: traced.append(0) or tree)
    f(tree)
    restored = through("npz", tree)
    f(restored)
    assert traced == [0]
    assert [x.weak_type for x in restored["weak"]] == [True] * 3
    assert not restored["strong"].weak_type
    assert_same_bits(restored, tree)


def test_leaves_go_where_the_target_is():
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = {"on": jax.device_put(jnp.arange(4.0), sharding), "free": jnp.arange(4.0)}
    restored = through("npz", tree)
    assert restored["on"].sharding == sharding
    assert restored["on"].committed
    assert not restored["free"].committed
    described = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)
    restored = through("npz", tree, {"on": described, "free": described})
    assert restored["free"].sharding == sharding


def explicit():
    """A mesh whose axes are part of types, so that `jax.eval_shape` keeps them."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    return mesh, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_axes_without_devices_are_those_of_the_mesh_of_other_leaves():
    _, sharding = explicit()
    params = {"w": jax.device_put(jnp.arange(4.0), sharding)}
    tx = fa.adam(0.3)
    tree = {"params": params, "state": tx.init(params)}
    target = {"params": params, "state": jax.eval_shape(tx.init, params)}
    assert isinstance(target["state"].mu["w"].sharding.mesh, jax.sharding.AbstractMesh)
    restored = through("npz", tree, target)
    assert_same_bits(restored, tree)
    for found, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        assert found.committed
        assert found.sharding.is_equivalent_to(wanted.sharding, wanted.ndim)
        assert isinstance(found.sharding.mesh, jax.sharding.Mesh)


def test_axes_without_devices_are_those_of_set_mesh_or_refused():
    mesh, sharding = explicit()
    array = jax.device_put(jnp.arange(4.0), sharding)
    target = jax.eval_shape(lambda x: x, array)
    with pytest.raises(ValueError, match=r"target has the sharding .*'data'.* under jax.set_me"):
        through("npz", array, target)
    other = jax.make_mesh((1,), ("other",), axis_types=mesh.axis_types)
    elsewhere = jax.sharding.NamedSharding(other, jax.sharding.PartitionSpec())
    tree = {"x": array, "y": jax.device_put(jnp.arange(2.0), elsewhere)}
    with pytest.raises(ValueError, match=r"target\['x'\] has the sharding"):
        through("npz", tree, tree | {"x": target})
    if not hasattr(jax.sharding, "get_mesh"):
        pytest.skip("this version of JAX does not tell the mesh of its context")
    with jax.set_mesh(mesh):
        restored = through("npz", array, target)
    assert restored.committed
    assert restored.sharding.is_equivalent_to(sharding, 1)
    np.testing.assert_array_equal(restored, np.arange(4))


def test_a_state_over_four_devices():
    code = """if True:
        import jax, jax.numpy as jnp, numpy as np, functional_adam as fa
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        tx = fa.adam(0.1, moments=fa.Int8(min_size=0))
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
            rows, columns = NamedSharding(mesh, P("d")), NamedSharding(mesh, P(None, "d"))
            params = {"w": jax.device_put(jnp.ones((8, 256)), rows)}
            _, state = tx.update(params, tx.init(params), params)
            flat = fa.to_state_dict(state)
            shardings = fa.state_shardings(tx, params)
            targets = {"array": state, "placed": jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)}
            targets["jit"] = jax.jit(tx.init, out_shardings=shardings).eval_shape(params)
            if kind == AxisType.Explicit and hasattr(jax.sharding, "get_mesh"):
                targets["shapes"] = jax.eval_shape(tx.init, params)
            for name, target in targets.items():
                context = mesh if name == "shapes" else None
                with jax.set_mesh(mesh) if context else jax.default_device(None):
                    found = fa.from_state_dict(flat, target)
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state)):
                    assert a.committed and a.sharding.is_equivalent_to(b.sharding, b.ndim), name
                    assert np.array_equal(a, b)
                assert not found.mu["w"].is_fully_replicated
            moved = targets["placed"]
            moved.nu["w"] = jax.ShapeDtypeStruct((8, 256), np.uint8, sharding=columns)
            moved = fa.from_state_dict(flat, moved)
            print(moved.nu["w"].sharding == columns, np.array_equal(moved.nu["w"], state.nu["w"]))
    """
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is all the time
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 4
