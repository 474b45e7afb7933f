"""Random bits for stochastic rounding, without a PRNG key.

The bits of an element are a pure function of the step count, the path of its leaf and its place in
the leaf. So the same step rounds the same way on any mesh and after any resume.
"""

from __future__ import annotations

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._storage.floats import from_bits


class StepNoise(NamedTuple):
    """The part of the random bits that depends on the step, for each thing that is rounded."""

    nu: jax.Array
    mu: jax.Array
    code: jax.Array  # for the residual of a compensated weight
    theta: jax.Array
    extra: dict[str, jax.Array]  # by the names of the trees in `AdamState.extra`


class RandomBits(NamedTuple):
    """32 random bits per element of a leaf, in an independent stream for each thing rounded."""

    nu: jax.Array
    mu: jax.Array
    code: jax.Array
    theta: jax.Array
    extra: dict[str, jax.Array]


def step_noise(count: jax.Array, extra: tuple[str, ...] = ()) -> StepNoise:
    """The noise of step number `count`, counted from 1; `extra` names further averages.

    A moment moves by a small part of the distance between codes, so it is rounded up only once in
    many steps. These steps should be spread evenly: independent bits would give a random walk.
    Every window of 2**k steps therefore uses each of the 2**k equal parts of the unit interval
    once, in an order that is shuffled for each window. (A fixed order, such as multiples of the
    golden ratio, resonates with periodic gradients.) The length of the window fits what is rounded:
    `mu` forgets within about ten steps, the others within many more.

    Only the bits for `theta` are independent from step to step. Within a window bits depend on each
    other: what the first ones did to a weight predicts the next ones. The grid is twice as fine
    below a power of two, so weights that cross it back and forth would drift towards 0, by 1.6 % in
    10,000 steps of a quarter of a unit. (Codes are 256 times as fine and drift by less than 1e-5.)
    """
    t = count.astype(jnp.uint32)
    return StepNoise(
        nu=_shuffled(t, 6, 1),
        mu=_shuffled(t, 3, 2),
        code=_shuffled(t, 6, 3),
        theta=mixed(t * np.uint32(8) + np.uint32(4)),
        extra={name: _shuffled(t, 6, int(leaf_key(name))) for name in extra},
    )


def _shuffled(t: jax.Array, bits: int, salt: int) -> jax.Array:
    """The permuted slot of step t in its window (t >> bits, t mod 2**bits), plus an offset."""
    u32 = np.uint32
    window = (t >> u32(bits)) * u32(8) + u32(salt)
    key, offset = mixed(window), mixed(window + u32(4))
    low = u32(2**bits - 1)
    slot = t & low
    for shift in (0, 8, 16):  # each line is one-to-one on `bits` bits
        slot = (slot * ((key >> u32(shift)) | u32(1)) + (key >> u32(shift + 4))) & low
        slot = slot ^ (slot >> u32((bits + 1) // 2))
    return (slot << u32(32 - bits)) + (offset >> u32(bits))


def mixed(x: jax.Array) -> jax.Array:
    """A one-to-one scrambling of uint32 in which every input bit moves every output bit."""
    x = _mixed_above(x)
    return x ^ (x >> np.uint32(15))


def _mixed_above(x: jax.Array) -> jax.Array:
    """`mixed`, but for the last few bits."""
    u32 = np.uint32
    x = (x ^ (x >> u32(16))) * u32(0x21F0AAAD)
    return (x ^ (x >> u32(15))) * u32(0x735A2D97)


def leaf_key(path: str) -> np.uint32:
    """The key of a leaf, or of a further tree's stream, which makes its bits its own."""
    return np.uint32(zlib.crc32(path.encode()))


@functools.partial(jax.jit, static_argnums=0)
def opaque_leaf_keys(paths: tuple[str, ...], count: jax.Array) -> tuple[jax.Array, ...]:
    """The keys of these leaves, hidden from XLA for the CPU at compile time.

    XLA would write known keys into the loops of each leaf. The loops would then differ and all be
    compiled: the 148 leaves of GPT-2 took twice as long. XLA cannot know that `count` is positive.
    """
    keys = tuple(leaf_key(path) for path in paths)

    def known() -> tuple[jax.Array, ...]:
        return tuple(map(jnp.asarray, keys))

    def unknown() -> tuple[jax.Array, ...]:
        return jax.lax.cond(count > 0, known, lambda: tuple(jnp.zeros_like(k) for k in known()))

    return jax.lax.platform_dependent(cpu=unknown, default=known)


def random_bits(noise: StepNoise, key: jax.Array, shape: tuple[int, ...]) -> RandomBits:
    """The bits of a leaf of that shape; the index of an element is taken modulo 2**32."""
    u32 = np.uint32
    index, stride = jnp.zeros(shape, jnp.uint32) + key, 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + along * u32(stride % 2**32)
        stride *= shape[axis]
    # Only the upper bits are needed, but several independent ones: an element may be rounded up in
    # `nu` and down in `mu`.
    index = index * u32(0x9E3779B1)
    index = (index ^ (index >> u32(15))) * u32(0x85EBCA77)
    return RandomBits(
        nu=index + noise.nu,
        mu=(index ^ (index >> u32(15))) * u32(0xC2B2AE3D) + noise.mu,
        code=(index ^ (index >> u32(17))) * u32(0x27D4EB2F) + noise.code,
        # Scrambled together with the step's part; a plain sum would keep distances of elements.
        theta=_mixed_above(index ^ noise.theta),
        extra={name: _mixed_above(index ^ leaf_key(name)) + x for name, x in noise.extra.items()},
    )


def fraction(random: jax.Array) -> jax.Array:
    """The upper 14 bits as a number strictly inside (0, 1).

    Its distance from 0 and 1, 2**-15, exceeds the rounding error of a number below 256. So
    floor(k + fraction) is k if k is a whole number up to such an error.
    """
    middle = ((random >> np.uint32(9)) & np.uint32(0x7FFE00)) | np.uint32(0x3F800100)
    return from_bits(middle.astype(jnp.int32)) - 1  # from [1, 2): no conversion
