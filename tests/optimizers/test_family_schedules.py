"""Every factory with schedules, and with hyperparameters that Optax injects."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from family_members import (
    GRADS,
    MEMBERS,
    PARAMS,
    assert_equal,
    assert_rows,
    avals,
    each_rule,
    each_structure,
    error,
    every_member,
    part,
    rounded,
    unwrapped,
    walk,
)

pytestmark = pytest.mark.usefixtures("strict")


# Schedules ------------------------------------------------------------------------------------


def schedulable(member):
    """Name and value of what the factory takes a schedule for."""
    names = ("learning_rate", "weight_decay", "l2", "b3", "alpha", "clip_value_fn")
    values = {name: member.hyper[name] for name in names if name in member.hyper}
    return values | ({"clip_value_fn": 0.83} if member.key == "adopt" else {})


@every_member
def test_schedules_see_the_count_before_the_step(member):
    for name, start in schedulable(member).items():
        seen = []

        def value(count, start=start):
            return start / (1 + 0.17 * int(count))

        def schedule(count, value=value, seen=seen):
            seen.append(count)
            return value(count)

        rows = walk(member.tx(**{name: schedule}), GRADS[:4], PARAMS)
        assert [int(count) for count in seen] == [0, 1, 2, 3]
        assert {count.dtype for count in seen} == {jnp.dtype("int32")}
        by_hand = walk(
            lambda t, value=value, name=name: member.tx(**{name: value(t)}), GRADS[:4], PARAMS
        )
        assert_equal(rows, by_hand)
        (constant,) = walk(member.tx(**{name: start}), GRADS[2:3], rows[1].params, rows[1].state)
        assert error(rows[2].updates, constant.updates, 1e-9) > 1e-4, name


@each_rule
def test_schedules_may_return_arrays(member):
    for name, start in schedulable(member).items():

        def schedule(count, start=start):
            return start / (1 + 0.17 * jnp.asarray(count, jnp.float32))

        by_hand = walk(
            lambda t, schedule=schedule, name=name: member.tx(**{name: float(schedule(t))}),
            GRADS[:4],
            PARAMS,
        )
        assert_rows(walk(member.tx(**{name: schedule}), GRADS[:4], PARAMS), by_hand, member.alpha)


@every_member
def test_schedules_leave_the_state_as_it_is(member):
    schedules = {name: optax.constant_schedule(0.031) for name in schedulable(member)}
    assert avals(member.tx(**schedules).init(PARAMS)) == avals(member.tx().init(PARAMS))


# Optax ----------------------------------------------------------------------------------------


@every_member
def test_inject_hyperparams_traces_every_number(member):
    tx = optax.inject_hyperparams(member.make)(**member.hyper)
    rows = walk(tx, GRADS, PARAMS)
    injected = rows[-1].state.hyperparams
    assert member.floats.keys() <= injected.keys()
    assert all(isinstance(x, jax.Array) for x in injected.values())
    assert_rows(
        unwrapped(rows), walk(member.make(**rounded(member.hyper)), GRADS, PARAMS), member.alpha
    )


@each_rule
def test_inject_hyperparams_with_a_schedule_for_every_number(member):
    factor = lambda count: 1 / (1 + 0.017 * count)  # noqa: E731
    varying = set(member.floats) - {"initial_accumulator_value"}  # used by init alone
    schedules = {
        name: lambda count, x=member.hyper[name]: jnp.float32(x) * factor(jnp.float32(count))
        for name in varying
    }
    tx = optax.inject_hyperparams(member.make)(**member.hyper | schedules)
    rows = walk(tx, GRADS[:4], PARAMS)

    def at(t):
        return member.tx(**{name: float(schedule(t)) for name, schedule in schedules.items()})

    assert_rows(unwrapped(rows), walk(at, GRADS[:4], PARAMS), member.alpha)
    assert rows[3].state.hyperparams["b1"] == schedules["b1"](3)


@pytest.mark.parametrize("key", ["adopt", "scale_by_adopt"])
def test_inject_hyperparams_takes_a_clip_value_fn_for_a_schedule(key):
    member = MEMBERS[key]
    clip = lambda count: 0.83 / (1 + 0.17 * jnp.float32(count))  # noqa: E731
    hyper = rounded(member.hyper) | {"clip_value_fn": clip}
    plain = walk(member.make(**hyper), GRADS, PARAMS)
    for static in (), ("clip_value_fn",):
        make = optax.inject_hyperparams(member.make, static_args=static)
        rows = walk(make(**hyper), GRADS, PARAMS)
        assert ("clip_value_fn" in rows[-1].state.hyperparams) == (not static)
        assert_rows(unwrapped(rows), plain, member.alpha)


@each_structure
def test_inject_hyperparams_of_float32_for_bfloat16_parameters(member):
    half = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.bfloat16))
    params, *grads = (half(part(tree)) for tree in (PARAMS, *GRADS[:3]))
    b2 = {"b2": 0.9993}
    assert float(jnp.bfloat16(b2["b2"])) == 1.0
    make = optax.inject_hyperparams(member.make, hyperparam_dtype=jnp.float32)
    rows = walk(make(**member.hyper | b2), grads, params)
    plain = walk(member.tx(**rounded(member.hyper | b2)), grads, params)
    for row, want in zip(unwrapped(rows), plain, strict=True):
        assert error(row.updates, want.updates, member.alpha) <= 2.0**-8
        assert avals(row.state) == avals(want.state)
