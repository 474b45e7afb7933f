"""The equations of Adam's relatives: one section each, with what differs from Adam.

The letters are those of `formulas`, which has the equations that they share.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from functional_adam._equations.formulas import adam, root
from functional_adam._equations.numerics import (
    abs_squared,
    angle,
    average,
    clip,
    decayed,
    is_infinite,
    langevin,
    mean_square,
    over,
    safe_sqrt,
    times,
    unfused,
)
from functional_adam._equations.operands import Moments, Scalars

# ---- AMSGrad: Reddi, Kale & Kumar 2018, Algorithm 2 ----


def amsgrad(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """As `adam`, and v_max <- max(v_max, v), as in the paper; PyTorch corrects it afterwards."""
    g, new = adam(s, g, old)
    return g, new._replace(extra={"nu_max": jnp.maximum(old.extra["nu_max"], new.v)})


def amsgrad_of_corrected(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """As `adam`, and v_max <- max(v_max, v / c2), as in Optax."""
    g, new = adam(s, g, old)
    return g, new._replace(extra={"nu_max": jnp.maximum(old.extra["nu_max"], new.v / s.c2)})


def corrected_size(s: Scalars, new: Moments) -> jax.Array:
    """max(sqrt(v_hat), eps), for an eps that the correction does not scale."""
    return jnp.maximum(safe_sqrt(new.v / s.c2), s.eps)


def root_of_maximum(s: Scalars, new: Moments) -> jax.Array:
    """sqrt(v_max + eps_root) + eps."""
    return root(s, new._replace(v=new.extra["nu_max"]))


# ---- AdaMax: Kingma & Ba 2015, Algorithm 2 ----


def adamax(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m as in Adam; v <- max(b2 v, |g| + eps), which the paper calls u_t and writes without eps."""
    m = average(old.m, g, s.b1)
    return g, old._replace(m=m, v=jnp.maximum(decayed(old.v, s.b2), jnp.abs(g) + s.eps))


def maximum(_s: Scalars, new: Moments) -> jax.Array:
    """v."""
    return new.v


# ---- RAdam: Liu et al. 2020, Algorithm 2 ----


def rectification(s: Scalars) -> Scalars:
    """r m_hat / (sqrt(v_hat) + eps) where rho(t) >= threshold, else m_hat.

    r = sqrt((rho-4) (rho-2) rho_inf / ((rho_inf-4) (rho_inf-2) rho)), with the paper's
    rho_inf = 2 / (1 - b2) - 1 and rho(t) = rho_inf - 2 t b2**t / (1 - b2**t). In this form rho is
    the difference of two large numbers. With y = -log(b2) / 2 they are coth(y) and
    t (coth(t y) - 1). Their poles 1/y cancel analytically, which leaves

        rho(t) = L(y) + t (1 - L(t y)),   L(x) = coth(x) - 1/x.
    """
    y = -s.b2.log / 2
    rho = langevin(y)[0] + s.t * langevin(s.t * y)[1]
    top = 2 / s.b2.complement - 1  # rho reaches this only by rounding
    adaptive = (rho >= s.derived["threshold"]) & (top > s.derived["threshold"])
    # Where r is not used, any number above 4 will do: the slope must not be NaN either.
    rho, top = (jnp.where(adaptive, x, jnp.full_like(rho, 5)) for x in (rho, top))
    r = safe_sqrt((rho - 4) / (top - 4) * ((rho - 2) / (top - 2)) * (top / rho))
    return s._replace(
        step_size=jnp.where(adaptive, s.step_size * r, s.alpha / s.c1),
        derived=s.derived | {"adaptive": adaptive},
    )


def rectified_root(s: Scalars, new: Moments) -> jax.Array:
    """`root` where rho(t) >= threshold, else 1."""
    return jnp.where(s.derived["adaptive"], root(s, new), jnp.ones_like(new.v))


# ---- AdaBelief: Zhuang et al. 2020, Algorithm 2 ----


def belief_floor(s: Scalars) -> Scalars:
    """eps_root / (1 - b2): inside the average this equals adding `eps_root` in every step.

    Added to v directly it would be rounded the same way in every step, and the errors would add up.
    """
    floor = None if s.eps_root is None else s.eps_root / s.b2.complement
    return s._replace(derived=s.derived | {"floor": floor}, eps_root=None)


def adabelief(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m as in Adam; v <- b2 v + (1 - b2) |g - m|**2 + eps_root, with the new m."""
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
    """alpha = 1 until `trust_ratio`, because alpha = 0 would make its quotient 0 / 0."""
    one = jnp.ones_like(s.step_size)
    derived = s.derived | {"learning_rate": s.alpha}
    return s._replace(derived=derived, alpha=one, step_size=one, decay=s.weight_decay)


def trust_ratio(s: Scalars, u: jax.Array, theta: jax.Array) -> jax.Array:
    """alpha |theta| / |u| u with norms over the leaf; alpha u if one of the norms is 0."""
    size, step = safe_sqrt(abs_squared(theta).sum()), safe_sqrt(abs_squared(u).sum())
    usable = (size != 0) & (step != 0)  # true for NaN, which must not count as 0
    ratio = jnp.where(usable, size / jnp.where(usable, step, jnp.ones_like(step)), 1)
    return times(s.derived["learning_rate"] * ratio, u)


def scale_relative_rate(s: Scalars, factor: jax.Array) -> Scalars:
    """Multiply alpha by a factor, after `unit_rate`."""
    rate = factor * s.derived["learning_rate"]
    return s._replace(derived=s.derived | {"learning_rate": rate})


# ---- ADOPT: Taniguchi et al. 2024, Algorithm 2 ----


def adopt(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """x = clip(g / max(sqrt(v), eps), c) with the old v; m <- b1 m + (1 - b1) x; v as in Adam.

    The first step only sets v = |g|**2.
    """
    first = s.t == 1
    scale = jnp.where(first, jnp.ones_like(old.v), jnp.maximum(safe_sqrt(old.v), s.eps))
    x = jnp.where(first, jnp.zeros_like(g), clip(over(g, scale), s.derived["clip_value_fn"]))
    square = abs_squared(g)
    v = jnp.where(first, square, mean_square(old.v, square, s.b2))
    return x, old._replace(m=average(old.m, x, s.b1), v=v)


def one(_s: Scalars, new: Moments) -> jax.Array:
    """1, because the gradient was already divided."""
    return jnp.ones_like(new.v)


# ---- AdEMAMix: Pagliardini, Ablin & Grangier 2024, Algorithm 1 ----


def mixing(s: Scalars) -> Scalars:
    """The paper's alpha, here `mix`, times c1, because the whole numerator is divided by c1."""
    return s._replace(derived=s.derived | {"mix": s.derived["alpha"] * s.c1})


def ademamix(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """As `adam`, and m_slow <- b3 m_slow + (1 - b3) g."""
    g, new = adam(s, g, old)
    return g, new._replace(extra={"mu_slow": average(old.extra["mu_slow"], g, s.derived["b3"])})


def mixed_momentum(s: Scalars, _x: jax.Array, new: Moments) -> jax.Array:
    """c1 (m_hat + mix m_slow); without correction the slow average comes in slowly."""
    return new.m + times(s.derived["mix"], new.extra["mu_slow"])


# ---- Simplified AdEMAMix: Morwani et al. 2025, section 4 ----


def simplified_ademamix(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """m <- b1 m + g, a sum instead of an average; v as in Adam."""
    g, new = adam(s, g, old)
    return g, new._replace(m=decayed(old.m, s.b1) + g)


def sum_and_gradient(s: Scalars, x: jax.Array, new: Moments) -> jax.Array:
    """m + alpha g, with the paper's alpha."""
    return new.m + unfused(times(s.derived["alpha"], x), s.t)


# ---- LaProp: Ziyin, Wang & Ueda 2020, Algorithm 1 ----


def laprop(s: Scalars, g: jax.Array, old: Moments) -> tuple[jax.Array, Moments]:
    """v as in Adam; x = g / (sqrt(v_hat) + eps) with the new v; m <- b1 m + (1 - b1) x."""
    v = mean_square(old.v, abs_squared(g), s.b2)
    x = over(g, safe_sqrt(v / s.c2) + s.eps)
    return x, old._replace(m=average(old.m, x, s.b1), v=v)


# ---- Adam-atan2: Everett et al. 2024, Algorithm 2 ----


def angle_scalars(s: Scalars) -> Scalars:
    """alpha a atan2(m_hat, b sqrt(v_hat)) = alpha a atan2(m, b c1 / sqrt(c2) sqrt(v))."""
    derived = s.derived | {"b": s.derived["b"] * (s.c1 / jnp.sqrt(s.c2))}
    return s._replace(step_size=s.step_size * s.derived["a"], derived=derived)


def angle_of_momentum(s: Scalars, _x: jax.Array, new: Moments) -> jax.Array:
    """atan2(m, b sqrt(v)) with the b of `angle_scalars`; a complex m keeps its phase."""
    w = s.derived["b"] * safe_sqrt(new.v)
    if not jnp.iscomplexobj(new.m):
        return angle(new.m, w)
    size = jnp.abs(new.m)
    return times(angle(size, w) / jnp.where(size == 0, jnp.ones_like(size), size), new.m)
