"""Arguments with one value per leaf: a tree, a prefix of one, or a function that returns one.

A mask has booleans, which say which parameters decay or which leaves a modifier changes. `stacked`
has integers, which say how many leading axes of a leaf stack layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _trees
from functional_adam._equations.family import Modifier, Variant
from functional_adam._hints import argument_hints
from functional_adam._origin import Same, SameTree
from functional_adam._types import PyTree


class Said(NamedTuple):
    """A kind of such an argument, and the words of its errors."""

    name: str
    is_value: Callable[[Any], bool]
    wanted: str
    several: str
    unsaid: Any  # the value of a leaf if the argument is None
    hint: Callable[[Any], str]  # ends the error about a wrong value
    structure: str = ""  # ends the error about a tree that does not fit
    called: str = ""  # the note on what a function raises


MASK = Said(
    "mask",
    lambda x: isinstance(x, bool | np.bool_),
    "True or False",
    "booleans",
    True,
    argument_hints.mask,
    argument_hints.mask_structure(),
    argument_hints.MASK,
)
STACKED = Said(
    "stacked",
    lambda x: isinstance(x, int) and not isinstance(x, bool),
    "an integer >= 0",
    "integers",
    0,
    lambda _: " It is the number of leading axes that stack layers, or a tree of such numbers.",
)


def is_called(mask: Any) -> bool:
    """Whether a mask is a function from the parameters and not a tree.

    A module of booleans counts as a tree, even if it has a `__call__`. A callable that holds
    anything else, such as a function, or nothing is called.
    """
    if isinstance(mask, jax.tree_util.Partial):
        return True
    leaves = jax.tree.leaves(mask)
    return callable(mask) and not (leaves and all(map(_is_boolean, leaves)))


def _is_boolean(leaf: Any) -> bool:
    return isinstance(leaf, bool) or getattr(leaf, "dtype", None) == np.bool_


def checked(value: Any, said: Said = MASK) -> Any:
    """The argument, once it is known to be None, a function or a tree of valid values."""
    if value is None or is_called(value):
        return value
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not said.is_value(leaf):
            raise TypeError(
                f"{said.name}{keystr(path)} must be {said.wanted}; got {_check.show(leaf)}."
                f"{said.hint(leaf)}"
            )
    return value


def hashable(value: Any, said: Said) -> Any:
    """`value`, checked and hashable, for a `Modifier`."""
    value = checked(value, said)
    if value is None or (said is STACKED and isinstance(value, int)):
        return value
    return Same(value) if is_called(value) else SameTree(value)


def make_mask(value: Any, weight_decay: Any) -> Any:
    """The checked mask of a factory, which must not be a single boolean where something decays.

    Such a boolean says nothing beyond `weight_decay`, but `optax.inject_hyperparams` silently turns
    a mask function into one.
    """
    value = checked(value)
    decays = not isinstance(weight_decay, float) or bool(weight_decay)
    if isinstance(value, bool | np.bool_) and decays:
        raise ValueError(f"mask={bool(value)} {argument_hints.bare_mask(bool(value))}")
    return value


def broadcast(value: Any, params: PyTree, said: Said = MASK) -> list[Any]:
    """`value`, called or broadcast over `params`: one value per leaf, None counting as a leaf."""
    calls, name, tree = is_called(value), said.name, value
    if calls:
        tree = checked(argument_hints.called(value, params, advice=said.called), said)
    if tree is None and calls and jax.tree.leaves(params):
        raise TypeError(
            f"{name}(params) is None: the function must return a tree of {said.several}."
        )
    if tree is None:
        tree = said.unsaid

    def over(path: Any, one: Any, subtree: PyTree) -> list[Any]:
        leaves = jax.tree.leaves(subtree, is_leaf=_trees.is_none)
        if one is None and any(leaf is not None for leaf in leaves):
            raise TypeError(
                f"{name} has None at {name}{keystr(path)}, where the parameters have arrays: write "
                f"{said.wanted} there."
            )
        return [one] * len(leaves)

    try:
        spreads = jax.tree_util.tree_map_with_path(over, tree, params, is_leaf=_trees.is_none)
        return jax.tree.leaves(spreads, is_leaf=_trees.is_none)
    except ValueError as error:
        difference = _trees.tree_difference(tree, params, name, prefix=True) or str(error)
        raise ValueError(
            f"{name} must be a prefix of the parameters: {difference}.{said.structure}"
        ) from None


# ---- Modifiers ----


def leaf_variants(variant: Variant, params: PyTree) -> list[Variant]:
    """For each leaf, None included, the variant with the modifiers that apply to it."""
    paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=_trees.is_none)
    columns = [_of_leaves(modifier, params, paths) for modifier in variant.modifiers]
    if not columns:
        return [variant] * len(paths)
    rows = [tuple(one for one in row if one is not None) for row in zip(*columns, strict=True)]
    return [variant._replace(modifiers=row) for row in rows]


def _of_leaves(modifier: Modifier, params: PyTree, paths: list[Any]) -> list[Modifier | None]:
    """For each leaf the modifier with its number of stacked axes, or None if it does not apply."""
    mask, stacked = modifier.mask, modifier.stacked
    chosen = broadcast(None if mask is None else mask.it, params)
    axes = broadcast(stacked if isinstance(stacked, int) else stacked.it, params, STACKED)

    def of_leaf(path: Any, leaf: Any, is_for: Any, axes: Any) -> Modifier | None:
        if leaf is None or not is_for:
            return None
        if not 0 <= axes <= np.ndim(leaf):
            raise ValueError(
                f"{modifier.name} has stacked={axes} for params{keystr(path)}, whose shape "
                f"{np.shape(leaf)} has {np.ndim(leaf)} axes. To set it for each leaf, pass a tree "
                "of integers or a function from the parameters to one."
            )
        return modifier._replace(mask=None, stacked=axes)

    return [of_leaf(*at, *said) for at, *said in zip(paths, chosen, axes, strict=True)]
