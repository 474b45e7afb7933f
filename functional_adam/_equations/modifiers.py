"""The equations of the modifiers, which change the step of any member: parts of a `Modifier`.

The letters are those of `formulas`. d is the direction; the step is -alpha d.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from functional_adam._equations.family import LeafStep
from functional_adam._equations.numerics import (
    abs_squared,
    over,
    product,
    safe_sqrt,
    same_side,
    times,
    unfused,
)
from functional_adam._equations.operands import Scalars


def leaf_sum(x: jax.Array, stacked: int) -> jax.Array:
    """The sum over a leaf, or over each matrix of a leaf with this many stacked axes."""
    return jnp.sum(x, axis=tuple(range(stacked, x.ndim)), keepdims=stacked > 0)


# ---- Cautious optimizers: Liang et al. 2024, Algorithm 1 ----


def without_climbing(step: LeafStep) -> jax.Array:
    """d [d x > 0] / max(share, 1/1000), with share = mean [d x > 0]; x has the gradient's sign.

    This changes the numerator of d, which has the same sign. With the quotient, the division would
    be done twice or its result stored.
    """
    d, x = step.numerator, step.x
    agrees = same_side(d, x)
    rows = jnp.sum(jnp.atleast_1d(agrees), axis=-1, dtype=jnp.int32)  # exact for any size
    share = jnp.sum(rows.astype(step.scalars.alpha.dtype)) / float(max(1, agrees.size))
    gain = 1 / jnp.maximum(share, 1e-3)
    return times(gain * agrees.astype(share.dtype), d)  # a product keeps a NaN


# ---- Cautious weight decay: Chen et al. 2025, Algorithm 1 ----


def where_it_shrinks(step: LeafStep) -> Any:
    """theta [d theta >= 0]: where the step itself makes no weight larger."""
    shrinks = ~same_side(-step.direction, step.theta)
    return times(shrinks.astype(step.scalars.alpha.dtype), step.theta)  # a product keeps a NaN


# ---- StableAdamW: Wortsman et al. 2023, Algorithm 2 ----


def clipped_rate(step: LeafStep) -> Scalars:
    """alpha threshold / max(threshold, rms(g / max(sqrt(v_hat), eps)))."""
    size = step.variant.gradient_size(step.scalars, step.new)
    ratio = over(step.x, jnp.where(size > 0, size, jnp.ones_like(size)))
    count = float(max(1, math.prod(ratio.shape[step.stacked :])))
    rms = safe_sqrt(leaf_sum(abs_squared(ratio), step.stacked) / count)
    threshold = step.scalars.derived[THRESHOLD]
    return step.variant.scale_rate(step.scalars, threshold / jnp.maximum(threshold, rms))


THRESHOLD = "clip_update_rms.threshold"  # its name among the hyperparameters

# ---- Hyperball: Wen et al. 2025, section 2 ----


def on_the_sphere(step: LeafStep) -> jax.Array:
    """R n(theta - alpha R n(d)) - theta with n(x) = x / |x| and R = |theta|.

    With c the cosine of theta and d, the argument of the outer n has the square R**2 (1 + z),
    z = alpha (alpha - 2 c). So the update is

        k theta - (1 + k) alpha R n(d),    k = 1/q - 1 = -z / (q (1 + q)),    q = sqrt(1 + z),

    where nothing cancels, because no difference of two long vectors is taken.
    """
    s, theta, d, stacked = step.scalars, step.theta, step.direction, step.stacked
    radius, length = (safe_sqrt(leaf_sum(abs_squared(x), stacked)) for x in (theta, d))
    moves = (radius != 0) & (length != 0)  # true for NaN, which must not count as 0
    one = jnp.ones_like(radius)
    unit = over(d, jnp.where(moves, length, one))
    cosine = leaf_sum(product(theta, unit), stacked) / jnp.where(moves, radius, one)
    z = s.alpha * (s.alpha - 2 * cosine)
    moves = moves & (jnp.maximum(1 + z, 0) != 0)  # n(0) does not exist
    alpha, z = (jnp.where(moves, x, jnp.zeros_like(one)) for x in (s.alpha, z))
    q = safe_sqrt(1 + z)
    k = -z / (q * (1 + q))
    return unfused(times(k, theta) - times((1 + k) * alpha * radius, unit), s.t)
