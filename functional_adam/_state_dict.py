"""A tree as a flat dict of NumPy arrays, and back with every bit checked.

The dict is for any store that keeps arrays by name: NumPy's npz, safetensors, Orbax. None of them
needs to know JAX's dtypes, and none is trusted: a dict carries SHA-256 digests of what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh
from jax.tree_util import keystr
from jax.typing import ArrayLike

from functional_adam import _check
from functional_adam._types import NumPyArray, PyTree

VERSION = 1

# No leaf has these names: `keystr` begins with "[" or "." wherever there is a key at all.
HEADER = "functional_adam.header"  # JSON: the version; of each leaf dtype, shape and SHA-256
DIGEST = "functional_adam.sha256"  # that of the header, and with it of everything

# What both `np.load` without pickle and `safetensors.numpy.load` bring back as it was.
_PORTABLE = {
    np.dtype(t)
    for t in (
        *(np.bool_, np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64, np.complex64),
    )
}


def to_state_dict(tree: PyTree) -> dict[str, NumPyArray]:
    """The leaves of a tree by name, for `np.savez`, safetensors or any other store of arrays.

    A leaf's name is `jax.tree_util.keystr` of its path, as error messages print it: `.mu['w']` in
    a state, `['state'].mu['w']` in {"params": params, "state": state}. Keys are quoted in it, so
    that no two paths share a name. Two arrays of bytes are put beside the leaves:
    `functional_adam.header`, a JSON text of the version and each leaf's dtype, shape and SHA-256,
    and `functional_adam.sha256`, the digest of that text. A dtype that a store would lose
    (bfloat16 in npz) is kept as unsigned integers of the same bits; complex128 as float64 with a
    last axis of 2.

    Args:
        tree: an `AdamState`, an Optax state, or any tree of arrays, such as {"params": params,
            "state": state}. None leaves and empty nodes take no entry.

    Returns:
        A dict of NumPy arrays, copies all: what becomes of the tree afterwards does not matter.

    Raises:
        TypeError: a leaf is not an array of numbers (a string, a Python number, a typed PRNG key,
            a traced array).
        ValueError: two leaves have one name, or a leaf was donated or is spread over processes.

    Example:
        >>> import functional_adam as fa, io, jax.numpy as jnp, numpy as np
        >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
        >>> flat = fa.to_state_dict({"params": params, "state": fa.init(params)})
        >>> list(flat)[:3], flat["['params']['w']"].dtype
        (["['params']['w']", "['state'].count", "['state'].mu['w']"], dtype('uint16'))
        >>> file = io.BytesIO()
        >>> np.savez(file, **flat)
    """
    flat: dict[str, NumPyArray] = {}
    leaves: dict[str, tuple[str, list[int], str]] = {}
    for name, leaf in _named("tree", tree).items():
        dtype = _whole("tree" + name, leaf)
        array = np.array(leaf, dtype, order="C")
        flat[name] = _portable(array)
        leaves[name] = dtype.name, list(array.shape), _sha256(flat[name]).hex()
    header = json.dumps({"version": VERSION, "leaves": leaves}, sort_keys=True)
    flat[HEADER] = np.frombuffer(header.encode(), np.uint8)
    flat[DIGEST] = np.frombuffer(_sha256(flat[HEADER]), np.uint8)
    return flat


def from_state_dict(flat: Mapping[str, ArrayLike], target: PyTree) -> PyTree:
    """The tree that `to_state_dict` made `flat` of, the same in every bit, or an error.

    Args:
        flat: what `to_state_dict` returned, or what a store gives back of it: a dict of NumPy or
            JAX arrays, or the object that `np.load` returns.
        target: a tree of the same structure, dtypes and shapes, such as {"params": params, "state":
            tx.init(params)} or its `jax.eval_shape`. Its values are not read.

    Returns:
        A tree like `target`, AdamStates and all, of JAX arrays with the shardings and weak types of
        the leaves of `target`. `jax.eval_shape` keeps no devices; without them, a leaf goes to
        the default device.

    Raises:
        ValueError: `flat` was not made by `to_state_dict`, or by a newer version; a bit, a name, a
            dtype or a shape has changed since; or its names, dtypes or shapes are not those of
            `target`. The first such leaf is named.
        TypeError: `flat` is not a mapping, or a leaf of `target` not an array of numbers.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> tx, params = fa.adam(0.1), {"w": jnp.ones(2)}
        >>> flat = fa.to_state_dict(tx.init(params))
        >>> fa.from_state_dict(flat, jax.eval_shape(tx.init, params)).mu
        {'w': Array([0., 0.], dtype=float32)}
        >>> flat[".mu['w']"][1] = 0.5
        >>> fa.from_state_dict(flat, tx.init(params))
        Traceback (most recent call last):
        ValueError: flat[".mu['w']"] was changed after to_state_dict: its SHA-256 is now ...
    """
    saved = _header(flat)
    wanted = _named("target", target)
    for name in wanted:
        if name not in saved:
            raise ValueError(
                f"target{name} is not in flat, which holds {_some(saved)}. Pass a target of the "
                "structure that was saved."
            )
    for name in saved:
        if name not in wanted:
            raise ValueError(
                f"flat holds {name}, which is not in target, with its {_some(wanted)}. Pass a "
                "target of the structure that was saved."
            )
    for name, leaf in wanted.items():  # all of these before the first is read
        _check_target(name, leaf, *saved[name][:2])
    leaves = [_placed(_read(flat, name, *saved[name]), leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


# ---- Names and dtypes ----


def _named(argument: str, tree: PyTree) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = keystr(path)
        if name in leaves or name in (HEADER, DIGEST):
            raise ValueError(
                f"{argument}{name} is the path of two leaves, or a reserved name. Keys of one dict "
                "or class must differ in their repr."
            )
        leaves[name] = leaf
    return leaves


def _some(names: Mapping[str, Any]) -> str:
    shown = ", ".join(name or "one array without a path" for name in list(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "no leaf"


def _number_dtype(path: str, leaf: Any) -> np.dtype[Any]:
    """The dtype of an array of numbers, concrete or not, in this machine's byte order."""
    dtype = getattr(leaf, "dtype", None)
    if isinstance(dtype, np.dtype) and hasattr(leaf, "shape"):
        native = dtype if dtype.isnative else dtype.newbyteorder("=")
        if native in _PORTABLE or native == np.complex128 or _is_short(native):
            return native
    advice = "Make numbers arrays with jnp.asarray, and leave out what is none."
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        advice = "Keep jax.random.key_data(key); jax.random.wrap_key_data brings the key back."
    raise TypeError(f"{path} must be an array of numbers; got {_check.show(leaf)}. {advice}")


def _is_short(dtype: np.dtype[Any]) -> bool:
    """One of JAX's own numbers of up to 16 bits: bfloat16, float8, int4."""
    return jnp.issubdtype(dtype, np.number) and dtype.itemsize <= 2


def _whole(path: str, leaf: Any) -> np.dtype[Any]:
    """The dtype of a leaf whose numbers are all here."""
    dtype = _number_dtype(path, leaf)
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"{path} has no values; got {_check.show(leaf)}. Call to_state_dict outside jit, on "
            "arrays."
        )
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(f"{path} has been deleted; take the state dict before it is donated.")
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{path} lies on several processes; got {leaf.sharding}. Bring it together first, with "
            "jax.experimental.multihost_utils.process_allgather(tree, tiled=True)."
        )
    return dtype


def _storage(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """As what an array is stored."""
    if dtype in _PORTABLE:
        return dtype, shape
    if dtype == np.complex128:
        return np.dtype(np.float64), (*shape, 2)
    return np.dtype(f"uint{8 * dtype.itemsize}"), shape


def _portable(array: NumPyArray) -> NumPyArray:
    dtype, shape = _storage(array.dtype, array.shape)
    return array.reshape(-1).view(dtype).reshape(shape)


def _sha256(array: NumPyArray) -> bytes:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest()


# ---- Reading ----


def _header(flat: Any) -> dict[str, tuple[str, list[int], str]]:
    """Of each leaf of `flat` its dtype, shape and digest, once the names are as they were."""
    if not isinstance(flat, Mapping):
        raise TypeError(
            f"flat must be a mapping from names to arrays, as to_state_dict makes it; got "
            f"{_check.show(flat)}."
        )
    names = dict.fromkeys(flat)
    for name in (HEADER, DIGEST):
        if name not in names:
            raise ValueError(f"flat has no {name!r}: it was not made by to_state_dict.")
    header, digest = (np.asarray(flat[name]) for name in (HEADER, DIGEST))
    if header.dtype != np.uint8 or digest.tobytes() != _sha256(header):
        raise ValueError(
            f"flat[{HEADER!r}] was changed after to_state_dict: its SHA-256 is now "
            f"{_sha256(header).hex()}, but flat[{DIGEST!r}] says {digest.tobytes().hex()}."
        )
    saved = json.loads(header.tobytes())
    if saved["version"] != VERSION:
        raise ValueError(
            f"flat has the format version {saved['version']}, but this functional_adam reads "
            f"{VERSION}."
        )
    for name in saved["leaves"]:
        if name not in names:
            raise ValueError(f"flat has no {name!r}, which to_state_dict put there.")
    for name in names:
        if name not in saved["leaves"] and name not in (HEADER, DIGEST):
            raise ValueError(f"flat has {name!r}, which to_state_dict did not put there.")
    return saved["leaves"]


def _check_target(name: str, leaf: Any, saved_dtype: str, saved_shape: list[int]) -> None:
    """A leaf of `target` is of the dtype and shape that were saved."""
    dtype, shape = _number_dtype("target" + name, leaf), tuple(saved_shape)
    if dtype.name != saved_dtype:
        raise ValueError(f"target{name} is {dtype}, but flat holds {saved_dtype} for it.")
    if leaf.shape != shape:
        raise ValueError(f"target{name} has shape {leaf.shape}, but flat holds shape {shape}.")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"target{name} is {dtype}, which needs 64-bit mode: call "
            "jax.config.update('jax_enable_x64', True) first."
        )


def _read(
    flat: Mapping[str, Any], name: str, saved_dtype: str, saved_shape: list[int], digest: str
) -> NumPyArray:
    """An array in its own dtype, its bits those that were saved."""
    array, dtype = np.asarray(flat[name], order="C"), np.dtype(jnp.dtype(saved_dtype))
    stored_dtype, stored_shape = _storage(dtype, tuple(saved_shape))
    if (array.dtype, array.shape) != (stored_dtype, stored_shape):
        raise ValueError(
            f"flat[{name!r}] was changed after to_state_dict: it is now {array.dtype} of shape "
            f"{array.shape}, but was {stored_dtype} of shape {stored_shape}."
        )
    now = _sha256(array).hex()
    if now != digest:
        raise ValueError(
            f"flat[{name!r}] was changed after to_state_dict: its SHA-256 is now {now}, but was "
            f"{digest}."
        )
    return array.reshape(-1).view(dtype).reshape(tuple(saved_shape))


def _placed(array: NumPyArray, like: Any) -> jax.Array:
    """A JAX array that shares no memory with `array`, where `like` is."""
    # On a CPU JAX takes a NumPy array's memory as it is, even in device_put(may_alias=False), or
    # copies it later, even in jnp.array.
    own = array.copy()
    x = _weak(own) if getattr(like, "weak_type", False) else own
    sharding = getattr(like, "sharding", None)
    nowhere = sharding is None or isinstance(getattr(sharding, "mesh", None), AbstractMesh)
    if nowhere or (isinstance(like, jax.Array) and not like.committed):
        return jnp.asarray(x)
    return jax.device_put(x, sharding)


def _weak(array: NumPyArray) -> Any:
    """With the weak type of Python's numbers, where the dtype is theirs."""
    number = {"i": 0, "f": 0.0, "c": 0j}.get(array.dtype.kind)
    if number is None or jnp.result_type(number) != array.dtype:
        return array
    # Only `full_like` hands a weak type on, and only with a scalar: hence one call an element.
    return jnp.vectorize(jax.lax.full_like)(jnp.asarray(number), array)
