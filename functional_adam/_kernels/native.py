"""The step of a leaf by the CPU's own kernel, from the distribution `functional_adam_native`.

One pass over memory, in place, on XLA's threads. What the kernel has no formulas for, it does not
take. `native/src/step.h` says the same of scalars and operands.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._equations import formulas as F
from functional_adam._equations.family import ADAM
from functional_adam._equations.numerics import largest_ratio
from functional_adam._kernels.tiles import Part, Tiles, origin, tiles
from functional_adam._leaf import LeafConfig
from functional_adam._storage.leaf_state import LeafState

TARGET = "functional_adam_step"
_LONGEST = 1024  # elements of a block
_PIECE = 128  # elements of a block where moments are floats, which need none
_ROUNDINGS = ("nearest", "stochastic", "compensated", "split")
_FLOATS = (np.dtype(np.float32), np.dtype(jnp.bfloat16))


def takes(config: LeafConfig, whole: tuple[int, ...], part: Part) -> bool:
    """Whether the kernel has what this step needs."""
    s, g, stored, theta = part.scalars[0], part.g, part.stored, part.theta
    if not _has_formulas(config) or s.eps.dtype != np.float32 or not g.size:
        return False
    floats = [g, theta] if stored.scale is not None else [g, theta, stored.m, stored.v]
    if any(x is not None and x.dtype not in _FLOATS for x in floats):
        return False
    if config.rounding is not None and theta.dtype != jnp.bfloat16:
        return False
    found = _tiles(whole, part)
    return config.out in _FLOATS and found is not None and found.length <= _LONGEST


def _has_formulas(config: LeafConfig) -> bool:
    """Whether a variant is Adam in all that an element sees; scalars may be what they like."""
    variant = config.variant
    as_adam = variant._replace(
        name=ADAM.name,
        prepare=ADAM.prepare,
        correction=ADAM.correction,
        rectify=ADAM.rectify,
        numerator=ADAM.numerator,
        decay_rates=ADAM.decay_rates,
    )
    return as_adam == ADAM and variant.numerator in (F.momentum, F.nesterov_momentum)


def _tiles(whole: tuple[int, ...], part: Part) -> Tiles | None:
    """The blocks of a part of a leaf of shape `whole`; of floats, as many as suit the kernel."""
    shape = part.g.shape
    if part.stored.scale is not None:
        return tiles(shape, part.stored.scale.shape, whole)
    # What follows the last axis that is divided stands together.
    divided = [n for n, (mine, all_of_it) in enumerate(zip(shape, whole, strict=True)) if mine != all_of_it]
    lead = divided[-1] if divided else 0
    found = tiles(shape, (*shape[:lead], 1), whole)
    if found is None:
        return None
    return found._replace(blocks=-(-found.width // _PIECE), length=_PIECE)


def one_pass(
    config: LeafConfig, whole: tuple[int, ...], part: Part
) -> tuple[jax.Array, LeafState]:
    """`update_leaf` of a part of a leaf of shape `whole`."""
    (s, noise, key), g, stored, theta, starts = part
    found = _tiles(whole, part)
    assert found is not None
    needs_theta = config.applies or config.decays or s.l2 is not None or config.rounding is not None
    arrays = [g, *([theta] if needs_theta else []), *jax.tree.leaves(stored)]
    dtype = theta.dtype if config.applies else config.out
    results = [jax.ShapeDtypeStruct(g.shape, dtype)]
    results += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(stored)]
    first = 2 + len(arrays) - len(results) + 1
    aliases = {first + n: 1 + n for n in range(len(results) - 1)}
    if config.applies:
        aliases[3] = 0
    call = jax.ffi.ffi_call(TARGET, results, input_output_aliases=aliases)
    place = jnp.uint32(0) if key is None else key + origin(whole, starts)
    new = call(
        _floats(config, s),
        jnp.stack([*_words(noise), place]),
        *arrays,
        moments=np.int64(2 if stored.scale is not None else int(config.moments.is_random)),
        rounding=np.int64(0 if config.rounding is None else _ROUNDINGS.index(config.rounding.name)),
        applies=config.applies,
        decays=config.decays,
        has_l2=s.l2 is not None,
        has_eps_root=s.eps_root is not None,
        looks_ahead=config.variant.numerator is F.nesterov_momentum,
        tiles=np.array(
            [found.planes, found.rows, found.width, found.blocks, found.length,
             found.row_distance % 2**32, found.plane_distance % 2**32], np.int64),
    )
    return jax.tree.unflatten(jax.tree.structure((g, stored)), new)


def _floats(config: LeafConfig, s: Any) -> jax.Array:
    rates = [(b.keep, b.complement, b.subtract) for b in (s.b1, s.b2)]
    ahead = [s.derived["ahead"], s.derived["now"]] if config.variant.numerator is F.nesterov_momentum else [0, 0]
    bound = largest_ratio(s.b1, s.b2, s.t) if config.moments.has_scale else 0
    zero = [x if x is not None else 0 for x in (s.eps_root, s.l2)]
    numbers = [*rates[0], *rates[1], s.eps, *zero, s.step_size, s.decay, *ahead, bound]
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in numbers])


def _words(noise: Any) -> list[Any]:
    if noise is None:
        return [jnp.uint32(0)] * 4
    return [noise.nu, noise.mu, noise.code, noise.theta]
