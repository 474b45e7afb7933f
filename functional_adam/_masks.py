"""Decay masks: which parameters decay, said by a tree of booleans or a function that makes one."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _trees
from functional_adam._hints import argument_hints
from functional_adam._types import PyTree


def is_called(mask: Any) -> bool:
    """Whether a mask is a function from the parameters, and not a tree of booleans.

    A module of booleans is a tree although it may have a `__call__`; one that holds anything else,
    such as a function, or nothing, is called.
    """
    if isinstance(mask, jax.tree_util.Partial):
        return True
    leaves = jax.tree.leaves(mask)
    return callable(mask) and not (leaves and all(map(_is_boolean, leaves)))


def _is_boolean(leaf: Any) -> bool:
    return isinstance(leaf, bool) or getattr(leaf, "dtype", None) == np.bool_


def checked(value: Any) -> Any:
    """A decay mask: None, a function, or a tree whose leaves are all booleans."""
    if value is None or is_called(value):
        return value
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(
                f"mask{keystr(path)} must be True or False; got {_check.show(leaf)}."
                f"{argument_hints.mask(leaf)}"
            )
    return value


def make_mask(value: Any, weight_decay: Any) -> Any:
    """The mask that a factory was given: a checked one, and not one boolean for all that decays.

    Such a boolean says nothing that `weight_decay` does not say, but `optax.inject_hyperparams`
    makes one of a mask function, silently.
    """
    value = checked(value)
    decays = not isinstance(weight_decay, float) or bool(weight_decay)
    if isinstance(value, bool | np.bool_) and decays:
        raise ValueError(f"mask={bool(value)} {argument_hints.bare_mask(bool(value))}")
    return value


def broadcast(value: Any, params: PyTree) -> list[bool]:
    """`value`, called or broadcast over `params`: one boolean a leaf, None counting as a leaf."""
    calls = is_called(value)
    tree = value
    if calls:
        tree = checked(argument_hints.called(value, params, advice=argument_hints.MASK))
    if tree is None and calls and jax.tree.leaves(params):
        raise TypeError("mask(params) is None: let the function return its tree of booleans.")
    if tree is None:
        tree = True

    def over(path: Any, keep: bool | None, subtree: PyTree) -> list[bool]:
        leaves = jax.tree.leaves(subtree, is_leaf=_trees.is_none)
        if keep is None and any(leaf is not None for leaf in leaves):
            raise TypeError(
                f"mask has None at mask{keystr(path)}, where the parameters have arrays; use True "
                "or False."
            )
        return [bool(keep)] * len(leaves)

    try:
        spreads = jax.tree_util.tree_map_with_path(over, tree, params, is_leaf=_trees.is_none)
        return jax.tree.leaves(spreads)
    except ValueError as error:
        difference = _trees.tree_difference(tree, params, "mask", prefix=True) or str(error)
        raise ValueError(
            f"mask must be a prefix of the parameters: {difference}."
            f"{argument_hints.mask_structure()}"
        ) from None
