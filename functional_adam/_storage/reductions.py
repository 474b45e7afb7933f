"""The reductions over a block that the 8-bit code needs, in forms that compilers accept."""

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
    """The reductions over a block, in the form that a compiler accepts."""

    # The largest of each group of (..., length) >= 0. A group is every 32nd element, or every 16th
    # if 32 does not divide the length. These are maxima of vectors, not of single numbers.
    groups: Callable[[jax.Array], jax.Array]
    largest: Callable[[jax.Array], jax.Array]  # of (..., groups): (..., 1)
    number: Callable[[jax.Array], jax.Array]  # of groups where something holds: (..., 1)
    period: int = GROUPS  # number of places after which the groups repeat, if they do


def groups_of(length: int) -> int:
    """The number of groups of a block."""
    return math.gcd(length, GROUPS)


def plain(groups: int | None = None) -> Reductions:
    """The form for XLA and Triton; `groups` is for blocks that were padded to a longer one."""

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
