"""A tree as a flat dict: every bit back through every store, and nothing else taken for it."""

import functools
import hashlib
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import quick_jit

import functional_adam as fa

HEADER, DIGEST = "functional_adam.header", "functional_adam.sha256"
RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02}


# ---- Stores ----


def npz(flat, save=np.savez):
    file = io.BytesIO()
    save(file, **flat)
    return file.getvalue()


def read_npz(data):
    return np.load(io.BytesIO(data), allow_pickle=False)


STORES = {
    "dict": (dict, dict),
    "npz": (npz, read_npz),
    "npz_compressed": (functools.partial(npz, save=np.savez_compressed), read_npz),
    "safetensors": (safetensors.numpy.save, safetensors.numpy.load),
    "safetensors_flax": (safetensors.flax.save, safetensors.flax.load),
}
all_stores = pytest.mark.parametrize("store", STORES)


def through(store, tree, target=None):
    save, load = STORES[store]
    return fa.from_state_dict(
        load(save(fa.to_state_dict(tree))), tree if target is None else target
    )


def bits(x):
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert bits(x) == bits(y)


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
    "int8": (fa.adam(0.03, **RATES, moments="int8"), SHORT),
    "residual": (fa.adam(0.03, **RATES, moments="int8", rounding="compensated"), SHORT),
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
    with pytest.raises(ValueError, match=r"target is to be divided as .*'data'.* under jax.set_me"):
        through("npz", array, target)
    other = jax.make_mesh((1,), ("other",), axis_types=mesh.axis_types)
    elsewhere = jax.sharding.NamedSharding(other, jax.sharding.PartitionSpec())
    tree = {"x": array, "y": jax.device_put(jnp.arange(2.0), elsewhere)}
    with pytest.raises(ValueError, match=r"target\['x'\] is to be divided"):
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
        tx = fa.adam(0.1, moments="int8")
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


# ---- Copies ----


def test_the_dict_is_a_copy():
    source, array = np.arange(4.0, dtype=np.float32), jnp.arange(1024.0)
    flat = fa.to_state_dict({"numpy": source, "jax": array})
    source[:] = 9
    jax.jit(lambda x: x + 1, donate_argnums=0)(array).block_until_ready()
    np.testing.assert_array_equal(flat["['numpy']"], np.arange(4))
    np.testing.assert_array_equal(flat["['jax']"], np.arange(1024))


@pytest.mark.parametrize("committed", [False, True])
def test_the_restored_tree_is_a_copy(committed):
    array = jnp.arange(2.0**16)  # large enough for JAX to share memory, or to copy it later
    target = jax.device_put(array, jax.devices()[0]) if committed else array
    for _ in range(20):
        flat = fa.to_state_dict(array)
        restored = fa.from_state_dict(flat, target)
        flat[""][:] = 9
        np.testing.assert_array_equal(restored, np.arange(2**16))


# ---- The format ----


def test_names_are_paths():
    tree = {"params": {"dense": {"kernel": jnp.ones(2)}}, "state": (fa.init(jnp.ones(2)),)}
    names = ["['params']['dense']['kernel']", "['state'][0].count", "['state'][0].mu"]
    assert list(fa.to_state_dict(tree)) == [*names, "['state'][0].nu", HEADER, DIGEST]


def test_the_header_says_dtype_shape_and_digest_of_each_leaf():
    x = np.array([[1.5, -2.0, 0.25]], jnp.bfloat16)  # 0x3fc0, 0xc000, 0x3e80
    flat = fa.to_state_dict({"w": x})
    raw = bytes.fromhex("c03f00c0803e")
    assert flat["['w']"].dtype == np.uint16
    assert flat["['w']"].tobytes() == raw
    header = flat[HEADER].tobytes()
    digest = hashlib.sha256(raw).hexdigest()
    assert json.loads(header) == {
        "version": 1,
        "leaves": {"['w']": ["bfloat16", [1, 3], digest]},
    }
    assert flat[DIGEST].tobytes() == hashlib.sha256(header).digest()


def test_version_1_stays_readable():
    # Written out by hand: what was saved once must be read for ever.
    raw = np.array([0x3FC0, 0xC000], np.uint16)
    one = hashlib.sha256(b"\xc0\x3f\x00\xc0").hexdigest()
    two = hashlib.sha256(b"\x07\x00\x00\x00").hexdigest()
    header = (
        f'{{"leaves": {{".count": ["int32", [], "{two}"], '
        f'".mu[\'w\']": ["bfloat16", [2], "{one}"]}}, "version": 1}}'
    ).encode()
    flat = {
        ".mu['w']": raw,
        ".count": np.array(7, np.int32),
        HEADER: np.frombuffer(header, np.uint8),
        DIGEST: np.frombuffer(hashlib.sha256(header).digest(), np.uint8),
    }
    target = fa.AdamState(jnp.int32(0), {"w": jnp.zeros(2, jnp.bfloat16)}, None)
    restored = fa.from_state_dict(flat, target)
    assert int(restored.count) == 7
    np.testing.assert_array_equal(restored.mu["w"], np.array([1.5, -2], jnp.bfloat16))
    ours = fa.to_state_dict(restored)
    assert ours[HEADER].tobytes() == header


# ---- Whose state it is ----

# What each keeps, by name: variants of one name may go on from one another's states.
KEEPS = {
    "adam": [
        fa.adam(0.03, **RATES),
        fa.adamw(0.07, weight_decay=0.3),
        fa.adam(nesterov=True),
        fa.cautious(fa.adamw()),
        fa.nadam(),
        fa.radam(),
        fa.lamb(),
    ],
    "adamax": [fa.adamax(), fa.adamaxw()],
    "adabelief": [fa.adabelief()],
    "yogi": [fa.yogi()],
    "adopt": [fa.adopt(), fa.cautious(fa.adopt())],
    "amsgrad": [
        fa.amsgrad(maximum="before_correction"),
        fa.amsgrad(bias_correction_nu=False),
    ],
    "amsgrad_of_corrected": [fa.amsgrad(), fa.amsgrad(bias_correction_mu=False)],
    "ademamix": [fa.ademamix()],
}
SMALL_PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


def variants_of(flat):
    return json.loads(flat[HEADER].tobytes()).get("variants")


def test_the_header_says_what_a_state_keeps():
    for name, txs in KEEPS.items():
        for tx in txs:
            state = tx.init(SMALL_PARAMS)
            assert variants_of(fa.to_state_dict({"state": state}, tx=tx)) == {"['state']": name}
    assert variants_of(fa.to_state_dict(state)) is None


def test_a_state_of_another_variant_is_refused():
    """Only of those whose states have the same leaves; the others' names differ anyway."""
    two_trees = ("adam", "adamax", "adabelief", "yogi", "adopt")
    for names in (two_trees, ("amsgrad", "amsgrad_of_corrected")):
        for old in names:
            tree = {"state": KEEPS[old][0].init(SMALL_PARAMS)}
            flat = fa.to_state_dict(tree, tx=KEEPS[old][0])
            for new in names:
                for tx in KEEPS[new]:
                    if new == old:
                        assert_same_bits(fa.from_state_dict(flat, tree, tx=tx), tree)
                        continue
                    message = rf"target\['state'\] .* that of {old}, where tx keeps that of {new}:"
                    with pytest.raises(ValueError, match=message):
                        fa.from_state_dict(flat, tree, tx=tx)


def test_what_was_saved_without_a_variant_loads_with_one():
    tree = fa.adamax().init(SMALL_PARAMS)
    assert_same_bits(fa.from_state_dict(fa.to_state_dict(tree), tree, tx=fa.adam()), tree)


KINDS = {"w": "matrix", "b": "vector"}
WRAPPED = {
    "chain": lambda adam: optax.chain(optax.clip(1.0), adam(), optax.scale(0.3)),
    "named_chain": lambda adam: optax.named_chain(("clip", optax.clip(1.0)), ("adam", adam())),
    "masked": lambda adam: optax.masked(adam(), {"w": True, "b": False}),
    "masked by a function": lambda adam: optax.masked(
        adam(), lambda params: jax.tree.map(lambda p: p.ndim == 1, params)
    ),
    "MultiSteps": lambda adam: optax.MultiSteps(adam(), 3),
    "inject_hyperparams": lambda adam: optax.inject_hyperparams(adam)(0.3),
    "partition": lambda adam: optax.partition({"vector": adam(), "matrix": fa.adopt()}, KINDS),
    "nested": lambda adam: optax.chain(
        optax.trace(0.31), optax.apply_if_finite(optax.chain(fa.scale_by_adopt(), adam()), 3)
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_variants_are_found_inside_wrappers(name):
    saved, other = WRAPPED[name](fa.adam), WRAPPED[name](fa.adamax)
    tree = (SMALL_PARAMS, saved.init(SMALL_PARAMS))
    flat = fa.to_state_dict(tree, tx=saved)
    assert sorted(variants_of(flat).values()) == ["adam"] + ["adopt"] * (
        name in ("partition", "nested")
    )
    shapes = jax.eval_shape(lambda: tree)
    assert_same_bits(fa.from_state_dict(flat, shapes, tx=saved), tree)
    with pytest.raises(ValueError, match=r"target\[1\].* that of adam, where tx keeps that of ad"):
        fa.from_state_dict(flat, shapes, tx=other)
    assert fa.from_state_dict(flat, tree)  # not asked for
    assert isinstance(jax.tree.leaves(saved.init(SMALL_PARAMS))[0], jax.Array)  # nothing is left


def test_variants_of_small_moments_are_told():
    tx = fa.adamw(0.03, moments="int8", rounding="compensated")
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "frozen": None}
    flat = fa.to_state_dict(tx.init(params), tx=tx)
    assert variants_of(flat) == {"": "adam"}
    with pytest.raises(ValueError, match="that of adam, where tx keeps that of adopt"):
        fa.from_state_dict(flat, tx.init(params), tx=fa.adopt(moments="bfloat16"))


def test_states_that_tx_does_not_make_are_refused():
    adam, chain = fa.adam(), optax.chain(optax.clip(1.0), fa.adam())
    both = {"a": adam.init(SMALL_PARAMS), "b": chain.init(SMALL_PARAMS)}
    flat = fa.to_state_dict(both)
    for message, tree, tx in [
        (r"tree\['a'\] is an AdamState where tx makes none \(it makes state\[1\]\)", both, chain),
        (r"tree.* is an AdamState where tx makes none \(it makes none\)", both, optax.sgd(0.1)),
        ("tree must hold an AdamState; got none", SMALL_PARAMS, adam),
        (r"tx.init fails on .* \(ValueError: ", both["a"], optax.masked(adam, {"c": True})),
    ]:
        with pytest.raises(ValueError, match=message):
            fa.to_state_dict(tree, tx=tx)
    with pytest.raises(ValueError, match=r"target\['a'\] is an AdamState where"):
        fa.from_state_dict(flat, both, tx=chain)
    with pytest.raises(TypeError, match="tx must be a gradient transformation"):
        fa.to_state_dict(both, tx=fa.adam)
    # Of Optax's Adam, whose leaves have the names of ours.
    optax_adam = optax.scale_by_adam().init(SMALL_PARAMS)
    flat = fa.to_state_dict({"a": both["a"], "b": optax_adam}, tx=adam)
    target = {"a": both["a"], "b": both["a"]}
    with pytest.raises(ValueError, match=r"target\['b'\] another state, no state of this package"):
        fa.from_state_dict(flat, target, tx=adam)


keys = st.text(max_size=6) | st.integers() | st.sampled_from(["a", "a']['b", '"', "'\"]", "/", "."])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys.map(str), st.dictionaries(keys.map(str), st.just(0), max_size=4)))
def test_no_key_makes_two_names_one(tree):
    count = iter(range(1000))
    tree = {k: {j: np.int32(next(count)) for j in sub} for k, sub in tree.items()}
    flat = fa.to_state_dict(tree)
    assert len(flat) == 2 + len(jax.tree.leaves(tree))
    for store in ("npz", "safetensors"):
        assert_same_bits(through(store, tree), tree)


class Colliding:
    """A key that says of itself what another says."""

    def __repr__(self):
        return "'k'"

    def __lt__(self, other):
        return id(self) < id(other)


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"tree\['k'\] is the path of two leaves"):
        fa.to_state_dict({Colliding(): jnp.ones(1), Colliding(): jnp.ones(1)})


# ---- Errors ----


SAVED = fa.AdamState(
    jnp.int32(3),
    {"a": jnp.arange(3.0), "b": jnp.arange(3.0) + 1},
    {"a": jnp.ones(3, jnp.bfloat16), "b": None},
)


def edited(**edits):
    """A dict with arrays put in, or taken out (None)."""
    flat = {**fa.to_state_dict(SAVED), **edits}
    return {name: x for name, x in flat.items() if x is not None}


A, B, NU = ".mu['a']", ".mu['b']", ".nu['a']"
FLAT = fa.to_state_dict(SAVED)
newer = json.dumps({"version": 2, "leaves": {}}).encode()
EDITS = {
    "swapped arrays": ({A: FLAT[B], B: FLAT[A]}, r"\.mu\['a'\].* SHA-256 is now \w{64}, but was"),
    "one bit": ({A: FLAT[A] + np.float32(2.0**-24)}, r"\.mu\['a'\].* SHA-256 is now"),
    "negative zero": ({A: FLAT[A] * np.float32([-1, 1, 1])}, r"\.mu\['a'\].* SHA-256 is now"),
    "same bits, other dtype": (
        {A: FLAT[A].view(np.int32)},
        r"\.mu\['a'\].* is now int32 of shape \(3,\), but was float32 of shape \(3,\)",
    ),
    "same bits, other shape": (
        {A: FLAT[A].reshape(3, 1)},
        r"\.mu\['a'\].* is now float32 of shape \(3, 1\), but was float32 of shape \(3,\)",
    ),
    "widened": ({NU: FLAT[NU].astype(np.uint32)}, r"\.nu\['a'\].* is now uint32"),
    "a leaf less": ({B: None}, r"flat has no \".mu\['b'\]\", which to_state_dict put there"),
    "a leaf more": ({"more": FLAT[A]}, "flat has 'more', which to_state_dict did not put there"),
    "renamed": ({B: None, ".mu['c']": FLAT[B]}, r"flat has no \".mu\['b'\]\""),
    "no header": ({HEADER: None}, "flat has no 'functional_adam.header': it was not made by"),
    "no digest": ({DIGEST: None}, "flat has no 'functional_adam.sha256': it was not made by"),
    "other digest": ({DIGEST: FLAT[DIGEST] ^ np.uint8(1)}, "functional_adam.header'.* was changed"),
    "edited header": (
        {HEADER: np.frombuffer(FLAT[HEADER].tobytes().replace(b"float32", b"float64"), np.uint8)},
        "functional_adam.header'.* was changed",
    ),
    "newer": (
        {
            HEADER: np.frombuffer(newer, np.uint8),
            DIGEST: np.frombuffer(hashlib.sha256(newer).digest(), np.uint8),
        },
        "format version 2, but this functional_adam reads 1",
    ),
    "header of another type": ({HEADER: np.float32(1)}, "functional_adam.header'.* was changed"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_changed_is_refused(name):
    edits, message = EDITS[name]
    assert_same_bits(fa.from_state_dict(edited(), SAVED), SAVED)
    with pytest.raises(ValueError, match=message):
        fa.from_state_dict(edited(**edits), SAVED)


def with_header(text):
    """`FLAT` with another header, its digest right."""
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    digest = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8)
    return {**FLAT, HEADER: np.frombuffer(raw, np.uint8), DIGEST: digest}


CONTENT = json.loads(FLAT[HEADER].tobytes())
ENTRY = CONTENT["leaves"][A]


def with_entry(entry):
    return CONTENT | {"leaves": CONTENT["leaves"] | {A: entry}}


MALFORMED = {
    "not JSON": (b"{", "cannot be read as JSON"),
    "not text": (b"\xff\xfe\xfd", "cannot be read as JSON"),
    "nested": (b"[" * 100_000, "nested too deeply|cannot be read as JSON"),
    "a key twice": (b'{"version": 2, "version": 1, "leaves": {}}', "the same key twice"),
    "a list": ([], "is no JSON object"),
    "no version": ({"leaves": {}}, "its version is null"),
    "version true": (CONTENT | {"version": True}, "its version is true, which is no whole number"),
    "version 1.0": (CONTENT | {"version": 1.0}, "its version is 1.0, which is no whole number"),
    "version in quotes": (CONTENT | {"version": "1"}, 'its version is "1", which is no'),
    "version 0": (CONTENT | {"version": 0}, "format version 0, but this functional_adam reads 1"),
    "no leaves": ({"version": 1}, '"leaves" are no JSON object'),
    "leaves in a list": (CONTENT | {"leaves": [[A, ENTRY]]}, '"leaves" are no JSON object'),
    "entry": (with_entry(None), "has no three entries for"),
    "short entry": (with_entry(ENTRY[:2]), "has no three entries for"),
    "dtype": (with_entry(["float31", *ENTRY[1:]]), "the dtype of .*mu.* is none"),
    "alias": (with_entry(["f4", *ENTRY[1:]]), "the dtype of .*mu.* is none"),
    "objects": (with_entry(["object", *ENTRY[1:]]), "the dtype of .*mu.* is none"),
    "dtype of no text": (with_entry([4, *ENTRY[1:]]), "the dtype of .*mu.* is none"),
    "negative": (with_entry([ENTRY[0], [-3], ENTRY[2]]), "the shape of .*mu.* is no list"),
    "boolean": (with_entry([ENTRY[0], [True], ENTRY[2]]), "the shape of .*mu.* is no list"),
    "float": (with_entry([ENTRY[0], [3.0], ENTRY[2]]), "the shape of .*mu.* is no list"),
    "shape of a number": (with_entry([ENTRY[0], 3, ENTRY[2]]), "the shape of .*mu.* is no list"),
    "huge": (with_entry([ENTRY[0], [2**80], ENTRY[2]]), "flat holds shape"),
    "digest": (with_entry([*ENTRY[:2], ENTRY[2][:-1]]), "the digest of .*mu.* is no SHA"),
    "no digest": (with_entry([*ENTRY[:2], None]), "the digest of .*mu.* is no SHA-256"),
    "variants": (CONTENT | {"variants": None}, '"variants" are no JSON object of texts'),
    "variant": (CONTENT | {"variants": {"": 3}}, '"variants" are no JSON object of texts'),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_refused_whatever_its_digest(name):
    content, message = MALFORMED[name]
    with pytest.raises(ValueError, match=message):
        fa.from_state_dict(with_header(content), SAVED)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def places(content, path=()):
    """Every path in a JSON value."""
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*path, key))


def replaced(content, path, value):
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = replaced(content[path[0]], path[1:], value)
    return copy


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_header_brings_another_error_or_another_tree(data):
    """Any part of it is replaced by anything, under a right digest."""
    whole = CONTENT | {"variants": {"": "adam"}}
    path = data.draw(st.sampled_from(list(places(whole))))
    flat = with_header(replaced(whole, path, data.draw(json_values)))
    try:
        restored = fa.from_state_dict(flat, SAVED, tx=fa.adam())
    except ValueError:
        return
    assert_same_bits(restored, SAVED)


TARGETS = {
    "dtype": (
        SAVED._replace(mu={"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(3)}),
        r"target\.mu\['a'\] is bfloat16, but flat holds float32",
    ),
    "the stand-in's dtype": (
        SAVED._replace(nu={"a": jnp.zeros(3, jnp.uint16), "b": None}),
        r"target\.nu\['a'\] is uint16, but flat holds bfloat16",
    ),
    "shape": (
        SAVED._replace(mu={"a": jnp.zeros((3, 1)), "b": jnp.zeros(3)}),
        r"target\.mu\['a'\] has shape \(3, 1\), but flat holds shape \(3,\)",
    ),
    "length": (
        SAVED._replace(mu={"a": jnp.zeros(4), "b": jnp.zeros(3)}),
        r"target\.mu\['a'\] has shape \(4,\), but flat holds shape \(3,\)",
    ),
    "missing": (
        SAVED._replace(nu={"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(3)}),
        r"target\.nu\['b'\] is not in flat, which holds \.count, .*, \.\.\.\. Pass",
    ),
    "unexpected": (
        SAVED._replace(nu={"a": None, "b": None}),
        r"flat holds \.nu\['a'\], which is not in target, with its \.count, ",
    ),
    "nothing": (None, r"flat holds \.count, which is not in target, with its no leaf"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_another_target_is_refused(name):
    target, message = TARGETS[name]
    with pytest.raises(ValueError, match=message):
        fa.from_state_dict(FLAT, target)


def test_64_bits_need_64_bit_mode():
    tree = {"w": np.arange(3.0)}
    with pytest.raises(ValueError, match=r"target\['w'\] is float64, which needs 64-bit mode"):
        fa.from_state_dict(fa.to_state_dict(tree), tree)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (lambda: "text", r"must be an array of numbers; got 'text' of type str"),
        (lambda: 0.5, r"got 0.5 of type float. Make numbers arrays with jnp.asarray"),
        (lambda: np.array(["a"]), "must be an array of numbers"),
        (lambda: np.array([None]), "must be an array of numbers"),
        (lambda: np.array([1], "datetime64[s]"), "must be an array of numbers"),
        (lambda: np.ones(1, np.longdouble), "must be an array of numbers"),
        (lambda: np.zeros(2, jax.dtypes.float0), "must be an array of numbers"),
        (lambda: jax.random.key(0), r"Keep jax.random.key_data\(key\)"),
        (lambda: jnp.dtype("float32").type, "must be an array of numbers"),
        (lambda: SimpleNamespace(dtype=np.dtype("float32")), "must be an array of numbers"),
    ],
)
def test_leaves_that_are_no_numbers_are_refused(leaf, message):
    tree = {"fine": jnp.ones(1), "leaf": leaf()}
    with pytest.raises(TypeError, match=r"tree\['leaf'\] .*" + message):
        fa.to_state_dict(tree)
    flat = fa.to_state_dict({"fine": jnp.ones(1), "leaf": jnp.ones(1)})
    with pytest.raises(TypeError, match=r"target\['leaf'\] .*" + message):
        fa.from_state_dict(flat, tree)


def test_leaves_without_values_are_refused():
    with pytest.raises(TypeError, match=r"tree\['w'\] has no values; .* outside jit"):
        jax.jit(fa.to_state_dict)({"w": jnp.ones(1)})
    with pytest.raises(TypeError, match=r"tree\.count has no values"):
        fa.to_state_dict(jax.eval_shape(fa.init, jnp.ones(1)))
    masked = np.ma.masked_array(np.ones(2), [True, False])
    with pytest.raises(TypeError, match=r"tree\['w'\] is a masked array of NumPy, whose mask"):
        fa.to_state_dict({"w": masked})
    donated = jnp.ones(3)
    donated.delete()
    with pytest.raises(ValueError, match=r"tree\['w'\] has been deleted"):
        fa.to_state_dict({"w": donated})


@pytest.mark.parametrize("flat", [[], None, "file.npz"])
def test_flat_must_be_a_mapping(flat):
    with pytest.raises(TypeError, match="flat must be a mapping from names to arrays"):
        fa.from_state_dict(flat, jnp.ones(1))


# ---- Damaged files ----


class Outcome(NamedTuple):
    refused: int
    identical: int


def outcome(store, damaged, tree):
    """How many of these files are refused, and how many give every bit back."""
    load = STORES[store][1]
    refused = identical = 0
    for data in damaged:
        try:
            restored = fa.from_state_dict(load(data), tree)
        except Exception:
            refused += 1
        else:
            assert_same_bits(restored, tree)
            identical += 1
    return Outcome(refused, identical)


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


SMALL = fa.AdamState(
    np.int32(3), {"w": np.float32([0.1, -2])}, {"w": np.array([3, 0.5], jnp.bfloat16)}
)
FILES = {store: STORES[store][0](fa.to_state_dict(SMALL)) for store in ("npz", "safetensors")}


@pytest.mark.parametrize("store", FILES)
def test_no_flipped_bit_is_taken_for_the_state(store):
    data = FILES[store]
    some = np.random.default_rng(5).choice(8 * len(data), 700, replace=False)
    found = outcome(store, (flipped(data, int(bit)) for bit in some), SMALL)
    assert sum(found) == 700
    # A zip file has time stamps and the like, which no one reads.
    assert found.refused >= (700 if store == "safetensors" else 500)


@pytest.mark.parametrize("store", FILES)
def test_no_truncated_file_is_taken_for_the_state(store):
    data = FILES[store]
    lengths = np.linspace(0, len(data) - 1, 150).astype(int)
    found = outcome(store, (data[:length] for length in lengths), SMALL)
    assert found == Outcome(refused=150, identical=0)


def test_the_digests_alone_refuse_every_flipped_bit_of_every_array():
    flat = fa.to_state_dict(SMALL)
    tried = 0
    for name, array in flat.items():
        for bit in range(8 * array.nbytes):
            raw = np.frombuffer(flipped(array.tobytes(), bit), array.dtype).reshape(array.shape)
            with pytest.raises(ValueError, match="was changed after to_state_dict"):
                fa.from_state_dict({**flat, name: raw}, SMALL)
            tried += 1
    assert tried == 8 * (4 + 8 + 4 + flat[HEADER].nbytes + 32)


# ---- Orbax ----


# Each format and each rounding once; the other pairs in `make test-all`.
PAIRS = [("full", "stochastic"), ("bfloat16", "nearest"), ("int8", "compensated")]
PAIRS += [
    pytest.param(moments, rounding, marks=pytest.mark.slow)
    for moments in ("full", "bfloat16", "int8")
    for rounding in ("nearest", "stochastic", "compensated")
    if (moments, rounding) not in PAIRS
]


@pytest.mark.parametrize(("moments", "rounding"), PAIRS)
def test_orbax_keeps_a_state_of_mixed_parameters(rounding, moments, tmp_path):
    params = {"short": jnp.ones((3, 40), jnp.bfloat16), "norm": [jnp.ones(5)], "frozen": None}
    tx = fa.adamw(0.03, **RATES, weight_decay=0.1, moments=moments, rounding=rounding)
    grads = jax.tree.map(lambda p: 0.3 * p, params)
    update = quick_jit(tx.update)
    _, state = update(grads, tx.init(params), params)
    assert all(x.size for x in jax.tree.leaves(state))  # Orbax saves no array of no elements
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    update(grads, restored, params)
