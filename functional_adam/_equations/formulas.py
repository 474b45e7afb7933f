"""The equations of Adam, AdamW and NAdam, one short function each; their relatives use them too.

Functions take and return arrays: no trees, no storage, no flags. The letters are those of Kingma &
Ba (2015), "Adam: A Method for Stochastic Optimization", Algorithm 1: `g` is the gradient, `m` and
`v` are the two moments, `t` is the step counted from 1, `alpha` is the step size. Every other
member has a section in `relatives`. `numerics` has the arithmetic that keeps precision, `family`
says which functions make up which optimizer, and `operands` defines their arguments and results.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from functional_adam._equations.numerics import (
    abs_squared,
    average,
    bias_correction,
    log_half_product,
    mean_square,
    one_minus_exp,
    safe_sqrt,
    times,
    unfused,
)
from functional_adam._equations.operands import Moments, Scalars

# ---- Adam: Kingma & Ba 2015, Algorithm 1 ----


def eps_after_correction(s: Scalars) -> Scalars:
    """The corrections of Algorithm 1, moved out of the arrays and into scalars.

    With m_hat = m / c1 and v_hat = v / c2, multiply numerator and denominator by sqrt(c2):

        alpha m_hat / (sqrt(v_hat + eps_root) + eps)
            = alpha sqrt(c2) / c1 * m / (sqrt(v + eps_root c2) + eps sqrt(c2)).

    This takes one square root and one division per element instead of one and three.
    """
    eps_root = None if s.eps_root is None else s.eps_root * s.c2
    return eps_before_correction(s)._replace(eps=s.eps * jnp.sqrt(s.c2), eps_root=eps_root)


def eps_before_correction(s: Scalars) -> Scalars:
    """alpha sqrt(c2) / c1 * m / (sqrt(v + eps_root) + eps): the end of the paper's section 2.

    The paper writes this eps with a hat. TensorFlow and Keras use this form.
    """
    return s._replace(step_size=s.step_size * jnp.sqrt(s.c2) / s.c1)


def first_correction(s: Scalars) -> Scalars:
    """alpha / c1 * m / denominator, for a denominator that is corrected or needs no correction."""
    return s._replace(step_size=s.step_size / s.c1)


def without_first_correction(s: Scalars) -> Scalars:
    """c1 = 1."""
    return s._replace(c1=jnp.ones_like(s.c1))


def without_second_correction(s: Scalars) -> Scalars:
    """c2 = 1."""
    return s._replace(c2=jnp.ones_like(s.c2))


def adam(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) |g|**2."""
    v = mean_square(old.v, abs_squared(g), s.b2)
    return g, old._replace(m=average(old.m, g, s.b1), v=v)


def momentum(_s: Scalars, _x: jax.Array, new: Moments) -> jax.Array:
    """m, that is c1 m_hat."""
    return new.m


def root(s: Scalars, new: Moments) -> jax.Array:
    """sqrt(v + eps_root) + eps."""
    return safe_sqrt(new.v if s.eps_root is None else new.v + s.eps_root) + s.eps


def gradient_size(s: Scalars, new: Moments) -> jax.Array:
    """max(sqrt(v_hat), eps), for both places of eps: sqrt(c2) divides both terms or neither."""
    return jnp.maximum(safe_sqrt(new.v), s.eps) / jnp.sqrt(s.c2)


def scale_rate(s: Scalars, factor: jax.Array) -> Scalars:
    """Multiply alpha by a factor, in the step and in the decay."""
    return scale_step(s, factor)._replace(decay=factor * s.decay)


def scale_step(s: Scalars, factor: jax.Array) -> Scalars:
    """Multiply alpha by a factor in the step only, where the decay does not depend on alpha."""
    return s._replace(alpha=factor * s.alpha, step_size=factor * s.step_size)


# ---- Decay ----


def coupled_decay(s: Scalars, g: jax.Array, theta: jax.Array) -> jax.Array:
    """g + l2 theta: the gradient of loss + l2/2 |theta|**2."""
    return g if s.l2 is None else g + times(s.l2, theta)


def decoupled_decay(s: Scalars, u: jax.Array, theta: jax.Array) -> jax.Array:
    """u - alpha lambda theta (Loshchilov & Hutter 2019, Algorithm 2, with eta inside alpha)."""
    return u - unfused(times(s.decay, theta), s.t)


def independent_decay(s: Scalars) -> Scalars:
    """u - lambda theta: the same Algorithm 2, with eta inside lambda and no factor alpha."""
    return s._replace(decay=s.weight_decay)


# ---- NAdam: Dozat 2016 ----


def nesterov_weights(s: Scalars) -> Scalars:
    """b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t): the simplified form, as in Optax."""
    ahead = s.b1.b / bias_correction(s.b1, s.t + 1)
    return _look_ahead(s, ahead, s.b1.complement / s.c1)


def dozat_weights(s: Scalars) -> Scalars:
    """mu(t+1) m / (1 - P(t+1)) + (1 - mu(t)) g / (1 - P(t)): Dozat's schedule, as in PyTorch.

    mu(t) = b1 (1 - 0.96**(t psi) / 2) with psi = `momentum_decay`, P(t) = mu(1) mu(2) ... mu(t).
    It is written with sums of positive terms, so nothing cancels.
    """
    log_q = s.derived["momentum_decay"] * math.log(0.96)

    def momentum_complement(t: jax.Array) -> jax.Array:  # 1 - mu(t)
        return s.b1.complement + s.b1.b * jnp.exp(t * log_q) / 2

    # P(t) = b1**t R(t), hence 1 - P = (1 - b1**t) + b1**t (1 - R); and P(t+1) = P(t) mu(t+1).
    now = s.c1 + (1 - s.c1) * one_minus_exp(log_half_product(log_q, s.t))
    lost = momentum_complement(s.t + 1)
    ahead = now + (1 - now) * lost
    return _look_ahead(s, (1 - lost) / ahead, momentum_complement(s.t) / now)


def _look_ahead(s: Scalars, ahead: jax.Array, now: jax.Array) -> Scalars:
    # The weights contain the corrections of both terms, so no common c1 remains.
    return s._replace(derived=s.derived | {"ahead": ahead, "now": now}, c1=jnp.ones_like(s.c1))


def uncorrected_nesterov_weights(s: Scalars) -> Scalars:
    """b1 m + (1 - b1) x."""
    return _look_ahead(s, jnp.asarray(s.b1.b), jnp.asarray(s.b1.complement))


def nesterov_momentum(s: Scalars, x: jax.Array, new: Moments) -> jax.Array:
    """ahead m + now x."""
    ahead, now = times(s.derived["ahead"], new.m), times(s.derived["now"], x)
    return unfused(ahead, s.t) + unfused(now, s.t)
