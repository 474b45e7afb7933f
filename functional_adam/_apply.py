"""The parameters' side of a step: adding the update, reading the weights they stand for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check
from functional_adam._rounding import master
from functional_adam._state import check_count, outside_boxes
from functional_adam._types import PyTree, arithmetic_dtype


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """theta <- theta + u, leaf by leaf.

    Args:
        params: tree of parameters. A None leaf passes.
        updates: a tree like `params`. A None leaf leaves its parameter as it is. For an integer
            parameter that is frozen, None, float0 (as jax.grad gives), or its own dtype (as
            optax.set_to_zero gives).

    Returns:
        The new parameters, each with its parameter's shape, dtype and weak type. The sum is made
        in the wider of the two dtypes and rounded once.

    Raises:
        ValueError: the trees differ in structure, or two leaves in shape.
        TypeError: a leaf is not a float or complex array, or a complex update meets a real
            parameter.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> fa.apply_updates({"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.array([0.5, -1.0])})
        {'w': Array([1.5, 0], dtype=bfloat16)}
    """
    updates_leaves = _check.leaves_like("updates", updates, params, "params")
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_check.is_none)
    pairs = zip(paths_and_leaves, updates_leaves, strict=True)
    return treedef.unflatten(_add(keystr(path), p, u) for (path, p), u in pairs)


def master_params(params: PyTree, state: PyTree) -> PyTree:
    """The float32 weights that 16-bit parameters and the `residual` beside them stand for.

    theta + residual * ulp(theta) / 256, for evaluation and for saving. Parameters of other dtypes
    are returned as they are.

    Args:
        params: the parameters.
        state: an `AdamState` made with rounding="compensated".

    Returns:
        A tree like `params`.

    Raises:
        TypeError: `state` is not an `AdamState`.
        ValueError: it has no `residual`, or one that does not fit `params`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> params = jnp.ones(2, jnp.bfloat16)
        >>> tx = fa.adam(1e-3, rounding="compensated")
        >>> updates, state = tx.update(jnp.ones(2, jnp.bfloat16), tx.init(params), params)
        >>> params = fa.apply_updates(params, updates)  # half a unit is 2e-3
        >>> params, [round(float(w), 3) for w in fa.master_params(params, state)]
        (Array([1, 1], dtype=bfloat16), [0.999, 0.999])
    """
    check_count(state)
    if state.residual is None:
        raise ValueError(
            'state.residual is None: only a state made with rounding="compensated" knows more of '
            "the weights than the parameters themselves."
        )
    codes = _check.leaves_like("state.residual", state.residual, outside_boxes(params), "params")
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_check.is_none)
    pairs = zip(paths_and_leaves, codes, strict=True)
    return treedef.unflatten(_master(keystr(path), p, code) for (path, p), code in pairs)


def _master(path: str, p: Any, code: Any) -> Any:
    if p is None:
        return None
    _check.residual(path, code, _check.leaf_dtype("params" + path, p), np.shape(p))
    return p if code is None else master(jnp.asarray(p), code)


def _add(path: str, p: Any, u: Any) -> Any:
    if p is None and u is not None:
        raise ValueError(f"updates{path} is an array, but params{path} is None.")
    if p is None or u is None:
        return p
    p_dtype, u_dtype = (getattr(x, "dtype", np.float32) for x in (p, u))
    if jnp.issubdtype(p_dtype, jnp.integer) or jnp.issubdtype(p_dtype, jnp.bool_):  # frozen
        if u_dtype == jax.dtypes.float0:
            return p
        if u_dtype == p_dtype and np.shape(u) == np.shape(p):
            return p + u
    dtype = _check.leaf_dtype("params" + path, p)
    p = jnp.asarray(p)
    u = _check.leaf_like("updates" + path, u, p, "params" + path, may_be_real=True)
    wide = arithmetic_dtype(dtype, u.dtype)
    total = (p.astype(wide) + u.astype(wide)).astype(dtype)
    # Only `full_like` hands a weak type on, and only with a scalar: hence one call an element.
    return jnp.vectorize(jax.lax.full_like)(p, total) if p.weak_type else total
