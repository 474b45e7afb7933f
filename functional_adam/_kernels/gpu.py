"""One pass over a leaf on a GPU: `update_leaf` on a few blocks at a time, compiled by Triton."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from functional_adam._kernels.tiles import Part, Tiles, like, packed, results
from functional_adam._leaf import LeafConfig, update_leaf
from functional_adam._storage.formats import Int8
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.reductions import GROUPS, Reductions, groups_of, plain

_BLOCKS = 4  # blocks per program; 4 compile in half the time of 16
_WARPS = 4


@dataclasses.dataclass(frozen=True)
class _FilledUp(Int8):
    """`Int8` with blocks padded to a power of two, because Triton has no other vectors."""

    groups: int = GROUPS

    @property
    def reductions(self) -> Reductions:
        """The groups of the block before padding."""
        return plain(self.groups)


def one_pass(
    config: LeafConfig, tiles: Tiles, origin: Any, part: Part, *, interpret: bool = False
) -> tuple[jax.Array, LeafState]:
    """`update_leaf` of a part of a leaf that begins at element `origin` of the whole leaf."""
    scalars, g, stored, theta, _ = part
    blocks = tiles.planes * tiles.rows * tiles.blocks
    together = min(_BLOCKS, 1 << (blocks.bit_length() - 1))
    given = packed((scalars, origin, np.uint32(blocks), _numbers(tiles)))
    config = config._replace(moments=_FilledUp(groups=groups_of(tiles.length)))
    arrays, tree = jax.tree.flatten((g, stored, theta))
    shape = (blocks, -1) if _is_dense(tiles) else (-1,)
    arrays = [x.reshape((blocks, 1) if x is stored.scale else shape) for x in arrays]

    def kernel(floats: Any, words: Any, *references: Any) -> None:
        inputs, outputs = references[: len(arrays)], references[len(arrays) :]
        (s, noise, key), start, count, numbers = given.unpacked(floats, words)
        block = jax.lax.broadcasted_iota(jnp.int32, (together, 1), 0) + pl.program_id(0) * together
        places = functools.partial(_places, tiles, block, block < count.astype(jnp.int32))
        g, stored, theta = jax.tree.unflatten(tree, [_read(x, *places(x)) for x in inputs])
        key = key + start + _starts(tiles, numbers, block.astype(jnp.uint32))
        new = update_leaf(config, s, noise, key, g, stored, theta)
        for reference, x in zip(outputs, jax.tree.leaves(new), strict=True):
            at, within = places(reference)
            triton.store(reference.at[at], x, mask=jnp.broadcast_to(within, x.shape))

    def spec(x: Any) -> pl.BlockSpec:
        if x.ndim == 1:
            return pl.BlockSpec(memory_space=pl.ANY)
        return pl.BlockSpec((together, x.shape[1]), lambda n: (n, 0))

    shapes, overwritten = results(config, arrays, stored, theta)
    new = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(blocks, together),),
        in_specs=[spec(x) for x in (given.floats, given.words, *arrays)],
        out_specs=[spec(x) for x in shapes],
        out_shape=shapes,
        input_output_aliases=overwritten,
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name="adam",
    )(given.floats, given.words, *arrays)
    return like(part, new)


def _numbers(tiles: Tiles) -> tuple[np.uint32, ...]:
    """The numbers that `_starts` needs. As operands they let equal kernels compile once."""
    numbers = tiles.blocks, tiles.rows, tiles.row_distance, tiles.plane_distance
    return tuple(np.uint32(n % 2**32) for n in numbers)


def _is_dense(tiles: Tiles) -> bool:
    """Whether blocks are vectors without padding."""
    return tiles.is_full and tiles.length == tiles.vector


def _places(tiles: Tiles, block: Any, exists: Any, reference: Any) -> tuple[Any, Any]:
    """The places of blocks' elements in an array, or in its tile, and which of them exist."""
    if len(reference.shape) > 1:
        return (slice(None), slice(None)), exists
    lane = jax.lax.broadcasted_iota(jnp.int32, (block.shape[0], tiles.vector), 1)
    in_row = block % tiles.blocks * tiles.length + lane
    within = exists & (lane < tiles.length) & (in_row < tiles.width)
    return block // tiles.blocks * tiles.width + in_row, within


def _read(reference: Any, at: Any, within: Any) -> Any:
    """The elements at these places, and 0 beyond the end."""
    place = reference.at[at]
    shape = within.shape if len(reference.shape) == 1 else reference.shape
    return triton.load(place, mask=jnp.broadcast_to(within, shape), other=0)


def _starts(tiles: Tiles, numbers: tuple[Any, ...], block: Any) -> Any:
    """The places of blocks in the whole leaf, minus what `update_leaf` adds for their rows here."""
    blocks, rows, row_distance, plane_distance = numbers
    in_row, line = block % blocks, block // blocks
    start = line // rows * plane_distance + line % rows * row_distance
    row = jax.lax.broadcasted_iota(jnp.uint32, block.shape, 0)
    return start + in_row * np.uint32(tiles.length) - row * np.uint32(tiles.vector)
