"""The arithmetic under the equations of `formulas`, written to keep its precision.

Nothing here knows Adam: decay rates near 1, 1 - exp, averages, roots and ratios. Each is written so
that float32 loses nothing to cancellation, overflow or an infinite derivative. `docs/math.md`
derives them, and the tests compare each with its plain form.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Stands for -inf, which `jax_debug_infs` would report. Its exponential is 0, and its product with
# any count is finite in float32.
LOG_OF_ZERO = -1e28


class Rate(NamedTuple):
    """A decay rate b, with numbers that would lose precision if computed from a rounded b.

    Near b = 1 a float32 holds b with an absolute error of 2**-25. Then 1 - b (and log b, which is
    about -(1 - b)) have a relative error of 2**-25 / (1 - b): 3e-5 at b = 0.999. Both are therefore
    computed from the exact b and stored with it.
    """

    b: jax.Array
    complement: jax.Array  # 1 - b
    log: jax.Array  # log b; `LOG_OF_ZERO` for b = 0
    keep: jax.Array  # 1 if b > 1/2, else b: see `average`
    subtract: jax.Array  # 1 if b > 1/2, else 0


@jax.jit  # one trace for both rates
def one_minus_exp(x: jax.Array) -> jax.Array:
    """1 - exp(x) for x <= 0, to two units of 2**-24.

    For x > -1/2 this is the series -x (1 + x/2! + x**2/3! + ...). The factor of -x is in (3/4, 1],
    so nothing cancels. For smaller x the plain form loses nothing either. (XLA's expm1 is off by up
    to six units, and at t = 1 all coordinates of a step would share that error.)
    """
    return jax.lax.select(x > -0.5, -x * _growth_near_zero(x), 1 - jnp.exp(x))


def _growth_near_zero(x: jax.Array) -> jax.Array:
    """(exp(x) - 1) / x as a series, right for -1/2 < x <= 0 and finite below."""
    x = jnp.maximum(x, x.dtype.type(-0.5))  # else the slope overflows to NaN even if not selected
    terms = 9 if x.dtype == jnp.float32 else 16  # the next is below 2**-26, 2**-55 of the sum
    series = x.dtype.type(1 / math.factorial(terms))
    for k in range(terms - 1, 0, -1):
        series = series * x + x.dtype.type(1 / math.factorial(k))
    return series


def _growth(x: jax.Array) -> jax.Array:
    """(exp(x) - 1) / x for x <= 0, and its limit 1 at 0; smooth."""
    far = jnp.minimum(x, x.dtype.type(-0.5))
    return jnp.where(x > -0.5, _growth_near_zero(x), (1 - jnp.exp(far)) / -far)


@jax.custom_jvp
def bias_correction(rate: Rate, t: jax.Array) -> jax.Array:
    """c = 1 - b**t (Algorithm 1, the divisors of m_hat and v_hat), as 1 - exp(t log b).

    This avoids the subtraction that cancels when b**t is near 1: see `one_minus_exp`.
    b = 0 gives 1 - exp(-1e28 t) = 1.
    """
    return one_minus_exp(t * rate.log)


@bias_correction.defjvp
def _bias_correction_jvp(  # registered, never called by name
    primals: tuple[Rate, jax.Array], tangents: tuple[Rate, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # dc/db = -t b**(t-1), which does not follow from the logarithm of 0. b**0 is a separate case
    # because its own slope, 0 b**-1, would be NaN there.
    rate, t = primals
    later = t > 1
    power = jnp.power(jnp.where(later, rate.b, jnp.ones_like(rate.b)), t - 1)
    return bias_correction(rate, t), -t * power * tangents[0].b


def largest_ratio(b1: Rate, b2: Rate, t: jax.Array) -> jax.Array:
    """C = (1 - b1) sqrt((1 + q + ... + q**(t-1)) / (1 - b2)) with q = b1**2 / b2: |m| <= C sqrt(v).

    This is the Cauchy-Schwarz inequality for m = (1 - b1) sum b1**k g and
    v = (1 - b2) sum b2**k g**2. The series is t growth(tx) / growth(x) with x = log q. If q > 1, it
    is q**(t-1) times the same with -x in place of x.
    """
    x = jnp.clip(2 * b1.log - b2.log, -80, 80)
    size = -jnp.abs(x)
    series = t * jnp.exp(jnp.maximum(x, 0) * (t - 1)) * (_growth(t * size) / _growth(size))
    return b1.complement * jnp.sqrt(series / b2.complement)


def langevin(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L(x) = coth x - 1/x and 1 - L(x) for x >= 0, both without cancellation.

    Up to x = 1, L is Lambert's continued fraction x / (3 + x**2 / (5 + x**2 / (7 + ...))), which is
    below 1/3 there. Beyond, 1 - L = 1/x - 2 / (exp(2x) - 1), whose terms differ a lot in size.
    """
    near = x <= 1
    small, large = jnp.where(near, x, jnp.ones_like(x)), jnp.where(near, jnp.ones_like(x), x)
    square, fraction = small * small, jnp.zeros_like(x)
    for odd in range(19, 1, -2):  # nine levels: below 2**-55 of the value
        fraction = square / (odd + fraction)
    fraction = fraction / jnp.where(small > 0, small, jnp.ones_like(x))
    shrinking = jnp.exp(-2 * large)  # exp(2x) would overflow
    complement = 1 / large - 2 * shrinking / (1 - shrinking)
    return jnp.where(near, fraction, 1 - complement), jnp.where(near, 1 - fraction, complement)


def log_half_product(log_q: jax.Array, t: jax.Array) -> jax.Array:
    """log((1 - q/2) (1 - q**2/2) ... (1 - q**t/2)) for log q <= 0, without the product.

    log(1 - q**i/2) = -sum over k of q**(ik) / (k 2**k). Summing over i first, each k gives a
    geometric series, q**k (1 - q**(kt)) / (1 - q**k). With x = k log q it equals
    t exp(x) growth(tx) / growth(x), which is smooth at q = 1. The omitted terms are below rounding.
    """
    k = jnp.arange(1, 25 if t.dtype == jnp.float32 else 54).astype(t.dtype)
    x = k * log_q
    series = t * jnp.exp(x) * (_growth(t * x) / _growth(x))
    return -jnp.sum(series * jnp.exp2(-k) / k)


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x) with derivative 0 at x = 0, where the true derivative is infinite.

    A coordinate whose gradient is always zero has v = 0. The chain rule would multiply the infinite
    slope by dv = 0, and every gradient taken through an update would become NaN.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(  # registered, never called by name
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    positive = x > 0
    root = safe_sqrt(jnp.where(positive, x, jnp.ones_like(x)))
    return safe_sqrt(x), jnp.where(positive, x_dot / (root + root), jnp.zeros_like(x))


def abs_squared(g: jax.Array) -> jax.Array:
    """|g|**2, real; for complex g the sum of the squares of both parts, smooth at 0."""
    if jnp.iscomplexobj(g):
        return g.real * g.real + g.imag * g.imag
    return g * g


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b, real; for complex numbers Re(a conj(b)), the product of two vectors in the plane."""
    return a.real * b.real + a.imag * b.imag if jnp.iscomplexobj(a) else a * b


def widened(real: np.dtype[Any], x: jax.Array) -> jax.Array:
    """x in the precision of the arithmetic: `real`, or its complex counterpart."""
    return x.astype(np.promote_types(real, np.complex64) if jnp.iscomplexobj(x) else real)


def times(c: jax.Array, x: jax.Array) -> jax.Array:
    """c x for real c; a complex x by parts, because strict promotion does not mix dtypes."""
    return jax.lax.complex(c * x.real, c * x.imag) if jnp.iscomplexobj(x) else c * x


@jax.custom_jvp
def unfused(x: jax.Array, t: jax.Array) -> jax.Array:
    """x, a float32 product that no compiler fuses with a following sum; t is any number > 0.

    A fused product is not rounded before the sum. XLA would fuse in some programs and not in
    others, or for a parameter but not for its residual. Here an integer that depends on t is added
    to the bits of x. It is 0, but XLA cannot know that t is positive.
    """
    if x.dtype != jnp.float32:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) + (t < 0).astype(jnp.int32)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@unfused.defjvp
def _unfused_jvp(  # registered, never called by name
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    return unfused(*primals), tangents[0]


def over(x: jax.Array, d: jax.Array) -> jax.Array:
    """x / d for real d; a complex x by parts.

    A complex division squares the divisor, and the square of a small number underflows.
    """
    return jax.lax.complex(x.real / d, x.imag / d) if jnp.iscomplexobj(x) else x / d


# (atan(r) / r - 1) / r**2 in powers of r**2, to 3e-9 for r <= 1, by Chebyshev interpolation.
_ARCTANGENT = (
    *(-0.3333333308, 0.1999994932, -0.1428400379, 0.1108826163, -0.08931826777),
    *(0.0703191425, -0.04896051403, 0.02630500111, -0.009144629761, 0.001488691939),
)


@jax.custom_jvp
def angle(x: jax.Array, w: jax.Array) -> jax.Array:
    """atan2(x, w) for w >= 0, and 0 if both are 0; in float32 to two units of 2**-24.

    A polynomial runs fast on all devices, whereas XLA on a CPU calls a function per element.
    """
    if x.dtype != jnp.float32:
        return jnp.arctan2(x, w)
    size, tiny = jnp.abs(x), float(jnp.finfo(x.dtype).tiny)
    r = jnp.minimum(size, w) / jnp.maximum(jnp.maximum(size, w), tiny)
    square, series = r * r, jnp.zeros_like(r)
    for coefficient in reversed(_ARCTANGENT):
        series = series * square + coefficient
    turned = jnp.where(size > w, x.dtype.type(math.pi / 2), jnp.zeros_like(x))
    near = jnp.where(size > w, -r, r)
    return jnp.where(x < 0, -1, 1).astype(x.dtype) * (turned + (near + near * (square * series)))


@angle.defjvp
def _angle_jvp(  # registered, never called by name
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    size = jnp.maximum(jnp.abs(x), w)
    size = jnp.where(size == 0, jnp.ones_like(size), size)
    x, w = x / size, w / size  # their squares do not underflow
    square = x * x + w * w
    slope = 1 / (size * jnp.where(square == 0, jnp.ones_like(square), square))
    return angle(*primals), slope * (w * tangents[0] - x * tangents[1])


def average(a: jax.Array, x: jax.Array, rate: Rate) -> jax.Array:
    """b a + (1 - b) x, computed as a + (1 - b) (x - a) if b > 1/2.

    Both forms are equal algebraically. The first multiplies a by a rounded b, with the same
    relative error in every step, which grows to 2**-25 / (1 - b) over 1 / (1 - b) steps. In the
    second, rounding affects only the small correction. But if b is small and x far below a, x - a
    loses x, and the first form is the exact one. One expression covers both: `keep` and `subtract`
    are 1 and 1 for the second form, b and 0 for the first.
    """
    return times(rate.keep, a) + times(rate.complement, x - times(rate.subtract, a))


def mean_square(v: jax.Array, square: jax.Array, rate: Rate) -> jax.Array:
    """`average`, but an infinite v (|g| above 1.8e19 in float32) stays infinite.

    Its coordinate then stops moving. The difference inside `average` would give inf - inf = NaN.
    """
    return jax.lax.select(is_infinite(v), v, average(v, square, rate))


def is_infinite(v: jax.Array) -> jax.Array:
    """v = inf, written without an infinity, which `jax_debug_infs` would report."""
    return v > float(jnp.finfo(v.dtype).max)


def decayed(a: jax.Array, rate: Rate) -> jax.Array:
    """b a, computed as the average of a and 0."""
    return average(a, jnp.zeros_like(a), rate)


def clip(z: jax.Array, bound: jax.Array) -> jax.Array:
    """z if |z| <= bound, else the number of size `bound` in the same direction."""
    if not jnp.iscomplexobj(z):
        return jnp.clip(z, -bound, bound)
    size = jnp.abs(z)
    outside = size > bound
    return jnp.where(outside, times(bound / jnp.where(outside, size, jnp.ones_like(size)), z), z)


def same_side(a: jax.Array, b: jax.Array) -> jax.Array:
    """Whether a b > 0 (complex: Re(a conj(b)) > 0), by signs or scaled, as a b may underflow."""
    if not jnp.iscomplexobj(a):  # not by `sign`, for which Pallas needs to know the kind of TPU
        return ((a > 0) & (b > 0)) | ((a < 0) & (b < 0))

    def scaled(z: jax.Array) -> jax.Array:
        size = jnp.maximum(jnp.abs(z.real), jnp.abs(z.imag))
        return over(z, jnp.where(size == 0, jnp.ones_like(size), size))

    return product(scaled(a), scaled(b)) > 0
