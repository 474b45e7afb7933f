"""The step of one leaf: from its gradient to its update, between two formats of its moments.

No trees and no checks. XLA compiles it as it stands, and the kernels of `_kernels` call it on tiles
of a leaf: every path takes the same formulas.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._equations import formulas as F
from functional_adam._equations.family import Variant
from functional_adam._equations.numerics import over, times, unfused, widened
from functional_adam._equations.operands import Scalars
from functional_adam._storage.formats import Format
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.noise import StepNoise, random_bits
from functional_adam._storage.residual import master
from functional_adam._storage.rounding import Rounding, added, round_update


class LeafConfig(NamedTuple):
    """What is known of a leaf's step before any number is."""

    variant: Variant
    moments: Format
    rounding: Rounding | None
    decays: bool
    out: np.dtype[Any]  # dtype of the update
    applies: bool  # whether the update is added to the parameter, which then takes its place

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
    """Load, through the formulas, store, round: (update or parameter, what is stored).

    What is stored keeps its dtypes.
    """
    variant, moments, rounding = config.variant, config.moments, config.rounding
    random: Any = None if noise is None else random_bits(noise, key, g.shape)
    wide = functools.partial(widened, s.eps.dtype)
    x, old = jax.tree.map(wide, (g, moments.load(stored)))
    weights: Any = _weights(rounding, stored, theta, wide)
    x, new = variant.update_moments(s, F.coupled_decay(s, x, weights), old)
    u = -times(s.step_size, over(variant.numerator(s, x, new), variant.denominator(s, new)))
    u = unfused(u, s.t)
    if config.decays:
        u = F.decoupled_decay(s, u, weights)
    if variant.rescale_update is not None:
        u = unfused(variant.rescale_update(s, u, weights), s.t)
    stored = moments.store(new, stored, random, s)
    if rounding is None:
        u = u.astype(config.out)
    else:
        u, residual = round_update(rounding, (weights + u).astype(jnp.float32), theta, random)
        stored = stored if residual is None else stored._replace(residual=residual)
    return added(theta, u) if config.applies else u, stored


def _weights(rounding: Rounding | None, stored: LeafState, theta: Any, wide: Any) -> Any:
    """The parameter in the arithmetic's precision, with what its own dtype lacks."""
    if rounding is None or not rounding.has_residual:
        return jax.tree.map(wide, theta)
    return master(theta, stored.residual)
