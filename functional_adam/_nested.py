"""Finds this package's states inside the states of wrappers, and the parameters of their leaves.

Optax's wrappers and Flax's `nnx.Optimizer` keep a state in trees of their own, so it is found by
its type. `optax.masked` and `optax.partition` put an empty node where another transformation owns
the parameter. These holes have a path but no leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from functional_adam import _check, _trees
from functional_adam._hints import tree_hints
from functional_adam._state import AdamState, built_like, check_count, is_adam_state
from functional_adam._types import PyTree

# The keys on the way to a leaf.
Path = tuple[Any, ...]


def states(name: str, tree: PyTree, wanted: str = "an AdamState") -> list[tuple[str, AdamState]]:
    """Every state of this package in `tree`, with its place for messages; raises if none."""
    found = states_or_shapes(name, tree, wanted)
    for _, state in found:
        check_count(state)
    return found


def states_or_shapes(
    name: str, tree: PyTree, wanted: str = "an AdamState"
) -> list[tuple[str, AdamState]]:
    """The same as `states`, but it also takes trees of shapes, which have no values to check."""
    leaves = tree_leaves_with_path(tree, is_leaf=is_adam_state)
    found = [(name + keystr(path), x) for path, x in leaves if is_adam_state(x)]
    if not found:
        raise ValueError(
            f"{name} must hold {wanted}; found none in {_check.show(tree)}. The search covers the "
            "states of optax.chain, named_chain, masked, partition, MultiSteps, inject_hyperparams "
            "and other wrappers, and the opt_state of a Flax nnx.Optimizer."
            f"{tree_hints.no_state(tree)}"
        )
    return found


def left_out(tree: PyTree) -> Callable[[Path], bool]:
    """A test for the paths at which `tree`, otherwise built like the parameters, has holes."""
    is_empty: Callable[[Any], bool] = lambda x: not jax.tree.leaves(x)  # noqa: E731
    leaves = tree_leaves_with_path(tree, is_leaf=is_empty)
    holes = {path for path, x in leaves if is_empty(x) and x is not None}  # None: frozen
    return lambda path: any(path[:end] in holes for end in range(len(path) + 1))


def with_moments(state: AdamState, paths: frozenset[str], move: Callable[[Any], Any]) -> AdamState:
    """A state with `move` applied to the moments of the parameters at these paths."""
    if not jax.tree.leaves(state.mu):  # optax.tree.map_params passes a stand-in without leaves
        return state

    def moved(name: str, tree: PyTree) -> PyTree:
        leaves = by_parameter(f"state.{name}", tree, state).items()
        found = [x is not None and keystr(path) in paths for path, x in leaves]
        return built_like(
            tree, [move(x) if this else x for this, (_, x) in zip(found, leaves, strict=True)]
        )

    extra = state.extra and {name: moved("extra", tree) for name, tree in state.extra.items()}
    parts = {name: moved(name, getattr(state, name)) for name in ("mu", "nu", "nu_scale")}
    return state._replace(**parts, extra=extra)


def adam_states(tree: PyTree) -> list[Any]:
    """The states of this package in a state, or in a tree built like one."""
    return [x for x in jax.tree.leaves(tree, is_leaf=is_adam_state) if is_adam_state(x)]


def by_parameter(where: str, tree: PyTree, state: AdamState) -> dict[Path, Any]:
    """The leaves of one tree of a state, None included, by the paths of their parameters.

    The paths come from `mu`, whose leaves correspond in order. The tree's own paths may be shorter:
    frameworks put boxes around parameters, and leaves of other shapes have no such boxes.
    """
    mus = tree_leaves_with_path(state.mu, is_leaf=_trees.is_none)
    leaves = [None] * len(mus) if tree is None else jax.tree.leaves(tree, is_leaf=_trees.is_none)
    if len(leaves) != len(mus):
        raise ValueError(
            f"{where} has {len(leaves)} leaves, but mu of the same state has {len(mus)}: make the "
            "whole state with one `init`."
        )
    return {path: leaf for (path, _), leaf in zip(mus, leaves, strict=True)}
