"""The flat dict's own form: names, header, version, copies; and Orbax's checkpoints beside it."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import quick_jit
from state_dict_stores import DIGEST, HEADER, RATES, assert_same_bits, through

import functional_adam as fa

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


# ---- Names that collide ----

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


# ---- Orbax ----

# Each format and each rounding once; the other pairs in `make test-all`.
PAIRS = [
    ("full", "stochastic"),
    ("bfloat16", "nearest"),
    ("int8", "compensated"),
    ("bfloat16", "split"),
]
PAIRS += [
    pytest.param(moments, rounding, marks=pytest.mark.slow)
    for moments in ("full", "bfloat16", "int8")
    for rounding in ("nearest", "stochastic", "compensated", "split")
    if (moments, rounding) not in PAIRS
]


@pytest.mark.parametrize(("moments", "rounding"), PAIRS)
def test_orbax_keeps_a_state_of_mixed_parameters(rounding, moments, tmp_path):
    params = {"short": jnp.ones((64, 80), jnp.bfloat16), "norm": [jnp.ones(5)], "frozen": None}
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
