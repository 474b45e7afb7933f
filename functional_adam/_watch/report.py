"""What an optimizer's state costs, before any of it is allocated."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _trees
from functional_adam._kernels.tiles import kernels
from functional_adam._nested import by_parameter
from functional_adam._state import is_adam_state, state_shapes
from functional_adam._storage.leaf_state import format_of
from functional_adam._transform import settings_of
from functional_adam._types import GradientTransformation, PyTree
from functional_adam._watch import table

_WORDS = ("leaf", "shape", "dtype", "moments")  # the last where leaves differ
_PARTS = ("mu", "nu", "nu_scale", "residual", "extra")


class LeafMemory(NamedTuple):
    """The bytes of one parameter and of what is kept for it, by part of the state.

    Attributes:
        path: as in error messages.
        shape: the parameter's.
        dtype: the parameter's.
        parameter: bytes of the parameter itself, over all devices, as those below.
        mu: of the first moment.
        nu: of the second.
        nu_scale: of its scales.
        residual: of what rounding="compensated" or "split" keeps.
        extra: of a variant's own trees.
        per_device: of all parts of the state, on each device; None where no shardings were given.
        moments: the format of both moments, "full", "bfloat16" or "int8"; "" where there are none.
        kernels: with "int8" the kinds of devices, "gpu" and "tpu", that have a kernel for the step
            of this leaf; others pass several times over memory. See docs/performance.md.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    parameter: int
    mu: int
    nu: int
    nu_scale: int
    residual: int
    extra: int
    per_device: int | None = None
    moments: str = ""
    kernels: tuple[str, ...] = ()

    @property
    def state(self) -> int:
        """The parts of the state together."""
        return self.mu + self.nu + self.nu_scale + self.residual + self.extra


class MemoryReport(NamedTuple):
    """Bytes by leaf and in all; as text a table of 88 columns.

    Where whole numbers or the parts of the state do not fit, the text rounds or omits them; the
    fields have all.

    Attributes:
        leaves: one `LeafMemory` a parameter.
        other: bytes of the state that belong to no parameter: counters, other transformations.
        other_per_device: those of them on each device; None where no shardings were given.
    """

    leaves: tuple[LeafMemory, ...]
    other: int
    other_per_device: int | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the parameters are."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def parameter_bytes(self) -> int:
        """The parameters themselves."""
        return sum(leaf.parameter for leaf in self.leaves)

    @property
    def state_bytes(self) -> int:
        """The whole state."""
        return sum(leaf.state for leaf in self.leaves) + self.other

    @property
    def state_bytes_per_device(self) -> int | None:
        """What each device has of the state; None where no shardings were given."""
        if self.other_per_device is None:
            return None
        return sum(leaf.per_device or 0 for leaf in self.leaves) + self.other_per_device

    @property
    def float32_adam_bytes(self) -> int:
        """What the state of Adam with float32 moments would be: 8 a number, and the counter."""
        return 8 * self.parameters + 4

    def __str__(self) -> str:
        """The table, in 88 columns: a part that is 0 everywhere is left out; where that is not
        enough, sizes are rounded, then all parts are left out.
        """
        sums = [sum(column) for column in zip(*map(_sizes, self.leaves), strict=True)] or [0] * 6
        on_each, rest = self.state_bytes_per_device, self.other_per_device
        of_leaves = None if on_each is None or rest is None else on_each - rest
        total = LeafMemory("total", (self.parameters,), "", *sums, per_device=of_leaves)
        parts = [name for name in _PARTS if getattr(total, name)]
        forms = (parts, table.whole), (parts, table.short), ([], table.short)
        words = 4 if len({leaf.moments for leaf in self.leaves}) > 1 else 3
        leaves = [*self.leaves, total]
        tables = [(_rows(leaves, *form, words), gap) for form in forms for gap in (2, 1)]
        rows, gap = next((t for t in tables if table.fits(*t)), tables[-1])
        end = (
            f"{self.other:,} bytes besides; {self.state_bytes:,} in all, "
            f"{self.state_bytes / self.float32_adam_bytes:.1%} of float32 Adam's "
            f"{self.float32_adam_bytes:,}"
        )
        end += "" if on_each is None else f"; {on_each:,} on each device"
        end += "" if rows in (tables[0][0], tables[1][0]) else f". {table.UNITS}"
        paragraphs = [end, *_without_kernels(self.leaves)]
        wrapped = [line for text in paragraphs for line in textwrap.wrap(text, table.WIDTH)]
        return "\n".join([*table.lines(rows, gap, words), *wrapped])


def _without_kernels(leaves: Sequence[LeafMemory]) -> list[str]:
    """A sentence for each kind of device that takes several passes over a leaf with codes."""
    texts = []
    for kind, name in (("gpu", "GPUs"), ("tpu", "TPUs")):
        missing = [
            leaf.path for leaf in leaves if "int8" in leaf.moments and kind not in leaf.kernels
        ]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            texts.append(f"Several passes over memory on {name}: {', '.join(missing[:3])}{more}.")
    return texts


def _sizes(leaf: LeafMemory) -> tuple[int, ...]:
    return leaf.parameter, leaf.mu, leaf.nu, leaf.nu_scale, leaf.residual, leaf.extra


def _rows(
    leaves: Sequence[LeafMemory], parts: Sequence[str], of: Callable[[int], str], words: int
) -> list[list[str]]:
    """The head, and for each leaf (the total last) its sizes as `of` writes them."""
    head = [*_WORDS[:words], "parameter", *parts, "state", "B/param"]
    head += [] if leaves[-1].per_device is None else ["per device"]
    return [head, *(_row(leaf, parts, of, words) for leaf in leaves)]


def _row(leaf: LeafMemory, parts: Sequence[str], of: Callable[[int], str], words: int) -> list[str]:
    count = math.prod(leaf.shape)
    sizes = [leaf.parameter, *(getattr(leaf, part) for part in parts), leaf.state]
    shape = str(leaf.shape) if leaf.dtype else ""
    return [
        *(leaf.path or "(params)", shape, leaf.dtype, leaf.moments)[:words],
        *map(of, sizes),
        f"{leaf.state / count:.3f}" if count else "-",
        *([] if leaf.per_device is None else [of(leaf.per_device)]),
    ]


def memory_report(
    tx: GradientTransformation, params: PyTree, shardings: PyTree = None
) -> MemoryReport:
    """The bytes that the state of `tx` takes for these parameters, leaf by leaf.

    Nothing is allocated: `tx.init` is evaluated in shapes alone.

    Args:
        tx: a transformation of this package, alone or anywhere in one of Optax's (a chain,
            `masked`, `partition`, `inject_hyperparams`).
        params: a tree of arrays, or of `jax.ShapeDtypeStruct`s.
        shardings: None (default), or what `state_shardings` returned for them: the report then says
            what each device has, too.

    Returns:
        A `MemoryReport`: print it for a table, or read its fields. Float32 Adam is 8 bytes of state
        a number.

    Raises:
        TypeError: `tx` has no `init`, a leaf is not an array that it can train, or one of
            `shardings` is no sharding.
        ValueError: `shardings` is not built like the state.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)}
        >>> report = fa.memory_report(fa.adamw(moments="int8", rounding="compensated"), params)
        >>> report.state_bytes / report.parameters
        3.015628...
    """
    state = state_shapes(tx, params)
    whole = jax.tree.map(_bytes, state)
    on_each = None if shardings is None else _on_each_device(state, shardings)
    parts = [_bytes_by_path(whole, (name,)) for name in _PARTS]
    formats, kinds = _formats_by_path(state), _kernels_by_path(tx, state, params)
    mine = Counter[str]() if on_each is None else _bytes_by_path(on_each, _PARTS)
    rows: list[LeafMemory] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, shape, dtype = keystr(path), np.shape(leaf), jax.dtypes.result_type(leaf)
        sizes = [of_part[name] for of_part in parts]
        size = math.prod(shape) * dtype.itemsize
        per_device = None if on_each is None else mine[name]
        format = "+".join(formats.get(name, ()))
        row = LeafMemory(name, shape, dtype.name, size, *sizes, per_device=per_device)
        rows.append(row._replace(moments=format, kernels=kinds.get(name, ())))
    other = sum(jax.tree.leaves(whole)) - sum(row.state for row in rows)
    if on_each is None:
        return MemoryReport(tuple(rows), other)
    rest = sum(jax.tree.leaves(on_each)) - sum(row.per_device or 0 for row in rows)
    return MemoryReport(tuple(rows), other, rest)


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _on_each_device(state: PyTree, shardings: PyTree) -> PyTree:
    """The bytes of each leaf that one device has."""
    given = _trees.leaves_like("shardings", shardings, state, "the state")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_trees.is_none)

    def bytes_of(path: str, leaf: Any, sharding: Any) -> int | None:
        if leaf is None:
            return None
        if not isinstance(sharding, jax.sharding.Sharding):
            raise TypeError(
                f"shardings{path} must be a sharding, as state_shardings returns it; got "
                f"{_check.show(sharding)}."
            )
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return treedef.unflatten(
        bytes_of(keystr(path), leaf, sharding)
        for (path, leaf), sharding in zip(leaves, given, strict=True)
    )


def _adam_states(tree: PyTree) -> list[Any]:
    """The states of this package in a state, or in a tree built like one."""
    return [x for x in jax.tree.leaves(tree, is_leaf=is_adam_state) if is_adam_state(x)]


def _formats_by_path(state: PyTree) -> dict[str, list[str]]:
    """The formats of the moments of the parameter at each path: one for each state that has it."""
    formats: dict[str, list[str]] = {}
    for one in _adam_states(state):
        mus, nus = (by_parameter(f"state.{x}", getattr(one, x), one) for x in ("mu", "nu"))
        for path, mu in mus.items():
            if mu is not None:
                formats.setdefault(keystr(path), []).append(format_of(mu, nus[path]))
    return formats


def _kernels_by_path(
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
    for one in _adam_states(state):
        mus, scales = (by_parameter(f"state.{x}", getattr(one, x), one) for x in ("mu", "nu_scale"))
        for path, scale in scales.items():
            if scale is not None:
                name = keystr(path)
                kinds[name] = kernels(mus[path].shape, scale.shape, dtypes[name])
    return kinds


def _bytes_by_path(sizes: PyTree, names: Sequence[str]) -> Counter[str]:
    """The bytes that states of this package have under `names` for the parameter at each path."""
    sums: Counter[str] = Counter()
    for state in _adam_states(sizes):
        for name in names:
            tree = getattr(state, name)
            for one in (tree or {}).values() if name == "extra" else [tree]:
                for path, size in by_parameter(f"state.{name}", one, state).items():
                    sums[keystr(path)] += size or 0
    return sums
