"""What the 8-bit code makes of a block as a whole, in the forms that compilers take."""

from __future__ import annotations

import functools
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
    period: int = GROUPS  # after so many places the same groups come again, if at all


def groups_of(length: int) -> int:
    """How many groups a block has."""
    return math.gcd(length, GROUPS)


def plain(groups: int | None = None) -> Reductions:
    """As XLA and Triton take them; `groups` where a block has been filled up to a longer one."""

    def of_groups(x: jax.Array) -> jax.Array:
        count = groups or groups_of(x.shape[-1])
        x = x.reshape(*x.shape[:-1], x.shape[-1] // count, count)
        return jnp.max(x, axis=-2, initial=0)

    return Reductions(
        of_groups,
        functools.partial(jnp.max, axis=-1, keepdims=True),
        functools.partial(jnp.sum, axis=-1, keepdims=True, dtype=jnp.int32),
    )


PLAIN = plain()
