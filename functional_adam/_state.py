"""The state of an optimizer: what it holds, how it begins, how a foreign one is told."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import keystr
from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._types import PyTree, arithmetic_dtype, real_dtype


class AdamState(NamedTuple):
    """The state of every optimizer of this package: one counter and trees of plain arrays.

    Attributes:
        count: int32, shape (): updates done so far. Stops at 2**31 - 1 instead of wrapping.
        mu: first moment, a tree like the parameters. float32 for real parameters of up to 32
            bits, float64 for float64, complex for complex ones; `mu_dtype` overrides.
        nu: second moment (the mean of |g|**2), likewise and always real; `nu_dtype` overrides.
        nu_scale, residual: None, unless a storage format needs them.
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


def init(
    params: PyTree, *, mu_dtype: DTypeLike | None = None, nu_dtype: DTypeLike | None = None
) -> AdamState:
    """A fresh state: count 0 and zero moments.

    Args:
        params: any tree of float or complex arrays (NumPy arrays and Python floats work too).
            None leaves pass through.
        mu_dtype: dtype of the first moment, taken as it is; None (default) means float32 for
            parameters of up to 32 bits, float64 for float64, and complex for complex ones, which
            need a complex `mu`.
        nu_dtype: float dtype of the second moment, likewise but always real. Below float32 it is
            rounded to nearest, and for b2 >= 0.99 a 16-bit `nu` no longer moves (see
            docs/precision.md).

    Returns:
        An `AdamState`. Every moment is a buffer of its own with its parameter's shape and
        sharding, 8 bytes a parameter by default; the count lies replicated on their mesh.

    Raises:
        TypeError: a leaf is not a float or complex array, or a dtype is not a float dtype.
        ValueError: a 64-bit dtype without JAX's 64-bit mode.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> fa.init({"b": jnp.ones(2)}, mu_dtype="bfloat16").mu
        {'b': Array([0, 0], dtype=bfloat16)}
    """
    mu_dtype = _check.moment_dtype("mu_dtype", mu_dtype, real=False)
    nu_dtype = _check.moment_dtype("nu_dtype", nu_dtype, real=True)

    def zeros(path: Any, leaf: Any, second: bool) -> jax.Array:
        dtype = _check.leaf_dtype("params" + keystr(path), leaf)
        if second:
            return jnp.zeros_like(leaf, dtype=nu_dtype or real_dtype(arithmetic_dtype(dtype)))
        return jnp.zeros_like(leaf, dtype=mu_dtype or arithmetic_dtype(dtype))

    map_leaves = jax.tree_util.tree_map_with_path
    return AdamState(
        count=_fresh_count(params),
        mu=map_leaves(functools.partial(zeros, second=False), params),
        nu=map_leaves(functools.partial(zeros, second=True), params),
    )


def _fresh_count(params: PyTree) -> jax.Array:
    """0; on the mesh of sharded parameters, or the second step would be compiled anew."""
    count = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            if isinstance(leaf.sharding, NamedSharding):
                return jax.device_put(count, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
            break
    return count


def check_state(state: Any, whose: str, keeps: Sequence[str] = ()) -> None:
    """`state` is an AdamState with a scalar count and in `extra` the trees that `whose` keeps."""
    if not isinstance(state, AdamState):
        raise TypeError(
            f"state must be an AdamState, as `init` returns it; got {type(state).__name__}. "
            "(optax.chain keeps a tuple of states; a checkpoint restored without a target is a "
            "dict.)"
        )
    dtype = getattr(state.count, "dtype", None)
    if dtype not in (np.int32, np.int64):
        given = dtype or type(state.count).__name__
        raise TypeError(f"state.count must be an int32 array, as `init` makes it; got {given}.")
    if np.shape(state.count) != ():
        raise ValueError(
            f"state.count must have shape (); got {np.shape(state.count)}. For a batch of states, "
            "jax.vmap over the update."
        )
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
