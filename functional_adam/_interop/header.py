"""The header of a state dict: a JSON text about its leaves, with their digests, and its own digest.

The header's digest shows that the text is unchanged, not that `to_state_dict` wrote it. A text made
by hand or by a faulty copy of this package may have a right digest. So reading checks everything
before anything relies on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._types import NumPyArray

VERSION = 1

# No leaf has these names: `keystr` begins with "[" or "." wherever there is a key at all.
HEADER = "functional_adam.header"  # JSON: the version, and each leaf's dtype, shape and SHA-256
DIGEST = "functional_adam.sha256"  # the digest of the header, which covers everything

# The dtypes that both `np.load` without pickle and `safetensors.numpy.load` restore unchanged.
PORTABLE = {
    np.dtype(t)
    for t in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64, np.complex64),
    )
}


class Entry(NamedTuple):
    """A leaf's dtype and shape in the tree, and the digest of its array in the dict."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


class Header(NamedTuple):
    """The entries of a dict by the leaves' names, and the variants, if they are known."""

    leaves: dict[str, Entry]
    variants: dict[str, str] | None = None


def is_storable(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype can be stored: NumPy's numbers, complex128, and JAX's of up to 16 bits."""
    short = jnp.issubdtype(dtype, np.number) and dtype.itemsize <= 2  # bfloat16, float8, int4
    return dtype in PORTABLE or dtype == np.complex128 or short


def sha256(array: NumPyArray) -> bytes:
    """The digest of the bytes of an array."""
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()


def written(header: Header) -> dict[str, NumPyArray]:
    """A header as two arrays of bytes."""
    content: dict[str, Any] = {"version": VERSION, "leaves": header.leaves}
    if header.variants is not None:
        content["variants"] = header.variants
    text = np.frombuffer(json.dumps(content, sort_keys=True).encode(), np.uint8)
    return {HEADER: text, DIGEST: np.frombuffer(sha256(text), np.uint8)}


def read(flat: Any) -> Header:
    """The header of a dict; raises unless the dict has exactly the names in its header."""
    if not isinstance(flat, Mapping):
        raise TypeError(
            f"flat must be a mapping from names to arrays, as to_state_dict makes it; got "
            f"{_check.show(flat)}."
        )
    names = dict.fromkeys(flat)
    for name in (HEADER, DIGEST):
        if name not in names:
            raise ValueError(f"flat has no {name!r}: it was not made by to_state_dict.")
    text, digest = (np.asarray(flat[name]) for name in (HEADER, DIGEST))
    if text.dtype != np.uint8 or digest.tobytes() != sha256(text):
        raise ValueError(
            f"flat[{HEADER!r}] was changed after to_state_dict: its SHA-256 is now "
            f"{sha256(text).hex()}, but flat[{DIGEST!r}] says {digest.tobytes().hex()}."
        )
    header = _checked(_parsed(text.tobytes()))
    for name in header.leaves:
        if name not in names:
            raise ValueError(f"flat has no {name!r}, which to_state_dict put there.")
    for name in names:
        if name not in header.leaves and name not in (HEADER, DIGEST):
            raise ValueError(f"flat has {name!r}, which to_state_dict did not put there.")
    return header


def _malformed(what: str) -> ValueError:
    return ValueError(
        f"flat[{HEADER!r}] was not written by to_state_dict, although its digest is right: {what}."
    )


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError:
        raise _malformed("its JSON is nested too deeply") from None
    except ValueError as error:  # wrong encoding or syntax, or raised by `_without_twins`
        raise _malformed(f"it cannot be read as JSON ({error})") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object has the same key twice")
    return content


def _checked(content: Any) -> Header:
    """The parsed header; raises unless it has the form of version 1.

    Unknown keys are ignored, as older versions of this package ignore `variants`.
    """
    if not _is_object(content):
        raise _malformed("it is not a JSON object")
    version, leaves, variants = (content.get(key) for key in ("version", "leaves", "variants"))
    if type(version) is not int:  # True == 1 == 1.0
        raise _malformed(f"its version is {json.dumps(version)[:40]}, which is not a whole number")
    if version != VERSION:
        raise ValueError(
            f"flat has the format version {version}, but this functional_adam reads {VERSION}."
        )
    if not _is_object(leaves):
        raise _malformed('its "leaves" are not a JSON object')
    if "variants" in content and not (_is_object(variants) and _are_texts(variants.values())):
        raise _malformed('its "variants" are not a JSON object of strings')
    return Header({name: _entry(name, entry) for name, entry in leaves.items()}, variants)


def _entry(name: str, entry: Any) -> Entry:
    """The dtype, shape and digest of a leaf."""
    if not (isinstance(entry, list) and len(entry) == 3):
        raise _malformed(f"it does not have three entries for {name!r}")
    dtype, shape, digest = entry
    if not (isinstance(dtype, str) and _is_dtype(dtype)):
        raise _malformed(f"the dtype of {name!r} is not one that it can hold")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise _malformed(f"the shape of {name!r} is not a list of whole numbers >= 0")
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise _malformed(f"the digest of {name!r} is not a SHA-256")
    return Entry(dtype, tuple(shape), digest)


def _is_object(x: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(x, dict)


def _are_texts(values: Any) -> bool:
    return all(isinstance(x, str) for x in values)


def _is_dtype(name: str) -> bool:
    """Whether this is the name of a dtype of numbers."""
    if not re.fullmatch(r"bool|[a-z]{3,}\d+\w*", name):  # NumPy accepts many other strings
        return False
    try:
        dtype = np.dtype(jnp.dtype(name))
    except TypeError:
        return False
    return dtype.name == name and is_storable(dtype)
