"""How arrays are sharded over a mesh.

Anything in a fresh state that is not sharded exactly as an update returns it forces a second
compilation. `zeros_like` shards the moments like the parameters; this module shards the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

T = TypeVar("T")


def sharding_of(leaf: Any) -> NamedSharding | None:
    """The sharding of a leaf on a mesh, if known; a traced leaf shows only explicit axes."""
    traced = isinstance(leaf, Tracer)
    sharding = getattr(jax.typeof(leaf) if traced else leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or (traced and not _is_explicit(sharding)):
        return None
    return sharding


def explicit_sharding(leaf: Any) -> NamedSharding | None:
    """The sharding of a leaf on a mesh whose axes are all explicit; otherwise None."""
    sharding = sharding_of(leaf)
    if sharding is None or {*sharding.mesh.axis_types} != {AxisType.Explicit}:
        return None
    return sharding


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types


def over_auto_axes(f: Callable[..., T], like: T) -> Callable[..., T]:
    """f with no mesh axis explicit inside; its result is sharded like `like`.

    An explicit axis that divides a dimension must also divide everything computed from it, such as
    its blocks. A part of `like` without explicit axes has its result replicated on the mesh.
    """
    explicit = [x for x in map(sharding_of, jax.tree.leaves(like)) if x and _is_explicit(x)]
    if not explicit:
        return f
    shardings = jax.tree.map(lambda x: sharding_of(x) or replicated(explicit[0], x.ndim), like)
    mesh = explicit[0].mesh  # `jax.shard_map` may own some of its axes
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    names = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    on_auto_axes: Any = jax.sharding.auto_axes(f, axes=names, out_sharding=shardings)
    return on_auto_axes


def zeros(shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding | None) -> jax.Array:
    return jnp.zeros(shape, dtype, device=sharding)


def replicated(sharding: NamedSharding | None, rank: int) -> NamedSharding | None:
    """A sharding that puts the whole array on each device of the mesh."""
    return sharding and divided(sharding, [()] * rank)


def divided(
    like: NamedSharding, axes: Sequence[tuple[str, ...]], *, in_full: bool = False
) -> NamedSharding:
    """A sharding that divides the dimensions of an array over these axes of the mesh of `like`.

    JAX compiles again for P("x") after P("x", None), so the spec must have the form that an
    update's results have: the full rank with explicit axes, no trailing None otherwise.
    """
    entries = [names[0] if len(names) == 1 else names or None for names in axes]
    if not (in_full or _is_explicit(like)):
        while entries and entries[-1] is None:
            entries.pop()
    return NamedSharding(like.mesh, PartitionSpec(*entries), memory_kind=like.memory_kind)


def dimensions(sharding: NamedSharding, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes over which each dimension of an array is divided."""
    named = [() if x is None else (x,) if isinstance(x, str) else tuple(x) for x in sharding.spec]
    return [*named, *[()] * (rank - len(named))]


def ways(sharding: NamedSharding, axes: tuple[str, ...]) -> int:
    """Number of parts into which these mesh axes divide a dimension."""
    return math.prod(sharding.mesh.shape[axis] for axis in axes)


def named(mesh: Mesh, sharding: Sharding, shape: tuple[int, ...]) -> NamedSharding:
    """One of XLA's shardings in terms of a mesh.

    XLA may also divide by a part of an axis, or unevenly. Such a dimension counts as not divided.
    """
    try:
        places = sharding.devices_indices_map(shape)
    except ValueError:  # unevenly
        return NamedSharding(mesh, PartitionSpec())
    if mesh.empty:
        mesh = Mesh(np.array(list(places)), ("devices",))
    begins = np.array([[at.start or 0 for at in places[device]] for device in mesh.devices.flat])
    begins = begins.reshape(*mesh.devices.shape, len(shape))
    axes = [_axes(mesh, begins[..., n], size) for n, size in enumerate(shape)]
    return divided(NamedSharding(mesh, PartitionSpec()), axes)


def _axes(mesh: Mesh, begins: np.ndarray, size: int) -> tuple[str, ...]:
    """The axes that divide a dimension, found from where each device's part begins; or none."""
    strides = {
        name: int(np.max(np.diff(begins, axis=n), initial=0))
        for n, name in enumerate(mesh.axis_names)
    }
    names = sorted((name for name in strides if strides[name]), key=lambda name: -strides[name])
    part, index = size, np.zeros_like(begins)
    for name in names:
        part //= mesh.shape[name]
        index = index * mesh.shape[name] + np.indices(index.shape)[mesh.axis_names.index(name)]
    return tuple(names) if np.array_equal(begins, index * part) else ()


def scale_sharding(
    sharding: NamedSharding | None, shape: tuple[int, ...], scales: tuple[int, ...]
) -> NamedSharding | None:
    """The sharding of a leaf's scales: blocks are divided like the axis that they divide up.

    They are not divided if that axis' mesh axes do not divide the number of blocks evenly, or if
    an inner one of several merged axes is divided.
    """
    if sharding is None:
        return None
    axes, lead = dimensions(sharding, len(shape)), len(scales) - 1
    along, *inner = axes[lead:] or [()]
    if any(inner) or scales[-1] % ways(sharding, along):
        along = ()
    mine = [*axes[:lead], along]
    same = mine == axes and len(sharding.spec) == len(shape)
    return divided(sharding, mine, in_full=same)


# ---- Inside jax.shard_map ----

# Inside, the type of an array names the mesh axes along which devices hold different values. JAX
# 0.10 renamed this attribute.
_KINDS = ("manual_axis_type", "vma")


def _kind(aval: Any) -> tuple[str, Any]:
    name = _KINDS[0] if hasattr(aval, _KINDS[0]) else _KINDS[1]
    return name, getattr(aval, name)


def _axes_of_difference(aval: Any) -> frozenset[str]:
    _, kind = _kind(aval)
    return frozenset(getattr(kind, "varying", kind))


def _varying(x: Any, over: frozenset[str]) -> Any:
    """x with a type that varies over these axes, too."""
    if not over:
        return x
    names = tuple(sorted(over))
    pvary: Any = getattr(jax.lax, "pvary", None)  # in JAX 0.9 and older
    return jax.lax.pcast(x, names, to="varying") if pvary is None else pvary(x, names)


def is_partly_manual() -> bool:
    """Whether `jax.shard_map` owns some axes of the mesh and XLA divides over the others."""
    kinds = {*jax.sharding.get_abstract_mesh().axis_types}
    return AxisType.Manual in kinds and len(kinds) > 1


def vary_alike(arrays: list[Any]) -> list[Any]:
    """The arrays, each with a type that varies over every axis over which one of them varies."""
    axes = [_axes_of_difference(jax.typeof(x)) for x in arrays]
    union = frozenset[str]().union(*axes)
    return [_varying(x, union - own) for x, own in zip(arrays, axes, strict=True)]


def shape_like(x: Any, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The type of an array of this dtype with the shape of x that varies over the same axes."""
    name, kind = _kind(jax.typeof(x))
    return jax.ShapeDtypeStruct(x.shape, dtype, **{name: kind})


def filled(like: Any, number: complex) -> jax.Array:
    """An array of this number, of the abstract value `like`: as another branch has it."""
    new = jnp.full(like.shape, number, like.dtype)
    if _is_explicit(like.sharding):
        new = jax.sharding.reshard(new, like.sharding)
    return _varying(new, _axes_of_difference(like))
