"""Derivatives through 20 updates of every variant: finite, and those of central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import switched

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")
slow = pytest.mark.slow

STEPS = 20
HYPER = {"learning_rate": 0.03, "b1": 0.83, "b2": 0.93, "eps": 1e-2}
# The variants, and what they have beside those four; all of it is differentiated.
VARIANTS = {
    "adam": (fa.adam, {"eps_root": 1e-3, "l2": 0.3}, {}),
    "adam, no eps_root": (fa.adam, {}, {}),
    "adam, l2": (fa.adam, {"l2": 0.3}, {}),
    "adam, eps before": (fa.adam, {}, {"eps_placement": "before_correction", "nesterov": True}),
    "adamw": (fa.adamw, {"weight_decay": 0.3}, {}),
    "adamw, independent": (fa.adamw, {"weight_decay": 0.02}, {"independent_weight_decay": True}),
    "nadam": (fa.nadam, {}, {}),
    "nadam, Dozat": (fa.nadam, {"momentum_decay": 0.3}, {}),
    "nadamw": (fa.nadamw, {"weight_decay": 0.3}, {}),
    "amsgrad": (fa.amsgrad, {}, {}),
    "amsgrad, before": (fa.amsgrad, {}, {"maximum": "before_correction"}),
    "adamax": (fa.adamax, {}, {}),
    "adamaxw": (fa.adamaxw, {"weight_decay": 0.3}, {}),
    "radam": (fa.radam, {}, {}),
    "radam, Nesterov": (fa.radam, {"eps_root": 1e-3}, {"nesterov": True}),
    "adabelief": (fa.adabelief, {"eps_root": 1e-3, "weight_decay": 0.3}, {}),
    "yogi": (fa.yogi, {"initial_accumulator_value": 0.2}, {}),
    "lamb": (fa.lamb, {"weight_decay": 0.3}, {}),
    "adopt": (fa.adopt, {"eps": 3.0}, {}),  # a root below it, or eps would do nothing
    "adopt, Nesterov": (fa.adopt, {"eps": 3.0}, {"nesterov": True, "use_clipping": False}),
    "ademamix": (fa.ademamix, {"b3": 0.97, "alpha": 3.0, "weight_decay": 0.1}, {}),
    "simplified ademamix": (
        fa.simplified_ademamix,
        {"b1": 0.6, "alpha": 1.3, "weight_decay": 0.1},
        {},
    ),
    "laprop": (fa.laprop, {"weight_decay": 0.1}, {}),
    "atan2": (
        lambda eps, **h: fa.adam_atan2(**h),
        {"a": 0.9, "b": 1.3, "weight_decay": 0.1},
        {},
    ),
    "cautious": (lambda **h: fa.cautious(fa.adamw(**h)), {"weight_decay": 0.3}, {}),
    "hyperball": (
        lambda threshold, **h: fa.hyperball(fa.clip_update_rms(fa.adam(**h), threshold)),
        {"threshold": 0.6},
        {},
    ),
    "choosy": (lambda **h: fa.cautious_weight_decay(fa.adamw(**h)), {"weight_decay": 0.3}, {}),
}
# What these have is in others as well, or has no rule of its own for its derivative.
SLOW = {
    *("adam, no eps_root", "adam, l2", "adamw", "adamw, independent", "nadam", "nadamw"),
    *("adamax", "amsgrad, before", "radam", "adabelief", "yogi", "adopt, Nesterov"),
    *("ademamix", "cautious", "choosy", "simplified ademamix", "laprop", "atan2"),
}
TARGET = np.linspace(-1, 1.4, 7)
START = np.cos(np.arange(7.0) * 1.3)


def gradient(w, t):
    """Of a loss smooth, curved, noisy by t, which w[5] and w[6] do not enter.

    d**2 (1 + 0.3 d) k + sin(t + 2 d), summed, where d is the way from the target.
    """
    d, k = w - jnp.asarray(TARGET, w.dtype), jnp.array([1, 2, 3, 4, 5, 0, 0], w.dtype)
    return (2 * d + 0.9 * d**2) * k + 2 * jnp.cos(t + 2 * d) * jnp.sign(k)


@functools.cache
def end(name):
    """(initial parameters, hyperparameters) -> a smooth function of the last parameters, and its
    gradients by both."""
    factory, _, options = VARIANTS[name]

    def trained(w, hyper):
        tx = factory(**hyper, **options)

        def body(carry, t):
            w, state = carry
            updates, state = tx.update(gradient(w, t), state, w)
            return (fa.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(body, (w, tx.init(w)), jnp.arange(STEPS, dtype=float))
        return jnp.sum(jnp.cos(w) * jnp.arange(2.0, 9))

    return jax.jit(jax.value_and_grad(trained, (0, 1)))


def central(f, x):
    """f'(x) from four values, to the fourth order."""
    h = 2e-4 * max(abs(x), 0.05)
    one, two = f(x + h) - f(x - h), f(x + 2 * h) - f(x - 2 * h)
    return (8 * one - two) / (12 * h)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow if name in SLOW else ()) for name in VARIANTS]
)
def test_gradients_through_updates_are_those_of_central_differences(name, x64):
    trained = lambda *args: float(end(name)(*args)[0])  # noqa: E731
    hyper = {k: jnp.float64(v) for k, v in (HYPER | VARIANTS[name][1]).items()}
    start = jnp.asarray(START)
    by_start, by_hyper = end(name)(start, hyper)[1]
    assert jnp.isfinite(by_start).all()
    for key, slope in by_hyper.items():
        truth = central(
            lambda x, key=key: trained(start, hyper | {key: jnp.float64(x)}), hyper[key]
        )
        np.testing.assert_allclose(slope, truth, rtol=1e-6, atol=1e-6, err_msg=key)
        idle = key == "eps_root" or (name, key) == ("atan2", "eps")
        assert idle or abs(truth) > 1e-3, f"{key} does nothing here"
    for i in range(len(START)):
        truth = central(lambda x, i=i: trained(start.at[i].set(x), hyper), START[i])
        np.testing.assert_allclose(by_start[i], truth, rtol=1e-6, atol=1e-6, err_msg=f"w[{i}]")

    # And where only the slope of the root at 0 keeps the two idle coordinates from 0 / 0.
    by_start, by_hyper = end(name)(start, hyper | {"eps": jnp.float64(1e-8)})[1]
    assert jnp.isfinite(by_start).all()
    assert all(jnp.isfinite(slope) for slope in by_hyper.values())


@jax.jit
@jax.grad
def slope_after_two_steps(psi):
    tx = fa.nadam(1.0, momentum_decay=psi)
    state = tx.init(jnp.zeros(2))
    for g in (1.0, 3.0):
        updates, state = tx.update(jnp.array([g, -g]), state)
    return updates[0]


def test_the_slope_by_momentum_decay_is_right_at_zero(x64):
    def truth(psi):  # the same in NumPy; b1 = 0.9, b2 = 0.999
        mu = [0.9 * (1 - 0.96 ** (t * psi) / 2) for t in range(4)]
        product = mu[1] * mu[2]
        m, v = 0.9 * 0.1 + 0.1 * 3, 0.999 * 0.001 + 0.001 * 9
        m_hat = mu[3] * m / (1 - product * mu[3]) + (1 - mu[2]) * 3 / (1 - product)
        return -m_hat / (np.sqrt(v / (1 - 0.999**2)) + 1e-8)

    for psi in (0.0, 1e-9, 1e-4, 4e-3, 0.5):
        h = 1e-4
        points = [truth(psi + k * h) for k in (-2, -1, 1, 2)]
        slope = (8 * (points[2] - points[1]) - (points[3] - points[0])) / (12 * h)
        np.testing.assert_allclose(slope_after_two_steps(psi), slope, rtol=1e-8)


@jax.jit
@jax.grad
def slope_at_a_count(psi, count):
    tx, ones = fa.nadam(1.0, momentum_decay=psi), jnp.ones(2)
    state = tx.init(ones)._replace(count=count, mu=0.5 * ones, nu=0.7 * ones)
    return tx.update(jnp.array([1.0, 2.0]), state)[0].sum()


@pytest.mark.parametrize("psi", [0.0, 1e-8, 4e-3, 0.1, 10.0])
def test_the_slope_by_momentum_decay_is_right_in_float32_and_finite_at_any_count(psi):
    slope = slope_after_two_steps(jnp.float32(psi))
    with switched("jax_enable_x64", True):
        truth = slope_after_two_steps(jnp.float64(psi))
    np.testing.assert_allclose(slope, truth, rtol=1e-5)
    for count in (0, 10, 1000, 10**6, 2**31 - 5):
        assert jnp.isfinite(slope_at_a_count(jnp.float32(psi), jnp.int32(count)))


@pytest.mark.parametrize(
    "name",
    ["amsgrad", "lamb", pytest.param("adamax", marks=slow), pytest.param("adopt", marks=slow)],
)
def test_gradients_through_updates_are_finite_in_float32_with_a_tiny_eps(name):
    hyper = {k: jnp.float32(v) for k, v in (HYPER | VARIANTS[name][1] | {"eps": 1e-8}).items()}
    by_start, by_hyper = end(name)(jnp.asarray(START, jnp.float32), hyper)[1]
    assert by_start.dtype == jnp.float32
    assert jnp.isfinite(by_start).all()
    assert all(jnp.isfinite(slope) for slope in by_hyper.values())
