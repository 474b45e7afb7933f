"""The equations, one short function each: arrays in, arrays out, one page a variant.

No trees, no storage, no flags. Letters are those of Kingma & Ba (2015), "Adam: A Method for
Stochastic Optimization", Algorithm 1: `g` the gradient, `m` and `v` the two moments, `t` the step
counted from 1, `alpha` the step size. What keeps the digits is in `numerics`; `family` says which
functions make which optimizer, `operands` what they take and give.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from functional_adam._equations.numerics import (
    abs_squared,
    average,
    bias_correction,
    clip,
    decayed,
    is_infinite,
    langevin,
    log_half_product,
    mean_square,
    one_minus_exp,
    over,
    safe_sqrt,
    same_side,
    times,
)
from functional_adam._equations.operands import Moments, Numerator, Scalars

# ---- Adam: Kingma & Ba 2015, Algorithm 1 ----


def eps_after_correction(s: Scalars) -> Scalars:
    """The corrections of Algorithm 1, moved out of the arrays and into scalars.

    With m_hat = m / c1 and v_hat = v / c2, numerator and denominator both times sqrt(c2):

        alpha m_hat / (sqrt(v_hat + eps_root) + eps)
            = alpha sqrt(c2) / c1 * m / (sqrt(v + eps_root c2) + eps sqrt(c2)).

    One square root and one division an element instead of one and three.
    """
    eps_root = None if s.eps_root is None else s.eps_root * s.c2
    return eps_before_correction(s)._replace(eps=s.eps * jnp.sqrt(s.c2), eps_root=eps_root)


def eps_before_correction(s: Scalars) -> Scalars:
    """alpha sqrt(c2) / c1 * m / (sqrt(v + eps_root) + eps): the end of the paper's section 2.

    There, eps is written with a hat; TensorFlow and Keras follow it.
    """
    return s._replace(step_size=s.step_size * jnp.sqrt(s.c2) / s.c1)


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


# ---- Decay ----


def coupled_decay(s: Scalars, g: jax.Array, theta: jax.Array) -> jax.Array:
    """g + l2 theta: the gradient of loss + l2/2 |theta|**2."""
    return g if s.l2 is None else g + times(s.l2, theta)


def decoupled_decay(s: Scalars, u: jax.Array, theta: jax.Array) -> jax.Array:
    """u - alpha lambda theta (Loshchilov & Hutter 2019, Algorithm 2, schedule eta inside alpha)."""
    return u - times(s.decay, theta)


def independent_decay(s: Scalars) -> Scalars:
    """u - lambda theta: the same Algorithm 2, schedule eta inside lambda and not times alpha."""
    return s._replace(decay=s.weight_decay)


# ---- NAdam: Dozat 2016 ----


def nesterov_weights(s: Scalars) -> Scalars:
    """b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t): the simplified form, as in Optax."""
    ahead = s.b1.b / bias_correction(s.b1, s.t + 1)
    return _look_ahead(s, ahead, s.b1.complement / s.c1)


def dozat_weights(s: Scalars) -> Scalars:
    """mu(t+1) m / (1 - P(t+1)) + (1 - mu(t)) g / (1 - P(t)): Dozat's schedule, as in PyTorch.

    mu(t) = b1 (1 - 0.96**(t psi) / 2), psi being `momentum_decay`; P(t) = mu(1) mu(2) ... mu(t).
    Written so that everything adds and nothing cancels.
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
    # The corrections of both terms are in their weights: no common c1 is left.
    return s._replace(derived=s.derived | {"ahead": ahead, "now": now}, c1=jnp.ones_like(s.c1))


def nesterov_momentum(s: Scalars, x: jax.Array, new: Moments) -> jax.Array:
    """ahead m + now x."""
    return times(s.derived["ahead"], new.m) + times(s.derived["now"], x)


# ---- AMSGrad: Reddi, Kale & Kumar 2018, Algorithm 2 ----


def amsgrad(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """As `adam`, and v_max <- max(v_max, v): the paper's; PyTorch corrects it afterwards."""
    g, new = adam(s, g, old)
    return g, new._replace(extra={"nu_max": jnp.maximum(old.extra["nu_max"], new.v)})


def amsgrad_of_corrected(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """As `adam`, and v_max <- max(v_max, v / c2): Optax's."""
    g, new = adam(s, g, old)
    return g, new._replace(extra={"nu_max": jnp.maximum(old.extra["nu_max"], new.v / s.c2)})


def root_of_maximum(s: Scalars, new: Moments) -> jax.Array:
    """sqrt(v_max + eps_root) + eps."""
    return root(s, new._replace(v=new.extra["nu_max"]))


def first_correction(s: Scalars) -> Scalars:
    """alpha / c1 * m / denominator, for a denominator that needs no correction or had it."""
    return s._replace(step_size=s.step_size / s.c1)


def without_first_correction(s: Scalars) -> Scalars:
    """c1 = 1."""
    return s._replace(c1=jnp.ones_like(s.c1))


def without_second_correction(s: Scalars) -> Scalars:
    """c2 = 1."""
    return s._replace(c2=jnp.ones_like(s.c2))


# ---- AdaMax: Kingma & Ba 2015, Algorithm 2 ----


def adamax(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m as in Adam; v <- max(b2 v, |g| + eps), the paper's u_t, which has no eps."""
    m = average(old.m, g, s.b1)
    return g, old._replace(m=m, v=jnp.maximum(decayed(old.v, s.b2), jnp.abs(g) + s.eps))


def maximum(_s: Scalars, new: Moments) -> jax.Array:
    """v."""
    return new.v


# ---- RAdam: Liu et al. 2020, Algorithm 2 ----


def rectification(s: Scalars) -> Scalars:
    """r m_hat / (sqrt(v_hat) + eps) where rho(t) >= threshold, else m_hat.

    r = sqrt((rho-4) (rho-2) rho_inf / ((rho_inf-4) (rho_inf-2) rho)), with the paper's
    rho_inf = 2 / (1 - b2) - 1 and rho(t) = rho_inf - 2 t b2**t / (1 - b2**t). Computed so, rho is
    the difference of two large numbers; but with y = -log(b2) / 2 they are coth(y) and
    t (coth(t y) - 1), the poles 1/y of both cancel on paper, and

        rho(t) = L(y) + t (1 - L(t y)),   L(x) = coth(x) - 1/x.
    """
    y = -s.b2.log / 2
    rho = langevin(y)[0] + s.t * langevin(s.t * y)[1]
    top = 2 / s.b2.complement - 1  # rho never gets there, but by rounding
    adaptive = (rho >= s.derived["threshold"]) & (top > s.derived["threshold"])
    # Any number above 4 will do where there is no r: its slope must not be NaN either.
    rho, top = (jnp.where(adaptive, x, jnp.full_like(rho, 5)) for x in (rho, top))
    r = safe_sqrt((rho - 4) / (top - 4) * ((rho - 2) / (top - 2)) * (top / rho))
    return s._replace(
        step_size=jnp.where(adaptive, s.step_size * r, s.alpha / s.c1),
        derived=s.derived | {"adaptive": adaptive},
    )


def rectified_root(s: Scalars, new: Moments) -> jax.Array:
    """The root where rho(t) >= threshold, else 1."""
    return jnp.where(s.derived["adaptive"], root(s, new), jnp.ones_like(new.v))


# ---- AdaBelief: Zhuang et al. 2020, Algorithm 2 ----


def belief_floor(s: Scalars) -> Scalars:
    """eps_root / (1 - b2), what `eps_root` in every step comes to inside the average.

    Added to v itself it would be rounded the same way in every step, and the errors add up.
    """
    floor = None if s.eps_root is None else s.eps_root / s.b2.complement
    return s._replace(derived=s.derived | {"floor": floor}, eps_root=None)


def adabelief(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m as in Adam; v <- b2 v + (1 - b2) |g - m|**2 + eps_root, m being the new one."""
    m = average(old.m, g, s.b1)
    square, floor = abs_squared(g - m), s.derived["floor"]
    v = mean_square(old.v, square if floor is None else square + floor, s.b2)
    return g, old._replace(m=m, v=v)


# ---- Yogi: Zaheer et al. 2018, Algorithm 2 ----


def yogi(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m as in Adam; v <- v - (1 - b2) sign(v - |g|**2) |g|**2."""
    square = abs_squared(g)
    v = old.v - s.b2.complement * jnp.sign(old.v - square) * square
    v = jax.lax.select(is_infinite(old.v), old.v, v)  # as in `mean_square`
    return g, old._replace(m=average(old.m, g, s.b1), v=v)


# ---- LAMB: You et al. 2020, Algorithm 2 ----


def unit_rate(s: Scalars) -> Scalars:
    """alpha = 1 until `trust_ratio`, whose quotient it would enter: 0 / 0 at alpha = 0."""
    one = jnp.ones_like(s.step_size)
    derived = s.derived | {"learning_rate": s.alpha}
    return s._replace(derived=derived, alpha=one, step_size=one, decay=s.weight_decay)


def trust_ratio(s: Scalars, u: jax.Array, theta: jax.Array) -> jax.Array:
    """alpha |theta| / |u| u, norms over the leaf; alpha u where either norm is 0."""
    size, step = safe_sqrt(abs_squared(theta).sum()), safe_sqrt(abs_squared(u).sum())
    usable = (size != 0) & (step != 0)  # true of a NaN, which must not look like a 0
    ratio = jnp.where(usable, size / jnp.where(usable, step, jnp.ones_like(step)), 1)
    return times(s.derived["learning_rate"] * ratio, u)


# ---- ADOPT: Taniguchi et al. 2024, Algorithm 2 ----


def adopt(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """x = clip(g / max(sqrt(v), eps), c), v the old one; m <- b1 m + (1 - b1) x; v as in Adam.

    The first step only sets v = |g|**2.
    """
    first = s.t == 1
    scale = jnp.where(first, jnp.ones_like(old.v), jnp.maximum(safe_sqrt(old.v), s.eps))
    x = jnp.where(first, jnp.zeros_like(g), clip(over(g, scale), s.derived["clip_value_fn"]))
    square = abs_squared(g)
    v = jnp.where(first, square, mean_square(old.v, square, s.b2))
    return x, old._replace(m=average(old.m, x, s.b1), v=v)


def uncorrected_nesterov_weights(s: Scalars) -> Scalars:
    """b1 m + (1 - b1) x."""
    return _look_ahead(s, jnp.asarray(s.b1.b), jnp.asarray(s.b1.complement))


def one(_s: Scalars, new: Moments) -> jax.Array:
    """1: the division was made before."""
    return jnp.ones_like(new.v)


# ---- AdEMAMix: Pagliardini, Ablin & Grangier 2024, Algorithm 1 ----


def mixing(s: Scalars) -> Scalars:
    """alpha of the paper, here `mix`, times c1: all of the numerator is divided by c1."""
    return s._replace(derived=s.derived | {"mix": s.derived["alpha"] * s.c1})


def ademamix(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """As `adam`, and m_slow <- b3 m_slow + (1 - b3) g."""
    g, new = adam(s, g, old)
    return g, new._replace(extra={"mu_slow": average(old.extra["mu_slow"], g, s.derived["b3"])})


def mixed_momentum(s: Scalars, _x: jax.Array, new: Moments) -> jax.Array:
    """c1 (m_hat + mix m_slow); the slow average is not corrected, so that it comes in slowly."""
    return new.m + times(s.derived["mix"], new.extra["mu_slow"])


# ---- Cautious optimizers: Liang et al. 2024, Algorithm 1 ----


class Cautious(NamedTuple):
    """A numerator whose coordinates that climb are 0, the others scaled up to make up for it."""

    numerator: Numerator

    def __call__(self, s: Scalars, x: jax.Array, new: Moments) -> jax.Array:
        """d [d x > 0] / max(share, 1/1000); x has the gradient's sign."""
        d = self.numerator(s, x, new)
        agrees = same_side(d, x)
        rows = jnp.sum(jnp.atleast_1d(agrees), axis=-1, dtype=jnp.int32)  # exact, however large
        share = jnp.sum(rows.astype(s.step_size.dtype)) / float(max(1, agrees.size))
        gain = 1 / jnp.maximum(share, 1e-3)
        return times(gain * agrees.astype(share.dtype), d)  # a product: a NaN stays one
