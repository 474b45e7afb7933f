"""The numbers of the variants: each against the formulas of its paper, in float32 and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from family_runs import SIZE, STEPS, gradients, parameters, run

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

slow = pytest.mark.slow
ALPHA = 3e-3
ODD = dict(b1=0.9, b2=0.999, eps=1e-8)
WITHOUT_EPS = {"adam_atan2"}


def growing(count):
    return 0.3 + 0.01 * jnp.sqrt(jnp.asarray(count, float))


def rising(count):
    count = jnp.asarray(count, float)
    return 0.9 + 0.0999 * count / (count + 500)


def loosening(count):
    return 0.7 + 3e-4 * jnp.asarray(count, float)


def linear(count):
    return 0.003 * jnp.asarray(count, float)


# (factory, rule of the reference, hyperparameters). Options of the factory that a rule knows under
# the same name are data of both.
CASES = {
    "adam, l2": ("adam", "adam", dict(b1=0.91, b2=0.9993, l2=0.03)),
    "adam, eps before": ("adam", "adam", dict(eps=1e-3, eps_placement="before_correction")),
    "adamw, independent": (
        "adamw",
        "adam",
        dict(b2=0.9993, weight_decay=2e-4, independent_weight_decay=True),
    ),
    "nadam": ("nadam", "nadam", dict(b1=0.87)),
    "nadam, Dozat": ("nadam", "nadam", dict(b2=0.9993, momentum_decay=4e-3)),
    "nadam, Dozat, fast": ("nadam", "nadam", dict(b1=0.97, momentum_decay=0.3, eps=1e-5)),
    "nadamw": ("nadamw", "nadam", dict(b1=0.93, momentum_decay=0.02, weight_decay=0.03)),
    "amsgrad": ("amsgrad", "amsgrad", dict(b2=0.9993, eps=1e-5)),
    "amsgrad, before": ("amsgrad", "amsgrad", dict(b2=0.9993, maximum="before_correction")),
    "amsgrad, both before": (
        "amsgrad",
        "amsgrad",
        dict(maximum="before_correction", eps_placement="before_correction", eps=1e-3),
    ),
    "amsgrad, uncorrected": (
        "amsgrad",
        "amsgrad",
        dict(bias_correction_mu=False, bias_correction_nu=False, eps=0.3, weight_decay=0.03),
    ),
    "adamax": ("adamax", "adamax", dict(b2=0.9993, l2=0.02)),
    "adamaxw": ("adamaxw", "adamax", dict(b2=0.97, eps=1e-3, weight_decay=0.03)),
    "radam": ("radam", "radam", dict(b2=0.9993, eps=1e-6, eps_root=1e-4)),
    "radam, 0.9999": ("radam", "radam", dict(b2=0.9999, threshold=6.5)),
    "radam, short": ("radam", "radam", dict(b2=0.97, eps_placement="before_correction", l2=0.02)),
    "radam, Nesterov": ("radam", "radam", dict(nesterov=True, threshold=4.0)),
    "radam, never": ("radam", "radam", dict(b2=0.6)),
    "adabelief": ("adabelief", "adabelief", dict(eps=1e-16, eps_root=1e-16)),
    "adabelief, Nesterov": (
        "adabelief",
        "adabelief",
        dict(b2=0.9993, eps=1e-5, eps_root=1e-6, nesterov=True),
    ),
    "yogi": ("yogi", "yogi", dict(eps=1e-3)),
    "yogi, start": (
        "yogi",
        "yogi",
        dict(b2=0.9999, eps=1e-4, initial_accumulator_value=0.3, weight_decay=0.03),
    ),
    "adopt": ("adopt", "adopt", dict(b2=0.9999, eps=1e-6)),
    "adopt, bound": ("adopt", "adopt", dict(b2=0.993, eps=0.3, clip_value_fn=growing)),
    "adopt, Nesterov": (
        "adopt",
        "adopt",
        dict(b2=0.99, nesterov=True, use_clipping=False, eps=0.1),
    ),
    "ademamix": ("ademamix", "ademamix", dict(b3=0.9999, alpha=5.0, weight_decay=0.02)),
    "ademamix, schedules": (
        "ademamix",
        "ademamix",
        dict(b2=0.9993, b3=rising, alpha=linear),
    ),
    "simplified ademamix": (
        "simplified_ademamix",
        "simplified_ademamix",
        dict(b1=0.98, b2=0.963, alpha=linear, weight_decay=0.02, eps_root=1e-4),
    ),
    "laprop": ("laprop", "laprop", dict(b1=0.93, b2=0.97, eps=1e-15, weight_decay=0.02)),
    "laprop, eps": ("laprop", "laprop", dict(b1=0.87, b2=0.9993, eps=0.3)),
    "atan2": ("adam_atan2", "adam_atan2", dict(b2=0.9993, a=1.27, b=1.0, weight_decay=0.02)),
    "atan2, near": ("adam_atan2", "adam_atan2", dict(b1=0.93, b2=0.97, a=0.83, b=0.06)),
    "cautious": ("adamw", "adam", dict(b1=0.93, weight_decay=0.03, cautious=True)),
    "cautious, adopt": ("adopt", "adopt", dict(b2=0.993, eps=1e-4, cautious=True)),
    "clipped": ("adamw", "adam", dict(b2=0.93, weight_decay=0.03, threshold_of_rms=loosening)),
    "clipped, independent": (
        "adamw",
        "adam",
        dict(b2=0.97, weight_decay=3e-4, independent_weight_decay=True, threshold_of_rms=0.83),
    ),
    "clipped, eps before": (
        "adam",
        "adam",
        dict(b2=0.97, eps=0.7, eps_placement="before_correction", threshold_of_rms=0.83),
    ),
    "clipped, amsgrad": ("amsgrad", "amsgrad", dict(b2=0.97, eps=0.7, threshold_of_rms=0.83)),
    "clipped, adamax": ("adamax", "adamax", dict(b2=0.97, threshold_of_rms=0.29)),
    "clipped, adopt": ("adopt", "adopt", dict(b2=0.97, eps=1e-4, threshold_of_rms=0.83)),
    "choosy decay": (
        "nadamw",
        "nadam",
        dict(b1=0.93, weight_decay=0.3, cautious_weight_decay=True),
    ),
    "all four parts": (
        "adamw",
        "adam",
        dict(
            b1=0.93,
            weight_decay=0.3,
            cautious=True,
            cautious_weight_decay=True,
            threshold_of_rms=0.83,
        ),
    ),
}
OTHERS = {  # whose errors have units of their own
    "lamb": ("lamb", "lamb", dict(weight_decay=0.03)),
    "sphere": ("adam", "adam", dict(hyperball=True)),
}
# Decisions that float32 may take otherwise where the two sides are closer than its roundings:
# Yogi's sign, taken per coordinate and step. How many of 1,024 coordinates it may put off.
UNDECIDED = {"yogi": 20, "yogi, start": 4}
# What Adam's unit is multiplied by: of a sum, the weights that an average has divided by.
SUMS = {"simplified ademamix": 1 / (1 - 0.98)}
# One of each rule and of what else rounds in its own way; float64 shows the equations of all.
QUICK = {
    *("adam, eps before", "adamw, independent", "nadam, Dozat, fast", "amsgrad, both before"),
    *("adamax", "radam, 0.9999", "radam, Nesterov", "adabelief", "yogi", "adopt"),
    *("ademamix, schedules", "cautious", "clipped", "choosy decay"),
    *("simplified ademamix", "laprop", "atan2"),
}
# Their equations are those of others, with other numbers or an option less.
REPEATED = {
    *("nadam, Dozat", "amsgrad", "adamaxw", "radam", "radam, 0.9999"),
    *("yogi", "ademamix", "adopt", "clipped", "choosy decay"),
}
FLOAT32 = [
    *(pytest.param(name, 256, id=name) for name in CASES if name in QUICK),
    *(pytest.param(name, SIZE, id=f"{name}, all coordinates", marks=slow) for name in CASES),
]


def make(
    factory,
    cautious=False,
    cautious_weight_decay=False,
    threshold_of_rms=None,
    hyperball=False,
    learning_rate=ALPHA,
    **hyper,
):
    hyper = ODD | hyper
    if factory in WITHOUT_EPS:
        del hyper["eps"]
    tx = getattr(fa, factory)(learning_rate, **hyper)
    tx = fa.cautious(tx) if cautious else tx
    tx = fa.cautious_weight_decay(tx) if cautious_weight_decay else tx
    tx = tx if threshold_of_rms is None else fa.clip_update_rms(tx, threshold_of_rms)
    return fa.hyperball(tx) if hyperball else tx


def moments(state):
    return {"m": state.mu, "v": state.nu} | (state.extra or {})


@pytest.mark.parametrize(("name", "size"), FLOAT32)
def test_float32_error_of_a_variants_step(name, size):
    factory, rule, hyper = CASES[name]
    grads, theta = gradients(size=size), parameters(size)
    updates, state = run(make(factory, **hyper), grads, theta)
    truth, _, kept = reference.family(
        rule, grads, theta, learning_rate=ALPHA, train=False, **ODD | hyper
    )
    error = reference.units(updates, truth, ALPHA * SUMS.get(name, 1))
    off = (error > 60).any(axis=0)
    assert off.sum() <= UNDECIDED.get(name, 0) * size / SIZE, f"{off.sum()} coordinates"
    by_step = np.sqrt((error[:, ~off] ** 2).mean(axis=1))
    most = 4 if size == SIZE else 4.5  # fewer coordinates average out less
    assert by_step.max() <= most, f"rms {by_step.max():.2f} u at t = {by_step.argmax() + 1}"
    nesterov = rule == "nadam" or hyper.get("nesterov")
    assert error[:, ~off].max() <= (60 if nesterov else 40), f"max {error[:, ~off].max():.1f} u"
    found = moments(state)
    for key in found:
        scale = 2.0**-24 * np.abs(kept[key][-1]).max()
        np.testing.assert_allclose(found[key][~off], kept[key][-1][~off], rtol=0, atol=100 * scale)
    assert state.count == STEPS


@pytest.mark.parametrize("size", [0.01, pytest.param(1.0, marks=slow), 30.0])
def test_float32_error_of_a_lamb_step(size):
    # The trust ratio scales Adam's direction, its error along with it: hence also the unit.
    hyper = ODD | dict(b2=0.9993, eps=1e-6, weight_decay=0.03)
    grads, theta = gradients(size=256), (size * parameters(256)).astype(np.float32)
    updates, _ = run(fa.lamb(ALPHA, **hyper), grads, theta)
    frozen = dict(learning_rate=ALPHA, train=False)
    truth, *_ = reference.family("lamb", grads, theta, **frozen, **hyper)
    plain, *_ = reference.family("adam", grads, theta, **frozen, **hyper)
    ratio = np.linalg.norm(truth, axis=1) / np.linalg.norm(plain, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(truth, axis=1), ALPHA * np.linalg.norm(theta.astype(np.float64)), rtol=1e-12
    )
    error = reference.units(updates, truth, ALPHA * np.maximum(ratio, 1)[:, None])
    assert np.sqrt((error**2).mean(axis=1)).max() <= 4
    assert error.max() <= 40


@pytest.mark.parametrize("clipped", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize("size", [0.01, pytest.param(1.0, marks=slow), 30.0])
def test_float32_error_of_a_step_on_a_sphere(size, clipped):
    # As with LAMB: Adam's direction has the factor |theta| / |d|, and its error too.
    hyper = ODD | dict(b2=0.9993)
    grads, theta = gradients(size=256), (size * parameters(256)).astype(np.float32)
    frozen = dict(learning_rate=ALPHA, train=False)
    plain, *_ = reference.family("adam", grads, theta, **frozen, **hyper)
    hyper |= dict(hyperball=True) | (dict(threshold_of_rms=0.97) if clipped else {})
    updates, _ = run(make("adam", **hyper), grads, theta)
    truth, *_ = reference.family("adam", grads, theta, **frozen, **hyper)
    ratio = np.linalg.norm(theta.astype(np.float64)) / np.linalg.norm(plain, axis=1)
    error = reference.units(updates, truth, ALPHA * (ALPHA * ratio)[:, None])
    assert np.sqrt((error**2).mean(axis=1)).max() <= 4
    assert error.max() <= 40


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow if name in REPEATED else ()) for name in CASES]
)
def test_float64_trajectory_with_training(name, x64):
    factory, rule, hyper = CASES[name]
    grads = gradients(400, 32).astype(np.float64) * np.pi
    theta = parameters(32).astype(np.float64)
    tx = make(factory, **hyper)

    def body(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = fa.apply_updates(params, updates)
        return (params, state), (updates, moments(state))

    (params, _), (updates, found) = jax.jit(lambda carry, g: jax.lax.scan(body, carry, g))(
        (jnp.asarray(theta), tx.init(theta)), grads
    )
    truth, thetas, kept = reference.family(rule, grads, theta, learning_rate=ALPHA, **ODD | hyper)
    assert updates.dtype == np.float64
    np.testing.assert_allclose(updates, truth, rtol=0, atol=1e-11 * ALPHA)
    np.testing.assert_allclose(params, thetas[-1], rtol=1e-12, atol=1e-13)
    for key in found:
        np.testing.assert_allclose(found[key], kept[key], rtol=1e-11, atol=1e-13)


ONE_OF_EACH_RULE = {rule: name for name, (_, rule, _) in reversed(CASES.items())}.values()
# A maximum, a sign, a norm.
OF_A_MODULUS = (
    *("amsgrad", "adamax", "yogi", "lamb", "cautious", "all four parts", "sphere", "atan2"),
)
COMPLEX = sorted({*ONE_OF_EACH_RULE, *OF_A_MODULUS, "adopt, Nesterov"})


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OF_A_MODULUS else slow) for name in COMPLEX],
)
def test_complex_parameters(name):
    factory, rule, hyper = (CASES | OTHERS)[name]
    rng = np.random.default_rng(5)
    grads = (rng.standard_normal((300, 64)) + 1j * rng.standard_normal((300, 64))) * 0.7
    theta = (rng.standard_normal(64) - 0.5j).astype(np.complex64)
    grads = grads.astype(np.complex64)
    updates, state = run(make(factory, **hyper), grads, theta)
    truth, *_ = reference.family(
        rule, grads, theta, learning_rate=ALPHA, train=False, **ODD | hyper
    )
    assert updates.dtype == np.complex64
    assert state.nu.dtype == np.float32
    error = np.abs(updates - truth) / (2.0**-24 * np.maximum(ALPHA, np.abs(truth)))
    off = (error > 90).any(axis=0)  # a modulus of two parts, of up to 60 each
    assert off.sum() <= (2 if rule == "yogi" else 0)
