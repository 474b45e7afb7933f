"""The state of an optimizer: what it holds, how it is made, and how another one is recognized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.tree_util import keystr
from jax.typing import DTypeLike

from functional_adam import _check, _trees
from functional_adam._hints import restored, tree_hints
from functional_adam._hints.keywords import explained
from functional_adam._mesh import replicated, scale_sharding, sharding_of, zeros
from functional_adam._storage.float_formats import Full
from functional_adam._storage.floats import is_16bit
from functional_adam._storage.formats import Format, MomentFormat, make_format
from functional_adam._storage.leaf_state import LeafState, refuse_other_format
from functional_adam._storage.rounding import ROUNDINGS, Rounding
from functional_adam._types import ParameterRounding, PyTree


class AdamState(NamedTuple):
    """The state of every optimizer of this package: one counter and trees of plain arrays.

    Attributes:
        count: Number of steps taken, int32 of shape (). It stops at 2**31 - 1 instead of wrapping.
        mu: First moments m, a tree like the parameters. A leaf has its parameter's shape and, by
            default, dtype float32, or the parameter's dtype if that is wider; `mu_dtype` changes
            it. With moments="bfloat16" the dtype is bfloat16, with "int8" the leaf holds int8 codes
            (see `Int8`).
        nu: Second moments v (the mean of |g|**2), a tree like `mu` and always real; `nu_dtype`
            changes the dtype. With moments="bfloat16" the dtype is bfloat16, with "int8" the leaf
            holds uint8 codes.
        nu_scale: None, or with moments="int8" a tree of uint16 arrays: one number per block of
            about 128 elements, of shape (*leading axes, blocks). A leaf smaller than
            `Int8.min_size` has None here and float32 moments.
        residual: None, or what a rounding other than "nearest" stores for each 16-bit parameter.
            With "compensated" a leaf is an int8 array of the parameter's shape, with "split" an
            int16 array. With "stochastic" it is a zero of shape () whose dtype records that of the
            parameter. Wider parameters have None.
        extra: None, or a dict of the further trees of a variant, each like the parameters:
            `nu_max` in `amsgrad` (stored like `nu`), `mu_slow` in `ademamix` (stored like `mu`).

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> state = fa.init({"w": jnp.zeros((2, 3), jnp.bfloat16)})
        >>> state.mu["w"].dtype, state.nu["w"].shape, int(state.count)
        (dtype('float32'), (2, 3), 0)
    """

    count: chex.Array  # pyright: ignore[reportIncompatibleMethodOverride] (Optax's name; hides tuple.count)
    mu: PyTree
    nu: PyTree
    nu_scale: PyTree = None
    residual: PyTree = None
    extra: PyTree = None


@explained
def init(
    params: PyTree,
    *,
    moments: MomentFormat = "full",
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    rounding: ParameterRounding = "nearest",
) -> AdamState:
    """A fresh state for `update`: count 0 and moments of zeros.

    Args:
        params: Any tree of float arrays of at least 16 bits or complex arrays; NumPy arrays and
            Python floats work too. A None leaf stays None. Complex parameters need the conjugate of
            the gradient that `jax.grad` returns: see `update`.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider. Other dtypes must have at least 16 bits, be complex
            for complex parameters, and need moments="full".
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision. Prefer moments="bfloat16" to a 16-bit dtype here. In
            bfloat16 v stops moving where b2 >= 0.99. In float16 small values become 0, which makes
            steps hundreds of times too long (see docs/precision.md).
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
            "compensated" and "split" store the rounding error of each such parameter in `residual`:
            one and two bytes per element. See `update`.

    Returns:
        An `AdamState`. Every moment is a buffer of its own, with the shape and the sharding of its
        parameter. The count is replicated on the mesh of the parameters.

    Raises:
        TypeError: A leaf is neither a float array of at least 16 bits nor a complex array, or
            `moments` cannot hold it; or `mu_dtype` or `nu_dtype` is not such a dtype.
        ValueError: A 64-bit dtype is given without JAX's 64-bit mode, a dtype is given together
            with another format than "full", or `moments` or `rounding` is an unknown name.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> fa.init({"b": jnp.ones(2)}, mu_dtype="bfloat16").mu
        {'b': Array([0, 0], dtype=bfloat16)}
    """
    return fresh(
        params,
        make_format(moments, mu_dtype, nu_dtype),
        _check.choice("rounding", rounding, ROUNDINGS),
    )


def fresh(params: PyTree, moments: Format, rounding: Rounding) -> AdamState:
    """`init` once its arguments are checked."""
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    stored = [moments.fresh("params" + keystr(path), leaf) for path, leaf in paths_and_leaves]
    lies = [sharding_of(leaf) for _, leaf in paths_and_leaves]
    state = AdamState(
        count=zeros((), jnp.int32, replicated(next(filter(None, lies), None), 0)),
        mu=treedef.unflatten(leaf.m for leaf in stored),
        nu=treedef.unflatten(leaf.v for leaf in stored),
    )
    if moments.has_scale:
        scales = [no_scale(leaf, s) for leaf, s in zip(stored, lies, strict=True)]
        state = state._replace(nu_scale=beside(params, scales))
    if rounding.rounds_update:
        leaves = [leaf for _, leaf in paths_and_leaves]
        residual = [_no_error(rounding, *pair) for pair in zip(leaves, lies, strict=True)]
        state = state._replace(residual=beside(params, residual))
    return state


def no_scale(stored: LeafState, sharding: NamedSharding | None) -> jax.Array | None:
    """The scales of a moment of zeros, if it has any."""
    if stored.scale is None:
        return None
    shape = stored.scale.shape
    return zeros(shape, stored.scale.dtype, scale_sharding(sharding, stored.v.shape, shape))


def _no_error(rounding: Rounding, leaf: Any, sharding: NamedSharding | None) -> jax.Array | None:
    """The residual of a parameter that has no rounding error yet."""
    dtype = jnp.result_type(leaf)
    if not is_16bit(dtype):
        return None
    if rounding.residual is not None:
        return jnp.zeros_like(leaf, dtype=rounding.residual.dtype)
    return zeros((), dtype, replicated(sharding, 0))


# ---- Boxes ----

# Libraries wrap a parameter in a node (a box) that says how its dimensions are sharded (Flax:
# `nnx.Param`, `nn.Partitioned`). Moments have the same dimensions and stay in these boxes. Scales
# and residuals may have other dimensions, so they take the place of the box.


def _is_container(x: Any) -> bool:
    return x is None or isinstance(x, tuple | list | Mapping)


def outside_boxes(tree: PyTree) -> PyTree:
    """`tree` with each box, a node of another class with one leaf, replaced by its leaf."""

    def is_box(x: Any) -> bool:
        return not _is_container(x) and len(jax.tree.leaves(x)) == 1

    return jax.tree.map(lambda x: jax.tree.leaves(x)[0], tree, is_leaf=is_box)


def beside(params: PyTree, leaves: list[Any]) -> PyTree:
    """A tree of these leaves, one per parameter, outside of boxes."""
    if not leaves and not _is_container(params) and jax.tree.structure(params).num_nodes == 1:
        # optax.tree.map_params calls `init` with an empty node and takes every tree that contains
        # this node for one of the parameters' shapes. This tree is not one, so it becomes a leaf.
        return zeros((), jnp.int8, None)
    return jax.tree.structure(outside_boxes(params)).unflatten(leaves)


def built_like(tree: PyTree, leaves: list[Any]) -> PyTree:
    """A tree of these leaves, None included, with the structure of `tree`; None if that is None."""
    if tree is None or not leaves:
        return tree
    return jax.tree.structure(tree, is_leaf=_trees.is_none).unflatten(leaves)


def next_count(count: jax.Array) -> jax.Array:
    """The count plus 1; it stops at the largest int32 instead of wrapping."""
    return jnp.minimum(count, np.iinfo(np.int32).max - 1) + 1


# ---- States inside the states of wrappers ----


def is_adam_state(x: Any) -> bool:
    """For `is_leaf=`: finds this package's states among those of other transformations."""
    return isinstance(x, AdamState)


def check_init(tx: Any) -> None:
    """Raise unless `tx` can make a state."""
    if not callable(getattr(tx, "init", None)):
        raise TypeError(
            f"tx must be a gradient transformation, such as adam(1e-3); got {_check.show(tx)}."
        )


def state_shapes(tx: Any, params: PyTree) -> PyTree:
    """The shapes and dtypes of what `tx.init` returns."""
    check_init(tx)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, Sharding):
            raise TypeError(
                f"params{keystr(path)} is a sharding. Pass the parameters, or their shapes, before "
                "the shardings."
            )
    return jax.eval_shape(tx.init, params)


# ---- Checks ----


def check_count(state: Any) -> None:
    """Raise unless `state` is an AdamState with a scalar count."""
    if not isinstance(state, AdamState):
        raise TypeError(tree_hints.not_a_state(state))
    dtype = getattr(state.count, "dtype", None)
    no_numbers = isinstance(state.count, jax.ShapeDtypeStruct)
    if no_numbers or dtype not in (np.int32, np.int64):
        raise _no_count(
            state, _check.show(state.count) if no_numbers else dtype or type(state.count).__name__
        )
    if np.shape(state.count) != ():
        raise ValueError(
            f"state.count must have shape (); got {np.shape(state.count)}. For a batch of states, "
            "apply jax.vmap to the update."
        )


def _no_count(state: AdamState, given: object) -> TypeError:
    return TypeError(
        f"state.count must be an int32 array, as `init` makes it; got {given}."
        f"{restored.count(state)}"
    )


def check_state(
    state: Any,
    whose: str,
    keeps: Sequence[str] = (),
    moments: Format | None = None,
    rounding: Rounding = ROUNDINGS["nearest"],
) -> None:
    """Raise unless `state` is an AdamState with exactly the trees that its update needs."""
    check_count(state)
    if not isinstance(state.count, jax.Array | np.ndarray | np.generic):
        raise _no_count(state, _check.show(state.count))
    found = {} if state.extra is None else state.extra
    if type(found) is not dict:
        raise TypeError(
            "state.extra must be None or a dict of trees, as `init` makes it; got "
            f"{type(found).__name__}."
        )
    if set(found) != set(keeps):
        held = f"the trees {list(found)}" if found else "no trees"
        wanted = f"the trees {list(keeps)}" if keeps else "no trees"
        raise ValueError(
            f"state.extra holds {held}, but {whose} needs {wanted} there: this state belongs to "
            "another optimizer. Make the state with the `init` of the same transformation."
        )
    moments = moments or Full()
    if state.mu is None:  # `init` was given no parameters: the check of the gradients says so
        return
    if (state.nu_scale is not None) != moments.has_scale:
        leaves = jax.tree_util.tree_leaves_with_path(state.mu), jax.tree.leaves(state.nu)
        formats: list[Format] = []
        for (path, m), v in zip(*leaves, strict=False):
            stored = LeafState(m, v, {})
            formats.append(moments.of(stored))
            refuse_other_format(formats[-1], keystr(path), stored)
        # A single array, or a tree of small leaves only, has no scales in either format.
        if state.nu_scale is not None or any(format.has_scale for format in formats):
            raise ValueError(
                f"state.nu_scale is {'None' if state.nu_scale is None else 'a tree'}, which does "
                f'not fit moments="{moments.name}": "int8" has scales, other formats have none. '
                "Make the state with `init`."
            )
    if state.residual is not None and not rounding.rounds_update:
        raise ValueError(
            f'state.residual is a tree, but rounding="{rounding.name}" was given: only '
            '"stochastic", "compensated" and "split" have a residual. Pass the rounding that made '
            "the state, or drop the residual: state._replace(residual=None)."
        )
