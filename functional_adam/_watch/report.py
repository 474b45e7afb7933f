"""The memory of an optimizer's state, computed before any of it is allocated."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr

from functional_adam._state import state_shapes
from functional_adam._types import GradientTransformation, PyTree
from functional_adam._watch import table
from functional_adam._watch.sizes import (
    bytes_by_path,
    bytes_of,
    formats_by_path,
    kernels_by_path,
    on_each_device,
)

_WORDS = ("leaf", "shape", "dtype", "moments")  # the last if leaves differ
_PARTS = ("mu", "nu", "nu_scale", "residual", "extra")
_PLACES = ("per_device", "on_host")


class LeafMemory(NamedTuple):
    """The bytes of one parameter and of each part of its state.

    Attributes:
        path: Path of the parameter, as in error messages.
        shape: Shape of the parameter.
        dtype: Dtype of the parameter.
        parameter: Bytes of the parameter, over all devices, like the sizes below.
        mu: Bytes of the first moment.
        nu: Bytes of the second moment.
        nu_scale: Bytes of the scales of 8-bit moments.
        residual: Bytes of the residual of rounding="compensated" or "split".
        extra: Bytes of a variant's own trees.
        per_device: Bytes of the whole state in the memory of each device; None if no shardings were
            given.
        on_host: Bytes of the whole state in the host's memory for each device; None if no sharding
            places anything there (see `offload`).
        moments: Format of both moments: "full", "bfloat16" or "int8"; "" if there are none.
        kernels: With "int8", the kinds of devices ("gpu", "tpu") that have a kernel for this leaf.
            Other devices take several passes over memory. See docs/performance.md.
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
    on_host: int | None = None
    moments: str = ""
    kernels: tuple[str, ...] = ()

    @property
    def state(self) -> int:
        """Bytes of all parts of the state."""
        return self.mu + self.nu + self.nu_scale + self.residual + self.extra


class MemoryReport(NamedTuple):
    """The bytes of each leaf and of everything; as text, a table of 88 columns.

    If sizes or the parts of the state do not fit into the table, it rounds or omits them. The
    fields have all of them.

    Attributes:
        leaves: One `LeafMemory` per parameter.
        other: Bytes that belong to no parameter: counters, and state of other transformations.
        other_per_device: Part of `other` on each device; None if no shardings were given.
        other_on_host: Part of `other` in the host's memory for each device; None if the host has
            nothing of the state.
    """

    leaves: tuple[LeafMemory, ...]
    other: int
    other_per_device: int | None = None
    other_on_host: int | None = None

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.leaves)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters themselves."""
        return sum(leaf.parameter for leaf in self.leaves)

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole state."""
        return sum(leaf.state for leaf in self.leaves) + self.other

    @property
    def state_bytes_per_device(self) -> int | None:
        """Bytes of the state on each device; None if no shardings were given."""
        if self.other_per_device is None:
            return None
        return sum(leaf.per_device or 0 for leaf in self.leaves) + self.other_per_device

    @property
    def state_bytes_on_host(self) -> int | None:
        """What the host has of the state for each device; None where it has nothing."""
        if self.other_on_host is None:
            return None
        return sum(leaf.on_host or 0 for leaf in self.leaves) + self.other_on_host

    @property
    def float32_adam_bytes(self) -> int:
        """Bytes of Adam's state with float32 moments: 8 per element, and the counter."""
        return 8 * self.parameters + 4

    def __str__(self) -> str:
        """The table, in 88 columns: a part that is 0 everywhere is left out. If the table is still
        too wide, sizes are rounded, and then all parts are left out.
        """
        sums = [sum(column) for column in zip(*map(_sizes, self.leaves), strict=True)] or [0] * 6
        on_each, on_host = self.state_bytes_per_device, self.state_bytes_on_host
        total = LeafMemory(
            *("total", (self.parameters,), "", *sums),
            per_device=None if on_each is None else on_each - (self.other_per_device or 0),
            on_host=None if on_host is None else on_host - (self.other_on_host or 0),
        )
        parts = [name for name in _PARTS if getattr(total, name)]
        forms = (parts, table.whole), (parts, table.short), ([], table.short)
        words = 4 if len({leaf.moments for leaf in self.leaves}) > 1 else 3
        leaves = [*self.leaves, total]
        tables = [(_rows(leaves, *form, words), gap) for form in forms for gap in (2, 1)]
        rows, gap = next((t for t in tables if table.fits(*t)), tables[-1])
        end = (
            f"{self.other:,} bytes of other state; {self.state_bytes:,} in total, "
            f"{self.state_bytes / self.float32_adam_bytes:.1%} of float32 Adam's "
            f"{self.float32_adam_bytes:,}"
        )
        end += "" if on_each is None else f"; {on_each:,} on each device"
        end += "" if on_host is None else f", {on_host:,} for it on the host"
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
            texts.append(f"No one-pass kernel on {name}: {', '.join(missing[:3])}{more}.")
    return texts


def _sizes(leaf: LeafMemory) -> tuple[int, ...]:
    return leaf.parameter, leaf.mu, leaf.nu, leaf.nu_scale, leaf.residual, leaf.extra


def _rows(
    leaves: Sequence[LeafMemory], parts: Sequence[str], of: Callable[[int], str], words: int
) -> list[list[str]]:
    """The head, and for each leaf (the total last) its sizes as `of` formats them."""
    head = [*_WORDS[:words], "parameter", *parts, "state", "B/param"]
    head += [] if leaves[-1].per_device is None else ["per device"]
    head += [] if leaves[-1].on_host is None else ["on host"]
    return [head, *(_row(leaf, parts, of, words) for leaf in leaves)]


def _row(leaf: LeafMemory, parts: Sequence[str], of: Callable[[int], str], words: int) -> list[str]:
    count = math.prod(leaf.shape)
    sizes = [leaf.parameter, *(getattr(leaf, part) for part in parts), leaf.state]
    shape = str(leaf.shape) if leaf.dtype else ""
    return [
        *(leaf.path or "(params)", shape, leaf.dtype, leaf.moments)[:words],
        *map(of, sizes),
        f"{leaf.state / count:.3f}" if count else "-",
        *(of(size) for size in (leaf.per_device, leaf.on_host) if size is not None),
    ]


def memory_report(
    tx: GradientTransformation, params: PyTree, shardings: PyTree = None
) -> MemoryReport:
    """The bytes of the state of `tx` for these parameters, leaf by leaf.

    Nothing is allocated: only the shapes that `tx.init` would make are computed.

    Args:
        tx: A transformation of this package, alone or anywhere inside Optax's wrappers (a chain,
            `masked`, `partition`, `inject_hyperparams`).
        params: A tree of arrays or of `jax.ShapeDtypeStruct`s.
        shardings: None (default), or the result of `state_shardings(tx, params)`. The report then
            also has the bytes on each device, and with the shardings of `offload` those on its
            host.

    Returns:
        A `MemoryReport`. Print it for a table, or read its fields. For comparison, float32 Adam
        takes 8 bytes of state per parameter.

    Raises:
        TypeError: `tx` has no `init`, a leaf is not an array that it can train, or a leaf of
            `shardings` is not a sharding.
        ValueError: `shardings` does not have the structure of the state.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)}
        >>> report = fa.memory_report(fa.adamw(moments="int8", rounding="compensated"), params)
        >>> report.state_bytes / report.parameters
        3.015628...
    """
    state = state_shapes(tx, params)
    whole = jax.tree.map(bytes_of, state)
    places = [] if shardings is None else on_each_device(state, shardings)
    parts = [bytes_by_path(whole, (name,)) for name in _PARTS]
    formats, kinds = formats_by_path(state), kernels_by_path(tx, state, params)
    mine = [bytes_by_path(place, _PARTS) for place in places]
    rows: list[LeafMemory] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, shape, dtype = keystr(path), np.shape(leaf), jax.dtypes.result_type(leaf)
        sizes = [of_part[name] for of_part in parts]
        size = math.prod(shape) * dtype.itemsize
        per_device, on_host, *_ = [of_place[name] for of_place in mine] + [None, None]
        row = LeafMemory(
            *(name, shape, dtype.name, size, *sizes),
            per_device=per_device,
            on_host=on_host,
            moments="+".join(formats.get(name, ())),
            kernels=kinds.get(name, ()),
        )
        rows.append(row)
    report = MemoryReport(tuple(rows), sum(jax.tree.leaves(whole)) - sum(row.state for row in rows))
    rest = {
        f"other_{k}": sum(jax.tree.leaves(place)) - sum(getattr(row, k) for row in rows)
        for k, place in zip(_PLACES, places, strict=False)
    }
    return report._replace(**rest)
