"""Converts a tree to a flat dict of NumPy arrays, and back with every bit checked.

The dict fits any store that keeps arrays by name: NumPy's npz, safetensors, Orbax. The store does
not need to know JAX's dtypes and is not trusted: the dict carries SHA-256 digests of its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr
from jax.typing import ArrayLike

from functional_adam import _check
from functional_adam._hints import restored
from functional_adam._interop import header as H
from functional_adam._interop.to_devices import put, shardings_of
from functional_adam._interop.variants_in import variants_in
from functional_adam._types import GradientTransformation, NumPyArray, PyTree


def to_state_dict(
    tree: PyTree, *, tx: GradientTransformation | None = None
) -> dict[str, NumPyArray]:
    """The leaves of a tree by name, for `np.savez`, safetensors or any other store of arrays.

    A leaf's name is `jax.tree_util.keystr` of its path, as error messages print it: `.mu['w']` in
    a state, `['state'].mu['w']` in {"params": params, "state": state}. Keys are quoted, so no two
    paths share a name. The dict has two further arrays of bytes: `functional_adam.header`, a JSON
    text with the version and each leaf's dtype, shape and SHA-256, and `functional_adam.sha256`,
    the digest of that text. A dtype that a store would lose (bfloat16 in npz) is stored as unsigned
    integers with the same bits, complex128 as float64 with a last axis of 2.

    Args:
        tree: An `AdamState`, an Optax state, or any tree of arrays, such as {"params": params,
            "state": state}. None leaves and empty nodes have no entry.
        tx: None (default), or the transformation whose state is in `tree`, bare or inside Optax's
            wrappers. The header then names the variant of each `AdamState`, and
            `from_state_dict(..., tx=...)` refuses the state of another variant.

    Returns:
        A dict of NumPy arrays. All are copies, so the tree may be changed or donated afterwards.

    Raises:
        TypeError: A leaf is not an array of numbers (a string, a Python number, a typed PRNG key,
            a traced array, a NumPy masked array), or `tx` has no `init`.
        ValueError: Two leaves have the same name, a leaf was donated or is spread over processes,
            or `tx` does not make the states in `tree`.

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
    leaves: dict[str, H.Entry] = {}
    for name, leaf in _named("tree", tree).items():
        dtype = _whole("tree" + name, leaf)
        array = np.array(leaf, dtype, order="C")
        flat[name] = _portable(array)
        leaves[name] = H.Entry(dtype.name, array.shape, H.sha256(flat[name]).hex())
    variants = None if tx is None else variants_in("tree", tree, tx)
    return flat | H.written(H.Header(leaves, variants))


def from_state_dict(
    flat: Mapping[str, ArrayLike], target: PyTree, *, tx: GradientTransformation | None = None
) -> PyTree:
    """The tree from which `to_state_dict` made `flat`, the same in every bit, or an error.

    Args:
        flat: The result of `to_state_dict`, or what a store returns for it: a dict of NumPy or JAX
            arrays, or the object that `np.load` returns.
        target: A tree with the same structure, dtypes and shapes, such as {"params": params,
            "state": tx.init(params)} or its `jax.eval_shape`. Its values are not read. Each leaf
            goes to the place of its counterpart: an array's devices, or the sharding of a
            `jax.ShapeDtypeStruct` (see `state_shardings`).
        tx: None (default), or the transformation that continues with the state. If `flat` was made
            with a `tx` too, their states must mean the same. `adamax` cannot continue from the
            state of `adam`, but `adam`, `adamw`, `nadam`, `radam`, `lamb` and `cautious` can
            continue from each other's. Hyperparameters are not compared.

    Returns:
        A tree like `target`, including its AdamStates, of JAX arrays with the shardings and weak
        types of the leaves of `target`. `jax.eval_shape` keeps only shardings on explicit mesh
        axes, and without devices; these are then taken from the mesh of other leaves or of
        `jax.set_mesh`. A leaf without a sharding goes to the default device.

    Raises:
        ValueError: `flat` was not made by `to_state_dict` or was made by a newer version; a bit, a
            name, a dtype or a shape has changed since; names, dtypes or shapes differ from those of
            `target`, or states from those of `tx`; or a sharding in `target` is on a mesh of
            unknown devices. The error names the first such leaf.
        TypeError: `flat` is not a mapping, a leaf of `target` is not an array of numbers, or `tx`
            has no `init`.

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
    header = H.read(flat)
    saved, wanted = header.leaves, _named("target", target)
    for name in wanted:
        if name not in saved:
            raise ValueError(
                f"target{name} is not in flat, which holds {_some(saved)}. Pass a target with the "
                f"structure that was saved.{restored.other_min_size(name)}"
            )
    for name in saved:
        if name not in wanted:
            raise ValueError(
                f"flat holds {name}, which is not in target, which has {_some(wanted)}. Pass a "
                f"target with the structure that was saved.{restored.other_min_size(name)}"
            )
    for name, leaf in wanted.items():  # check all of these before reading the first
        _check_target(name, leaf, saved[name])
    if tx is not None:
        _check_variants(header.variants, variants_in("target", target, tx))
    shardings = shardings_of(wanted)
    leaves = [
        put(_read(flat, name, saved[name]), leaf, shardings[name]) for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


# ---- Names and dtypes ----


def _named(argument: str, tree: PyTree) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = keystr(path)
        if name in leaves or name in (H.HEADER, H.DIGEST):
            raise ValueError(
                f"{argument}{name} is the path of two leaves, or a reserved name. The keys of a "
                "dict or class must differ in their repr."
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
        if H.is_storable(native):
            return native
    advice = "Convert numbers with jnp.asarray, and leave everything else out."
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        advice = "Save jax.random.key_data(key); jax.random.wrap_key_data restores the key."
    raise TypeError(f"{path} must be an array of numbers; got {_check.show(leaf)}. {advice}")


def _whole(path: str, leaf: Any) -> np.dtype[Any]:
    """The dtype of a leaf whose values are all on this process."""
    dtype = _number_dtype(path, leaf)
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"{path} has no values; got {_check.show(leaf)}. Call to_state_dict outside jit, on "
            "arrays."
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"{path} is a NumPy masked array, whose mask would be lost. Save leaf.filled(value), or"
            " leaf.data and leaf.mask as two arrays."
        )
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"{path} has been deleted: call to_state_dict before the array is donated."
        )
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{path} is spread over several processes; got {leaf.sharding}. Gather it first with "
            "jax.experimental.multihost_utils.process_allgather(tree, tiled=True)."
        )
    return dtype


def _storage(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype and shape in which an array is stored."""
    if dtype in H.PORTABLE:
        return dtype, shape
    if dtype == np.complex128:
        return np.dtype(np.float64), (*shape, 2)
    return np.dtype(f"uint{8 * dtype.itemsize}"), shape


def _portable(array: NumPyArray) -> NumPyArray:
    dtype, shape = _storage(array.dtype, array.shape)
    return array.reshape(-1).view(dtype).reshape(shape)


# ---- Reading ----


def _check_variants(saved: Mapping[str, str] | None, wanted: Mapping[str, str]) -> None:
    """Raise unless the states in a dict fit those of a target; older dicts do not say."""
    if saved is None:
        return
    none = "no state of this package"
    for path in {**wanted, **saved}:
        old, new = (
            f"a state of {kept[path]}" if path in kept else none for kept in (saved, wanted)
        )
        if old != new:
            raise ValueError(
                f"flat has {old} at target{path}, but tx expects {new}: its next steps would be "
                "wrong. Pass the transformation with which the state was saved, or make a new "
                "state with tx.init(params)."
            )


def _check_target(name: str, leaf: Any, saved: H.Entry) -> None:
    """Raise unless a leaf of `target` has the dtype and shape that were saved."""
    dtype = _number_dtype("target" + name, leaf)
    if dtype.name != saved.dtype:
        raise ValueError(f"target{name} is {dtype}, but flat holds {saved.dtype} for it.")
    if leaf.shape != saved.shape:
        raise ValueError(
            f"target{name} has shape {leaf.shape}, but flat holds shape {saved.shape}."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"target{name} is {dtype}, which needs 64-bit mode: call "
            "jax.config.update('jax_enable_x64', True) first."
        )


def _read(flat: Mapping[str, Any], name: str, saved: H.Entry) -> NumPyArray:
    """An array in its own dtype; raises unless its bits are those that were saved."""
    array, dtype = np.asarray(flat[name], order="C"), np.dtype(jnp.dtype(saved.dtype))
    stored_dtype, stored_shape = _storage(dtype, saved.shape)
    if (array.dtype, array.shape) != (stored_dtype, stored_shape):
        raise ValueError(
            f"flat[{name!r}] was changed after to_state_dict: it is now {array.dtype} of shape "
            f"{array.shape}, but was {stored_dtype} of shape {stored_shape}."
        )
    now = H.sha256(array).hex()
    if now != saved.digest:
        raise ValueError(
            f"flat[{name!r}] was changed after to_state_dict: its SHA-256 is now {now}, but was "
            f"{saved.digest}."
        )
    return array.reshape(-1).view(dtype).reshape(saved.shape)
