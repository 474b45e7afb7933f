"""What becomes of a row of a table in the steps that do not see it, of which the gradient is 0.

For `update_rows`, which makes up for these steps when it next sees the row. `docs/math.md` has the
derivations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._equations import formulas as F
from functional_adam._equations.numerics import Rate, over, times, unfused
from functional_adam._equations.operands import Moments, Scalars


def power(rate: Rate, steps: jax.Array) -> jax.Array:
    """b**steps, from the logarithm that was made while b was exact; 1 for no steps, also of 0."""
    return jnp.exp(steps * rate.log)


def coasted(s: Scalars, steps: jax.Array, old: Moments) -> Moments:
    """b1**steps m and b2**steps v: the moments after so many steps with g = 0."""
    m, v = times(power(s.b1, steps), old.m), power(s.b2, steps) * old.v
    return old._replace(m=m, v=v)


def missed_update(s: Scalars, now: Moments, before: jax.Array) -> jax.Array:
    """(1 - decay) before - step_size m / denominator: the sum of missed updates, and one more.

    Nothing more where the denominator is 0, as v may be, or become by decaying, if eps is 0.
    """
    denominator = F.root(s, now)
    d = over(F.momentum(s, now.m, now), jnp.where(denominator == 0, jnp.inf, denominator))
    return times(1 - s.decay, before) - unfused(times(s.step_size, d), s.t)


def steps_that_count(b1: Rate, b2: Rate) -> jax.Array:
    """After how many missed steps all further updates together are below rounding.

    The i-th is at most q**i times a step of size learning_rate |m_hat| / sqrt(v_hat) at the row's
    last gradient, q = b1 / sqrt(b2). All after the n-th come to less than q**n / (1 - q) of
    that, here up to 2**-24 (2**-53 in float64). Without end for q >= 1.
    """
    log_q = jnp.asarray(b1.log - b2.log / 2)
    dies = log_q < 0
    log_q = jnp.where(dies, log_q, -jnp.ones_like(log_q))
    rest = np.log(np.finfo(log_q.dtype).eps / 2) + jnp.log(-jnp.expm1(log_q))
    most = np.iinfo(np.int32).max
    steps = jnp.minimum(jnp.ceil(rest / log_q), most / 2).astype(jnp.int32)
    return jnp.where(dies, steps, most)


def log_keep(decay: jax.Array) -> jax.Array:
    """log(1 - decay): what a step leaves of a weight. A decay above 1 leaves nothing."""
    return jnp.log1p(-jnp.minimum(decay, 1))
