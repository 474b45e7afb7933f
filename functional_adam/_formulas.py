"""Adam's equations, one short function each: arrays in, arrays out.

No trees, no storage, no flags. Letters are those of Kingma & Ba (2015), "Adam: A Method for
Stochastic Optimization", Algorithm 1: `g` the gradient, `m` and `v` the two moments, `t` the step
counted from 1, `alpha` the step size. `docs/math.md` derives the rearranged forms; the tests hold
each of them against the plain one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rate(NamedTuple):
    """A decay rate b, with what would be lost by computing it from a rounded b.

    Near b = 1 a float32 holds b to 2**-25 absolute, hence 1 - b (and log b, which is about
    -(1 - b)) only to 2**-25 / (1 - b) relative: 3e-5 at b = 0.999. Both are therefore made
    where b is still exact, and travel with it.
    """

    b: jax.Array
    complement: jax.Array  # 1 - b
    log: jax.Array  # log b; -inf for b = 0
    carried: jax.Array  # 1 where b > 1/2, else b: see `average`
    removed: jax.Array  # 1 where b > 1/2, else 0


@jax.jit  # one trace for both rates
def one_minus_exp(x: jax.Array) -> jax.Array:
    """1 - exp(x) for x <= 0, to two units of 2**-24.

    For x > -1/2 as the series -x (1 + x/2! + x**2/3! + ...), whose value besides -x lies in
    (3/4, 1]: nothing cancels. Beyond, the plain form loses nothing either. (XLA's expm1 is off by
    up to six units, and at t = 1 that error would be common to all coordinates of a step.)
    """
    terms = 9 if x.dtype == jnp.float32 else 16  # the next is below 2**-26, 2**-55 of the sum
    series = x.dtype.type(1 / math.factorial(terms))
    for k in range(terms - 1, 0, -1):
        series = series * x + x.dtype.type(1 / math.factorial(k))
    return jax.lax.select(x > -0.5, -x * series, 1 - jnp.exp(x))


@jax.custom_jvp
def bias_correction(rate: Rate, t: jax.Array) -> jax.Array:
    """c = 1 - b**t (Algorithm 1, the divisors of m_hat and v_hat), as 1 - exp(t log b).

    The subtraction that cancels when b**t is near 1 is never made: see `one_minus_exp`.
    b = 0 gives 1 - exp(-inf) = 1.
    """
    return one_minus_exp(t * rate.log)


@bias_correction.defjvp
def _bias_correction_jvp(  # pyright: ignore[reportUnusedFunction] (registered, never called by name)
    primals: tuple[Rate, jax.Array], tangents: tuple[Rate, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # dc/db = -t b**(t-1). Through log b it would be 0 * inf at b = 0; and b**0 is kept apart
    # because its own slope, 0 b**-1, would be NaN there.
    rate, t = primals
    later = t > 1
    power = jnp.power(jnp.where(later, rate.b, jnp.ones_like(rate.b)), t - 1)
    return bias_correction(rate, t), -t * power * tangents[0].b


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x), with derivative 0 at x = 0, where the true one is infinite.

    A coordinate whose gradient is always zero has v = 0; the chain rule would multiply the
    infinite slope by dv = 0 and turn every gradient taken through an update into NaN.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(  # pyright: ignore[reportUnusedFunction] (registered, never called by name)
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    positive = x > 0
    root = safe_sqrt(jnp.where(positive, x, jnp.ones_like(x)))
    return safe_sqrt(x), jnp.where(positive, x_dot / (root + root), jnp.zeros_like(x))


def abs_squared(g: jax.Array) -> jax.Array:
    """|g|**2, real; for complex g the sum of the two parts' squares, smooth at 0."""
    if jnp.iscomplexobj(g):
        return g.real * g.real + g.imag * g.imag
    return g * g


def average(a: jax.Array, x: jax.Array, rate: Rate) -> jax.Array:
    """b a + (1 - b) x; for b > 1/2 as a + (1 - b) (x - a).

    Expanding the second gives the first. The first multiplies all of a by a rounded b, the same
    relative error every step, which over 1 / (1 - b) steps grows to 2**-25 / (1 - b); in the
    second, rounding touches only the small correction. But where b is small and x far below a,
    x - a has lost x: there the first form is the exact one. Both are one expression, with
    `carried` and `removed` 1 and 1 for the second form, b and 0 for the first.
    """
    return rate.carried * a + rate.complement * (x - rate.removed * a)


def first_moment(m: jax.Array, g: jax.Array, b1: Rate) -> jax.Array:
    """m <- b1 m + (1 - b1) g (Algorithm 1)."""
    return average(m, g, b1)


def second_moment(v: jax.Array, g: jax.Array, b2: Rate) -> jax.Array:
    """v <- b2 v + (1 - b2) |g|**2 (Algorithm 1).

    An infinite v (|g| above 1.8e19 in float32) stays infinite, and its coordinate stops;
    the difference inside `average` alone would make it inf - inf = NaN.
    """
    return jax.lax.select(v == jnp.inf, v, average(v, abs_squared(g), b2))


class Scalars(NamedTuple):
    """What one step multiplies by, once for all leaves (see `step_scalars`)."""

    t: jax.Array
    b1: Rate
    b2: Rate
    step: jax.Array  # alpha sqrt(c2) / c1
    eps: jax.Array  # eps sqrt(c2)
    eps_root: jax.Array | None  # eps_root c2; None for 0, which XLA could not drop: 0 * NaN
    shrink: jax.Array  # alpha lambda


def step_scalars(
    t: jax.Array,
    alpha: jax.Array,
    b1: Rate,
    b2: Rate,
    eps: jax.Array,
    eps_root: jax.Array | None,
    weight_decay: jax.Array,
) -> Scalars:
    """The bias corrections of step t, moved out of the arrays and into scalars.

    With m_hat = m / c1 and v_hat = v / c2 (Algorithm 1), and numerator and denominator both
    multiplied by sqrt(c2):

        alpha m_hat / (sqrt(v_hat + eps_root) + eps)
            = alpha sqrt(c2) / c1 * m / (sqrt(v + eps_root c2) + eps sqrt(c2)).

    One square root and one division an element instead of one and three. (Section 2 of the paper
    notes this order; it leaves out the factor on eps, which we keep.)
    """
    c1, c2 = bias_correction(b1, t), bias_correction(b2, t)
    root_c2 = jnp.sqrt(c2)
    return Scalars(
        t=t,
        b1=b1,
        b2=b2,
        step=alpha * root_c2 / c1,
        eps=eps * root_c2,
        eps_root=None if eps_root is None else eps_root * c2,
        shrink=alpha * weight_decay,
    )


def momentum(m: jax.Array, g: jax.Array, scalars: Scalars) -> jax.Array:
    """c1 m_hat = m: the numerator of Algorithm 1, its c1 being in `Scalars.step`."""
    del g, scalars
    return m


def nesterov_momentum(m: jax.Array, g: jax.Array, scalars: Scalars) -> jax.Array:
    """c1 (b1 m / c1(t+1) + (1 - b1) g / c1(t)): the numerator of Dozat (2016), simplified form."""
    t, b1 = scalars.t, scalars.b1
    ahead = bias_correction(b1, t) / bias_correction(b1, t + 1)
    return (b1.b * ahead.astype(b1.b.dtype)) * m + b1.complement * g


def denominator(v: jax.Array, scalars: Scalars) -> jax.Array:
    """sqrt(c2) (sqrt(v_hat + eps_root) + eps) = sqrt(v + eps_root c2) + eps sqrt(c2)."""
    radicand = v if scalars.eps_root is None else v + scalars.eps_root
    return safe_sqrt(radicand) + scalars.eps


def scaled_ratio(step: jax.Array, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """step * numerator / denominator, with a real denominator under a possibly complex numerator.

    Complex parts are divided one by one: a complex division squares its divisor, and the square
    of a small denominator underflows.
    """
    if jnp.iscomplexobj(numerator):
        parts = numerator.real / denominator, numerator.imag / denominator
        return step * jax.lax.complex(*parts)
    return step * (numerator / denominator)


def decoupled_decay(u: jax.Array, theta: jax.Array, scalars: Scalars) -> jax.Array:
    """u - alpha lambda theta (Loshchilov & Hutter 2019, Algorithm 2, schedule eta inside alpha)."""
    return u - scalars.shrink * theta
