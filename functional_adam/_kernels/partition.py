"""The steps of leaves: one by one, small ones together, or per device on explicit axes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec

from functional_adam import _host, _mesh
from functional_adam._kernels import native, rules
from functional_adam._kernels.choice import (
    Mode,
    Plan,
    Result,
    has_kernel,
    plain_step,
    step_part,
    step_parts,
)
from functional_adam._kernels.tiles import Part, has_full_blocks
from functional_adam._leaf import LeafConfig, update_leaf
from functional_adam._storage.leaf_state import LeafState


class LeafCall(NamedTuple):
    """The arguments of a leaf's step."""

    config: LeafConfig
    s: Any
    noise: Any
    key: Any
    g: jax.Array
    stored: LeafState
    theta: Any
    waits: bool  # whether its moments wait on the host between steps


def leaf_steps(mode: Mode, calls: list[LeafCall]) -> list[Result]:
    """`update_leaf` of each leaf, in one pass over memory if the platform has a kernel for it."""
    results = _visits(mode, calls)
    for together in _groups(mode, calls):
        group = [calls[n] for n in together]
        new = _small_leaves(mode, group) if len(group) > 1 else [_leaf(mode, group[0])]
        for n, result in zip(together, new, strict=True):
            results[n] = result
    return results


def _visits(mode: Mode, calls: list[LeafCall]) -> list[Any]:
    """The results of the leaves whose moments wait on the host, each in its place.

    The last comes first: a backward pass has its gradient first, and goes on meanwhile.
    """
    results: list[Any] = [None] * len(calls)
    trip: _host.Trip | None = None
    for n, call in reversed([*enumerate(calls)]):
        if call.waits:
            step = functools.partial(_stored, mode, call)
            results[n], trip = _host.visit(step, call.stored, trip)
    return results


def _leaf(mode: Mode, call: LeafCall) -> Result:
    step: Any = functools.partial(_leaf_step, call.config, mode)
    if call.config.moments.has_scale:
        step = over_known_axes(step, call.g, call.stored, call.theta)
    return step(*call[1:-1])


def _stored(mode: Mode, call: LeafCall, stored: LeafState) -> Result:
    """The step of a leaf of which this is stored."""
    return _leaf(mode, call._replace(stored=stored))


# Jitted so that leaves of the same shape and dtype share one trace: a tree of 1,000 equal leaves is
# traced once, and an eager update runs a leaf as one fused kernel. XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _leaf_step(
    config: LeafConfig,
    mode: Mode,
    s: Any,
    noise: Any,
    key: Any,
    g: jax.Array,
    stored: LeafState,
    theta: Any,
) -> Result:
    part, aside = _part(config, (s, noise, key), g, stored, theta)
    plan = Plan(config, g.shape, mode)
    may_have_kernel = has_kernel(plan, part)
    if mode == "off" or not (config.moments.is_random or may_have_kernel):
        return update_leaf(config, s, noise, key, g, stored, theta)
    step = _step_on_mesh if may_have_kernel else step_part
    known = _known_sharding(g, part.stored, theta) if may_have_kernel else None
    return _with(aside, _by_part(plan, known, part) if known else step(plan, part))


def _part(
    config: LeafConfig, scalars: Any, g: Any, stored: LeafState, theta: Any
) -> tuple[Part, Any]:
    """A leaf's step, and a residual that the step does not use.

    A residual that is not an array of codes only records the dtype of its parameter.
    """
    if config.rounding is not None and config.rounding.has_residual:
        return Part(scalars, g, stored, theta), None
    return Part(scalars, g, stored._replace(residual=None), theta), stored.residual


def _with(aside: Any, result: Result) -> Result:
    """The result with the residual that `_part` has put aside."""
    out, stored = result
    return out, stored if aside is None else stored._replace(residual=aside)


# ---- Small leaves together ----

_SMALL = 2**15  # elements; the step of a smaller leaf takes no longer than a call
_MOST = 256  # leaves per call


def _groups(mode: Mode, calls: list[LeafCall]) -> list[list[int]]:
    """The numbers of the calls that do not wait, grouped by what the native kernel takes in one."""
    small: dict[Any, list[int]] = {}
    groups: list[list[int]] = []
    for n, call in enumerate(calls):
        if call.waits:
            continue
        if mode != "native" or not _is_small(call):
            groups.append([n])
            continue
        group = small.setdefault((call.config, id(call.s)), [])
        if not group or len(group) == _MOST:
            small[call.config, id(call.s)] = group = []
            groups.append(group)
        group.append(n)
    return groups


def _is_small(call: LeafCall) -> bool:
    """Whether a leaf is small and the native kernel takes it; leaves on a mesh do not count."""
    if call.g.size > _SMALL or _mesh.sharding_of(call.stored.m):
        return False
    part, _ = _part(call.config, (call.s, call.noise, call.key), *call[4:-1])
    return native.takes(call.config, call.g.shape, part)


def _small_leaves(mode: Mode, calls: list[LeafCall]) -> list[Result]:
    """`_leaf_step` of each, in one call."""
    first = calls[0]
    return _small_leaves_step(first.config, mode, first.s, first.noise, [x[3:-1] for x in calls])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _small_leaves_step(
    config: LeafConfig, mode: Mode, s: Any, noise: Any, leaves: list[tuple[Any, ...]]
) -> list[Result]:
    parts, asides = [], []
    for key, *leaf in leaves:
        part, aside = _part(config, (s, noise, key), *leaf)
        parts.append(part)
        asides.append(aside)
    plans = tuple(Plan(config, part.g.shape, mode) for part in parts)
    return list(map(_with, asides, step_parts(plans, parts)))


# ---- Leaves whose sharding, if any, only XLA knows ----


def _step_on_mesh(plan: Plan, part: Part) -> Result:
    """`step_part`, also if XLA divides the leaf; under transformations, XLA's form."""
    operands, tree = jax.tree.flatten(part)
    on_explicit_axes = any(map(_mesh.sharding_of, jax.tree.leaves(part.stored)))
    if on_explicit_axes and part.stored.scale is None:
        return step_part(plan, part)
    new = _transformable(plan, tree, rules.can_divide(part))(*operands)
    return jax.tree.unflatten(jax.tree.structure((part.g, part.stored)), new)


@functools.cache
def _transformable(plan: Plan, tree: Any, can_divide: bool) -> Callable[..., list[jax.Array]]:
    """`step_part` on the flat operands of a `Part` of structure `tree`."""

    def flat(step: Callable[[Plan, Part], Result], *operands: Any) -> list[jax.Array]:
        return jax.tree.leaves(step(plan, jax.tree.unflatten(tree, operands)))

    plain = functools.partial(flat, plain_step)
    run = custom_vmap(functools.partial(flat, _on_devices if can_divide else step_part))

    @run.def_vmap
    def mapped(size: int, is_mapped: list[bool], *operands: Any) -> Any:  # not called by name
        del size
        new = jax.vmap(plain, in_axes=[0 if this else None for this in is_mapped])(*operands)
        return new, [True] * len(new)

    differentiable = jax.custom_jvp(run)
    differentiable.defjvp(functools.partial(jax.jvp, plain))
    return differentiable


def _on_devices(plan: Plan, part: Part) -> Result:
    """`step_part`, divided by rules if a platform has a kernel and XLA uses rules (not TPUs)."""
    whole = functools.partial(step_part, plan)
    divided = functools.partial(rules.divided, whole)
    if plan.mode.startswith("interpret"):
        return divided(part)
    has_codes = part.stored.scale is not None
    forms = {"tpu": whole, "default": divided} if has_codes else {"cpu": divided, "default": whole}
    return jax.lax.platform_dependent(part, **forms)


# ---- Explicit axes ----


def over_known_axes(
    leaf: Callable[..., Any], g: Any, stored: LeafState, theta: Any
) -> Callable[..., Any]:
    """`leaf` for arrays that may be on explicit mesh axes; the gradient's sharding may differ."""
    if _known_sharding(g, stored, theta):
        return leaf
    return _mesh.over_auto_axes(leaf, (stored.m, stored))


def _known_sharding(g: Any, stored: LeafState, theta: Any) -> NamedSharding | None:
    """The sharding of a leaf, if all axes are explicit and it divides the leaf between blocks."""
    shape, scales = np.shape(stored.m), np.shape(stored.scale)
    arrays = jax.tree.leaves((g, stored._replace(scale=None), theta))
    first, *others = [_mesh.explicit_sharding(x) for x in arrays]
    if first is None or any(other != first for other in others):
        return None
    scale = rules.of_scales(first, stored)
    if scale is None:
        return first
    of_leaf, of_blocks = (_mesh.dimensions(x, len(shape)) for x in (first, scale))
    return first if has_full_blocks(shape, scales) and of_leaf == of_blocks else None


def _by_part(plan: Plan, sharding: NamedSharding, part: Part) -> tuple[Any, LeafState]:
    """`step_part` on each device, for the part that it has."""
    scale = rules.of_scales(sharding, part.stored)
    given = rules.like(part, sharding.spec, scale and scale.spec, PartitionSpec())

    def step(part: Part) -> Any:
        starts = rules.starts(sharding, part.g.shape)
        return step_part(plan, part._replace(starts=starts))

    # Kernels do not declare the axes over which their results vary: the same as their operands.
    on_devices = jax.shard_map(
        step,
        mesh=sharding.mesh,
        in_specs=(given,),
        out_specs=(sharding.spec, given.stored),
        check_vma=False,
    )
    return on_devices(part)
