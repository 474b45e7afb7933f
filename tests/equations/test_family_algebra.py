"""What each variant's equations imply: closed forms, bounds, and what shares a norm or a mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_runs import gradients, run

import functional_adam as fa
from functional_adam._equations.numerics import angle

pytestmark = pytest.mark.usefixtures("strict")


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


def test_the_arctangent_to_two_and_a_half_units():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=50_000) * 10.0 ** rng.uniform(-30, 3, 50_000)).astype(np.float32)
    w = abs(rng.normal(size=50_000) * 10.0 ** rng.uniform(-30, 3, 50_000)).astype(np.float32)
    truth = np.arctan2(np.float64(x), np.float64(w))
    far = np.abs(truth) > 1e-36  # else a denormal number, which float32 flushes to 0
    found = np.float64(jax.jit(angle)(x, w))
    assert (np.abs(found - truth)[far] / (2.0**-24 * np.abs(truth[far]))).max() <= 3
    edges = np.float32(
        [[0, 0, 0], [2, 0, np.pi / 2], [-2, 0, -np.pi / 2], [0, 3, 0], [1, 1, np.pi / 4]]
    )
    np.testing.assert_allclose(angle(*edges.T[:2]), edges[:, 2], rtol=1e-7)
    assert np.isnan(angle(jnp.float32(np.nan), jnp.float32(1)))


def test_the_slope_of_the_arctangent_where_squares_underflow():
    slope = jax.vmap(jax.grad(angle, (0, 1)))
    for size in (1.0, 1e-25, 1e25):
        x, w = size * jnp.float32([3.0, -1.0, 0.0]), size * jnp.float32([4.0, 0.0, 2.0])
        by_x, by_w = slope(x, w)
        np.testing.assert_allclose(by_x * size, [4 / 25, 0, 1 / 2], rtol=1e-6)
        np.testing.assert_allclose(by_w * size, [-3 / 25, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(slope(jnp.zeros(1), jnp.zeros(1)), [[0], [0]])


def test_an_angle_needs_no_eps_and_has_a_largest_step():
    g = jnp.array([3.0, -0.2, 0.0])
    for size in (1.0, 1e-17):
        tx = fa.adam_atan2(0.1, b1=0.83, b2=0.93, a=0.7, b=1.9)
        state = tx.init(g)
        for _ in range(3):
            updates, state = tx.update(size * g, state)
        np.testing.assert_allclose(updates, -0.1 * 0.7 * np.arctan(1 / 1.9) * np.sign(g), rtol=1e-6)
    updates, _ = tx.update(1e-30 * g, tx.init(g))  # v underflows to 0
    np.testing.assert_allclose(updates, -0.1 * 0.7 * np.pi / 2 * np.sign(g), rtol=1e-6)
    wide, _ = fa.adam_atan2(0.1, a=300.0, b=300.0).update(g, tx.init(g))  # Adam's own direction
    np.testing.assert_allclose(wide, -0.1 * np.sign(g), rtol=1e-5)


def test_laprop_of_a_spike_and_then_nothing():
    tx = fa.laprop(0.1, b1=0.83, b2=0.96)
    state, m, v = tx.init(jnp.zeros(2)), 0.0, 0.0
    for t, g in enumerate((3.0, 500.0, 0.0, 0.0), start=1):
        updates, state = tx.update(jnp.array([g, -2 * g]), state)
        v = 0.96 * v + 0.04 * g**2
        x = g / np.sqrt(v / (1 - 0.96**t))
        m = 0.83 * m + 0.17 * x
        np.testing.assert_allclose(state.mu, [m, -m], rtol=1e-6)
        np.testing.assert_allclose(updates, -0.1 * np.array([m, -m]) / (1 - 0.83**t), rtol=1e-6)


def test_simplified_ademamix_without_mixing_is_adam_at_another_rate():
    b1, b2, rate = 0.83, 0.93, 0.02
    g = gradients(9, 30)
    ours, state = run(fa.simplified_ademamix(rate, b1, b2), g, g[0])
    adam, same = run(fa.adam(rate, b1, b2), g, g[0])
    t = np.arange(1, 10)[:, None]
    np.testing.assert_allclose(ours, adam * (1 - b1**t) / (1 - b1), rtol=1e-5)
    np.testing.assert_allclose(state.mu, same.mu / (1 - b1), rtol=1e-5, atol=1e-6)
    mixed, _ = run(fa.simplified_ademamix(rate, b1, b2, alpha=2.5), g, g[0])
    by_size, _ = run(fa.adam(rate, 0.0, b2), g, g[0])
    np.testing.assert_allclose(mixed - ours, 2.5 * by_size, rtol=1e-4, atol=1e-6)
