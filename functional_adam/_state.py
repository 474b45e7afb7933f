"""The state of an optimizer: what it holds, how it begins, how a foreign one is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
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
        count: int32, shape (): updates done so far. Stops at 2**31 - 1 instead of wrapping.
        mu: first moment, a tree like the parameters. float32 for real parameters of up to 32
            bits, float64 for float64, complex for complex ones; `mu_dtype` overrides. With
            moments="bfloat16" bfloat16, with "int8" int8 codes (see `Int8`).
        nu: second moment (the mean of |g|**2), likewise and always real; `nu_dtype` overrides. With
            moments="bfloat16" bfloat16, with "int8" uint8 codes.
        nu_scale: None, or with moments="int8" a tree of uint16, one for each block of about 128.
            None for each leaf below `Int8.min_size`, whose moments are float32.
        residual: None, or a tree with None for each parameter that is not of 16 bits. For the
            others it holds with rounding="compensated" an int8 array of the parameter's shape, with
            "split" an int16 array, and with "stochastic" a zero of the parameter's dtype, which
            tells whether the parameter still has it.
        extra: None, or a dict of the further trees that a variant keeps, each like the parameters:
            `nu_max` in amsgrad (stored like `nu`), `mu_slow` in ademamix (like `mu`).

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
    """A fresh state: count 0 and zero moments.

    Args:
        params: Any tree of complex arrays or floats of at least 16 bits (NumPy arrays and Python
            floats work too). None leaves pass through. Complex parameters need the conjugate of
            `jax.grad`'s gradient: see `update`.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
            That is float64 for float64 parameters and complex for complex ones. Any other dtype has
            at least 16 bits, is complex for complex parameters, and goes with moments="full" alone.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32. Prefer
            moments="bfloat16" to a `nu` of 16 bits: in bfloat16 it stops moving where b2 >= 0.99,
            and in float16 small values become 0, which makes steps hundreds of times too long (see
            docs/precision.md).
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`. "compensated" and "split" store what each parameter lacks in `residual`, one
            byte or two per element. See `update`.

    Returns:
        An `AdamState`. Every moment is a buffer of its own with its parameter's shape and
        sharding; the count is replicated on their mesh.

    Raises:
        TypeError: a leaf that is not a complex array or one of floats of at least 16 bits, or that
            `moments` cannot hold; a dtype that is no such dtype.
        ValueError: a 64-bit dtype without JAX's 64-bit mode; an unknown name; a dtype beside
            `moments`.

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
    """`init`, its arguments checked."""
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
    """The residual of a parameter that is what it should be."""
    dtype = jnp.result_type(leaf)
    if not is_16bit(dtype):
        return None
    if rounding.residual is not None:
        return jnp.zeros_like(leaf, dtype=rounding.residual.dtype)
    return zeros((), dtype, replicated(sharding, 0))


# ---- Boxes ----

# Libraries wrap a parameter in a node that says how its dimensions are divided (Flax: `nnx.Param`,
# `nn.Partitioned`). Moments have these dimensions and stay in such boxes. Scales and residuals may
# have others, and lie where the box would be.


def _is_container(x: Any) -> bool:
    return x is None or isinstance(x, tuple | list | Mapping)


def outside_boxes(tree: PyTree) -> PyTree:
    """`tree` with leaves in place of the boxes around them: nodes of other classes, of one leaf."""

    def is_box(x: Any) -> bool:
        return not _is_container(x) and len(jax.tree.leaves(x)) == 1

    return jax.tree.map(lambda x: jax.tree.leaves(x)[0], tree, is_leaf=is_box)


def beside(params: PyTree, leaves: list[Any]) -> PyTree:
    """A tree of these leaves, one for each parameter, outside of boxes."""
    if not leaves and not _is_container(params) and jax.tree.structure(params).num_nodes == 1:
        # optax.tree.map_params calls `init` with an empty node, and takes whatever holds that for
        # a tree of the parameters' shapes. This is none: there it is one leaf.
        return zeros((), jnp.int8, None)
    return jax.tree.structure(outside_boxes(params)).unflatten(leaves)


def built_like(tree: PyTree, leaves: list[Any]) -> PyTree:
    """A tree of these leaves, None included, built like `tree`; None for None."""
    if tree is None or not leaves:
        return tree
    return jax.tree.structure(tree, is_leaf=_trees.is_none).unflatten(leaves)


def next_count(count: jax.Array) -> jax.Array:
    """One more; at the largest int32 it stops instead of wrapping."""
    return jnp.minimum(count, np.iinfo(np.int32).max - 1) + 1


# ---- In others ----


def is_adam_state(x: Any) -> bool:
    """For `is_leaf=`: finds this package's states among those of other transformations."""
    return isinstance(x, AdamState)


def check_init(tx: Any) -> None:
    """`tx` can make a state."""
    if not callable(getattr(tx, "init", None)):
        raise TypeError(
            f"tx must be a gradient transformation with an init; got {_check.show(tx)}."
        )


def state_shapes(tx: Any, params: PyTree) -> PyTree:
    """What `tx.init` gives, in shapes alone."""
    check_init(tx)
    return jax.eval_shape(tx.init, params)


# ---- Checks ----


def check_count(state: Any) -> None:
    """`state` is an AdamState with a scalar count."""
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
            "jax.vmap over the update."
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
    """`state` is an AdamState with a scalar count and just the trees that its update keeps."""
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
        held = f"the trees {list(found)}" if found else "nothing"
        wanted = f"the trees {list(keeps)}" if keeps else "nothing"
        raise ValueError(
            f"state.extra holds {held}, but {whose} keeps {wanted} there: make the state with the "
            "`init` of the same transformation."
        )
    moments = moments or Full()
    if state.mu is None:  # `init` was given no parameters: the gradients will say so
        return
    if (state.nu_scale is not None) != moments.has_scale:
        leaves = jax.tree_util.tree_leaves_with_path(state.mu), jax.tree.leaves(state.nu)
        formats: list[Format] = []
        for (path, m), v in zip(*leaves, strict=False):
            stored = LeafState(m, v, {})
            formats.append(moments.of(stored))
            refuse_other_format(formats[-1], keystr(path), stored)
        # One array, or a tree of small leaves alone, has no scales in either format.
        if state.nu_scale is not None or any(format.has_scale for format in formats):
            raise ValueError(
                f"state.nu_scale is {'None' if state.nu_scale is None else 'a tree'}, which does "
                f'not go with moments="{moments.name}": it belongs to "int8". Make the state by '
                "`init`."
            )
    if state.residual is not None and not rounding.rounds_update:
        raise ValueError(
            f'state.residual is a tree, but rounding="{rounding.name}" was asked for: it goes with '
            '"stochastic", "compensated" or "split". Make the state with the same rounding, or '
            "drop it: state._replace(residual=None)."
        )
