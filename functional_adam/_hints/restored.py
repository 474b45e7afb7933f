"""Hints for a state, or a tree, that lost its types between two steps.

A cast of everything, a checkpoint restored without a target, Flax's boxes, shapes without numbers:
each leaves traces by which it is told here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

CAST = (
    " If something cast the state (a cast of a whole TrainState, a mixed-precision policy, a "
    "checkpoint restored in another dtype), cast the parameters alone, and restore with a target "
    "in the right dtypes: from_state_dict(flat, tx.init(params)), or Orbax's "
    "StandardRestore(tx.init(params))."
)
_RESTORE = (
    "as in a checkpoint restored without a target. Restore it with one: from_state_dict(flat, "
    "tx.init(params)), Orbax's StandardRestore(tx.init(params)), or "
    "flax.serialization.from_state_dict(tx.init(params), restored)."
)


def _any_node(tree: Any, found: Callable[[Any], bool]) -> bool:
    """Whether a node of `tree`, or a leaf, is as `found` says."""
    return any(map(found, jax.tree.leaves(tree, is_leaf=found)))


def _is_box(x: Any) -> bool:
    """Whether `x` is Flax Linen's: an array and its sharding."""
    return callable(getattr(x, "unbox", None))


def is_variable(x: Any) -> bool:
    """Whether `x` is Flax NNX's: a parameter, or what an `nnx.Optimizer` keeps."""
    return type(x).__module__.startswith("flax.nnx") and hasattr(type(x), "get_metadata")


def untyped(state: Any) -> str:
    """For a state that has lost its type."""
    if isinstance(state, Mapping) and any(str(key).startswith("functional_adam.") for key in state):
        return (
            " That is what to_state_dict returns: "
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
    """For a state whose count is no int32 array."""
    if isinstance(state.count, jax.ShapeDtypeStruct):
        return (
            " jax.eval_shape tells shapes, without the numbers: make the state with "
            "tx.init(params), or restore a checkpoint into these shapes."
        )
    if is_variable(state.count):
        return " An nnx.Optimizer keeps it in variables: nnx.as_pure(optimizer.opt_state)."
    return CAST


def other_min_size(name: str) -> str:
    """For scales that one of two states has and the other has not."""
    if ".nu_scale" not in name:
        return ""
    return (
        " A leaf has scales where its moments have 8 bits: Int8(min_size=...) says from which size "
        "on, with moments=fa.Int8(min_size=0) everywhere. Make the target with the min_size that "
        "was saved; convert_moments then brings the state into another."
    )


def boxed(tree: Any, wanted: Any) -> str:
    """For arrays of which some are in Flax's boxes and their counterparts are not."""
    for is_box, way in ((_is_box, "flax.linen.meta.unbox"), (is_variable, "flax.nnx.as_pure")):
        if _any_node(tree, is_box) != _any_node(wanted, is_box):
            return (
                " Some arrays are in Flax's boxes and some are not. Take them out everywhere, "
                f"before init: params = {way}(params); or nowhere."
            )
    return ""


def numbered(tree: Any, wanted: Any) -> str:
    """For lists that a checkpoint has made dicts of."""
    listed = _any_node(tree, lambda x: type(x) in (tuple, list) and bool(x))
    if listed and _any_node(wanted, _is_numbered):
        return f" A list has become a dict in the state, {_RESTORE}"
    return ""


def _is_numbered(x: Any) -> bool:
    return isinstance(x, dict) and bool(x) and set(x) == {str(i) for i in range(len(x))}
