"""Each formula against its plain form, to the precision that DESIGN promises."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import reference

from functional_adam._equations import formulas as F
from functional_adam._equations import numerics as N
from functional_adam._equations import relatives as R
from functional_adam._equations.operands import Moments, Scalars
from functional_adam._scalars import _rate

pytestmark = pytest.mark.usefixtures("strict")

RATES = (0.0, 1e-3, 0.3, 0.5, 0.83, 0.9, 0.99, 0.999, 0.9997, 0.9999, 0.99999)
STEPS = (1, 2, 3, 7, 55, 1000, 12_345, 10**6, 2**24 + 1, 10**9, 2**31 - 1)
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def correction_error(rate, b, t):
    truth = reference.bias_correction_mp(b, t)
    found = N.bias_correction(rate, jnp.int32(t).astype(jnp.float32))
    assert found.dtype == jnp.float32
    return float(abs((mpmath.mpf(float(found)) - truth) / truth))


@pytest.mark.parametrize("b", RATES)
def test_bias_correction_of_a_python_number_is_right_to_two_to_the_minus_21(b):
    assert max(correction_error(_rate("b", b, F32), b, t) for t in STEPS) <= 2**-21


@pytest.mark.parametrize("b", RATES)
def test_bias_correction_of_a_traced_number_is_right_to_two_to_the_minus_21(b):
    rate = jax.jit(lambda b: _rate("b", b, F32))(jnp.float32(b))
    held = float(np.float32(b))  # the value that a float32 holds; not 0.999 for 0.999
    assert max(correction_error(rate, held, t) for t in STEPS) <= 2**-21


def test_bias_correction_plain_form_would_not_do():
    plain = 1 - np.float32(0.999) ** np.float32(1)
    assert abs(plain / 0.001 - 1) > 1e-5


def test_one_minus_exp_is_right_to_two_units():
    x = -np.exp(np.random.default_rng(0).uniform(np.log(1e-9), np.log(100), 200_000))
    x = np.concatenate([x, [-0.0, -0.5, -0.49999997, -1e-30]]).astype(np.float32)
    truth = -np.expm1(x.astype(np.float64))
    error = np.abs(np.asarray(N.one_minus_exp(jnp.asarray(x)), np.float64) - truth)
    assert (error <= 2 * 2**-24 * truth).all()
    assert N.one_minus_exp(jnp.float32(-jnp.inf)) == 1


def test_one_minus_exp_in_float64(x64):
    x = -np.exp(np.random.default_rng(0).uniform(np.log(1e-9), np.log(100), 20_000))
    truth = -np.expm1(x)
    assert (np.abs(N.one_minus_exp(jnp.asarray(x)) - truth) <= 8 * 2**-53 * truth).all()


def test_bias_correction_has_the_slope_of_its_formula(x64):
    for b in (0.0, 0.37, 0.999):
        for t in (1.0, 2.0, 31.0):
            slope = jax.grad(lambda b, t: N.bias_correction(_rate("b", b, F64), t))(
                jnp.float64(b), jnp.float64(t)
            )
            np.testing.assert_allclose(slope, -t * b ** (t - 1), rtol=1e-12)
            curvature = jax.grad(jax.grad(lambda b, t: N.bias_correction(_rate("b", b, F64), t)))(
                jnp.float64(b), jnp.float64(t)
            )
            truth = -t * (t - 1) * b ** (t - 2) if t > 1 else 0
            np.testing.assert_allclose(curvature, truth, rtol=1e-12, atol=1e-15)


def test_the_difference_forms_equal_the_plain_averages(x64):
    rng = np.random.default_rng(3)
    m, g, v = rng.standard_normal(50), 30 * rng.standard_normal(50), rng.gamma(0.5, size=50)
    for b in RATES:
        rate = _rate("b", b, F64)
        close = dict(rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(N.average(m, g, rate), b * m + (1 - b) * g, **close)
        np.testing.assert_allclose(N.decayed(m, rate), b * m, **close)
        np.testing.assert_allclose(N.mean_square(v, g * g, rate), b * v + (1 - b) * g**2, **close)


def scalars(t, alpha=0.03, b1=0.83, b2=0.997, eps=1e-3, eps_root=2e-3, decay=0.7, **own):
    t, b1, b2 = jnp.float64(t), _rate("b1", b1, F64), _rate("b2", b2, F64)
    alpha, eps, eps_root, decay = map(jnp.float64, (alpha, eps, eps_root, decay))
    own = {name: jnp.float64(value) for name, value in own.items()}
    c1, c2 = N.bias_correction(b1, t), N.bias_correction(b2, t)
    rest = (c1, c2, alpha, alpha * decay)
    return Scalars(t, alpha, b1, b2, eps, eps_root, decay, None, own, *rest)


def update(s, numerator, m, v, g):
    new = Moments(m, v, {})
    return N.times(s.step_size, N.over(numerator(s, g, new), F.root(s, new)))


@pytest.mark.parametrize("t", [1, 2, 19, 4000])
def test_the_folded_scalars_equal_the_plain_step(t, x64):
    rng = np.random.default_rng(4)
    m, g, v = rng.standard_normal(50), rng.standard_normal(50), rng.gamma(0.5, size=50)
    alpha, b1, b2, eps, eps_root = 0.03, 0.83, 0.997, 1e-3, 2e-3
    c1, c2 = 1 - b1**t, 1 - b2**t
    m_hat, v_hat = m / c1, v / c2
    close = dict(rtol=1e-12)

    s = F.eps_after_correction(scalars(t))
    plain = alpha * m_hat / (np.sqrt(v_hat + eps_root) + eps)
    np.testing.assert_allclose(update(s, F.momentum, m, v, g), plain, **close)
    np.testing.assert_allclose(F.decoupled_decay(s, g, m), g - alpha * 0.7 * m, **close)

    s = F.eps_before_correction(scalars(t))
    plain = alpha * np.sqrt(c2) / c1 * m / (np.sqrt(v + eps_root) + eps)
    np.testing.assert_allclose(update(s, F.momentum, m, v, g), plain, **close)

    s = F.eps_after_correction(F.nesterov_weights(scalars(t)))
    ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / c1
    plain = alpha * ahead / (np.sqrt(v_hat + eps_root) + eps)
    np.testing.assert_allclose(update(s, F.nesterov_momentum, m, v, g), plain, **close)

    s = F.independent_decay(scalars(t))
    np.testing.assert_allclose(F.decoupled_decay(s, g, m), g - 0.7 * m, **close)


@pytest.mark.parametrize("psi", [0.0, 4e-3, 0.7, 300.0])
@pytest.mark.parametrize("t", [1, 2, 19, 4000])
def test_dozats_product_needs_no_product(t, psi, x64):
    for b1 in (0.0, 0.3, 0.9, 0.9999):
        with mpmath.workdps(50):
            mu = [mpmath.mpf(b1) * (1 - mpmath.mpf("0.96") ** (i * psi) / 2) for i in range(t + 2)]
            product = mpmath.fprod(mu[1 : t + 1])
            now = (1 - mu[t]) / (1 - product)
            ahead = mu[t + 1] / (1 - product * mu[t + 1])
        s = F.dozat_weights(scalars(t, b1=b1, momentum_decay=psi))
        np.testing.assert_allclose(s.derived["now"], float(now), rtol=2e-15)
        np.testing.assert_allclose(s.derived["ahead"], float(ahead), rtol=2e-15)


def units_of(found, truth):
    return (
        float(max(abs((mpmath.mpf(float(f)) - w) / w) for f, w in zip(found, truth, strict=True)))
        / 2**-24
    )


def test_langevin_and_its_complement_are_right_to_five_units():
    x = np.exp(np.random.default_rng(0).uniform(np.log(1e-9), np.log(1e6), 1000))
    x = np.concatenate([x, [0.99999994, 1.0, 1.0000001]]).astype(np.float32)
    found, complement = N.langevin(jnp.asarray(x))
    with mpmath.workdps(50):
        truth = [mpmath.coth(mpmath.mpf(float(a))) - 1 / mpmath.mpf(float(a)) for a in x]
        assert units_of(found, truth) <= 5
        assert units_of(complement, [1 - value for value in truth]) <= 5
    for edge, value in ((0.0, 0.0), (jnp.inf, 1.0)):
        assert [*N.langevin(jnp.float32(edge))] == [value, 1 - value]


@pytest.mark.parametrize("b2", [0.85, 0.97, 0.999, 0.99999])
def test_the_rectification_is_right_where_the_plain_form_is_not(b2):
    plain_errors = []
    for t in (6, 7, 20, 55, 1000, 12_345, 10**6):
        with mpmath.workdps(50):
            b = mpmath.mpf(b2)
            top = 2 / (1 - b) - 1
            rho = top - 2 * t * b**t / (1 - b**t)
            r = mpmath.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
        t32, b2_rate, one = jnp.float32(t), _rate("b2", b2, F32), jnp.float32(1)
        s = Scalars(
            t32,
            one,
            b2_rate,
            b2_rate,
            one,
            None,
            one,
            None,
            {"threshold": one * 5},
            one,
            one,
            one,
            one,
        )
        s = R.rectification(s)
        assert s.derived["adaptive"] == (rho >= 5)
        assert abs(s.step_size / float(r if rho >= 5 else 1) - 1) <= 30 * 2**-24
        b = np.float32(b2)
        plain = 2 / (1 - b) - 1 - 2 * t * b ** np.float32(t) / (1 - b ** np.float32(t))
        plain_errors.append(abs(plain / float(rho) - 1))
    assert b2 < 0.99 or max(plain_errors) > 1e-4


def test_safe_sqrt_is_sqrt_with_slope_zero_at_zero():
    x = jnp.array([0.0, 3e-39, 2.5e-30, 0.7, 11.0, jnp.inf])
    np.testing.assert_array_equal(N.safe_sqrt(x), jnp.sqrt(x))
    slope = jax.vmap(jax.grad(N.safe_sqrt))
    assert slope(x)[0] == 0
    np.testing.assert_allclose(slope(x)[2:5], 0.5 / np.sqrt(x[2:5]), rtol=1e-6)
    curvature = jax.vmap(jax.grad(jax.grad(N.safe_sqrt)))(x[jnp.array([0, 3, 4])])
    np.testing.assert_allclose(curvature, [0, -0.25 * 0.7**-1.5, -0.25 * 11**-1.5], rtol=1e-6)
    assert jnp.isnan(N.safe_sqrt(jnp.float32(-1.0)))


def test_abs_squared_of_complex_numbers_is_real_and_differentiable_at_zero():
    z = jnp.array([3 - 4j, 0.5j, 0], jnp.complex64)
    assert N.abs_squared(z).dtype == jnp.float32
    np.testing.assert_allclose(N.abs_squared(z), [25, 0.25, 0])
    assert jnp.isfinite(jax.grad(lambda z: N.abs_squared(z).sum())(z)).all()


def test_a_complex_numerator_survives_a_tiny_denominator():
    # Complex division squares its divisor: 1e-25 squared is 0 in float32.
    z = jnp.array([3e-25 - 1e-25j], jnp.complex64)
    ratio = N.times(jnp.float32(2), N.over(z, jnp.array([1e-25], jnp.float32)))
    np.testing.assert_allclose(ratio, [6 - 2j], rtol=1e-6)


def test_an_infinite_second_moment_stays_infinite_and_others_do_not_become_so():
    rate = _rate("b2", 0.97, F32)
    g = jnp.array([1e25, 0.5], jnp.float32)
    v = N.mean_square(jnp.zeros(2), g * g, rate)
    np.testing.assert_allclose(v, [np.inf, 0.03 * 0.25], rtol=1e-6)
    v = N.mean_square(v, jnp.array([4.0, 0.25]), rate)
    np.testing.assert_allclose(v, [np.inf, 0.03 * 0.25 * 1.97], rtol=1e-6)
    assert jnp.isnan(N.mean_square(jnp.ones(1), jnp.array([jnp.nan]), rate)).all()


def test_clipping_keeps_the_direction():
    x = jnp.array([-7.0, 0.25, jnp.inf])
    np.testing.assert_array_equal(N.clip(x, jnp.float32(3)), [-3, 0.25, 3])
    z = N.clip(jnp.array([3 - 4j, 0.3j, 0, 3e30 + 4e30j], jnp.complex64), jnp.float32(2))
    np.testing.assert_allclose(z, [1.2 - 1.6j, 0.3j, 0, 1.2 + 1.6j], rtol=1e-6)
    assert jnp.isnan(N.clip(jnp.array([jnp.nan]), jnp.float32(2))).all()


def test_the_side_is_that_of_the_signs():
    a = jnp.array([1e-30, -1e-30, 2.0, 0.0, jnp.nan])
    b = jnp.array([2e-30, 1e-30, -1.0, 1.0, 1.0])
    assert N.same_side(a, b).tolist() == [True, False, False, False, False]
    a, b = (
        jnp.array([1 + 1j, 1 + 1j], jnp.complex64),
        jnp.array([1 - 0.5j, -1 + 0.5j], jnp.complex64),
    )
    assert N.same_side(a, b).tolist() == [True, False]
