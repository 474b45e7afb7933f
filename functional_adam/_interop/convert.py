"""Converts a state to another moment format."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr

from functional_adam import _check, _host, _trees
from functional_adam._equations.numerics import widened
from functional_adam._mesh import over_auto_axes, sharding_of
from functional_adam._state import AdamState, built_like, check_count, no_scale, outside_boxes
from functional_adam._storage.formats import FORMATS, Format, Int8, MomentFormat, make_format
from functional_adam._storage.leaf_state import LeafState, format_of
from functional_adam._storage.noise import StepNoise, leaf_key, random_bits, step_noise
from functional_adam._types import PyTree, arithmetic_dtype, real_dtype


def convert_moments(state: AdamState, params: PyTree, *, moments: MomentFormat) -> AdamState:
    """Convert a state to another moment format, so that a run can continue in 8 bits or back.

    Values are rounded as in a step, with the random bits of `state.count`. Converting to "full"
    rounds nothing. The format of `state` is read from its arrays.

    Args:
        state: An `AdamState` from `init` or an update, in any format.
        params: The parameters, for their structure and dtypes.
        moments: The new storage format: "full", "bfloat16", "int8", or a `Full`, `BFloat16` or
            `Int8` object.

    Returns:
        An `AdamState` as `init(params, moments=moments)` makes it, with the count and `residual` of
        `state`.

    Raises:
        TypeError: `state` is not an `AdamState`, or `moments` cannot hold a leaf.
        ValueError: The trees differ, or moments="int8" is given for a state with trees in `extra`
            or with infinite moments. (Under `jit`, which cannot raise, infinite moments become NaN.
            NaN stays NaN.)

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> params = {"w": jnp.zeros((32, 128))}
        >>> _, state = fa.update({"w": jnp.ones((32, 128))}, fa.init(params))
        >>> small = fa.convert_moments(state, params, moments="int8")
        >>> _, small = fa.update({"w": jnp.ones((32, 128))}, small, moments="int8")
        >>> int(small.count), small.nu["w"].dtype
        (2, dtype('uint8'))
    """
    check_count(state)
    format = make_format(moments)
    if isinstance(format, Int8) and state.extra:
        raise ValueError(
            f'moments="int8" cannot store the trees {list(state.extra)} of state.extra: use '
            'moments="bfloat16" or "full".'
        )
    thetas, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_trees.is_none)

    def leaves(name: str, tree: PyTree) -> list[object]:
        return _trees.leaves_if_any(f"state.{name}", tree, params, "params")

    extra = state.extra or {}
    extra_trees = {name: leaves(f"extra[{name!r}]", tree) for name, tree in extra.items()}
    flat = outside_boxes(params)
    scales = _trees.leaves_if_any("state.nu_scale", state.nu_scale, flat, "params")
    columns = leaves("mu", state.mu), leaves("nu", state.nu), scales
    noise = step_noise(jnp.asarray(state.count), tuple(extra))
    new = [
        _converted(
            format,
            keystr(path),
            theta,
            LeafState(mu, nu, {name: kept[i] for name, kept in extra_trees.items()}, scale),
            noise,
        )
        for i, ((path, theta), mu, nu, scale) in enumerate(zip(thetas, *columns, strict=True))
    ]
    return state._replace(
        mu=treedef.unflatten(leaf.m for leaf in new),
        nu=treedef.unflatten(leaf.v for leaf in new),
        nu_scale=built_like(flat, [leaf.scale for leaf in new]) if format.has_scale else None,
        extra={k: treedef.unflatten(leaf.extra[k] for leaf in new) for k in extra} or None,
    )


def _converted(
    format: Format, path: str, theta: Any, old: LeafState, noise: StepNoise
) -> LeafState:
    if theta is None:
        return LeafState(None, None, dict.fromkeys(old.extra))
    fresh = format.fresh("params" + path, theta)
    _check.same_shape("state.mu" + path, old.m, theta, "params" + path)
    old = _host.brought(old)
    # The variant's own trees `mu_...` are stored like mu, and `nu_...` like nu.
    like = {k: fresh.m if k.startswith("mu") else fresh.v for k in old.extra}
    format = format.of(fresh)
    if isinstance(format, Int8):
        _refuse_infinite(path, old)
    wide = arithmetic_dtype(_check.leaf_dtype("params" + path, theta))
    scale = no_scale(fresh, sharding_of(theta)) if format.has_scale else None
    fresh = fresh._replace(extra=like, scale=scale)
    carried: Callable[..., LeafState] = functools.partial(_restored_leaf, format, wide)
    if format.has_scale or old.scale is not None:
        carried = over_auto_axes(carried, fresh)
    key = leaf_key("converted" + path)  # bits independent of those that may have rounded `old`
    return carried(old, fresh, noise, key)


def _refuse_infinite(path: str, old: LeafState) -> None:
    """Raise for infinite moments: v = inf stops a coordinate; a finite code would restart it."""
    for name, moment in (("nu", old.v), ("mu", old.m)):
        if isinstance(moment, Tracer) or not jnp.issubdtype(moment.dtype, jnp.inexact):
            continue
        if found := int(jnp.sum(jnp.isinf(moment))):
            raise ValueError(
                f"state.{name}{path} has {found} infinite elements of {moment.size}, which "
                'moments="int8" cannot store. Use moments="bfloat16", or set both moments of these '
                "elements to 0, which restarts them."
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _restored_leaf(
    format: Format,
    wide: np.dtype[Any],
    old: LeafState,
    fresh: LeafState,
    noise: StepNoise,
    key: Any,
) -> LeafState:
    """A leaf, read from the old format and stored in the new one."""
    loaded = FORMATS[format_of(old.m, old.v)]().load(old)
    new = jax.tree.map(functools.partial(widened, real_dtype(wide)), loaded)
    return format.store(new, fresh, random_bits(noise, key, fresh.m.shape), None)
