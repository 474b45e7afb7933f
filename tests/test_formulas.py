"""Each formula against its plain form, to the precision that DESIGN promises."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import reference

from functional_adam import _formulas as F
from functional_adam._step import _rate

pytestmark = pytest.mark.usefixtures("strict")

RATES = (0.0, 1e-3, 0.3, 0.5, 0.83, 0.9, 0.99, 0.999, 0.9997, 0.9999, 0.99999)
STEPS = (1, 2, 3, 7, 55, 1000, 12_345, 10**6, 2**24 + 1, 10**9, 2**31 - 1)
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def correction_error(rate, b, t):
    truth = reference.bias_correction_mp(b, t)
    found = F.bias_correction(rate, jnp.int32(t).astype(jnp.float32))
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
    error = np.abs(np.asarray(F.one_minus_exp(jnp.asarray(x)), np.float64) - truth)
    assert (error <= 2 * 2**-24 * truth).all()
    assert F.one_minus_exp(jnp.float32(-jnp.inf)) == 1


def test_one_minus_exp_in_float64(x64):
    x = -np.exp(np.random.default_rng(0).uniform(np.log(1e-9), np.log(100), 20_000))
    truth = -np.expm1(x)
    assert (np.abs(F.one_minus_exp(jnp.asarray(x)) - truth) <= 8 * 2**-53 * truth).all()


def test_bias_correction_has_the_slope_of_its_formula(x64):
    for b in (0.0, 0.37, 0.999):
        for t in (1.0, 2.0, 31.0):
            slope = jax.grad(lambda b, t: F.bias_correction(_rate("b", b, F64), t))(
                jnp.float64(b), jnp.float64(t)
            )
            np.testing.assert_allclose(slope, -t * b ** (t - 1), rtol=1e-12)
            curvature = jax.grad(jax.grad(lambda b, t: F.bias_correction(_rate("b", b, F64), t)))(
                jnp.float64(b), jnp.float64(t)
            )
            truth = -t * (t - 1) * b ** (t - 2) if t > 1 else 0
            np.testing.assert_allclose(curvature, truth, rtol=1e-12, atol=1e-15)


def test_the_difference_forms_equal_the_plain_averages(x64):
    rng = np.random.default_rng(3)
    m, g, v = rng.standard_normal(50), 30 * rng.standard_normal(50), rng.gamma(0.5, size=50)
    for b in RATES:
        rate = _rate("b", b, F64)
        np.testing.assert_allclose(
            F.first_moment(m, g, rate), b * m + (1 - b) * g, rtol=1e-13, atol=1e-14
        )
        np.testing.assert_allclose(
            F.second_moment(v, g, rate), b * v + (1 - b) * g**2, rtol=1e-13, atol=1e-14
        )


def test_the_folded_scalars_equal_the_plain_step(x64):
    rng = np.random.default_rng(4)
    m, v = rng.standard_normal(50), rng.gamma(0.5, size=50)
    alpha, b1, b2, eps, eps_root = 0.03, 0.83, 0.997, 1e-3, 2e-3
    for t in (1, 2, 19, 4000):
        s = F.step_scalars(
            *(jnp.float64(x) for x in (t, alpha)),
            _rate("b1", b1, F64),
            _rate("b2", b2, F64),
            *(jnp.float64(x) for x in (eps, eps_root, 0.7)),
        )
        m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
        plain = alpha * m_hat / (np.sqrt(v_hat + eps_root) + eps)
        folded = F.scaled_ratio(s.step, F.momentum(m, m, s), F.denominator(v, s))
        np.testing.assert_allclose(folded, plain, rtol=1e-13)

        g = rng.standard_normal(50)
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        plain = alpha * ahead / (np.sqrt(v_hat + eps_root) + eps)
        folded = F.scaled_ratio(s.step, F.nesterov_momentum(m, g, s), F.denominator(v, s))
        np.testing.assert_allclose(folded, plain, rtol=1e-12)
        np.testing.assert_allclose(F.decoupled_decay(g, m, s), g - alpha * 0.7 * m, rtol=1e-13)


def test_safe_sqrt_is_sqrt_with_slope_zero_at_zero():
    x = jnp.array([0.0, 3e-39, 2.5e-30, 0.7, 11.0, jnp.inf])
    np.testing.assert_array_equal(F.safe_sqrt(x), jnp.sqrt(x))
    slope = jax.vmap(jax.grad(F.safe_sqrt))
    assert slope(x)[0] == 0
    np.testing.assert_allclose(slope(x)[2:5], 0.5 / np.sqrt(x[2:5]), rtol=1e-6)
    curvature = jax.vmap(jax.grad(jax.grad(F.safe_sqrt)))(x[jnp.array([0, 3, 4])])
    np.testing.assert_allclose(curvature, [0, -0.25 * 0.7**-1.5, -0.25 * 11**-1.5], rtol=1e-6)
    assert jnp.isnan(F.safe_sqrt(jnp.float32(-1.0)))


def test_abs_squared_of_complex_numbers_is_real_and_differentiable_at_zero():
    z = jnp.array([3 - 4j, 0.5j, 0], jnp.complex64)
    assert F.abs_squared(z).dtype == jnp.float32
    np.testing.assert_allclose(F.abs_squared(z), [25, 0.25, 0])
    assert jnp.isfinite(jax.grad(lambda z: F.abs_squared(z).sum())(z)).all()


def test_a_complex_numerator_survives_a_tiny_denominator():
    # Complex division squares its divisor: 1e-25 squared is 0 in float32.
    z = jnp.array([3e-25 - 1e-25j], jnp.complex64)
    ratio = F.scaled_ratio(jnp.complex64(2), z, jnp.array([1e-25], jnp.float32))
    np.testing.assert_allclose(ratio, [6 - 2j], rtol=1e-6)


def test_an_infinite_second_moment_stays_infinite_and_others_do_not_become_so():
    rate = _rate("b2", 0.97, F32)
    g = jnp.array([1e25, 0.5], jnp.float32)
    v = F.second_moment(jnp.zeros(2), g, rate)
    np.testing.assert_allclose(v, [np.inf, 0.03 * 0.25], rtol=1e-6)
    v = F.second_moment(v, jnp.array([2.0, 0.5]), rate)
    np.testing.assert_allclose(v, [np.inf, 0.03 * 0.25 * 1.97], rtol=1e-6)
    assert jnp.isnan(F.second_moment(jnp.ones(1), jnp.array([jnp.nan]), rate)).all()
