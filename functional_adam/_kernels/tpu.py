"""One pass over a leaf on a TPU: `update_leaf` on a column of blocks at a time, by Mosaic."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from functional_adam._kernels.tiles import Part, Tiles, like, packed, results
from functional_adam._leaf import LeafConfig, update_leaf
from functional_adam._storage.floats import bits_of, from_bits
from functional_adam._storage.formats import Int8
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.reductions import GROUPS, Reductions, groups_of

_TILE = 2**16  # elements loaded into the chip's memory at once, unless 32 rows have more
_ROWS = 32  # rows of a tile of 8-bit numbers
_BLOCKS = 128  # blocks of a row whose scales are loaded at once; they form a tile themselves
_WIDTH = 2**12  # elements of a row in a tile of `_ROWS`; a few more rows would not fit

# ---- Blocks along lanes ----

# A TPU's vectors are 8 rows of 128 lanes. Along lanes it has maxima and sums of floats only, and no
# reshape. So each lane of a group holds the group's maximum. The bits of floats >= 0 are ordered
# like the floats.


def _on_lanes(groups: int) -> Reductions:
    """The reductions of blocks whose lanes are a power of two, padded with zeros or not."""

    def of_groups(x: jax.Array) -> jax.Array:
        x, distance = from_bits(x), x.shape[-1] // 2
        while distance >= groups:
            x = jnp.maximum(x, tpu.roll(x, distance, x.ndim - 1))
            distance //= 2
        return bits_of(x)

    def largest(x: jax.Array) -> jax.Array:
        return jnp.max(x.astype(jnp.float32), axis=-1, keepdims=True).astype(jnp.int32)

    def number(which: jax.Array) -> jax.Array:
        lanes = jnp.sum(which.astype(jnp.float32), axis=-1, keepdims=True).astype(jnp.int32)
        return lanes >> (which.shape[-1] // groups).bit_length() - 1

    return Reductions(of_groups, largest, number, groups)


@dataclasses.dataclass(frozen=True)
class _OnLanes(Int8):
    """`Int8` with blocks along lanes; it computes the same numbers."""

    groups: int = GROUPS

    @property
    def reductions(self) -> Reductions:
        """The reductions along lanes."""
        return _on_lanes(self.groups)


# ---- The kernel ----


def _fills_lanes(tiles: Tiles) -> bool:
    return tiles.is_full and tiles.length == tiles.lanes


def one_pass(
    config: LeafConfig, tiles: Tiles, origin: Any, part: Part, *, interpret: bool = False
) -> tuple[jax.Array, LeafState]:
    """`update_leaf` of a part of a leaf that begins at element `origin` of the whole leaf."""
    scalars, g, stored, theta, _ = part
    config = config._replace(moments=_OnLanes(groups=groups_of(tiles.length)))
    tiles, lanes = _folded(tiles), tiles.lanes
    rows, blocks, across = _tile(tiles)
    pieces = np.int32(pl.cdiv(across, blocks))  # pieces of the blocks whose scales are loaded
    given = packed((scalars, origin))
    whole, tree = jax.tree.flatten((g, stored, theta))
    arrays = [x.reshape(tiles.planes, tiles.rows, -1) for x in whole]

    def kernel(floats: Any, words: Any, *references: Any) -> None:
        (s, noise, key), start = given.unpacked(floats, words)
        inputs = jax.tree.unflatten(tree, references[: len(arrays)])
        plane, row, column = (pl.program_id(axis).astype(jnp.uint32) for axis in range(3))
        start = start + plane * np.uint32(tiles.plane_distance % 2**32)
        start = start + row * np.uint32(rows * tiles.row_distance % 2**32)
        start = start + column * np.uint32(blocks * lanes)
        step = functools.partial(update_leaf, config, s, noise)
        at = pl.program_id(2)
        place = jax.lax.rem(at, pieces) * blocks, tiles.width - at * blocks * lanes
        _block_by_block(step, tiles, place, key + start, inputs, references[len(arrays) :])

    def spec(x: Any) -> pl.BlockSpec:
        if x.shape[-1] != tiles.blocks:
            return pl.BlockSpec((None, rows, blocks * lanes), lambda *at: at)
        shape = None, rows, across
        return pl.BlockSpec(shape, lambda plane, row, at: (plane, row, jax.lax.div(at, pieces)))

    shapes, places = results(config, arrays, stored, theta)
    vectors = [pl.BlockSpec(memory_space=tpu.SMEM)] * 2
    new = pl.pallas_call(
        kernel,
        grid=(tiles.planes, pl.cdiv(tiles.rows, rows), pl.cdiv(tiles.blocks, blocks)),
        in_specs=[*vectors, *map(spec, arrays)],
        out_specs=[spec(x) for x in shapes],
        out_shape=shapes,
        input_output_aliases=places,
        interpret=interpret,
        name="adam",
    )(given.floats, jax.lax.bitcast_convert_type(given.words, jnp.int32), *arrays)
    return like(part, new)


def _tile(tiles: Tiles) -> tuple[int, int, int]:
    """(rows and blocks of a tile, blocks of a row whose scales are loaded at once)."""
    across = tiles.blocks if tiles.blocks < 2 * _BLOCKS else _BLOCKS
    blocks = pl.cdiv(across, pl.cdiv(across * tiles.lanes, max(tiles.lanes, _WIDTH)))
    rows = max(_ROWS, _TILE // (blocks * tiles.lanes) // _ROWS * _ROWS)
    return min(tiles.rows, rows), blocks, across


def _folded(tiles: Tiles) -> Tiles:
    """A single row split into several, because a tile has at least 8 rows, filled or not."""
    if tiles.rows > 1 or not (tiles.is_contiguous and _fills_lanes(tiles)):
        return tiles
    blocks = max(k for k in range(1, min(tiles.blocks, _BLOCKS) + 1) if tiles.blocks % k == 0)
    width = blocks * tiles.length
    return Tiles(1, tiles.planes * tiles.blocks // blocks, width, blocks, tiles.length, width, 0)


def _block_by_block(
    step: Any, tiles: Tiles, place: tuple[Any, Any], key: Any, inputs: Any, outputs: Any
) -> None:
    """The blocks of a tile, column by column; all rows of a column at once.

    The scales of the tile begin at number `first` of those that are loaded. From this tile on, each
    row has `left` elements; anything beyond is read as 0.
    """
    (first, left), (g, stored, theta) = place, inputs
    out, stored_out = jax.tree.unflatten(jax.tree.structure((g, stored)), outputs)
    lanes = tiles.lanes
    scales = stored.scale[...].astype(jnp.int32)
    rows = scales.shape[0]
    column = jax.lax.broadcasted_iota(jnp.int32, scales.shape, 1)
    # `update_leaf` counts the elements that it is given; these are distances between whole rows.
    row = jax.lax.broadcasted_iota(jnp.uint32, (rows, 1), 0)
    row = row * np.uint32((tiles.row_distance - lanes) % 2**32)
    lane = jax.lax.broadcasted_iota(jnp.int32, (rows, lanes), 1)

    def one(j: Any, new_scales: jax.Array) -> jax.Array:
        at = pl.ds(pl.multiple_of(j * lanes, lanes), lanes)
        here = column == first + j
        scale = jnp.sum(jnp.where(here, scales, 0).astype(jnp.float32), axis=1, keepdims=True)
        given = jax.tree.map(lambda x: x[:, at], (g, stored._replace(scale=None), theta))
        if not _fills_lanes(tiles):
            within = lane < left - j * lanes
            given = jax.tree.map(lambda x: _or_zero(within, x), given)
        here_g, old, weight = given
        old = old._replace(scale=scale.astype(jnp.int32))
        start = key + row + (j * lanes).astype(jnp.uint32)
        new = step(start, here_g, old, weight)
        scale = new[1].scale.astype(jnp.int32)
        targets = jax.tree.leaves((out, stored_out._replace(scale=None)))
        values = jax.tree.leaves((new[0], new[1]._replace(scale=None)))
        for target, x in zip(targets, values, strict=True):
            target[:, at] = x
        return jnp.where(here, scale, new_scales)

    new_scales = stored_out.scale[...].astype(jnp.int32)  # from the row's tiles before this one
    new_scales = jax.lax.fori_loop(0, g.shape[1] // lanes, one, new_scales)
    stored_out.scale[...] = new_scales.astype(jnp.uint16)


def _or_zero(within: jax.Array, x: jax.Array) -> jax.Array:
    """x or 0, selected in 32 bits, because a TPU compares and selects in 32 bits."""
    wide = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32
    return jnp.where(within, x.astype(wide), wide(0)).astype(x.dtype)
