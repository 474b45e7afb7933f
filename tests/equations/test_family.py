"""The numbers of the variants: each against the formulas of its paper, in float32 and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import functional_adam as fa
from functional_adam._equations import formulas as F
from functional_adam._equations import numerics as N
from functional_adam._equations.family import (
    ADAM,
    ADAMAX,
    ADOPT,
    AMSGRAD,
    AMSGRAD_OF_CORRECTED,
    Variant,
)
from functional_adam._settings import make_settings, with_eps
from functional_adam._transform import transformation

pytestmark = pytest.mark.usefixtures("strict")

slow = pytest.mark.slow
STEPS, SIZE = 3000, 1024
ALPHA = 3e-3
ODD = dict(b1=0.9, b2=0.999, eps=1e-8)


def growing(count):
    return 0.3 + 0.01 * jnp.sqrt(jnp.asarray(count, float))


def rising(count):
    count = jnp.asarray(count, float)
    return 0.9 + 0.0999 * count / (count + 500)


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
    "yogi, start": ("yogi", "yogi", dict(b2=0.9999, eps=1e-4, initial_accumulator_value=0.3)),
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
    "cautious": ("adamw", "adam", dict(b1=0.93, weight_decay=0.03, cautious=True)),
    "cautious, adopt": ("adopt", "adopt", dict(b2=0.993, eps=1e-4, cautious=True)),
}
# Decisions that float32 may take otherwise where the two sides are closer than its roundings:
# Yogi's sign, taken per coordinate and step. How many of 1,024 coordinates it may put off.
UNDECIDED = {"yogi": 20, "yogi, start": 4}
# One of each rule and of what else rounds in its own way; float64 shows the equations of all.
QUICK = {
    *("adam, eps before", "adamw, independent", "nadam, Dozat, fast", "amsgrad, both before"),
    *("adamax", "radam, 0.9999", "radam, Nesterov", "adabelief", "yogi", "adopt"),
    *("ademamix, schedules", "cautious"),
}
# Their equations are those of others, with other numbers or an option less.
REPEATED = {
    *("nadam, Dozat", "amsgrad", "adamaxw", "radam", "radam, 0.9999"),
    *("yogi", "ademamix", "adopt"),
}
FLOAT32 = [
    *(pytest.param(name, 256, id=name) for name in CASES if name in QUICK),
    *(pytest.param(name, SIZE, id=f"{name}, all coordinates", marks=slow) for name in CASES),
]


@functools.cache
def gradients(steps=STEPS, size=SIZE):
    return np.random.default_rng(0).standard_normal((steps, size)).astype(np.float32)


@functools.cache
def parameters(size=SIZE):
    return (0.7 * np.random.default_rng(1).standard_normal(size)).astype(np.float32)


def make(factory, cautious=False, learning_rate=ALPHA, **hyper):
    tx = getattr(fa, factory)(learning_rate, **ODD | hyper)
    return fa.cautious(tx) if cautious else tx


def run(tx, grads, params):
    """(updates of every step, last state); the parameters stay where they are."""

    def body(state, g):
        updates, state = tx.update(g, state, params)
        return state, updates

    state, updates = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(tx.init(params), grads)
    return np.asarray(updates), state


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
    error = reference.units(updates, truth, ALPHA)
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
OF_A_MODULUS = {"amsgrad", "adamax", "yogi", "lamb", "cautious"}  # a maximum, a sign, a norm


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OF_A_MODULUS else slow)
        for name in (*ONE_OF_EACH_RULE, "cautious", "adopt, Nesterov", "lamb")
    ],
)
def test_complex_parameters(name):
    factory, rule, hyper = CASES.get(name, ("lamb", "lamb", dict(weight_decay=0.03)))
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


# ---- Algebra ----


def test_dozats_schedule_without_decay_is_half_the_momentum():
    # 0.96**0 = 1: mu(t) = b1/2 for every t, the simplified form's weights at that rate.
    b1, g = 0.83, jnp.array([0.5, -3.0])
    tx, state = fa.nadam(0.1, b1, 0.97, momentum_decay=0.0), None
    state = tx.init(g)
    for t in range(1, 5):
        updates, state = tx.update(g, state)
        m = (1 - b1**t) * g
        ahead, now = b1 / 2 / (1 - (b1 / 2) ** (t + 1)), (1 - b1 / 2) / (1 - (b1 / 2) ** t)
        np.testing.assert_allclose(updates, -0.1 * (ahead * m + now * g) / abs(g), rtol=1e-6)


def test_amsgrad_never_takes_a_longer_step_after_a_spike():
    for maximum in ("before_correction", "after_correction"):
        tx = fa.amsgrad(0.1, b1=0.0, b2=0.9, maximum=maximum)
        state, sizes = tx.init(jnp.zeros(1)), []
        for g in (1.0, 50.0, *[1.0] * 60):
            updates, state = tx.update(jnp.array([g]), state)
            sizes.append(abs(float(updates[0])))
        assert max(sizes[2:]) < 0.1 / 15
        # v / c2 at the spike is (0.1 * 50**2 + 0.09) / 0.19, v itself 0.1 * 50**2 + 0.09.
        v = 0.1 * 50**2 + 0.09
        peak = v / 0.19 if maximum == "after_correction" else v
        np.testing.assert_allclose(state.extra["nu_max"], [peak], rtol=1e-6)


def test_radam_turns_adaptive_at_its_threshold():
    # rho(5) = 4.99..., rho(6) = 5.98... at b2 = 0.999: momentum for five steps.
    g = jnp.array([40.0])
    tx = fa.radam(0.1)
    state, sizes = tx.init(g), []
    for _ in range(7):
        updates, state = tx.update(g, state)
        sizes.append(-float(updates[0]))
    np.testing.assert_allclose(sizes[:5], 4.0, rtol=1e-6)
    assert sizes[5] < sizes[6] < 0.1


def test_adabelief_takes_large_steps_along_steady_gradients():
    g = jnp.array([2.0])
    tx = fa.adabelief(0.1, b1=0.5, b2=0.9, eps_root=0.0, eps=0.0)
    state, v = tx.init(g), 0.0
    for t in range(1, 6):
        updates, state = tx.update(g, state)
        v = 0.9 * v + 0.1 * (2.0 * 0.5**t) ** 2  # g - m = b1**t g
        np.testing.assert_allclose(updates, -0.1 * 2 / np.sqrt([v / (1 - 0.9**t)]), rtol=1e-5)


def test_yogi_moves_v_by_the_square_whatever_the_distance():
    tx = fa.yogi(0.1, b2=0.9, initial_accumulator_value=7.0)
    _, state = tx.update(jnp.array([1.0, 2.5, 100.0]), tx.init(jnp.zeros(3)))
    np.testing.assert_allclose(state.nu, [7 - 0.1, 7 - 0.625, 7 + 1000], rtol=1e-6)
    np.testing.assert_allclose(state.mu, 0.9 * 7 + 0.1 * np.array([1.0, 2.5, 100.0]), rtol=1e-6)


def test_a_lamb_step_is_a_fraction_of_each_leaf():
    params = {"w": jnp.full((3, 5), 2.0), "b": jnp.array([3.0, -4.0]), "s": jnp.float32(-0.3)}
    grads = {"w": jnp.ones((3, 5)) * 0.01, "b": jnp.array([1e-3, 50.0]), "s": jnp.float32(9.0)}
    tx = fa.lamb(0.02, b1=0.8, weight_decay=0.4)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name, p in params.items():
        np.testing.assert_allclose(
            jnp.linalg.norm(updates[name].ravel()), 0.02 * jnp.linalg.norm(p.ravel()), rtol=1e-5
        )


def test_lamb_where_a_norm_is_zero():
    tx = fa.lamb(0.1, b1=0.8)
    zeros, g = jnp.zeros(3), jnp.array([2.0, -0.5, 7.0])
    updates, _ = tx.update(g, tx.init(zeros), zeros)  # no parameters: Adam's step
    np.testing.assert_allclose(updates, -0.1 * np.sign(g), rtol=1e-5)
    updates, _ = tx.update(zeros, tx.init(g), g)  # no gradient: none
    np.testing.assert_array_equal(updates, zeros)


def test_lamb_does_not_take_a_nan_for_a_zero():
    # It is in both norms or one of them, so all of the leaf is NaN; no step of another length.
    tx, theta, g = fa.lamb(1e-3), jnp.full(4, 10.0), jnp.ones(4)
    np.testing.assert_allclose(tx.update(g, tx.init(theta), theta)[0], -0.01, rtol=1e-5)
    for grads, params in ((g.at[0].set(jnp.nan), theta), (g, theta.at[0].set(jnp.nan))):
        updates, _ = tx.update(grads, tx.init(theta), params)
        assert jnp.isnan(updates).all()


def test_radam_where_the_average_never_gets_long_enough():
    # rho_inf = 4 at b2 = 0.6: rho stays below, but by roundings.
    tx, g = fa.radam(0.1, b2=0.6, threshold=4.0), jnp.array([3.0])
    updates, _ = run(tx, jnp.tile(g, (200, 1)), g)
    np.testing.assert_allclose(updates, -0.3, rtol=1e-6)


def test_adopt_clips_by_the_count():
    tx = fa.adopt(1.0, b1=0.0, b2=0.5)
    state = tx.init(jnp.zeros(2))
    _, state = tx.update(jnp.array([1.0, 0.0]), state)
    for count in range(1, 30):
        g = jnp.array([1e4 * 2.0**count, 3.0])  # far above the root of the last v; then v = 0
        updates, state = tx.update(g, state)
        if count == 1:
            np.testing.assert_allclose(updates, [-1, -1], rtol=1e-6)
        np.testing.assert_allclose(updates[0], -min(count**0.25, 2**1.5), rtol=1e-2)


def test_a_cautious_step_never_climbs_and_keeps_its_length():
    g = gradients(50, 400)
    plain, careful = fa.adam(0.1, b1=0.95), fa.cautious(fa.adam(0.1, b1=0.95))
    (u, state), (w, same) = run(plain, g, g[0]), run(careful, g, g[0])
    assert (w * g <= 0).all()
    keep = u * g < 0
    np.testing.assert_allclose(w, u * keep / keep.mean(axis=1, keepdims=True), rtol=2e-6)
    np.testing.assert_array_equal(state.mu, same.mu)
    np.testing.assert_array_equal(state.nu, same.nu)


def test_a_cautious_step_leaves_decay_alone():
    theta = jnp.array([2.0, -3.0])
    tx = fa.cautious(fa.adamw(0.1, b1=0.5, weight_decay=0.3))
    updates, _ = tx.update(jnp.zeros(2), tx.init(theta), theta)
    np.testing.assert_allclose(updates, -0.1 * 0.3 * theta, rtol=1e-6)


def test_a_cautious_step_hides_no_nan_and_scales_by_1000_at_most():
    tx = fa.cautious(fa.adam(1.0, b1=0.9, b2=0.9))
    state = tx.init(jnp.zeros(5000))
    up = jnp.ones(5000)
    _, state = tx.update(up, state)
    updates, _ = tx.update(jnp.full(5000, -0.01).at[7].set(1.0), state)  # 7 alone still agrees
    assert int((updates != 0).sum()) == 1
    np.testing.assert_allclose(updates[7], -1000, rtol=1e-5)
    updates, _ = tx.update(up.at[3].set(jnp.nan), state)
    assert jnp.isnan(updates[3])
    assert jnp.isfinite(updates[4])


def each_layer(tx):
    """As in docs/variants.md: each layer of stacked leaves updated as if it were alone."""
    update = lambda grads, state, params=None: jax.vmap(tx.update)(grads, state, params)  # noqa: E731
    return fa.GradientTransformation(jax.vmap(tx.init), update)


def norms(x, axis=None):
    return np.sqrt(np.sum(np.square(np.float64(x)), axis=axis))


def test_stacked_layers_share_a_lamb_norm_unless_the_update_is_mapped():
    scales = np.float32([0.5, 3.0, 40.0])
    layers = np.random.default_rng(8).normal(size=(3, 6, 5)).astype(np.float32)
    layers *= scales[:, None, None]
    tx = fa.lamb(0.07, b1=0.83, b2=0.97, weight_decay=0.0)
    updates, _ = tx.update(layers, tx.init(layers), layers)
    np.testing.assert_allclose(norms(updates), 0.07 * norms(layers), rtol=1e-5)
    # A first step goes by signs, so that all layers get a third of the square.
    np.testing.assert_allclose(
        norms(updates, (1, 2)), 0.07 * norms(layers) / np.sqrt(3) * np.ones(3), rtol=1e-4
    )
    each = each_layer(tx)
    updates, state = jax.jit(each.update)(layers, each.init(layers), layers)
    np.testing.assert_allclose(norms(updates, (1, 2)), 0.07 * norms(layers, (1, 2)), rtol=1e-5)
    assert state.count.shape == (3,)


def test_stacked_layers_share_a_cautious_mean_unless_the_update_is_mapped():
    first = np.random.default_rng(9).normal(size=(3, 40)).astype(np.float32)
    turned = np.float32([0.0, 0.25, 0.9])[:, None]  # the share of each layer that turns round
    then = np.where(np.arange(40) < turned * 40, -0.1, 1.0).astype(np.float32) * first
    plain = fa.adam(0.07, b1=0.83, b2=0.97)
    tx = fa.cautious(plain)

    def second(tx):
        state = tx.update(first, tx.init(first))[1]
        return np.float64(tx.update(then, state)[0])

    adam = second(plain)
    kept = adam * then < 0
    np.testing.assert_allclose(kept.mean(axis=1), 1 - turned[:, 0], atol=1e-7)
    np.testing.assert_allclose(second(tx), adam * kept / kept.mean(), rtol=1e-5, atol=1e-8)
    alone = adam * kept / kept.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(second(each_layer(tx)), alone, rtol=1e-5, atol=1e-8)


def test_cautious_signs_of_tiny_complex_numbers():
    tx = fa.cautious(fa.adam(0.1, b1=0.5, b2=0.5))
    g = jnp.array([1 + 1j, -1j], jnp.complex64)
    for size in (1.0, 1e-12):  # whose square, times the gradient's, float32 flushes to 0
        state = tx.init(g)._replace(mu=size**2 * g, nu=jnp.full(2, size**2))
        updates, _ = tx.update(size**2 * g, state)
        assert (updates != 0).all()
        updates, _ = tx.update(-0.1 * size**2 * g, state)  # momentum still goes the other way
        assert (updates == 0).all()


def test_keras_epsilon_is_adams_with_another_eps_each_step():
    g, eps = jnp.array([1e-3, -2e-4]), 1e-3
    tx = fa.scale_by_adam(0.83, 0.97, eps, eps_placement="before_correction")
    state = tx.init(g)
    for t in range(1, 6):
        direction, state = tx.update(g, state)
        np.testing.assert_allclose(direction, g / (abs(g) + eps / np.sqrt(1 - 0.97**t)), rtol=1e-5)


# ---- A variant that is not in the package ----


def mean_size(s, g, old):
    """Adam with the mean of |g| in place of its mean square."""
    v = N.average(old.v, abs(g), s.b2)
    return g, old._replace(m=N.average(old.m, g, s.b1), v=v)


def over_mean_size(s, new):
    return new.v / s.c2 + s.eps


MEAN_SIZE = Variant(
    "mean_size",
    (F.first_correction,),
    correction=None,
    update_moments=mean_size,
    denominator=over_mean_size,
)


@pytest.mark.parametrize("placement", ["after_correction", "before_correction"])
def test_eps_has_no_place_in_a_variant_without_a_correction(placement):
    for variant in (ADAMAX, ADOPT, AMSGRAD_OF_CORRECTED, MEAN_SIZE):
        wanted = f"eps_placement='{placement}' says .* which {variant.name} does not make"
        with pytest.raises(ValueError, match=wanted):
            with_eps(variant, placement)
    for variant in (ADAM, AMSGRAD):
        placed = with_eps(variant, placement)
        assert placed.correction is getattr(F, f"eps_{placement}")
        assert placed == variant._replace(correction=placed.correction)


@pytest.mark.parametrize("cautious", [False, True])
def test_a_new_variant_is_a_value_and_its_formulas(cautious, x64):
    tx = transformation(
        make_settings(MEAN_SIZE, learning_rate=0.1, b1=0.83, b2=0.97, eps=1e-3, weight_decay=0.3)
    )
    grads, theta = gradients(40, 64).astype(np.float64), parameters(64).astype(np.float64)
    updates, state = run(fa.cautious(tx) if cautious else tx, grads, theta)
    m = v = 0
    for t, (g, u) in enumerate(zip(grads, updates, strict=True), start=1):
        m, v = 0.83 * m + 0.17 * g, 0.97 * v + 0.03 * abs(g)
        d = m / (1 - 0.83**t) / (v / (1 - 0.97**t) + 1e-3)
        d = d * (d * g > 0) / (d * g > 0).mean() if cautious else d
        np.testing.assert_allclose(u, -0.1 * (d + 0.3 * theta), rtol=1e-11)
    np.testing.assert_allclose(state.nu, v, rtol=1e-12)
