"""What the 8-bit code makes of a block as a whole, in the forms that compilers take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

GROUP_BITS = 5
GROUPS = 1 << GROUP_BITS


class Reductions(NamedTuple):
    """What is made of a block as a whole, in the form that a compiler takes."""

    # Of (..., length) >= 0 the largest of each group: every 32nd element, in blocks that 32 does
    # not divide every 16th. Vectors' maxima, where one along a block would be of numbers.
    groups: Callable[[jax.Array], jax.Array]
    largest: Callable[[jax.Array], jax.Array]  # of (..., groups): (..., 1)
    number: Callable[[jax.Array], jax.Array]  # of groups where something holds: (..., 1)


def _groups(x: jax.Array) -> jax.Array:
    lanes = math.gcd(x.shape[-1], GROUPS)
    x = x.reshape(*x.shape[:-1], x.shape[-1] // lanes, lanes)
    return jnp.max(x, axis=-2, initial=0)


PLAIN = Reductions(
    groups=_groups,
    largest=lambda x: jnp.max(x, axis=-1, keepdims=True),
    number=lambda which: jnp.sum(which, axis=-1, keepdims=True, dtype=jnp.int32),
)
