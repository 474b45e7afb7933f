"""Finds the variant of each state in a tree with the help of the transformation that made it.

A state does not show its variant: adam, adamax, adopt and others keep the same two trees with
different meanings. Wrappers hide their transformations in closures. So the transformation makes a
state of the same shapes, and each `init` of this package inside it records what it made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from functional_adam._equations import formulas as F
from functional_adam._equations import relatives as R
from functional_adam._equations.family import Variant
from functional_adam._nested import Path, states_or_shapes
from functional_adam._settings import Settings
from functional_adam._state import AdamState, check_init, is_adam_state
from functional_adam._transform import STATES_MADE
from functional_adam._types import PyTree


def kept_by(variant: Variant) -> str:
    """A name for the meaning of a state, equal if one variant can continue from another's state.

    Only `update_moments` gives moments their meaning. What a variant does with them afterwards
    (Nesterov's numerator, rectification, trust ratios, decay) does not change the state.
    """
    update: Any = variant.update_moments
    if update is R.amsgrad_of_corrected and F.without_second_correction in variant.prepare:
        update = R.amsgrad  # of v / 1
    return getattr(update, "__name__", type(update).__name__)


def variants_in(name: str, tree: PyTree, tx: Any) -> dict[str, str]:
    """The meaning of each `AdamState` of `tree` by path; raises unless `tx` makes all of them."""
    states_or_shapes(name, tree)  # raises if there is none
    leaves = tree_leaves_with_path(tree, is_leaf=is_adam_state)
    found = {path: x for path, x in leaves if is_adam_state(x)}
    kept = _kept(name, tx, [state.mu for state in found.values()])
    known: dict[Path, str] = {}
    for root in {path[: len(path) - len(end)] for path in found for end in kept}:
        held = {root + end: what for end, what in kept.items()}
        if held.keys() <= found.keys():
            known |= held
    for path in found:
        if path not in known:
            inside = " or ".join(f"state{keystr(end)}" for end in kept) or "none"
            raise ValueError(
                f"{name}{keystr(path)} is an AdamState, but tx makes none there (it makes "
                f"{inside}). Pass the transformation whose init made the state, and a tree that "
                "contains its whole state. Save the states of several transformations in separate "
                "dicts. (An init under jax.jit hides what it makes.)"
            )
    return {keystr(path): known[path] for path in found}


def _kept(name: str, tx: Any, mus: list[PyTree]) -> dict[Path, str]:
    """The meaning of each `AdamState` in a state of `tx`, by its path there."""
    check_init(tx)
    kept: dict[Path, str] = {}

    def note(params: PyTree) -> None:
        made: list[tuple[Settings, AdamState]] = []
        token = STATES_MADE.set(made)
        try:
            state = tx.init(params)
        finally:
            STATES_MADE.reset(token)
        # Wrappers pass the arrays on, so each state is recognized by its count.
        variants = {id(one.count): settings.variant for settings, one in made}
        for path, x in tree_leaves_with_path(state, is_leaf=is_adam_state):
            if is_adam_state(x) and id(x.count) in variants:
                kept[path] = kept_by(variants[id(x.count)])

    try:
        jax.eval_shape(note, _like_params(mus))
    except Exception as error:
        raise ValueError(
            f"tx.init fails on parameters shaped like the moments in {name}, so their variant "
            f"cannot be determined ({type(error).__name__}: {error}). Pass the transformation "
            "whose init made them, or leave tx out."
        ) from error
    return kept


def _like_params(mus: list[PyTree]) -> PyTree:
    """Parameters shaped like first moments, which may have holes where others have leaves."""
    first, *rest = mus
    for other in rest:
        first = _filled(first, other)

    def like(moment: Any) -> jax.ShapeDtypeStruct:
        is_code = not jnp.issubdtype(moment.dtype, jnp.inexact)
        return jax.ShapeDtypeStruct(moment.shape, jnp.float32 if is_code else moment.dtype)

    return jax.tree.map(like, first)


def _filled(tree: PyTree, other: PyTree) -> PyTree:
    """`tree` with its nodes without leaves replaced by their counterparts in `other`."""
    if not jax.tree.leaves(tree):
        return other if jax.tree.leaves(other) else tree
    (children, treedef), (others, structure) = map(_one_level, (tree, other))
    if treedef != structure or jax.tree_util.all_leaves([tree]):
        return tree
    return treedef.unflatten(map(_filled, children, others))


def _one_level(node: PyTree) -> tuple[list[Any], Any]:
    is_child: Callable[[Any], bool] = lambda x: x is not node  # noqa: E731
    return jax.tree.flatten(node, is_leaf=is_child)
