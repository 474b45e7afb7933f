"""The step in the native CPU kernel of the distribution `functional-adam-native`.

The kernel takes one leaf or many small ones in one pass over memory, in place, on XLA's threads. It
takes only steps whose formulas it has. `native/src/step.h` describes the same scalars and operands.
"""

from __future__ import annotations

import functools
import importlib
import os
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

PACKAGE = "functional_adam_native"
SWITCH = "FUNCTIONAL_ADAM_NATIVE"
_CONTRACT = 1  # version of the kernel's operands and their order
_LONGEST = 1024  # largest number of elements of a block
_BLOCK = 128  # elements of a block if moments are floats, which need no blocks
_ROUNDINGS = ("nearest", "stochastic", "compensated", "split")
_FLOATS = (np.dtype(np.float32), np.dtype(jnp.bfloat16))


# ---- Whether the kernel is installed ----


def is_on() -> bool:
    """Whether the kernel is installed and not turned off."""
    given = os.environ.get(SWITCH, "on")
    if given not in ("on", "off"):
        raise ValueError(f'{SWITCH} must be "on" or "off"; got {given!r}.')
    return given == "on" and version() is not None


@functools.cache
def version() -> str | None:
    """The version of the kernel, after registering it with XLA; None if it is not installed."""
    try:
        package = importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
        return None
    if package.CONTRACT != _CONTRACT:
        raise ImportError(
            f"functional-adam-native {package.__version__} is for another version of "
            f"functional_adam: its contract is {package.CONTRACT}, not {_CONTRACT}. Install both "
            f"from the same release, or set {SWITCH}=off in the environment."
        )
    try:
        library = package.library()
    except OSError as error:  # built for another system, or damaged
        error.add_note(f"Install {PACKAGE} again, or set {SWITCH}=off in the environment.")
        raise
    for name in package.TARGETS:
        function = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, function, platform="cpu")
    return package.__version__


# ---- Whether the kernel takes a step ----


def takes(config: LeafConfig, whole: tuple[int, ...], part: Part) -> bool:
    """Whether the kernel can take this step."""
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
    """Whether a variant is Adam in everything that is computed per element.

    The fields reset to Adam's below only compute scalars, are names, or are read by modifiers only.
    """
    variant = config.variant
    as_adam = variant._replace(
        name=ADAM.name,
        prepare=ADAM.prepare,
        correction=ADAM.correction,
        rectify=ADAM.rectify,
        scale_rate=ADAM.scale_rate,
        numerator=ADAM.numerator,
        decay_rates=ADAM.decay_rates,
    )
    return as_adam == ADAM and variant.numerator in (F.momentum, F.nesterov_momentum)


def _tiles(whole: tuple[int, ...], part: Part) -> Tiles | None:
    """The blocks of a part of a leaf of shape `whole`; floats get blocks that suit the kernel."""
    shape = part.g.shape
    if part.stored.scale is not None:
        return tiles(shape, part.stored.scale.shape, whole)
    # Elements along the axes after the last divided one are contiguous.
    pairs = enumerate(zip(shape, whole, strict=True))
    lead = max((n for n, (mine, of_whole) in pairs if mine != of_whole), default=0)
    found = tiles(shape, (*shape[:lead], 1), whole)
    return found and found._replace(blocks=-(-found.width // _BLOCK), length=_BLOCK)


# ---- The call ----


def one_pass(
    config: LeafConfig, shapes: list[tuple[int, ...]], parts: list[Part]
) -> list[tuple[jax.Array, LeafState]]:
    """`update_leaf` of parts of leaves with these shapes, all with the same scalars."""
    s, noise, _ = parts[0].scalars
    needs_theta = config.applies or config.decays or s.l2 is not None or config.rounding is not None
    arrays: list[Any] = []
    results: list[Any] = []
    overwritten: dict[int, int] = {}
    for part in parts:
        if config.applies:
            overwritten[2 + len(arrays) + 1] = len(results)
        dtype = part.theta.dtype if config.applies else config.out
        arrays += [part.g, part.theta] if needs_theta else [part.g]
        results += [jax.ShapeDtypeStruct(part.g.shape, dtype)]
        for x in jax.tree.leaves(part.stored):
            overwritten[2 + len(arrays)] = len(results)
            arrays.append(x)
            results.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
    call = jax.ffi.ffi_call("functional_adam_step", results, input_output_aliases=overwritten)
    pairs = list(zip(shapes, parts, strict=True))
    new = call(
        _scalars(config, s),
        jnp.stack([*_words(noise), *(_place(shape, part) for shape, part in pairs)]),
        *arrays,
        **_attributes(config, s, parts[0].stored),
        tiles=np.array([_numbers(_tiles(shape, part)) for shape, part in pairs], np.int64).ravel(),
    )
    return jax.tree.unflatten(jax.tree.structure([(x.g, x.stored) for x in parts]), new)


def _attributes(config: LeafConfig, s: Any, stored: LeafState) -> dict[str, Any]:
    """What is known about a step when it is traced."""
    rounding = "nearest" if config.rounding is None else config.rounding.name
    return {
        "moments": np.int64(2 if stored.scale is not None else config.moments.is_random),
        "rounding": np.int64(_ROUNDINGS.index(rounding)),
        "applies": config.applies,
        "decays": config.decays,
        "has_l2": s.l2 is not None,
        "has_eps_root": s.eps_root is not None,
        "looks_ahead": config.variant.numerator is F.nesterov_momentum,
    }


def _scalars(config: LeafConfig, s: Any) -> jax.Array:
    """The scalars of a step; 0 for those that it does not have."""
    ahead = [s.derived.get(name, 0) for name in ("ahead", "now")]
    bound = largest_ratio(s.b1, s.b2, s.t) if config.moments.has_scale else 0
    unless_none = [0 if x is None else x for x in (s.eps_root, s.l2)]
    rates = [x for b in (s.b1, s.b2) for x in (b.keep, b.complement, b.subtract)]
    numbers = [*rates, s.eps, *unless_none, s.step_size, s.decay, *ahead, bound]
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in numbers])


def _words(noise: Any) -> list[Any]:
    """The noise of a step; 0 if it rounds nothing stochastically."""
    if noise is None:
        return [jnp.uint32(0)] * 4
    return [noise.nu, noise.mu, noise.code, noise.theta]


def _place(shape: tuple[int, ...], part: Part) -> Any:
    """The number of a part's first element in the leaf, from which random bits are made."""
    key = part.scalars[-1]
    return jnp.uint32(0) if key is None else key + origin(shape, part.starts)


def _numbers(tiles: Any) -> list[int]:
    """The numbers of tiles that exist, since `takes` has accepted the part."""
    distances = [n % 2**32 for n in (tiles.row_distance, tiles.plane_distance)]
    return [tiles.planes, tiles.rows, tiles.width, tiles.blocks, tiles.length, *distances]
