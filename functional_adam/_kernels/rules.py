"""Rules for `custom_partitioning`: how XLA divides the step of a leaf over a mesh.

XLA divides its own operations but not a kernel. Without these rules it would gather the leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import NamedSharding, PartitionSpec

from functional_adam import _mesh
from functional_adam._kernels.tiles import Part, has_full_blocks

Step = Callable[[Part], Any]  # (update or parameter, stored state)


def can_divide(part: Part) -> bool:
    """Whether a mesh can divide a leaf into parts that a kernel takes.

    If blocks are not full, XLA divides its own form, which also sends less.
    """
    if _mesh.is_partly_manual():  # here JAX cannot answer XLA's questions
        return False
    scale = part.stored.scale
    return scale is None or has_full_blocks(part.g.shape, scale.shape)


def divided(step: Step, part: Part) -> Any:
    """`step` of a leaf whose sharding only XLA knows; each device takes its part."""
    operands, tree = jax.tree.flatten(part)
    run = custom_partitioning(lambda *operands: _flat(step, jax.tree.unflatten(tree, operands)))
    run.def_partition(
        functools.partial(_partition, step, tree),
        functools.partial(_infer, tree),
        decode_shardings=False,  # some shardings are uneven or use a part of an axis
        sharding_rule=functools.partial(_rule, tree),
    )
    return jax.tree.unflatten(jax.tree.structure((part.g, part.stored)), run(*operands))


def starts(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The first index of a device's part of this shape along each axis of the leaf."""
    pairs = zip(_mesh.dimensions(sharding, len(shape)), shape, strict=True)
    return tuple(_index(names) * np.uint32(size) for names, size in pairs)


def _index(axes: tuple[str, ...]) -> Any:
    return jax.lax.axis_index(axes).astype(np.uint32) if axes else np.uint32(0)


def of_scales(leaf: NamedSharding, stored: Any) -> NamedSharding | None:
    """The sharding of the scales of a leaf with this sharding; None if it has no scales."""
    if stored.scale is None:
        return None
    return _mesh.scale_sharding(leaf, stored.m.shape, stored.scale.shape)


def like(part: Part, leaf: Any, scale: Any, scalar: Any) -> Part:
    """A `Part` with one value for arrays like the leaf, one for its scales and one for scalars."""
    stored = jax.tree.map(lambda _: leaf, part.stored)._replace(scale=scale)
    scalars = jax.tree.map(lambda _: scalar, part.scalars)
    return Part(scalars, leaf, stored, None if part.theta is None else leaf)


def _flat(step: Step, part: Part) -> list[Any]:
    return jax.tree.leaves(step(part))


def _partition(step: Step, tree: Any, mesh: Any, operands: Any, results: Any) -> Any:
    """The function for a part, and the shardings of its operands and results."""
    del results
    part = jax.tree.unflatten(tree, operands)
    leaf, scale = _shardings(mesh, part)
    given = like(part, leaf, scale, NamedSharding(leaf.mesh, PartitionSpec()))

    def on_device(*operands: Any) -> list[jax.Array]:
        part = jax.tree.unflatten(tree, operands)
        return _flat(step, part._replace(starts=starts(leaf, part.g.shape)))

    wanted = jax.tree.leaves((leaf, given.stored))
    return leaf.mesh, on_device, wanted, tuple(jax.tree.leaves(given))


def _infer(tree: Any, mesh: Any, operands: Any, results: Any) -> Any:
    """The shardings of the results, from that of the first moment."""
    del results
    part = jax.tree.unflatten(tree, operands)
    leaf, scale = _shardings(mesh, part)
    return jax.tree.leaves((leaf, like(part, leaf, scale, None).stored))


def _shardings(mesh: Any, part: Part) -> tuple[NamedSharding, Any]:
    """The shardings of a leaf and its scales: that of the first moment, but between blocks."""
    shape = part.stored.m.shape
    given = _mesh.named(mesh, part.stored.m.sharding, shape)
    scale = of_scales(given, part.stored)
    if scale is None:
        return given, None
    return _mesh.divided(given, _mesh.dimensions(scale, len(shape))), scale


def _rule(tree: Any, mesh: Any, operands: Any, results: Any) -> SdyShardingRule:
    """The rule for Shardy: leading axes are divided freely, the axis of blocks between blocks."""
    del mesh, results
    shapes = [jax.ShapeDtypeStruct(x.shape, np.int8) for x in operands]
    part = jax.tree.unflatten(tree, shapes)
    names: list[Any] = [f"axis{n}" for n in range(part.g.ndim)]
    sizes: dict[str, Any] = {}
    scale: Any = part.stored.scale
    if scale is not None:
        (*_, blocks), lead = scale.shape, scale.ndim - 1
        if part.g.ndim == lead + 1 and blocks > 1:
            names[-1] = CompoundFactor("block", "element")
            sizes = {"element": part.g.shape[-1] // blocks}
        scale = ArrayMapping(*names[:lead], "block")
    leaf = ArrayMapping(*names)
    given = like(part, leaf, scale, ArrayMapping())
    flat = functools.partial(jax.tree.leaves, is_leaf=lambda x: isinstance(x, ArrayMapping))
    return SdyShardingRule(tuple(flat(given)), tuple(flat((leaf, given.stored))), **sizes)
