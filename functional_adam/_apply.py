"""What happens to parameters: adding an update, and reading the master weights of 16-bit ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _nested, _trees
from functional_adam._state import AdamState
from functional_adam._storage.floats import is_16bit
from functional_adam._storage.residual import COMPENSATED, SPLIT, master
from functional_adam._storage.rounding import added, as_weak_as
from functional_adam._types import PyTree


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """Add updates to parameters: theta <- theta + u, leaf by leaf.

    Args:
        params: Tree of parameters. A None leaf stays None.
        updates: Tree of updates, like `params`. A None leaf leaves its parameter as it is. The
            update of a frozen integer parameter may be None, float0 (from `jax.grad`) or of the
            parameter's own dtype (from `optax.set_to_zero`).

    Returns:
        The new parameters. Each has the shape, dtype and weak type of the old one. The sum is
        computed in the wider of the two dtypes and rounded once.

    Raises:
        ValueError: The trees differ in structure, or two leaves in shape.
        TypeError: A leaf is not a float or complex array, or a complex update belongs to a real
            parameter.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> fa.apply_updates({"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.array([0.5, -1.0])})
        {'w': Array([1.5, 0], dtype=bfloat16)}
    """
    updates_leaves = _trees.leaves_like("updates", updates, params, "params")
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_trees.is_none)
    pairs = zip(paths_and_leaves, updates_leaves, strict=True)
    return treedef.unflatten(_add(keystr(path), p, u) for (path, p), u in pairs)


def master_params(params: PyTree, state: PyTree) -> PyTree:
    """The float32 master weights that 16-bit parameters and `state.residual` hold together.

    Use them for evaluation and for saving. With rounding="compensated" a weight is
    theta + residual * ulp(theta) / 256. With "split" it is a float32 weight, exact to its last bit.
    A 16-bit parameter that `optax.masked` or `optax.partition` gives to another transformation has
    no residual and is cast to float32. Wider parameters are returned as they are.

    Args:
        params: The parameters.
        state: An `AdamState` made with rounding="compensated" or "split", or any state that holds
            one or several: that of `optax.chain`, `masked`, `partition` (one per group),
            `MultiSteps`, `inject_hyperparams`, or the `opt_state` of a Flax `nnx.Optimizer`.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: `state` holds no `AdamState`, none of its states has such a residual, two have
            one for the same parameter, or a residual does not fit its parameter.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> params = jnp.ones(2, jnp.bfloat16)
        >>> tx = fa.adam(1e-3, rounding="compensated")
        >>> updates, state = tx.update(jnp.ones(2, jnp.bfloat16), tx.init(params), params)
        >>> params = fa.apply_updates(params, updates)  # 1 - 1e-3 rounds to 1 in bfloat16
        >>> params, [round(float(w), 3) for w in fa.master_params(params, state)]
        (Array([1, 1], dtype=bfloat16), [0.999, 0.999])
    """
    codes, elsewhere = _residuals(_nested.states("state", state))
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_trees.is_none)
    for path in codes.keys() - {path for path, _ in paths_and_leaves}:
        raise ValueError(
            f"state has a residual for params{keystr(path)}, which is not in params: pass the same "
            "parameters that were given to init."
        )

    def weight(path: _nested.Path, p: Any) -> Any:
        if path in codes:
            return _master(keystr(path), p, codes[path])
        if p is not None and not any(is_elsewhere(path) for is_elsewhere in elsewhere):
            raise ValueError(
                f"state holds nothing for params{keystr(path)}: pass the state that `tx.init` made "
                "for these parameters."
            )
        short = p is not None and is_16bit(_check.leaf_dtype("params" + keystr(path), p))
        return master(jnp.asarray(p), None) if short else p

    return treedef.unflatten(weight(path, p) for path, p in paths_and_leaves)


def _residuals(
    states: list[tuple[str, AdamState]],
) -> tuple[dict[_nested.Path, Any], list[Callable[[_nested.Path], bool]]]:
    """The residuals by their parameters' paths, and tests for paths that other states own."""
    codes: dict[_nested.Path, Any] = {}
    coded = [(where, state) for where, state in states if _has_codes(state)]
    for where, state in coded:
        mine = _nested.by_parameter(f"{where}.residual", state.residual, state)
        for path, code in mine.items():
            if path in codes:
                raise ValueError(
                    f"state has two residuals for params{keystr(path)}, the second in {where}: "
                    "pass only the state that belongs to params."
                )
            codes[path] = code
    if not coded:
        where, state = states[0]
        raise ValueError(
            f"{where}.residual is {'None' if state.residual is None else 'made of zeros'}: only "
            'rounding="compensated" or "split" keeps master weights. With any other rounding the '
            "parameters themselves are all there is."
        )
    return codes, [_nested.left_out(state.mu) for _, state in coded]


def _has_codes(state: AdamState) -> bool:
    """Whether the residual holds codes; with rounding="stochastic" it holds zeros."""
    kept = jax.tree.leaves(state.residual)
    is_zero = any(jnp.issubdtype(x.dtype, jnp.inexact) for x in kept)
    return state.residual is not None and not is_zero


def _master(path: str, p: Any, code: Any) -> Any:
    if p is None:
        return None
    found = getattr(code, "dtype", None)
    kind = SPLIT if found == SPLIT.dtype else COMPENSATED
    wanted = jax.ShapeDtypeStruct(np.shape(p), kind.dtype)
    _check.residual(path, code, _check.leaf_dtype("params" + path, p), wanted)
    return p if code is None else master(jnp.asarray(p), code)


def _add(path: str, p: Any, u: Any) -> Any:
    if p is None and u is not None:
        raise ValueError(f"updates{path} is an array, but params{path} is None. Put None there.")
    if p is None or u is None:
        return p
    p_dtype, u_dtype = (getattr(x, "dtype", np.float32) for x in (p, u))
    if jnp.issubdtype(p_dtype, jnp.integer) or jnp.issubdtype(p_dtype, jnp.bool_):  # frozen
        if u_dtype == jax.dtypes.float0:
            return p
        if u_dtype == p_dtype and np.shape(u) == np.shape(p):
            return p + u
    _check.leaf_dtype("params" + path, p)
    p = jnp.asarray(p)
    u = _check.leaf_like("updates" + path, u, p, "params" + path, may_be_real=True)
    return as_weak_as(p, added(p, u))
