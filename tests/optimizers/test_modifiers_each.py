"""What each modifier does to a step: norms, rates, decay, where there is nothing to do."""

import functools
import itertools

import jax
import numpy as np
import pytest
from family_members import assert_equal
from modifier_runs import GRADS, MATRICES, PARAMS, RATES, norm, walk

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


def test_stacked_parts_are_as_if_each_were_alone():
    for modifier in (fa.hyperball, functools.partial(fa.clip_update_rms, threshold=0.71)):
        tx = fa.adam(0.03, **RATES)
        each, whole = modifier(tx, stacked=1), modifier(tx)
        grads = [g["w"] for g in GRADS]
        stacked = walk(each, PARAMS["w"], grads)[1]
        for layer in range(3):
            alone = walk(whole, PARAMS["w"][layer], [g[layer] for g in grads])[1]
            np.testing.assert_allclose(stacked[layer], alone, rtol=2e-6, atol=1e-7)
        at_once = walk(whole, PARAMS["w"], grads)[1]
        assert np.abs(at_once - stacked).max() > 1e-3


def test_a_sphere_turns_by_the_rate_and_keeps_the_norm():
    """The first step goes along -sign(g); the chord of two equal norms tells the angle."""
    theta, g = PARAMS["w"][0], GRADS[0]["w"][0]
    n, unit = theta.size, np.sign(g) / np.sqrt(g.size)
    for rate in (1e-4, 0.3, 2.0):
        tx = fa.hyperball(fa.adam(rate, b1=0.83, b2=0.93, eps=0.0))
        updates, _ = tx.update(g, tx.init(theta), theta)
        moved = theta / norm(theta) - rate * unit
        wanted = norm(theta) * (moved / norm(moved) - theta / norm(theta))
        scale = 2e-6 * rate * norm(theta) / np.sqrt(n)
        np.testing.assert_allclose(updates, wanted, rtol=2e-6, atol=scale)
        np.testing.assert_allclose(norm(theta + updates), norm(theta), rtol=2e-7)


def test_where_a_sphere_has_no_radius_or_no_direction():
    tx = fa.hyperball(fa.adam(0.1, **RATES))
    zeros, g = np.zeros(3, np.float32), np.float32([2.0, -0.5, 7.0])
    for theta, grads in ((zeros, g), (g, zeros), (zeros, zeros), (zeros[:0], zeros[:0])):
        updates, _ = tx.update(grads, tx.init(theta), theta)
        np.testing.assert_array_equal(updates, 0 * theta)
    for rate in (0.3, 1.0):  # a scalar has nowhere to turn to, and at 1 no direction is left
        tx = fa.hyperball(fa.adam(rate, **RATES))
        for sign in (1, -1):
            updates, _ = tx.update(np.float32(sign * 3.0), tx.init(g[0]), g[0])
            np.testing.assert_allclose(updates, 0, atol=1e-6)
    tx = fa.hyperball(fa.adam(0.0, **RATES))
    np.testing.assert_array_equal(tx.update(g, tx.init(g), g)[0], zeros)
    tx = fa.hyperball(fa.adam(0.1, **RATES))
    for bad in ((g * np.nan, g), (g, np.float32([np.nan, 1, 2]))):
        assert np.isnan(tx.update(bad[0], tx.init(g), bad[1])[0]).all()


def test_leaves_off_the_sphere_take_the_members_own_step():
    tx = fa.adamw(0.03, **RATES, weight_decay=0.3)
    plain = walk(tx)[1]
    for mask in (MATRICES, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)):
        mixed = walk(fa.hyperball(tx, mask))[1]
        np.testing.assert_array_equal(mixed["b"], plain["b"])
        np.testing.assert_allclose(norm(mixed["w"]), norm(PARAMS["w"]), rtol=1e-6)
    sphere = walk(fa.hyperball(fa.adam(0.03, **RATES)))[1]
    np.testing.assert_array_equal(mixed["w"], sphere["w"])  # where nothing decays


def test_a_clipped_step_of_a_spike_has_the_threshold_for_its_length():
    tx = fa.clip_update_rms(fa.adam(0.1, b1=0.0, b2=0.9, eps=0.0), 0.71)
    state = tx.init(PARAMS)
    for g in (*GRADS, jax.tree.map(lambda g: 1e3 * g, GRADS[0])):
        updates, state = tx.update(g, state)
        for u in updates.values():
            assert norm(u) / np.sqrt(u.size) <= 0.1 * 0.71 * (1 + 1e-6)
    np.testing.assert_allclose(norm(u) / np.sqrt(u.size), 0.1 * 0.71, rtol=1e-6)
    wanted, same = fa.adam(0.1, b1=0.0, b2=0.9, eps=0.0), tx.init(PARAMS)
    for g in (*GRADS, jax.tree.map(lambda g: 1e3 * g, GRADS[0])):
        _, same = wanted.update(g, same)
    assert_equal(state, same)


def test_a_clipped_rate_is_the_rate_of_all_that_it_multiplies():
    theta, g = PARAMS["w"], GRADS[0]["w"]
    factor = 0.4 * np.sqrt(1 - 1e-9)  # a first step has |g| / sqrt(v_hat) = 1
    for make, size in (
        (functools.partial(fa.lamb, eps=0.0, weight_decay=0.3), norm(theta)),
        (lambda rate: fa.adamax(rate, eps=0.0), np.sqrt(theta.size)),
        (lambda rate: fa.scale_by_adam(), np.sqrt(theta.size) / 0.02),
    ):
        tx = fa.clip_update_rms(make(0.02), 0.4)
        updates, _ = tx.update(g, tx.init(theta), theta)
        np.testing.assert_allclose(norm(updates), factor * 0.02 * size, rtol=1e-5)
    tx = fa.clip_update_rms(fa.adam(0.02), 0.4)
    updates, _ = tx.update(0 * g, tx.init(theta))
    np.testing.assert_array_equal(updates, 0 * g)


def test_cautious_decay_by_both_signs():
    #                g < 0: the weight grows         g = 0           g > 0
    g = np.float32([-2.0, -2.0, -2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0])
    theta = np.float32([-3.0, 0.0, 3.0] * 3)
    decays = np.array([1, 0, 0, 1, 0, 1, 0, 0, 1])
    for rate, independent in itertools.product((0.1, 0.0), (False, True)):
        how = {"weight_decay": 0.3, "independent_weight_decay": independent}
        tx = fa.cautious_weight_decay(fa.adamw(rate, 0.83, 0.93, 1e-12, **how))
        updates, state = tx.update(g, tx.init(theta), theta)
        lost = (1.0 if independent else rate) * 0.3 * theta * decays
        np.testing.assert_allclose(updates, -rate * np.sign(g) - lost, rtol=1e-6)
        # The direction counts, not the gradient: momentum goes on as it did.
        again = tx.update(-g / 100, state, theta)[0]
        plain = fa.adam(rate, 0.83, 0.93, 1e-12).update(-g / 100, state)[0]
        np.testing.assert_allclose(again, plain - lost, rtol=1e-5)
    theta[1] = np.nan
    assert np.isnan(tx.update(g, tx.init(theta), theta)[0][1])
