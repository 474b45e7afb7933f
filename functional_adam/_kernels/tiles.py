"""A leaf as a kernel sees it: blocks in rows, rows in planes, and the place of each element.

The random bits of an element depend on its place in the whole leaf. If a mesh divides the leaf, a
kernel has only a part of it, but the distances between rows and planes are those of the whole leaf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _mesh
from functional_adam._leaf import LeafConfig
from functional_adam._storage.int8 import block_length
from functional_adam._storage.leaf_state import LeafState


class Part(NamedTuple):
    """The operands of the step of a leaf, or of the part of it that a device has."""

    scalars: Any  # (s, noise, key)
    g: Any
    stored: LeafState
    theta: Any
    starts: Any = None  # first index of the part along each axis of the leaf, as uint32


class Tiles(NamedTuple):
    """The shape of a part of a leaf, (planes, rows, width)."""

    planes: int
    rows: int
    width: int  # elements of a row
    blocks: int  # blocks of a row
    length: int  # elements of a block
    row_distance: int  # in elements of the whole leaf
    plane_distance: int

    @property
    def is_full(self) -> bool:
        """Whether the last block of a row is as long as the others."""
        return self.width == self.blocks * self.length

    @property
    def vector(self) -> int:
        """The power of two to which a block is padded for compilers without other vectors."""
        return 1 << (self.length - 1).bit_length()

    @property
    def lanes(self) -> int:
        """The lanes of a TPU that a block takes, padded with zeros."""
        return max(128, self.vector)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements of the part are contiguous in the leaf."""
        return (self.rows == 1 or self.row_distance == self.width) and (
            self.planes == 1 or self.plane_distance == self.rows * self.row_distance
        )


def has_full_blocks(shape: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    """Whether a leaf has blocks and all of them are full."""
    width = math.prod(shape[len(scales) - 1 :])
    return math.prod(shape) > 0 and block_length(width, scales[-1]) * scales[-1] == width


def fits_gpu(tiles: Tiles, dtypes: Sequence[np.dtype[Any]]) -> bool:
    """Whether a GPU has a kernel for such a leaf: if 32 bits can count its elements."""
    del dtypes
    return tiles.planes * tiles.rows * tiles.width < 2**31


def fits_tpu(tiles: Tiles, dtypes: Sequence[np.dtype[Any]]) -> bool:
    """Whether a TPU has a kernel for such a leaf: one block per row, or blocks of whole vectors.

    32 rows of longer blocks, with their intermediate results, would not fit into the chip's memory.
    `dtypes` are those of the gradient and the parameter; Mosaic has no float16.
    """
    has_lanes = tiles.blocks == 1 or tiles.length == tiles.lanes
    fits = has_lanes and tiles.lanes <= 2**12 and 1 < tiles.width < 2**31
    return fits and np.dtype(np.float16) not in dtypes


FITS = {"gpu": fits_gpu, "tpu": fits_tpu}


def kernels(
    shape: tuple[int, ...], scales: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[str, ...]:
    """The kinds of devices with a kernel for a leaf of this shape and dtype with 8-bit moments."""
    found = tiles(shape, scales)
    if found is None:
        return ()
    return tuple(name for name, fits in FITS.items() if fits(found, [dtype]))


def tiles(
    part: tuple[int, ...], scales: tuple[int, ...], whole: tuple[int, ...] | None = None
) -> Tiles | None:
    """The tiles of a part of a leaf of shape `whole`; None if a kernel could not compute places.

    That is a part where more than two leading axes would have distances of their own.
    """
    whole = part if whole is None else whole
    lead = len(scales) - 1
    width = math.prod(part[lead:])
    if not math.prod(part):
        return None
    row = math.prod(whole[lead:])
    planes, rows = part[: lead - 1] if lead else (), part[lead - 1] if lead else 1
    if len(planes) > 1 and planes[1:] != whole[1 : lead - 1]:
        return None
    plane = row * (whole[lead - 1] if lead else 1)
    length = block_length(width, scales[-1])
    return Tiles(math.prod(planes), rows, width, scales[-1], length, row, plane)


# ---- Places ----


def origin(leaf: tuple[int, ...], starts: Any) -> Any:
    """The place of a part's first element in a leaf of this shape."""
    if starts is None:
        return np.uint32(0)
    pairs = zip(starts, _distances(leaf), strict=True)
    return sum((start * distance for start, distance in pairs), np.uint32(0))


def shift(leaf: tuple[int, ...], part: tuple[int, ...], at: list[Any]) -> Any:
    """How much farther an element is from a part's first element in the leaf than in the part.

    `at` is the index of the element along each axis of the part, as uint32.
    """
    ways = zip(_distances(leaf), _distances(part), at, strict=True)
    far = [x * np.uint32((int(in_leaf) - int(in_part)) % 2**32) for in_leaf, in_part, x in ways]
    return sum(far, np.uint32(0))


def _distances(shape: tuple[int, ...]) -> list[np.uint32]:
    """The distance of neighbors along each axis in elements, modulo 2**32."""
    after = [int(np.prod(shape[axis + 1 :], dtype=object)) for axis in range(len(shape))]
    return [np.uint32(n % 2**32) for n in after]


# ---- Scalars and results ----


class Packed(NamedTuple):
    """The scalars of a step as two vectors, the form in which a kernel takes them."""

    floats: jax.Array
    words: jax.Array  # uint32
    tree: Any
    dtypes: tuple[Any, ...]

    def unpacked(self, floats: Any, words: Any) -> Any:
        """The tree of scalars, read back from references to the vectors."""
        places = {np.dtype(np.float32): iter(range(self.floats.size))}
        others = iter(range(self.words.size))
        leaves = []
        for dtype in self.dtypes:
            if dtype in places:
                leaves.append(floats[next(places[dtype])])
            else:
                word = words[next(others)].astype(jnp.uint32)
                leaves.append(word != 0 if dtype == np.bool_ else word.astype(dtype))
        return jax.tree.unflatten(self.tree, leaves)


def packed(scalars: Any) -> Packed:
    """The scalars packed into vectors: float32 in one, integers and booleans in the other."""
    leaves, tree = jax.tree.flatten(scalars)
    leaves = [jnp.asarray(x) for x in leaves]
    floats = [x for x in leaves if x.dtype == jnp.float32]
    words = [x.astype(jnp.uint32) for x in leaves if x.dtype != jnp.float32]
    return Packed(jnp.stack(floats), jnp.stack(words), tree, tuple(x.dtype for x in leaves))


def results(
    config: LeafConfig, arrays: list[jax.Array], stored: LeafState, theta: Any
) -> tuple[list[jax.ShapeDtypeStruct], dict[int, int]]:
    """The results of a kernel on two vectors and `arrays`, and which operands they overwrite.

    Each stored array overwrites its old one, and a new parameter the old parameter.
    """
    count = len(jax.tree.leaves(stored))
    dtype = theta.dtype if config.applies else config.out
    shapes = [_mesh.shape_like(x, x.dtype) for x in arrays[: 1 + count]]
    shapes[0] = _mesh.shape_like(arrays[0], dtype)
    places = {3 + n: 1 + n for n in range(count)}
    return shapes, places | ({1 + len(arrays): 0} if config.applies else {})


def like(part: Part, new: list[jax.Array]) -> tuple[jax.Array, LeafState]:
    """The results of a kernel in the shapes of the leaf."""
    old, tree = jax.tree.flatten((part.g, part.stored))
    pairs = zip(new, old, strict=True)
    return jax.tree.unflatten(tree, [x.reshape(y.shape) for x, y in pairs])
