"""The arguments and results of the formulas, and the types of the formulas of a variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from functional_adam._equations.numerics import Rate


class Moments(NamedTuple):
    """The moments of a leaf."""

    m: jax.Array
    v: jax.Array
    extra: dict[str, jax.Array]  # the variant's own arrays, by name in `AdamState.extra`


class Scalars(NamedTuple):
    """The scalars of one step, computed once for all leaves."""

    t: jax.Array
    alpha: jax.Array
    b1: Rate
    b2: Rate
    eps: jax.Array
    eps_root: jax.Array | None  # None for 0, because XLA cannot drop a 0: 0 * NaN
    weight_decay: jax.Array
    l2: jax.Array | None  # None for 0
    derived: dict[str, Any]  # the variant's own hyperparameters, and scalars derived from them
    c1: jax.Array  # 1 - b1**t
    c2: jax.Array  # 1 - b2**t
    step_size: jax.Array  # multiplies numerator / denominator
    decay: jax.Array  # multiplies theta


# Runs once per step: folds corrections into the scalars and prepares what the variant needs.
Prepare: TypeAlias = Callable[[Scalars], Scalars]
# Returns x, which the first moment averages (g itself in most variants), and the new moments.
UpdateMoments: TypeAlias = Callable[[Scalars, jax.Array, Moments], tuple[jax.Array, Moments]]
# The direction, as numerator(s, x, new) / denominator(s, new).
Numerator: TypeAlias = Callable[[Scalars, jax.Array, Moments], jax.Array]
Denominator: TypeAlias = Callable[[Scalars, Moments], jax.Array]
# The update as a whole: rescale_update(s, u, theta).
RescaleUpdate: TypeAlias = Callable[[Scalars, jax.Array, jax.Array], jax.Array]
# The size that gradients are compared with: sqrt(v_hat), which includes g.
GradientSize: TypeAlias = Callable[[Scalars, Moments], jax.Array]
# The scalars with the learning rate multiplied by a factor.
ScaleRate: TypeAlias = Callable[[Scalars, jax.Array], Scalars]
