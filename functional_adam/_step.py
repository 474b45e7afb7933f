"""One step over a tree: the only loop over leaves.

Each gradient is checked here. `update_leaf` then loads the moments, applies the variant's formulas,
stores the moments and rounds the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _host, _overrides, _trees
from functional_adam._equations.family import Variant
from functional_adam._hints import tree_hints
from functional_adam._kernels.choice import mode
from functional_adam._kernels.partition import LeafCall, leaf_steps
from functional_adam._leaf import LeafConfig
from functional_adam._leaf_params import LeafParam, leaf_params
from functional_adam._scalars import Group
from functional_adam._scalars import groups as grouped
from functional_adam._settings import Settings
from functional_adam._state import (
    AdamState,
    built_like,
    check_state,
    is_adam_state,
    next_count,
    outside_boxes,
)
from functional_adam._storage.floats import is_16bit
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.noise import StepNoise, opaque_leaf_keys, step_noise
from functional_adam._storage.rounding import Rounding, as_weak_as
from functional_adam._types import PyTree, arithmetic_dtype, real_dtype, wider


class StepContext(NamedTuple):
    """The part of a step that all leaves share, whatever their hyperparameters."""

    noise: StepNoise | None
    keys: dict[str, jax.Array]
    advice: str  # ends the error about a gradient of a wrong shape
    waiting: _host.Waiting  # paths of the leaves whose moments wait on the host
    applies: bool = False  # whether to return parameters instead of updates


def step(
    settings: Settings,
    grads: PyTree,
    state: AdamState,
    params: PyTree | None,
    *,
    strict: bool = False,
    applies: bool = False,
) -> tuple[PyTree, AdamState]:
    """Updates and the next state: the one loop over leaves; with `applies`, parameters and state.

    A mask without decay is not checked, because Optax's wrappers may pass one. With `strict` it is:
    the caller of `update` gives all arguments at once, so an argument without effect is a mistake.
    """
    if not is_adam_state(state):
        # `check_state` would raise too, but it does not see the other arguments.
        raise TypeError(tree_hints.not_a_state(state, grads, params))
    check_state(
        state,
        settings.variant.name,
        [name for name, _ in settings.variant.extra],
        settings.moments,
        settings.rounding,
    )
    paths_and_mu, treedef = jax.tree_util.tree_flatten_with_path(state.mu, is_leaf=_trees.is_none)
    gs = _trees.leaves_like("grads", grads, state.mu, "the parameters given to init")
    leaf_states = _leaf_states(settings.variant, state)
    count = jnp.asarray(state.count)
    # A step without any gradient does not count: bias corrections count the steps that were taken.
    if any(g is not None for g in gs) or not jax.tree.leaves(state.mu):
        count = next_count(count)
    each = _settings_by_leaf(settings, paths_and_mu, gs, state.mu, params, strict)
    groups = grouped(each, state.count, count)
    thetas = leaf_params(groups, paths_and_mu, gs, state.mu, params, strict, applies)
    paths = tuple(keystr(path) for path, _ in paths_and_mu)
    advice = "" if params is None else tree_hints.ONE_MODEL
    context = step_context(settings, count, paths, advice)._replace(applies=applies)
    leaves = list(zip(groups, paths, gs, leaf_states, thetas, strict=True))
    stepped = _step_leaves(context, leaves)

    def tree(leaf: Callable[[LeafState], Any]) -> PyTree:
        return treedef.unflatten(leaf(new) for _, new in stepped)

    extra = {name: tree(lambda new, k=name: new.extra[k]) for name, _ in settings.variant.extra}
    return treedef.unflatten(u for u, _ in stepped), AdamState(
        count=count,
        mu=tree(lambda new: new.m),
        nu=tree(lambda new: new.v),
        nu_scale=built_like(state.nu_scale, [new.scale for _, new in stepped]),
        residual=built_like(state.residual, [new.residual for _, new in stepped]),
        extra=extra or None,
    )


def step_context(
    settings: Settings, count: jax.Array, paths: tuple[str, ...], advice: str
) -> StepContext:
    """What the leaves at these paths share in step number `count`."""
    random = settings.moments.is_random or settings.rounding.is_random
    return StepContext(
        step_noise(count, settings.variant.averages) if random else None,
        dict(zip(paths, opaque_leaf_keys(paths, count), strict=True)) if random else {},
        advice,
        settings.waiting | _host.WITHIN.get(),
    )


def _settings_by_leaf(
    settings: Settings,
    paths_and_mu: list[Any],
    gs: list[Any],
    structure: PyTree,
    params: PyTree | None,
    strict: bool,
) -> list[Settings]:
    """The settings of each leaf; overrides are not evaluated for a leaf without a gradient."""
    if settings.overrides is None:
        return [settings] * len(gs)
    paths = [_overrides.path_of(path) for path, _ in paths_and_mu]
    if strict:  # no `init` has checked them
        _overrides.check_matches(settings.overrides, paths)
    name, leaves = "grads", gs
    if params is not None:
        name = "params"
        leaves = _trees.leaves_like("params", params, structure, "the parameters given to init")

    def of_leaf(path: Any, mu: Any, g: Any, leaf: Any) -> Settings:
        if mu is None or g is None:
            return settings
        return _overrides.of_leaf(settings, name, path, leaf)

    rows = zip(paths_and_mu, gs, leaves, strict=True)
    return [of_leaf(path, mu, g, leaf) for (path, mu), g, leaf in rows]


def _leaf_states(variant: Variant, state: AdamState) -> list[LeafState]:
    """The state, leaf by leaf."""
    mus = jax.tree.leaves(state.mu, is_leaf=_trees.is_none)

    def leaves(name: str, tree: PyTree) -> list[Any]:
        return _trees.leaves_like(f"state.{name}", tree, state.mu, "state.mu")

    def beside(name: str, tree: PyTree) -> list[Any]:
        if tree is None or not mus:
            return [None] * len(mus)
        return _trees.leaves_like(f"state.{name}", tree, outside_boxes(state.mu), "state.mu")

    extra = {k: leaves(f"extra[{k!r}]", state.extra[k]) for k, _ in variant.extra}
    columns = (
        mus,
        leaves("nu", state.nu),
        beside("nu_scale", state.nu_scale),
        beside("residual", state.residual),
    )
    return [
        LeafState(mu, nu, {name: of_leaf[i] for name, of_leaf in extra.items()}, scale, residual)
        for i, (mu, nu, scale, residual) in enumerate(zip(*columns, strict=True))
    ]


# A leaf: its hyperparameters, its path, its gradient, its stored state and its parameter.
_Leaf = tuple[Group, str, Any, LeafState, LeafParam]


def _step_leaves(context: StepContext, leaves: list[_Leaf]) -> list[tuple[Any, LeafState]]:
    """(update or parameter, stored state) of each leaf."""
    calls = [leaf_call(context, *leaf) for leaf in leaves]
    new = iter(leaf_steps(mode(), [call for call in calls if call is not None]))
    stepped: list[tuple[Any, LeafState]] = []
    for call, (group, _, _, old, theta) in zip(calls, leaves, strict=True):
        if call is not None:
            out, stored = next(new)
            stepped.append((as_weak_as(theta.value, out) if context.applies else out, stored))
        elif context.applies:
            stepped.append((theta.value, old))
        else:
            stepped.append((_no_update(group.settings.rounding, old.m, theta), old))
    return stepped


def leaf_call(
    context: StepContext, group: Group, path: str, g: Any, stored: LeafState, theta: LeafParam
) -> LeafCall | None:
    """The checked step of a leaf; None if it has no gradient."""
    if stored.m is None and g is not None:
        raise ValueError(
            f"grads{path} is an array, but the parameter given to init was None. Put None there, "
            "as equinox.filter(grads, trained) does."
        )
    if g is None:
        return None
    settings = group.settings
    moments = settings.moments.of(stored)
    dtype = moments.check(path, stored)
    for name, like in settings.variant.extra:
        _check.kept_like(
            f"state.extra[{name!r}]{path}",
            stored.extra[name],
            stored.m if like == "mu" else stored.v,
        )
    g = _check.leaf_like("grads" + path, g, stored.m, "state.mu" + path, advice=context.advice)
    s = group.scalars(real_dtype(arithmetic_dtype(dtype, g.dtype)))
    rounding = settings.rounding if rounds(settings.rounding, path, stored, theta) else None
    out = g.dtype if theta.dtype is None else wider(g.dtype, theta.dtype)
    out = out if rounding is None else np.dtype(np.float32)  # lands on the parameter's grid
    waits = path in context.waiting
    _host.check_side(path, stored, waits)
    config = LeafConfig(theta.variant, moments, rounding, theta.decays, out, context.applies)
    noise, key = (context.noise, context.keys[path]) if config.is_random else (None, None)
    return LeafCall(config, s, noise, key, g, stored, theta.value, waits)


def _no_update(rounding: Rounding, m: Any, theta: LeafParam) -> Any:
    """An update of zeros in the dtype of the parameter, else of the moment; float32 for codes."""
    if m is None:
        return None
    dtype = theta.dtype or (m.dtype if jnp.issubdtype(m.dtype, jnp.inexact) else jnp.float32)
    if rounding.rounds_update and is_16bit(dtype):
        dtype = jnp.float32
    if _host.is_on_host(m):  # of which JAX can make nothing alike
        return jnp.zeros(m.shape, dtype)
    return jnp.zeros_like(m, dtype=dtype)


def rounds(rounding: Rounding, path: str, stored: LeafState, theta: LeafParam) -> bool:
    """Whether this parameter is rounded; checks its residual."""
    if not rounding.rounds_update or theta.dtype is None:
        return False
    kind = rounding.residual
    codes = None if kind is None else jax.ShapeDtypeStruct(np.shape(stored.m), kind.dtype)
    _check.residual(path, stored.residual, theta.dtype, codes)
    return is_16bit(theta.dtype)
