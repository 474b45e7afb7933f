"""Hints for a state or a tree that lost its types or dtypes between two steps.

Each cause leaves traces that are recognized here: a cast of everything, a checkpoint restored
without a target, Flax's boxes, shapes without values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

CAST = (
    " If something cast the state (a cast of a whole TrainState, a mixed-precision policy, a "
    "checkpoint restored in another dtype), cast only the parameters, and restore with a target "
    "in the right dtypes: from_state_dict(flat, tx.init(params)), or Orbax's "
    "StandardRestore(tx.init(params))."
)
_RESTORE = (
    "as in a checkpoint restored without a target. Restore it with a target: from_state_dict(flat, "
    "tx.init(params)), Orbax's StandardRestore(tx.init(params)), or "
    "flax.serialization.from_state_dict(tx.init(params), restored)."
)


def _any_node(tree: Any, found: Callable[[Any], bool]) -> bool:
    """Whether `found` is true of any node or leaf of `tree`."""
    return any(map(found, jax.tree.leaves(tree, is_leaf=found)))


def _is_box(x: Any) -> bool:
    """Whether `x` is a box of Flax Linen: an array with its sharding."""
    return callable(getattr(x, "unbox", None))


def is_variable(x: Any) -> bool:
    """Whether `x` is a variable of Flax NNX: a parameter, or a part of an `nnx.Optimizer`."""
    return type(x).__module__.startswith("flax.nnx") and hasattr(type(x), "get_metadata")


def untyped(state: Any) -> str:
    """For a state that has lost its type."""
    if isinstance(state, Mapping) and any(str(key).startswith("functional_adam.") for key in state):
        return (
            " That is what to_state_dict returns: write "
            "state = fa.from_state_dict(flat, target=tx.init(params))."
        )
    if _any_node(state, lambda x: isinstance(x, Mapping) and {"count", "mu", "nu"} <= set(x)):
        return f" It has the fields of an AdamState, {_RESTORE}"
    members = list(state) if type(state) in (tuple, list) else []
    if 3 <= len(members) <= 6 and _is_count(members[0]):
        return f" It has the members of an AdamState, {_RESTORE}"
    return ""


def _is_count(x: Any) -> bool:
    dtype = np.dtype(int) if isinstance(x, int) else getattr(x, "dtype", None)
    return dtype in (np.int32, np.int64) and getattr(x, "shape", ()) == ()


def count(state: Any) -> str:
    """For a state whose count is not an int32 array."""
    if isinstance(state.count, jax.ShapeDtypeStruct):
        return (
            " jax.eval_shape returns shapes without values: make the state with "
            "tx.init(params), or restore a checkpoint into these shapes."
        )
    if is_variable(state.count):
        return " An nnx.Optimizer wraps it in variables: pass nnx.as_pure(optimizer.opt_state)."
    return CAST


def other_min_size(name: str) -> str:
    """For scales that only one of two states has."""
    if ".nu_scale" not in name:
        return ""
    return (
        " Only leaves with 8-bit moments have scales: leaves of at least Int8(min_size=...) "
        "elements, and with moments=fa.Int8(min_size=0) all leaves. Make the target with the "
        "min_size that was saved; convert_moments can change it afterwards."
    )


def boxed(tree: Any, wanted: Any) -> str:
    """For trees of which only one has its arrays in Flax's boxes."""
    for is_box, way in ((_is_box, "flax.linen.meta.unbox"), (is_variable, "flax.nnx.as_pure")):
        if _any_node(tree, is_box) != _any_node(wanted, is_box):
            return (
                " Some arrays are in Flax's boxes and others are not. Unbox all of them before "
                f"init, or none: params = {way}(params)."
            )
    return ""


def numbered(tree: Any, wanted: Any) -> str:
    """For lists that a checkpoint has turned into dicts."""
    listed = _any_node(tree, lambda x: type(x) in (tuple, list) and bool(x))
    if listed and _any_node(wanted, _is_numbered):
        return f" A list has become a dict in the state, {_RESTORE}"
    return ""


def _is_numbered(x: Any) -> bool:
    return isinstance(x, dict) and bool(x) and set(x) == {str(i) for i in range(len(x))}
