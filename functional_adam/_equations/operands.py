"""What the formulas take and give, and the kinds of them that make a variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from functional_adam._equations.numerics import Rate


class Moments(NamedTuple):
    """What is kept of a leaf between steps."""

    m: jax.Array
    v: jax.Array
    extra: dict[str, jax.Array]  # the variant's own arrays, by their names in `AdamState.extra`


class Scalars(NamedTuple):
    """What one step multiplies by, once for all leaves."""

    t: jax.Array
    alpha: jax.Array
    b1: Rate
    b2: Rate
    eps: jax.Array
    eps_root: jax.Array | None  # None for 0, which XLA could not drop: 0 * NaN
    weight_decay: jax.Array
    l2: jax.Array | None  # likewise
    derived: dict[str, Any]  # of the variant's own hyperparameters, and what it makes of them
    c1: jax.Array  # 1 - b1**t
    c2: jax.Array  # 1 - b2**t
    step_size: jax.Array  # multiplies numerator / denominator
    decay: jax.Array  # multiplies theta


# Once a step: folds corrections into what multiplies, prepares what the variant needs.
Prepare: TypeAlias = Callable[[Scalars], Scalars]
# The moments after the step, and x, what the first moment averaged: g itself, but in ADOPT.
UpdateMoments: TypeAlias = Callable[[Scalars, jax.Array, Moments], tuple[jax.Array, Moments]]
# The direction, as numerator(s, x, new) / denominator(s, new).
Numerator: TypeAlias = Callable[[Scalars, jax.Array, Moments], jax.Array]
Denominator: TypeAlias = Callable[[Scalars, Moments], jax.Array]
# The update as a whole: rescale_update(s, u, theta).
RescaleUpdate: TypeAlias = Callable[[Scalars, jax.Array, jax.Array], jax.Array]
# What x is measured by where the size of gradients is judged: sqrt(v_hat), which has g in it.
GradientSize: TypeAlias = Callable[[Scalars, Moments], jax.Array]
# The scalars at a learning rate times a factor.
ScaleRate: TypeAlias = Callable[[Scalars, jax.Array], Scalars]
