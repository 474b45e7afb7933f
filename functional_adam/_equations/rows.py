"""What happens to a row of a table in the steps that it misses, in which its gradient is 0.

`update_rows` applies these equations when a batch next contains the row. `docs/math.md` derives
them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._equations import formulas as F
from functional_adam._equations.numerics import Rate, over, times, unfused
from functional_adam._equations.operands import Moments, Scalars


def power(rate: Rate, steps: jax.Array) -> jax.Array:
    """b**steps, from the logarithm of the exact b. For steps = 0 it is 1, even if b is 0."""
    return jnp.exp(steps * rate.log)


def coasted(s: Scalars, steps: jax.Array, old: Moments) -> Moments:
    """b1**steps m and b2**steps v: the moments after `steps` steps with g = 0."""
    m, v = times(power(s.b1, steps), old.m), power(s.b2, steps) * old.v
    return old._replace(m=m, v=v)


def missed_update(s: Scalars, now: Moments, before: jax.Array) -> jax.Array:
    """(1 - decay) before - step_size m / denominator: adds one missed update to the sum `before`.

    It adds nothing where the denominator is 0. With eps = 0 that happens where v is 0 or decays to
    0.
    """
    denominator = F.root(s, now)
    d = over(F.momentum(s, now.m, now), jnp.where(denominator == 0, jnp.inf, denominator))
    return times(1 - s.decay, before) - unfused(times(s.step_size, d), s.t)


def steps_that_count(b1: Rate, b2: Rate) -> jax.Array:
    """The number of missed steps after which all further updates together are below rounding.

    Let q = b1 / sqrt(b2), and S = learning_rate |m_hat| / sqrt(v_hat) the size of the step at the
    row's last gradient. The i-th missed update is at most q**i S. All updates after the n-th add up
    to less than q**n / (1 - q) S; the n returned makes this factor at most 2**-24 (2**-53 in
    float64). For q >= 1 there is no such n, and the result is the largest int32.
    """
    log_q = jnp.asarray(b1.log - b2.log / 2)
    dies = log_q < 0
    log_q = jnp.where(dies, log_q, -jnp.ones_like(log_q))
    rest = np.log(np.finfo(log_q.dtype).eps / 2) + jnp.log(-jnp.expm1(log_q))
    most = np.iinfo(np.int32).max
    steps = jnp.minimum(jnp.ceil(rest / log_q), most / 2).astype(jnp.int32)
    return jnp.where(dies, steps, most)


def log_keep(decay: jax.Array) -> jax.Array:
    """log(1 - decay): the log of what one step leaves of a weight; -inf for decay >= 1."""
    return jnp.log1p(-jnp.minimum(decay, 1))
