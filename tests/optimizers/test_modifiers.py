"""Modifiers: what each does to a member's step, alone and together, in every format."""

import functools
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from codes import CODES
from family_members import assert_equal
from quick import quick_jit

import functional_adam as fa
from functional_adam._equations.family import Modifier
from functional_adam._optimizers.modifier import modify

pytestmark = pytest.mark.usefixtures("strict")

RATES = {"b1": 0.83, "b2": 0.93, "eps": 1e-3}
random = np.random.default_rng(4)
PARAMS = {
    "w": random.normal(size=(3, 6, 5)).astype(np.float32),
    "b": random.normal(size=7).astype(np.float32),
}
GRADS = [
    {name: (scale * random.normal(size=p.shape)).astype(np.float32) for name, p in PARAMS.items()}
    for scale in (1.0, 0.3, 5.0, 0.1)
]
MATRICES = {"w": True, "b": False}


def on_a_sphere(tx):
    return fa.hyperball(tx, MATRICES, stacked={"w": 1, "b": 0})


def clipped(tx):
    return fa.clip_update_rms(tx, 0.71, stacked=1)


MODIFIERS = {
    "cautious": fa.cautious,
    "cautious_weight_decay": fa.cautious_weight_decay,
    "clip_update_rms": clipped,
    "hyperball": on_a_sphere,
}


def together(tx, names=tuple(MODIFIERS)):
    for name in names:
        tx = MODIFIERS[name](tx)
    return tx


def walk(tx, params=PARAMS, grads=GRADS):
    """(last updates, parameters, state)."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = fa.apply_updates(params, updates)
    return updates, params, state


def norm(x):
    return np.linalg.norm(np.float64(x))


# A modifier that is not in the package ----------------------------------------------------------


def towards_zero(tx):
    """The step without its part that makes a weight larger."""

    def smaller(step):
        d = step.direction
        return jnp.where(d * step.theta > 0, d, jnp.zeros_like(d))

    return modify(tx, Modifier("towards_zero", direction=smaller, needs_params=True))


def test_a_new_modifier_is_a_value_and_its_equation():
    tx, plain = (make(fa.adam(0.1, **RATES)) for make in (towards_zero, lambda tx: tx))
    state = tx.init(PARAMS)
    for g in GRADS:
        wanted, same = plain.update(g, state, PARAMS)
        updates, state = tx.update(g, state, PARAMS)
        assert_equal(state, same)
        for name, p in PARAMS.items():
            u = np.asarray(wanted[name])
            np.testing.assert_array_equal(updates[name], np.where(u * p < 0, u, 0))
    assert float(abs(fa.cautious(tx).update(GRADS[0], state, PARAMS)[0]["w"]).sum()) > 0
    with pytest.raises(ValueError, match=r"^tx is towards_zero already: towards_zero\(adam\("):
        towards_zero(tx)
    with pytest.raises(ValueError, match=r"^towards_zero needs the parameters: call update"):
        tx.update(GRADS[0], state)


def test_of_two_that_change_the_same_part_the_inner_one_is_first():
    half = lambda tx: modify(tx, Modifier("half", direction=lambda step: step.direction / 2))  # noqa: E731
    at_most = lambda step: jnp.clip(step.direction, -0.3, 0.3)  # noqa: E731
    bound = lambda tx: modify(tx, Modifier("bound", direction=at_most))  # noqa: E731
    tx, g = fa.scale_by_adam(b1=0.0, b2=0.0), {"w": jnp.array([1.0, -2.0])}  # signs
    inner, outer = (
        make.update(g, make.init(g))[0]["w"] for make in (half(bound(tx)), bound(half(tx)))
    )
    np.testing.assert_allclose(inner, [0.15, -0.15], rtol=1e-6)
    np.testing.assert_allclose(outer, [0.3, -0.3], rtol=1e-6)


# Together -----------------------------------------------------------------------------------------


def test_modifiers_of_the_package_change_different_parts_so_that_their_order_is_none():
    tx = fa.adamw(0.03, **RATES, weight_decay=0.3)
    orders = list(itertools.permutations(MODIFIERS))[::7]
    assert {order[0] for order in orders} == set(MODIFIERS)
    ways = [
        *(together(tx, order) for order in orders),
        *(modifier(tx) for modifier in MODIFIERS.values()),
    ]
    steps = quick_jit(lambda params, g: [walk(way, params, [g]) for way in ways])(PARAMS, GRADS[0])
    first, *others = steps[: len(orders)]
    for other in others:
        assert_equal(other, first)
    alone = steps[len(orders) :]
    for one in alone:  # and all of them do something
        assert np.abs(one[0]["b"] - first[0]["b"]).max() > 1e-5
        assert np.abs(one[0]["w"] - first[0]["w"]).max() > 1e-5


def test_all_together_follow_the_reference_leaf_by_leaf():
    tx = together(fa.nadamw(0.03, **RATES, weight_decay=0.3))
    updates, params, _ = walk(tx)
    of_all = dict(cautious=True, cautious_weight_decay=True, threshold_of_rms=0.71, stacked=1)
    of_all |= RATES | {"learning_rate": 0.03, "weight_decay": 0.3}
    for name, hyperball in MATRICES.items():
        grads = [g[name] for g in GRADS]
        truth, thetas, _ = reference.family(
            "nadam", grads, PARAMS[name], hyperball=hyperball, **of_all
        )
        np.testing.assert_allclose(updates[name], truth[-1], rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(params[name], thetas[-1], rtol=2e-6, atol=1e-6)


# With the two above, one of each kind of moments, direction and norm.
FACTORIES = [fa.amsgrad, fa.adamaxw, fa.lamb, fa.ademamix, fa.adopt]


@pytest.mark.parametrize("make", FACTORIES, ids=lambda make: make.__name__)
def test_every_member_takes_all_of_them(make):
    tx = make(0.03, weight_decay=0.3)
    both = quick_jit(lambda params: [walk(x, params, GRADS[:2]) for x in (together(tx), tx)])
    (updates, params, state), (*_, same) = both(PARAMS)
    assert_equal(state, same)  # gradients are the same here
    for part, whole in zip(params["w"], PARAMS["w"], strict=True):
        np.testing.assert_allclose(norm(part), norm(whole), rtol=1e-6)
    assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(updates))


def test_a_first_step_is_the_same_in_every_format():
    """All moments are zeros before it, and it is taken before they are rounded."""
    tx = functools.partial(fa.adamw, 0.03, **RATES, weight_decay=0.3)

    def first(moments):
        one = together(tx(moments=moments))
        return quick_jit(lambda g: one.update(g, one.init(PARAMS), PARAMS)[0])(GRADS[0])

    wanted = first("full")
    for moments in (CODES, "bfloat16"):
        assert_equal(first(moments), wanted)


def test_split_weights_are_those_of_float32():
    tx = functools.partial(fa.adamw, 0.03, **RATES, weight_decay=0.3)
    short = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    long = jax.tree.map(lambda x: x.astype(jnp.float32), short)
    split, plain = together(tx(rounding="split")), together(tx())

    @quick_jit
    def train(short, long):
        ours, theirs = split.init(short), plain.init(long)
        for g in GRADS:
            short, ours = fa.step(split, g, ours, short)
            long, theirs = fa.step(plain, g, theirs, long)
        return fa.master_params(short, ours), long

    found, wanted = train(short, long)
    assert_equal(found, wanted)


def test_jit_scan_and_vmap_over_rate_and_threshold():
    rates, thresholds = np.float32([0.003, 0.02, 0.1]), np.float32([0.5, 0.9, 2.0])
    theta, grads = PARAMS["b"], np.stack([g["b"] for g in GRADS])

    @quick_jit
    @jax.vmap
    def train(rate, threshold):
        tx = fa.hyperball(fa.clip_update_rms(fa.adam(rate, **RATES), threshold))

        def body(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (fa.apply_updates(params, updates), state), updates

        return jax.lax.scan(body, (jnp.asarray(theta), tx.init(theta)), grads)[1]

    for rate, threshold, found in zip(rates, thresholds, train(rates, thresholds), strict=True):
        hyper = RATES | {"learning_rate": float(rate), "threshold_of_rms": float(threshold)}
        truth, *_ = reference.family("adam", grads, theta, hyperball=True, **hyper)
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6 * rate)


# Each of them -------------------------------------------------------------------------------------


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


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("modifier", MODIFIERS.values(), ids=MODIFIERS)
def test_a_modifier_takes_what_a_factory_made_and_only_once(modifier):
    for foreign in (optax.adam(1e-3), fa.adam, None, optax.chain(fa.adamw())):
        with pytest.raises(TypeError, match=r"^\w+ needs a transformation made by functional_adam"):
            modifier(foreign)
    once = modifier(fa.adamw(weight_decay=0.2))
    with pytest.raises(ValueError, match=r"^tx is (\w+) already: \1\(adam\(...\)\) will do"):
        modifier(once)
    assert once == modifier(fa.adamw(weight_decay=0.2))
    assert hash(once) == hash(modifier(fa.adamw(weight_decay=0.2)))


def test_trees_of_a_modifier_compare_by_value_and_pickle():
    make = lambda axes=1: on_a_sphere(fa.clip_update_rms(fa.adam(), stacked={"w": axes, "b": 0}))  # noqa: E731
    assert make() == make() == pickle.loads(pickle.dumps(make()))
    assert hash(make()) == hash(pickle.loads(pickle.dumps(make())))
    assert make() != make(2)
    function = lambda params: MATRICES  # noqa: E731
    assert fa.hyperball(fa.adam(), function) == fa.hyperball(fa.adam(), function)
    assert fa.hyperball(fa.adam(), function) != fa.hyperball(fa.adam(), lambda params: MATRICES)


def raises(error, said, make, *args, **kwargs):
    with pytest.raises(error, match=said):
        make(*args, **kwargs)


def test_what_a_modifier_refuses():
    for tx in (fa.adam(), fa.scale_by_yogi(), fa.cautious(fa.adamax())):
        raises(
            ValueError, r"weight_decay acts, and tx takes none: \w+\(", fa.cautious_weight_decay, tx
        )
    for value in (0, -1.0, float("nan"), float("inf")):
        said = r"^threshold must be a finite number > 0, .*; got "
        raises(ValueError, said, fa.clip_update_rms, fa.adam(), value)
    raises(TypeError, "^threshold must be ", fa.clip_update_rms, fa.adam(), "1")
    falls = fa.clip_update_rms(fa.adam(), lambda count: -1.0)
    said = r"^clip_update_rms.threshold\(count\) must be a finite number >= 0"
    raises(ValueError, said, falls.update, PARAMS, falls.init(PARAMS))
    raises(
        ValueError,
        r"weight_decay=0.2 of adamw\(.* say by mask=",
        fa.hyperball,
        fa.adamw(1e-3, weight_decay=0.2),
    )
    raises(ValueError, r"^hyperball needs the learning rate", fa.hyperball, fa.scale_by_adam())
    raises(
        TypeError, r"^mask\['w'\] must be True or False; got 1 ", fa.hyperball, fa.adam(), {"w": 1}
    )
    for modifier in (fa.hyperball, fa.clip_update_rms):
        for given in (True, 1.0, "1", {"w": None, "b": 0.5}):
            raises(
                TypeError,
                "^stacked.* must be an integer >= 0; got ",
                modifier,
                fa.adam(),
                stacked=given,
            )
        for given in (2, -1, lambda params: {"w": 1, "b": 2}):
            tx = modifier(fa.adam(), stacked=given)
            said = (
                rf"^{modifier.__name__} is given stacked=(2|-1) for params\['\w'\], .* leaf by leaf"
            )
            raises(ValueError, said, tx.init, PARAMS)
        tx = modifier(fa.adam(), stacked={"w": 1})
        raises(
            ValueError, r"^stacked must be a prefix .*: stacked\['b'\] is missing", tx.init, PARAMS
        )
