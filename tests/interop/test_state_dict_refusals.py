"""Nothing but an unchanged flat dict is taken for a tree: edits, headers, targets, leaves."""

import hashlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from state_dict_stores import DIGEST, HEADER, assert_same_bits

import functional_adam as fa

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
    "a list": ([], "it is not a JSON object"),
    "no version": ({"leaves": {}}, "its version is null"),
    "version true": (
        CONTENT | {"version": True},
        "its version is true, which is not a whole number",
    ),
    "version 1.0": (CONTENT | {"version": 1.0}, "its version is 1.0, which is not a whole number"),
    "version in quotes": (CONTENT | {"version": "1"}, 'its version is "1", which is no'),
    "version 0": (CONTENT | {"version": 0}, "format version 0, but this functional_adam reads 1"),
    "no leaves": ({"version": 1}, '"leaves" are not a JSON object'),
    "leaves in a list": (CONTENT | {"leaves": [[A, ENTRY]]}, '"leaves" are not a JSON object'),
    "entry": (with_entry(None), "does not have three entries for"),
    "short entry": (with_entry(ENTRY[:2]), "does not have three entries for"),
    "dtype": (with_entry(["float31", *ENTRY[1:]]), "the dtype of .*mu.* is not one that it"),
    "alias": (with_entry(["f4", *ENTRY[1:]]), "the dtype of .*mu.* is not one that it"),
    "objects": (with_entry(["object", *ENTRY[1:]]), "the dtype of .*mu.* is not one that it"),
    "dtype of no text": (with_entry([4, *ENTRY[1:]]), "the dtype of .*mu.* is not one that it"),
    "negative": (with_entry([ENTRY[0], [-3], ENTRY[2]]), "the shape of .*mu.* is not a list"),
    "boolean": (with_entry([ENTRY[0], [True], ENTRY[2]]), "the shape of .*mu.* is not a list"),
    "float": (with_entry([ENTRY[0], [3.0], ENTRY[2]]), "the shape of .*mu.* is not a list"),
    "shape of a number": (with_entry([ENTRY[0], 3, ENTRY[2]]), "the shape of .*mu.* is not a list"),
    "huge": (with_entry([ENTRY[0], [2**80], ENTRY[2]]), "flat holds shape"),
    "digest": (with_entry([*ENTRY[:2], ENTRY[2][:-1]]), "the digest of .*mu.* is not a SHA"),
    "no digest": (with_entry([*ENTRY[:2], None]), "the digest of .*mu.* is not a SHA-256"),
    "variants": (CONTENT | {"variants": None}, '"variants" are not a JSON object of strings'),
    "variant": (CONTENT | {"variants": {"": 3}}, '"variants" are not a JSON object of strings'),
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
        r"flat holds \.nu\['a'\], which is not in target, which has \.count, ",
    ),
    "nothing": (None, r"flat holds \.count, which is not in target, which has no leaf"),
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
        (lambda: 0.5, r"got 0.5 of type float. Convert numbers with jnp.asarray"),
        (lambda: np.array(["a"]), "must be an array of numbers"),
        (lambda: np.array([None]), "must be an array of numbers"),
        (lambda: np.array([1], "datetime64[s]"), "must be an array of numbers"),
        (lambda: np.ones(1, np.longdouble), "must be an array of numbers"),
        (lambda: np.zeros(2, jax.dtypes.float0), "must be an array of numbers"),
        (lambda: jax.random.key(0), r"Save jax.random.key_data\(key\)"),
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
    with pytest.raises(TypeError, match=r"tree\['w'\] is a NumPy masked array, whose mask"):
        fa.to_state_dict({"w": masked})
    donated = jnp.ones(3)
    donated.delete()
    with pytest.raises(ValueError, match=r"tree\['w'\] has been deleted"):
        fa.to_state_dict({"w": donated})


@pytest.mark.parametrize("flat", [[], None, "file.npz"])
def test_flat_must_be_a_mapping(flat):
    with pytest.raises(TypeError, match="flat must be a mapping from names to arrays"):
        fa.from_state_dict(flat, jnp.ones(1))
