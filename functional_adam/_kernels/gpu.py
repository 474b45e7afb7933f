"""One pass over a leaf on a GPU: `update_leaf` on some blocks at a time, compiled by Triton."""

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

_BLOCKS = 16  # of a program; with 128 elements in each, 4 elements a thread and operand
_WARPS = 4


@dataclasses.dataclass(frozen=True)
class _FilledUp(Int8):
    """`Int8` of blocks that are filled up to a power of two, as Triton has no other vectors."""

    groups: int = GROUPS

    @property
    def reductions(self) -> Reductions:
        """Groups of the block as it was."""
        return plain(self.groups)


def takes(tiles: Tiles) -> bool:
    """Whether there is a kernel for such a leaf: for all."""
    del tiles
    return True


def one_pass(
    config: LeafConfig, tiles: Tiles, origin: Any, part: Part, *, interpret: bool = False
) -> tuple[jax.Array, LeafState]:
    """`update_leaf` of a part of a leaf whose first element stands at `origin` of the whole."""
    scalars, g, stored, theta, _ = part
    blocks = tiles.planes * tiles.rows * tiles.blocks
    together = min(_BLOCKS, 1 << (blocks.bit_length() - 1))
    given = packed((scalars, origin))
    config = config._replace(moments=_FilledUp(groups=groups_of(tiles.length)))
    arrays, tree = jax.tree.flatten((g, stored, theta))
    shape = (blocks, -1) if _is_dense(tiles) else (-1,)
    arrays = [x.reshape((blocks, 1) if x is stored.scale else shape) for x in arrays]

    def kernel(floats: Any, words: Any, *references: Any) -> None:
        inputs, outputs = references[: len(arrays)], references[len(arrays) :]
        (s, noise, key), start = given.unpacked(floats, words)
        first = pl.program_id(0) * together
        # The last program goes back to where it has all of its blocks; what another has done, it
        # reads and does not write.
        begin = jnp.minimum(first, blocks - together)
        mine = jax.lax.broadcasted_iota(jnp.int32, (together, 1), 0) + begin >= first
        places = functools.partial(_places, tiles, begin, together)
        g, stored, theta = jax.tree.unflatten(tree, [_read(x, *places(x)) for x in inputs])
        key = key + start + _starts(tiles, begin, together)
        new = update_leaf(config, s, noise, key, g, stored, theta)
        for reference, x in zip(outputs, jax.tree.leaves(new), strict=True):
            at, within = places(reference)
            mask = mine if within is None else mine & within
            triton.store(reference.at[at], x, mask=jnp.broadcast_to(mask, x.shape))

    shapes, overwritten = results(config, arrays, stored, theta)
    everywhere = pl.BlockSpec(memory_space=pl.ANY)
    new = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(blocks, together),),
        in_specs=[everywhere] * (2 + len(arrays)),
        out_specs=[everywhere] * len(shapes),
        out_shape=shapes,
        input_output_aliases=overwritten,
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name="adam",
    )(given.floats, given.words, *arrays)
    return like(part, new)


def _is_dense(tiles: Tiles) -> bool:
    """Whether blocks are vectors as they stand."""
    return tiles.is_full and tiles.length == tiles.vector


def _places(tiles: Tiles, begin: Any, together: int, reference: Any) -> tuple[Any, Any]:
    """Where the elements of these blocks are in an array, and which of them it has; None: all."""
    if len(reference.shape) > 1:
        return (pl.ds(begin, together), slice(None)), None
    shape = (together, tiles.vector)
    block = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + begin
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    in_row = block % tiles.blocks * tiles.length + lane
    within = (lane < tiles.length) & (in_row < tiles.width)
    return block // tiles.blocks * tiles.width + in_row, within


def _read(reference: Any, at: Any, within: Any) -> Any:
    """What stands there, and 0 beyond."""
    if within is None:
        return reference[at]
    return triton.load(reference.at[at], mask=within, other=0)


def _starts(tiles: Tiles, begin: Any, together: int) -> Any:
    """Where blocks stand in the whole leaf, less what `update_leaf` adds for their rows here."""
    if tiles.is_contiguous and _is_dense(tiles):
        return begin.astype(jnp.uint32) * np.uint32(tiles.length)
    row = jax.lax.broadcasted_iota(jnp.uint32, (together, 1), 0)
    block = begin.astype(jnp.uint32) + row
    u32 = np.uint32
    in_row, line = block % u32(tiles.blocks), block // u32(tiles.blocks)
    in_plane, plane = line % u32(tiles.rows), line // u32(tiles.rows)
    start = plane * u32(tiles.plane_distance % 2**32) + in_plane * u32(tiles.row_distance % 2**32)
    return start + in_row * u32(tiles.length) - row * u32(tiles.vector)
