"""The step of a leaf that is divided over a mesh: each device takes the blocks that it has.

XLA divides its own operations, but not a kernel: without these rules it would gather the leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import NamedSharding, PartitionSpec

from functional_adam import _mesh
from functional_adam._kernels.choice import Mode, Plan, batched, may_have_kernel, step_part
from functional_adam._kernels.tiles import Part, has_full_blocks
from functional_adam._leaf import LeafConfig, update_leaf
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.rounding import undifferentiable


# Jitted so that leaves of one shape and dtype share one trace: a tree of 1,000 equal leaves is
# traced once, and an eager update runs a leaf as one fused kernel. XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=(0, 1))
def leaf_step(
    config: LeafConfig,
    mode: Mode,
    s: Any,
    noise: Any,
    key: Any,
    g: jax.Array,
    stored: LeafState,
    theta: Any,
) -> tuple[jax.Array, LeafState]:
    """`update_leaf`, in one pass over memory where a platform has a kernel for it."""
    if mode == "off" or not (config.moments.is_random or mode == "native"):
        return update_leaf(config, s, noise, key, g, stored, theta)
    # A residual that is not a code for each element says of which dtype a parameter was, no more.
    has_codes = config.rounding is not None and config.rounding.has_residual
    aside, stored = stored.residual, stored if has_codes else stored._replace(residual=None)
    part = Part((s, noise, key), g, stored, theta)
    plan = Plan(config, g.shape, mode)
    if may_have_kernel(config, part):
        out, stored = _with_kernel(plan, undifferentiable(part))
    else:
        out, stored = step_part(plan, part)
    return out, stored if has_codes else stored._replace(residual=aside)


def _with_kernel(plan: Plan, part: Part) -> tuple[Any, LeafState]:
    known = _known_sharding(part.g, part.stored, part.theta)
    return _by_part(plan, known, part) if known else _step_on_mesh(plan, part)


def _step_on_mesh(plan: Plan, part: Part) -> tuple[Any, LeafState]:
    """`step_part` of a leaf of which only XLA knows how it is divided, if it is."""
    operands, tree = jax.tree.flatten(part)
    by_blocks = has_full_blocks(part.g.shape, part.stored.scale.shape)
    by_blocks = by_blocks and not _mesh.is_partly_manual()  # there XLA asks, and JAX cannot answer
    new = _transformable(plan, tree, by_blocks)(*operands)
    return jax.tree.unflatten(jax.tree.structure((part.g, part.stored)), new)


@functools.cache
def _transformable(plan: Plan, tree: Any, by_blocks: bool) -> Callable[..., list[jax.Array]]:
    """`step_part` on the flat operands of a `Part` of structure `tree`, for vmap and for meshes.

    `by_blocks`: a mesh divides it between blocks. Where blocks are not full, XLA divides its own
    form, and with less to send.
    """

    def whole(*operands: Any) -> list[jax.Array]:
        return jax.tree.leaves(step_part(plan, jax.tree.unflatten(tree, operands)))

    def mapped(size: int, is_mapped: list[bool], *operands: Any) -> Any:
        """Under `jax.vmap` XLA's form: a kernel's tiles are of one leaf."""
        del size
        axes = [0 if this else None for this in is_mapped]
        new, _ = batched(operands, axes, plan=plan, tree=tree)
        return new, [True] * len(new)

    run = custom_vmap(_divisible(plan, tree, whole) if by_blocks else whole)
    run.def_vmap(mapped)
    return run


def _divisible(plan: Plan, tree: Any, whole: Callable[..., Any]) -> Callable[..., Any]:
    """`whole` with rules for XLA, which TPUs do not ask for: there XLA divides its own form."""
    divisible = custom_partitioning(whole)
    divisible.def_partition(
        functools.partial(_partition, plan, tree),
        functools.partial(_infer, tree),
        decode_shardings=False,  # not all can be: some divide unevenly, or by a part of an axis
        sharding_rule=functools.partial(_rule, tree),
    )
    if plan.mode != "on":
        return divisible

    def by_platform(*operands: Any) -> Any:
        return jax.lax.platform_dependent(*operands, tpu=whole, default=divisible)

    return by_platform


# ---- Shardings that are known when a step is traced ----


def over_known_axes(
    leaf: Callable[..., Any], g: Any, stored: LeafState, theta: Any
) -> Callable[..., Any]:
    """`leaf` for arrays that may lie on explicit axes of a mesh; a gradient may lie elsewhere."""
    if _known_sharding(g, stored, theta):
        return leaf
    return _mesh.over_auto_axes(leaf, (stored.m, stored))


def _known_sharding(g: Any, stored: LeafState, theta: Any) -> NamedSharding | None:
    """How all of a leaf is divided, if all axes are explicit and it is divided between blocks."""
    shape, scales = np.shape(stored.m), np.shape(stored.scale)
    known = [
        _mesh.explicit_sharding(x) for x in jax.tree.leaves((g, stored._replace(scale=None), theta))
    ]
    first = known[0]
    if first is None or any(x != first for x in known) or not has_full_blocks(shape, scales):
        return None
    scale: Any = _mesh.scale_sharding(first, shape, scales)
    return (
        first
        if _mesh.dimensions(scale, len(shape)) == _mesh.dimensions(first, len(shape))
        else None
    )


def _by_part(plan: Plan, sharding: NamedSharding, part: Part) -> tuple[Any, LeafState]:
    """`step_part` by each device, of what it has."""
    leaf = sharding.spec
    scale: Any = _mesh.scale_sharding(sharding, part.g.shape, part.stored.scale.shape)
    stored = jax.tree.map(lambda _: leaf, part.stored)._replace(scale=scale.spec)
    scalars = jax.tree.map(lambda _: PartitionSpec(), part.scalars)
    given = Part(scalars, leaf, stored, None if part.theta is None else leaf)

    def step(part: Part) -> Any:
        return step_part(plan, part._replace(starts=_starts(sharding, part.g.shape)))

    # Kernels do not say over which axes their results differ: as their operands do.
    on_devices = jax.shard_map(
        step, mesh=sharding.mesh, in_specs=(given,), out_specs=(leaf, stored), check_vma=False
    )
    return on_devices(part)


def _starts(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Where a device's part of this shape begins along each axis of the leaf."""
    pairs = zip(_mesh.dimensions(sharding, len(shape)), shape, strict=True)
    return tuple(_index(names) * np.uint32(size) for names, size in pairs)


# ---- Rules for XLA ----


def _partition(plan: Plan, tree: Any, mesh: Any, operands: Any, results: Any) -> Any:
    """The function for a part, and how its operands and results are divided."""
    del results
    part = jax.tree.unflatten(tree, operands)
    leaf, scale = _shardings(mesh, part.stored)
    everywhere = NamedSharding(leaf.mesh, PartitionSpec())
    stored = jax.tree.map(lambda _: leaf, part.stored)._replace(scale=scale)
    scalars = jax.tree.map(lambda _: everywhere, part.scalars)
    given = Part(scalars, leaf, stored, None if part.theta is None else leaf)

    def step(*operands: Any) -> list[jax.Array]:
        part = jax.tree.unflatten(tree, operands)
        part = part._replace(starts=_starts(leaf, part.g.shape))
        return jax.tree.leaves(step_part(plan, part))

    return leaf.mesh, step, jax.tree.leaves((leaf, stored)), tuple(jax.tree.leaves(given))


def _infer(tree: Any, mesh: Any, operands: Any, results: Any) -> Any:
    """How results are divided: as the first moment is."""
    del results
    stored = jax.tree.unflatten(tree, operands).stored
    leaf, scale = _shardings(mesh, stored)
    return jax.tree.leaves((leaf, jax.tree.map(lambda _: leaf, stored)._replace(scale=scale)))


def _shardings(mesh: Any, stored: Any) -> tuple[NamedSharding, NamedSharding]:
    """How a leaf and its scales are divided: as the first moment is, but only between blocks."""
    shape, scales = stored.m.shape, stored.scale.shape
    given = _mesh.named(mesh, stored.m.sharding, shape)
    scale: Any = _mesh.scale_sharding(given, shape, scales)
    axes = _mesh.dimensions(scale, len(shape))
    return _mesh.divided(given, axes), scale


def _index(axes: tuple[str, ...]) -> Any:
    return jax.lax.axis_index(axes).astype(jnp.uint32) if axes else np.uint32(0)


def _rule(tree: Any, mesh: Any, operands: Any, results: Any) -> SdyShardingRule:
    """For Shardy: leading axes are divided as they are, the axis along blocks between these."""
    del mesh, results
    shapes = [jax.ShapeDtypeStruct(x.shape, np.int8) for x in operands]
    part = jax.tree.unflatten(tree, shapes)
    (*_, blocks), lead = part.stored.scale.shape, part.stored.scale.ndim - 1
    names: list[Any] = [f"axis{n}" for n in range(part.g.ndim)]
    sizes = {}
    if part.g.ndim == lead + 1 and blocks > 1:
        names[-1] = CompoundFactor("block", "element")
        sizes = {"element": part.g.shape[-1] // blocks}
    leaf, scale = ArrayMapping(*names), ArrayMapping(*names[:lead], "block")
    stored = jax.tree.map(lambda _: leaf, part.stored)._replace(scale=scale)
    scalars = jax.tree.map(lambda _: ArrayMapping(), part.scalars)
    given = Part(scalars, leaf, stored, None if part.theta is None else leaf)
    flat = functools.partial(jax.tree.leaves, is_leaf=lambda x: isinstance(x, ArrayMapping))
    return SdyShardingRule(tuple(flat(given)), tuple(flat((leaf, stored))), **sizes)
