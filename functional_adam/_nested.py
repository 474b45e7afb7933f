"""States of this package where wrappers keep them, and the parameters that their leaves are for.

Optax's wrappers and Flax's `nnx.Optimizer` keep a state among others in trees of their own, so a
state is found by its type. `optax.masked` and `optax.partition` put empty nodes where another
transformation has the parameter: holes, which have a path but no leaf.
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
    """Every state of this package in `tree` and where it is, for messages; at least one."""
    found = states_or_shapes(name, tree, wanted)
    for _, state in found:
        check_count(state)
    return found


def states_or_shapes(
    name: str, tree: PyTree, wanted: str = "an AdamState"
) -> list[tuple[str, AdamState]]:
    """`states`, which here need no numbers."""
    leaves = tree_leaves_with_path(tree, is_leaf=is_adam_state)
    found = [(name + keystr(path), x) for path, x in leaves if is_adam_state(x)]
    if not found:
        raise ValueError(
            f"{name} must hold {wanted}; got none, in {_check.show(tree)}. It is looked for inside "
            "the states of optax.chain, named_chain, masked, partition, MultiSteps, "
            "inject_hyperparams and other wrappers, and in the opt_state of a Flax nnx.Optimizer."
            f"{tree_hints.no_state(tree)}"
        )
    return found


def left_out(tree: PyTree) -> Callable[[Path], bool]:
    """Tells the paths of parameters that `tree`, otherwise built like them, has holes for."""
    is_empty: Callable[[Any], bool] = lambda x: not jax.tree.leaves(x)  # noqa: E731
    leaves = tree_leaves_with_path(tree, is_leaf=is_empty)
    holes = {path for path, x in leaves if is_empty(x) and x is not None}  # None: frozen
    return lambda path: any(path[:end] in holes for end in range(len(path) + 1))


def with_moments(state: AdamState, paths: frozenset[str], move: Callable[[Any], Any]) -> AdamState:
    """A state with `move` of all moments that it has for the parameters at these paths."""
    if not jax.tree.leaves(state.mu):  # optax.tree.map_params has a stand-in without leaves
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


def by_parameter(where: str, tree: PyTree, state: AdamState) -> dict[Path, Any]:
    """The leaves of a tree of a state, None included, by their parameters' paths.

    What is not shaped like the parameters lies outside of the boxes that frameworks put around
    them, so that its own paths may be shorter: its leaves are those of `mu`, in the same order.
    """
    mus = tree_leaves_with_path(state.mu, is_leaf=_trees.is_none)
    leaves = [None] * len(mus) if tree is None else jax.tree.leaves(tree, is_leaf=_trees.is_none)
    if len(leaves) != len(mus):
        raise ValueError(
            f"{where} has {len(leaves)} leaves, but mu beside it has {len(mus)}: make the state "
            "with the `init` of one transformation."
        )
    return {path: leaf for (path, _), leaf in zip(mus, leaves, strict=True)}
