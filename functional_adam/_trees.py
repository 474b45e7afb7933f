"""Trees that must have the same structure: their leaves in order, or an error at a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import keystr

from functional_adam._check import type_name
from functional_adam._hints import tree_hints
from functional_adam._types import PyTree


def is_none(x: object) -> bool:
    """For `is_leaf=`: makes None (no gradient, a frozen parameter) a leaf, not an empty tree."""
    return x is None


def _children(node: Any) -> tuple[dict[Any, Any], Any]:
    """The children of one tree node by key, and the node's kind, which is None for a leaf."""
    is_child: Callable[[Any], bool] = lambda x: x is not node  # noqa: E731 (one level only)
    children, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_child)
    is_leaf = node is None or treedef == jax.tree.structure(0)
    return {} if is_leaf else dict(children), None if is_leaf else treedef


def tree_difference(tree: PyTree, wanted: PyTree, path: str, prefix: bool = False) -> str | None:
    """Where and how the structure of `tree` first differs from `wanted`; None if they agree.

    `None` counts as a leaf. With `prefix`, a leaf of `tree` may stand for a whole subtree.
    """
    have, kind = _children(tree)
    want, wanted_kind = _children(wanted)
    if kind is None and (wanted_kind is None or prefix):
        return None
    if kind is not None and wanted_kind is not None:
        if kind == wanted_kind:
            below = (tree_difference(have[k], want[k], path + keystr(k), prefix) for k in have)
            return next((difference for difference in below if difference), None)
        if type(tree) is type(wanted):
            for key in have:
                if key not in want:
                    return f"{path}{keystr(key)} does not belong there"
            for key in want:
                if key not in have:
                    return f"{path}{keystr(key)} is missing"
            return f"{path} has different static data or order of keys: {kind}, not {wanted_kind}"
    return f"{path} is {_describe(tree, kind)}, where {_describe(wanted, wanted_kind)} belongs"


def _describe(node: Any, kind: Any) -> str:
    if kind is not None:
        return f"a node of type {type_name(node)}"
    return "None" if node is None else "a leaf"


def leaves_like(name: str, tree: PyTree, wanted: PyTree, whose: str) -> list[Any]:
    """The leaves of `tree`, None included; raises unless it has the structure of `wanted`."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_none)
    if treedef != jax.tree.structure(wanted, is_leaf=is_none):
        difference = tree_difference(tree, wanted, name) or f"got {treedef}"
        hint = tree_hints.structure(name, tree, wanted, whose)
        raise ValueError(f"{name} must have the structure of {whose}: {difference}.{hint}")
    return leaves


def leaves_if_any(name: str, tree: PyTree, wanted: PyTree, whose: str) -> list[Any]:
    """`leaves_like`, or if `tree` is None, a None for each leaf of `wanted`."""
    if tree is None:
        return [None] * len(jax.tree.leaves(wanted, is_leaf=is_none))
    return leaves_like(name, tree, wanted, whose)
