"""The step of one leaf: from its gradient and stored state to its update and new state.

There are no trees and no checks here. XLA compiles this code as it is, and the kernels of
`_kernels` call it on tiles of a leaf, so every path uses the same formulas.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._equations import formulas as F
from functional_adam._equations.family import LeafStep, Variant, modified
from functional_adam._equations.numerics import over, times, unfused, widened
from functional_adam._equations.operands import Moments, Scalars
from functional_adam._storage.formats import Format
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.noise import StepNoise, random_bits
from functional_adam._storage.residual import master
from functional_adam._storage.rounding import Rounding, added, round_update


class LeafConfig(NamedTuple):
    """What is known about a leaf's step when it is traced."""

    variant: Variant
    moments: Format
    rounding: Rounding | None
    decays: bool
    out: np.dtype[Any]  # dtype of the update
    applies: bool  # whether to add the update to the parameter and return that

    @property
    def is_random(self) -> bool:
        """Whether anything is rounded stochastically."""
        rounds = self.rounding is not None and self.rounding.is_random
        return self.moments.is_random or rounds


def update_leaf(
    config: LeafConfig,
    s: Scalars,
    noise: StepNoise | None,
    key: Any,
    g: jax.Array,
    stored: LeafState,
    theta: Any,
) -> tuple[jax.Array, LeafState]:
    """Load the moments, apply the formulas, store, round: (update or parameter, new state).

    The stored arrays keep their dtypes.
    """
    x, new = advance(config, s, g, stored, theta)
    return finish(config, s, noise, key, x, new, stored, theta)


def advance(
    config: LeafConfig, s: Scalars, g: jax.Array, stored: LeafState, theta: Any
) -> tuple[jax.Array, Moments]:
    """The first half of a step: (what the first moment averages, the new moments)."""
    wide = functools.partial(widened, s.eps.dtype)
    x, old = jax.tree.map(wide, (g, config.moments.load(stored)))
    weights = weights_of(config, s, stored, theta)
    return config.variant.update_moments(s, F.coupled_decay(s, x, weights), old)


def finish(
    config: LeafConfig,
    s: Scalars,
    noise: StepNoise | None,
    key: Any,
    x: jax.Array,
    new: Moments,
    stored: LeafState,
    theta: Any,
) -> tuple[jax.Array, LeafState]:
    """The second half: the update or the parameter, and the new moments in their format.

    From `stored` it reads the residual and the further trees. Of the two moments it reads only the
    shapes and dtypes.
    """
    random: Any = None if noise is None else random_bits(noise, key, x.shape)
    weights = weights_of(config, s, stored, theta)
    u = _update(config, s, x, new, weights)
    stored = config.moments.store(new, stored, random, s)
    return land(config, u, weights, stored, theta, random)


def land(
    config: LeafConfig, u: jax.Array, weights: Any, stored: LeafState, theta: Any, random: Any
) -> tuple[jax.Array, LeafState]:
    """The update or the parameter in its dtype, and beside `stored` what that dtype lacks."""
    rounding = config.rounding
    if rounding is None:
        u = u.astype(config.out)
    else:
        u, residual = round_update(rounding, (weights + u).astype(jnp.float32), theta, random)
        stored = stored if residual is None else stored._replace(residual=residual)
    return added(theta, u) if config.applies else u, stored


def _update(config: LeafConfig, s: Scalars, x: jax.Array, new: Moments, theta: Any) -> jax.Array:
    """The update of the variant and its modifiers, in the precision of the arithmetic."""
    variant = config.variant
    step = LeafStep(variant, s, x, new, theta, variant.numerator(s, x, new))
    step = modified(step, "numerator")
    d = over(step.numerator, variant.denominator(s, new))
    step = modified(step._replace(direction=d), "direction")
    step = modified(step, "scalars")
    s = step.scalars
    u = unfused(-times(s.step_size, step.direction), s.t)
    if config.decays:
        step = modified(step._replace(decaying=theta), "decaying")
        u = F.decoupled_decay(s, u, step.decaying)
    if variant.rescale_update is not None:
        u = unfused(variant.rescale_update(s, u, theta), s.t)
    return modified(step._replace(update=u), "update").update


def weights_of(config: LeafConfig, s: Scalars, stored: LeafState, theta: Any) -> Any:
    """The parameter in the precision of the arithmetic, including its residual."""
    if config.rounding is None or not config.rounding.has_residual:
        return jax.tree.map(functools.partial(widened, s.eps.dtype), theta)
    return master(theta, stored.residual)
