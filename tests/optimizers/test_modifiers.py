"""Modifiers: a new one, several together, in every format, and what they refuse."""

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
from modifier_runs import (
    GRADS,
    MATRICES,
    MODIFIERS,
    PARAMS,
    RATES,
    norm,
    on_a_sphere,
    together,
    walk,
)
from quick import quick_jit

import functional_adam as fa
from functional_adam._equations.family import Modifier
from functional_adam._optimizers.modifier import modify

pytestmark = pytest.mark.usefixtures("strict")

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
    with pytest.raises(
        ValueError, match=r"^tx already has towards_zero .*as in towards_zero\(adam\("
    ):
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


def test_each_leaf_has_its_own_arguments():
    base = {"learning_rate": 0.03, **RATES, "weight_decay": 0.3}
    other = {"learning_rate": 0.011, "b2": 0.8, "eps": 0.2, "weight_decay": 0.1}
    ways = [base | {"overrides": [("b", other)]}, base, base | other]

    @quick_jit
    def run(params):
        return [walk(together(fa.adamw(**hyper)), params, GRADS[:2])[1] for hyper in ways]

    found, plain, changed = run(PARAMS)
    assert_equal(found, {"w": plain["w"], "b": changed["b"]})
    assert np.abs(plain["b"] - changed["b"]).max() > 1e-3


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


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("modifier", MODIFIERS.values(), ids=MODIFIERS)
def test_a_modifier_takes_what_a_factory_made_and_only_once(modifier):
    for foreign in (optax.adam(1e-3), fa.adam, None, optax.chain(fa.adamw())):
        with pytest.raises(TypeError, match=r"^\w+ needs a transformation made by functional_adam"):
            modifier(foreign)
    once = modifier(fa.adamw(weight_decay=0.2))
    with pytest.raises(
        ValueError, match=r"^tx already has (\w+) applied: .* once, as in \1\(adam\(\.\.\.\)\)"
    ):
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
            ValueError,
            r"needs a tx with weight decay, but \w+\(.* takes no weight_decay",
            fa.cautious_weight_decay,
            tx,
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
        r"weight_decay=0.2 in adamw\(.* choose with mask=",
        fa.hyperball,
        fa.adamw(1e-3, weight_decay=0.2),
    )
    raises(
        ValueError,
        r"^hyperball needs a tx with a learning rate, but scale_by_adam",
        fa.hyperball,
        fa.scale_by_adam(),
    )
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
            said = rf"^{modifier.__name__} has stacked=(2|-1) for params\['\w'\], .* for each leaf"
            raises(ValueError, said, tx.init, PARAMS)
        tx = modifier(fa.adam(), stacked={"w": 1})
        raises(
            ValueError, r"^stacked must be a prefix .*: stacked\['b'\] is missing", tx.init, PARAMS
        )
