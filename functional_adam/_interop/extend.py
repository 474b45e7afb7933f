"""A state for changed parameters: layers added to a run, or removed from it."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check
from functional_adam._state import check_init, outside_boxes
from functional_adam._types import GradientTransformation, PyTree


def extend_state(
    tx: GradientTransformation,
    old_state: PyTree,
    old_params: PyTree,
    new_params: PyTree,
    *,
    restart: Collection[str] = (),
) -> PyTree:
    """The state with which a run continues after layers were added to its model or removed.

    It has the structure of `tx.init(new_params)`. Parameters whose path is in both trees keep their
    part of `old_state`. So does everything that belongs to no parameter: the count, injected
    hyperparameters, and the counters of Optax's wrappers. The parts of removed parameters are
    dropped.

    The moments of a new leaf start at zero, but the count, and with it the bias correction, is that
    of the run. The first updates of a new leaf are therefore too long. Once the run has taken so
    many steps that its corrections are 1, a constant gradient far above eps gives in update k of
    the new leaf

        u = -learning_rate * sign(g) * (1 - b1**k) / sqrt(1 - b2**k)

    instead of -learning_rate * sign(g) as in a fresh run. With the defaults of `adam` this is 3.16
    times as long at k = 1, 6.57 times at k = 12 (the maximum), 3.24 times at k = 100 and 1.26 times
    at k = 1000. (At an earlier step t of the run, the first update is
    (1 - b1) / (1 - b1**t) * sqrt((1 - b2**t) / (1 - b2)) times a fresh one.) Multiply the updates
    of new leaves by sqrt(1 - b2**k) / (1 - b1**k) to get those of a fresh run. `adopt` divides by
    the last v, which is 0 here, so only its clipping bounds the first update.

    Args:
        tx: The transformation for `new_params`, alone or anywhere inside Optax's wrappers (a chain,
            `masked`, `partition`, `inject_hyperparams`, `MultiSteps`).
        old_state: The state of the same transformation for `old_params`.
        old_params: The parameters before the change, or their `jax.eval_shape`. Only paths, shapes
            and dtypes are read.
        new_params: The parameters after the change. Leaves are matched by path, so a layer inserted
            at the front of a list changes all layers behind it.
        restart: Paths of parameters whose moments start at zero again, as error messages print them
            (`"params['head']['kernel']"`). A leaf whose shape or dtype has changed must be listed.

    Returns:
        A state as `tx.init(new_params)` makes it. It shares the arrays that it keeps with
        `old_state`: donating one of the states deletes both. Under `jax.jit` it shares none, and
        zeros that are not needed are never allocated.

    Raises:
        ValueError: A leaf in both trees has changed its shape or dtype and is not in `restart`; a
            path in `restart` is not in `new_params`; or `old_state` lacks a part that `tx` keeps
            for a leaf in both trees, or has a part that belongs to a leaf in neither.
        TypeError: `tx` has no `init`, or `restart` is not a collection of strings.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, old = fa.adam(0.1), {"w": jnp.zeros(2)}
        >>> _, state = tx.update({"w": jnp.ones(2)}, tx.init(old), old)
        >>> state = fa.extend_state(tx, state, old, old | {"b": jnp.zeros(1)})
        >>> int(state.count), {name: float(m[0]) for name, m in state.mu.items()}
        (1, {'b': 0.0, 'w': 0.10000000149011612})
    """
    check_init(tx)
    old, new = (_by_path(tree, "params") for tree in (old_params, new_params))
    anew = _restarted(restart, new) | (new.keys() - old.keys())
    for path, leaf in new.items():
        if path not in anew:
            _check_unchanged(path, old[path], leaf)
    fresh = tx.init(new_params)
    made, kept = _by_path(fresh), _by_path(old_state)
    begun = _owned(tx, new_params, anew, made)
    for path, leaf in made.items():
        if path not in begun:
            _check_kept(path, leaf, kept)
    # Scales and residuals are outside of the boxes that parameters may be in.
    flat, new_flat = (_by_path(outside_boxes(p), "params") for p in (old_params, new_params))
    gone = (old.keys() - new.keys()) | (flat.keys() - new_flat.keys())
    _check_dropped([path for path in kept if path not in made], gone)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if keystr(path) in begun else kept[keystr(path)], fresh
    )


def _by_path(tree: PyTree, name: str = "") -> dict[str, Any]:
    return {name + keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _restarted(restart: Any, new: dict[str, Any]) -> set[str]:
    """`restart` as a set of paths of `new_params`."""
    if isinstance(restart, str) or not isinstance(restart, Collection):
        raise TypeError(
            "restart must be a collection of paths, such as [\"params['head']['kernel']\"]; got "
            f"{_check.show(restart)}."
        )
    for path in restart:
        if not isinstance(path, str):
            raise TypeError(f"restart must hold strings; got {_check.show(path)}.")
        if path not in new:
            nearest = difflib.get_close_matches(path, new, n=1, cutoff=0.0) or ["params"]
            raise ValueError(
                f"restart has {path!r}, which is not the path of a leaf of new_params. Did you "
                f"mean {nearest[0]!r}?"
            )
    return set(restart)


def _check_unchanged(path: str, old: Any, new: Any) -> None:
    """Raise unless a parameter that keeps its moments has its old shape and dtype."""
    advice = f"To restart its moments at zero, pass restart=[{path!r}]."
    if np.shape(new) != np.shape(old):
        raise ValueError(
            f"{path} has shape {np.shape(new)} in new_params, but {np.shape(old)} in old_params. "
            f"{advice}"
        )
    if jnp.result_type(new) != jnp.result_type(old):
        raise ValueError(
            f"{path} is {jnp.result_type(new)} in new_params, but {jnp.result_type(old)} in "
            f"old_params. {advice}"
        )


def _owned(
    tx: GradientTransformation, params: PyTree, anew: set[str], made: dict[str, Any]
) -> set[str]:
    """The leaves of a state that belong to the parameters in `anew`.

    Their paths do not show it, because Optax's states may hold trees of any kind. They are the
    leaves that `init` does not make when these parameters are None.
    """
    if not anew:
        return set()

    def without(path: Any, leaf: Any) -> Any:
        return None if "params" + keystr(path) in anew else leaf

    rest = jax.eval_shape(tx.init, jax.tree_util.tree_map_with_path(without, params))
    return made.keys() - _by_path(rest).keys()


_NOT_A_STATE = (
    "old_state must be a state of tx for old_params, made by the same factories with the same "
    "moments and rounding."
)


def _check_kept(path: str, made: Any, kept: dict[str, Any]) -> None:
    """Raise unless `old_state` has a leaf at this path, like the one that `init` made."""
    if path not in kept:
        raise ValueError(f"old_state has no leaf {path}, which tx.init makes. {_NOT_A_STATE}")
    leaf = kept[path]
    if np.shape(leaf) != np.shape(made):
        raise ValueError(
            f"old_state{path} has shape {np.shape(leaf)}, but tx.init makes {np.shape(made)}. "
            f"{_NOT_A_STATE}"
        )
    # An injected hyperparameter may have been set to a Python number.
    dtype, wanted = (getattr(x, "dtype", None) for x in (leaf, made))
    if None not in (dtype, wanted) and dtype != wanted:
        raise ValueError(f"old_state{path} is {dtype}, but tx.init makes {wanted}. {_NOT_A_STATE}")


def _check_dropped(paths: list[str], gone: set[str]) -> None:
    """Raise unless what is dropped from `old_state` belonged to removed parameters."""
    ends = tuple(path.removeprefix("params") for path in gone)
    for path in paths:
        if not path.endswith(ends):
            raise ValueError(
                f"old_state has a leaf {path}, which tx.init does not make. {_NOT_A_STATE}"
            )
