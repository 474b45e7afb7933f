"""Every factory of the family against the reference, and under JAX's transformations."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_members import (
    GRADS,
    MEMBERS,
    PARAMS,
    STEPS,
    Row,
    assert_equal,
    assert_row,
    assert_rows,
    at_row,
    avals,
    each_number,
    each_rule,
    each_structure,
    every_member,
    expected,
    normal_tree,
    part,
    rounded,
    scan,
    stacked,
    walk,
)
from names import MODIFIERS, OF_STATES

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


def test_every_factory_is_a_member():
    made = {member.make for member in MEMBERS.values()}
    factories = {
        getattr(fa, name)
        for name in set(fa.__all__) - {"init", "update", "apply_updates"} - OF_STATES - MODIFIERS
        if inspect.isfunction(getattr(fa, name))
    }
    assert factories <= made


def test_the_first_members_represent_the_others():
    rules = list(itertools.islice(MEMBERS.values(), 14))
    numbers, structures = rules[:8], rules[:5]
    assert {member.rule for member in rules} == {member.rule for member in MEMBERS.values()}
    names = lambda members: set().union(*(member.floats for member in members))  # noqa: E731
    # `test_modifiers` has that of `clip_update_rms`, which must not be 0.
    assert names(numbers) == names(MEMBERS.values()) - {"threshold_of_rms"}
    assert {"amsgrad", "ademamix", "lamb"} < {member.rule for member in structures}
    assert any("learning_rate" not in member.hyper for member in structures)


@every_member
def test_step_by_step_follows_the_reference(member):
    rows = walk(member.tx(), GRADS, PARAMS)
    truth = expected(member, GRADS, PARAMS)
    for t, row in enumerate(rows):
        assert int(row.state.count) == t + 1
        assert_row(row, at_row(truth, t), member.alpha, 1e-6)
    assert avals(rows[-1].state) == avals(member.tx().init(PARAMS))


@each_structure
def test_a_jitted_scan_agrees_with_step_by_step(member):
    grads, params = [part(g) for g in GRADS], part(PARAMS)
    rows = jax.jit(functools.partial(scan, member.tx()))(stacked(grads), params)
    plain = walk(member.tx(), grads, params)
    assert_rows([at_row(rows, t) for t in range(STEPS)], plain, member.alpha)


@each_rule
def test_while_loop_and_cond_carry_the_state(member):
    tx, grads = member.tx(), jax.tree.map(jnp.asarray, stacked(GRADS))

    def step(carry):
        params, state = carry
        updates, state = tx.update(at_row(grads, state.count), state, params)
        return fa.apply_updates(params, updates), state

    def unless_done(carry):
        return jax.lax.cond(carry[1].count < STEPS, step, lambda carry: carry, carry)

    def loop(params):
        before = params, tx.init(params)
        return jax.lax.while_loop(lambda carry: carry[1].count < STEPS, unless_done, before)

    # Tracing checks the carry; the numbers are those of the scan.
    params, state = jax.eval_shape(loop, PARAMS)
    assert avals(state) == avals(tx.init(PARAMS))
    assert avals(params) == avals(jax.tree.map(jnp.asarray, PARAMS))


@each_structure
def test_vmap_over_parameters_and_gradients(member):
    tx = member.tx()
    params = [part(normal_tree(seed, scale=2.0)) for seed in (11, 12, 13)]
    grads = [[part(normal_tree(10 * i + t)) for t in (2, 3)] for i in (1, 2, 3)]
    apart = [walk(tx, two, theta) for two, theta in zip(grads, params, strict=True)]
    before = stacked(first for first, _ in apart)
    g = stacked(second for _, second in grads)
    updates, state = jax.jit(jax.vmap(tx.update))(g, before.state, before.params)
    together = Row(updates, fa.apply_updates(before.params, updates), state)
    assert_rows(
        [at_row(together, i) for i in range(3)], [second for _, second in apart], member.alpha
    )
    fresh = jax.vmap(tx.init)(stacked(params))
    assert_equal(at_row(fresh, 1), tx.init(params[1]))


@each_number
def test_vmap_over_each_hyperparameter(member):
    """One batch: in every row one hyperparameter is another, or 0 where that is no special case."""
    start = rounded(member.floats)
    changes = [{}, *({name: 0.7 * value} for name, value in start.items() if name != "threshold")]
    changes += [{"threshold": 6.1}] if "threshold" in start else []
    changes += [{name: 0.0} for name in start if name not in ("learning_rate", "threshold")]
    rows = [rounded(start | change) for change in changes]
    batch = {name: jnp.array([row[name] for row in rows], jnp.float32) for name in start}
    params, *grads = (part(tree)["w"] for tree in (PARAMS, *GRADS))

    @jax.jit
    @jax.vmap
    def train(hyper):
        return at_row(scan(member.tx(**hyper), stacked(grads), params), -1)

    result = train(batch)
    for i, row in enumerate(rows):
        truth = at_row(expected(member, grads, params, **row), -1)
        assert_row(at_row(result, i), truth, row.get("learning_rate", 1.0), 2e-6)


@each_number
def test_vmap_over_one_hyperparameter_alone(member):
    params, g = (part(tree)["w"] for tree in (PARAMS, GRADS[0]))

    def train(name, value):
        tx = member.tx(**{name: value})
        return tx.update(g, tx.init(params), params)

    for name in member.floats:
        one = functools.partial(train, name)
        plain = jax.eval_shape(one, jax.ShapeDtypeStruct((), jnp.float32))
        batched = jax.eval_shape(jax.vmap(one), jax.ShapeDtypeStruct((3,), jnp.float32))
        leaves = zip(*map(jax.tree.leaves, (plain, batched)), strict=True)
        assert all((b.shape, b.dtype) == ((3, *p.shape), p.dtype) for p, b in leaves), name


@each_number
def test_each_hyperparameter_as_an_array_is_the_same_number(member):
    params, *grads = (part(tree) for tree in (PARAMS, *GRADS[:3]))
    for name, value in rounded(member.floats).items():
        plain = walk(member.tx(**{name: value}), grads, params)
        array = walk(member.tx(**{name: jnp.float32(value)}), grads, params)
        assert_rows(array, plain, member.alpha)
        scalar = walk(member.tx(**{name: np.float32(value)}), grads[:1], params)
        assert_equal(scalar, plain[:1])


@each_number
def test_all_hyperparameters_as_arrays_are_the_same_numbers(member):
    values = rounded(member.floats)
    arrays = {name: jnp.float32(value) for name, value in values.items()}
    plain = walk(member.tx(**values), GRADS, PARAMS)
    assert_rows(walk(member.tx(**arrays), GRADS, PARAMS), plain, member.alpha)
