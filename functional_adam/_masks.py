"""What is said of each leaf by a tree, or a prefix of one, or a function that makes one.

Masks, of booleans, say which parameters decay or are for a modifier; integers say how many axes of
a leaf are stacked.
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
    """What is said of each leaf, in the argument `name`."""

    name: str
    is_value: Callable[[Any], bool]
    wanted: str
    several: str
    unsaid: Any  # where nothing is
    hint: Callable[[Any], str]  # for another value
    structure: str = ""  # for a tree that does not fit
    called: str = ""  # for a function that raises


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
    lambda _: " It is how many leading axes of a leaf stack others, or a tree of such numbers.",
)


def is_called(mask: Any) -> bool:
    """Whether a mask is a function from the parameters, and not a tree.

    A module of booleans is a tree although it may have a `__call__`; one that holds anything else,
    such as a function, or nothing, is called.
    """
    if isinstance(mask, jax.tree_util.Partial):
        return True
    leaves = jax.tree.leaves(mask)
    return callable(mask) and not (leaves and all(map(_is_boolean, leaves)))


def _is_boolean(leaf: Any) -> bool:
    return isinstance(leaf, bool) or getattr(leaf, "dtype", None) == np.bool_


def checked(value: Any, said: Said = MASK) -> Any:
    """What a caller says of each leaf: None, a function, or a tree of such values alone."""
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
    """`value`, checked, as a `Modifier` has it."""
    value = checked(value, said)
    if value is None or (said is STACKED and isinstance(value, int)):
        return value
    return Same(value) if is_called(value) else SameTree(value)


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


def broadcast(value: Any, params: PyTree, said: Said = MASK) -> list[Any]:
    """`value`, called or broadcast over `params`: one value a leaf, None counting as a leaf."""
    calls, name, tree = is_called(value), said.name, value
    if calls:
        tree = checked(argument_hints.called(value, params, advice=said.called), said)
    if tree is None and calls and jax.tree.leaves(params):
        raise TypeError(
            f"{name}(params) is None: let the function return its tree of {said.several}."
        )
    if tree is None:
        tree = said.unsaid

    def over(path: Any, one: Any, subtree: PyTree) -> list[Any]:
        leaves = jax.tree.leaves(subtree, is_leaf=_trees.is_none)
        if one is None and any(leaf is not None for leaf in leaves):
            raise TypeError(
                f"{name} has None at {name}{keystr(path)}, where the parameters have arrays; use "
                f"{said.wanted}."
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
    """For each leaf, None too, the variant with the modifiers that are for it."""
    paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=_trees.is_none)
    columns = [_of_leaves(modifier, params, paths) for modifier in variant.modifiers]
    if not columns:
        return [variant] * len(paths)
    rows = [tuple(one for one in row if one is not None) for row in zip(*columns, strict=True)]
    return [variant._replace(modifiers=row) for row in rows]


def _of_leaves(modifier: Modifier, params: PyTree, paths: list[Any]) -> list[Modifier | None]:
    """For each leaf the modifier, if it is for it, with the number of its stacked axes."""
    mask, stacked = modifier.mask, modifier.stacked
    chosen = broadcast(None if mask is None else mask.it, params)
    axes = broadcast(stacked if isinstance(stacked, int) else stacked.it, params, STACKED)

    def of_leaf(path: Any, leaf: Any, is_for: Any, axes: Any) -> Modifier | None:
        if leaf is None or not is_for:
            return None
        if not 0 <= axes <= np.ndim(leaf):
            raise ValueError(
                f"{modifier.name} is given stacked={axes} for params{keystr(path)}, which has the "
                f"{np.ndim(leaf)} axes {np.shape(leaf)}. Say it leaf by leaf, by a tree of "
                "integers or a function from the parameters to one."
            )
        return modifier._replace(mask=None, stacked=axes)

    return [of_leaf(*at, *said) for at, *said in zip(paths, chosen, axes, strict=True)]
