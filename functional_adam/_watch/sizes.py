"""The bytes of a state's arrays: in total, on one device and its host, and by parameter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import keystr

from functional_adam import _check, _trees
from functional_adam._host import KIND
from functional_adam._kernels.tiles import kernels
from functional_adam._nested import adam_states, by_parameter
from functional_adam._storage.leaf_state import format_of
from functional_adam._transform import settings_of
from functional_adam._types import GradientTransformation, PyTree


def bytes_of(leaf: Any) -> int:
    """The bytes of an array, summed over all devices."""
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def on_each_device(state: PyTree, shardings: PyTree) -> list[PyTree]:
    """Trees of the bytes of each leaf on one device and, if any are there, on its host."""
    given = _trees.leaves_like("shardings", shardings, state, "the state")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_trees.is_none)

    def sizes(path: str, leaf: Any, sharding: Any) -> tuple[int | None, int | None]:
        if leaf is None:
            return None, None
        if not isinstance(sharding, jax.sharding.Sharding):
            raise TypeError(
                f"shardings{path} must be a sharding, as state_shardings returns it; got "
                f"{_check.show(sharding)}."
            )
        size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        return (0, size) if sharding.memory_kind == KIND else (size, 0)

    pairs = [
        sizes(keystr(path), leaf, sharding)
        for (path, leaf), sharding in zip(leaves, given, strict=True)
    ]
    here, there = zip(*pairs, strict=True)
    return [treedef.unflatten(sizes) for sizes in ((here, there) if any(there) else (here,))]


def formats_by_path(state: PyTree) -> dict[str, list[str]]:
    """The moment formats of the parameter at each path: one for each state that contains it."""
    formats: dict[str, list[str]] = {}
    for one in adam_states(state):
        mus, nus = (by_parameter(f"state.{x}", getattr(one, x), one) for x in ("mu", "nu"))
        for path, mu in mus.items():
            if mu is not None:
                formats.setdefault(keystr(path), []).append(format_of(mu, nus[path]))
    return formats


def kernels_by_path(
    tx: GradientTransformation, state: PyTree, params: PyTree
) -> dict[str, tuple[str, ...]]:
    """The kinds of devices that have a kernel for the parameter at each path."""
    settings = settings_of(tx)
    if settings is not None and settings.variant.whole_leaf:
        return {}
    dtypes = {
        keystr(path): jax.dtypes.result_type(x)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    kinds: dict[str, tuple[str, ...]] = {}
    for one in adam_states(state):
        mus, scales = (by_parameter(f"state.{x}", getattr(one, x), one) for x in ("mu", "nu_scale"))
        for path, scale in scales.items():
            if scale is not None:
                name = keystr(path)
                kinds[name] = kernels(mus[path].shape, scale.shape, dtypes[name])
    return kinds


def bytes_by_path(sizes: PyTree, names: Sequence[str]) -> Counter[str]:
    """The bytes of the fields `names` of this package's states, by path of the parameter."""
    sums: Counter[str] = Counter()
    for state in adam_states(sizes):
        for name in names:
            tree = getattr(state, name)
            for one in (tree or {}).values() if name == "extra" else [tree]:
                for path, size in by_parameter(f"state.{name}", one, state).items():
                    sums[keystr(path)] += size or 0
    return sums
