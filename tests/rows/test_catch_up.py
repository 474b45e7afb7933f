"""What a row has missed: gaps of any length, without loops over all of them; nothing for nobody."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from quick import quick_jit

import functional_adam as fa
from functional_adam._equations import rows as R
from functional_adam._equations.family import ADAM
from functional_adam._scalars import scalars
from functional_adam._settings import make_settings

HYPER = dict(learning_rate=0.01, b1=0.87, b2=0.993, eps=1e-3)


@functools.cache
def compiled(how):
    return quick_jit(functools.partial(fa.flush_rows, **dict(how)))


def flush(count, last, m, v, theta, **hyper):
    """One row of a table, brought up to date."""
    row = [jnp.asarray([[x]], jnp.float32) for x in (m, v, theta)]
    state = fa.init_rows(row[2])._replace(
        count=jnp.int32(count), mu=row[0], nu=row[1], extra={"last": jnp.int32([last])}
    )
    how = HYPER | {"catch_up": "dense"} | hyper
    table, after = compiled(tuple(how.items()))(state, row[2])
    assert int(after.extra["last"][0]) == int(after.count) == count
    return [float(x[0, 0]) for x in (after.mu, after.nu, table)]


def replayed(count, last, m, v, theta, *, learning_rate, b1, b2, eps, weight_decay=0.0):
    """The same step by step, in float64."""
    c1, c2 = b1**last, b2**last
    for _ in range(count - last):
        m, v, c1, c2 = m * b1, v * b2, c1 * b1, c2 * b2
        d = m / (1 - c1) / (np.sqrt(v / (1 - c2)) + eps)
        theta -= learning_rate * (d + weight_decay * theta)
        if m < 1e-300 and weight_decay == 0:  # nothing moves any more
            break
    return theta


@pytest.mark.parametrize("gap", [0, 1, 8, 9, 150, 10**5])
@pytest.mark.parametrize("last", [1, 400])
def test_a_gap_of_any_length_comes_to_the_steps_one_by_one(gap, last):
    hyper = HYPER | {"weight_decay": 0.003}
    m, v, theta = flush(last + gap, last, 0.02, 0.003, 1.3, **hyper)
    wanted = replayed(last + gap, last, 0.02, 0.003, 1.3, **hyper)
    assert abs(theta - wanted) < 3e-7
    with mpmath.workdps(30):
        for found, start, b in ((m, 0.02, "0.87"), (v, 0.003, "0.993")):
            right = float(np.float32(start) * mpmath.mpf(b) ** gap)
            assert abs(found - right) <= 2e-6 * right + 1e-37
    moved = abs(replayed(last + gap, last, 0.02, 0.003, 1.3, **HYPER) - 1.3)
    assert moved >= min(gap, 3) * 2e-4  # or the comparison would say nothing


def test_a_million_missed_decays_keep_their_digits():
    for learning_rate in (1e-4, lambda count: 1e-4 + 0 * jnp.asarray(count, jnp.float32)):
        hyper = dict(learning_rate=learning_rate, weight_decay=0.01)
        *_, theta = flush(1_000_004, 3, 0.0, 0.0, 1.3, **hyper)
        assert abs(theta - 1.3 * (1 - 1e-6) ** 1_000_001) < 3e-6


def test_a_row_that_was_never_touched_has_only_decays_and_no_nan():
    m, v, theta = flush(70, 0, 0.0, 0.0, 1.5, eps=0.0, weight_decay=0.2)
    assert (m, v) == (0, 0)
    assert abs(theta - 1.5 * (1 - 0.002) ** 70) < 1e-6
    assert flush(70, 0, 0.0, 0.0, 1.5, eps=0.0) == [0, 0, 1.5]
    assert flush(0, 0, 0.0, 0.0, 1.5, weight_decay=0.2) == [0, 0, 1.5]
    # Moments that die away within the gap leave none either.
    assert np.isfinite(flush(10**6, 5, 1e-20, 1e-38, 1.5, eps=0.0)).all()


def test_a_decay_by_schedule_is_that_of_each_missed_step():
    def decay(count):  # in jumps, over more than one turn of the calendar
        count = jnp.asarray(count, jnp.int32)
        return jnp.where(count % 7 == 3, 0.03, 0.0) + jnp.where(count > 2000, 0.01, 0.0)

    *_, theta = flush(2500, 40, 0.0, 0.0, 1.3, weight_decay=decay, learning_rate=0.1)
    counts = np.arange(40, 2500)
    each = np.where(counts % 7 == 3, 0.03, 0.0) + np.where(counts > 2000, 0.01, 0.0)
    assert abs(theta - 1.3 * np.prod(1 - 0.1 * each)) < 2e-6


def test_saturated_counts_miss_nothing():
    most = np.iinfo(np.int32).max
    assert flush(most, most, 0.5, 0.25, 1.5, weight_decay=0.2) == [0.5, 0.25, 1.5]
    m, *_ = flush(most, most - 2, 0.5, 0.25, 1.5)
    assert abs(m - 0.5 * 0.87**2) < 1e-7
    table, grads = jnp.ones((2, 1)), jnp.ones((2, 1))
    state = fa.init_rows(table)
    state = state._replace(count=jnp.int32(most), extra={"last": jnp.int32([most, 5])})
    step = quick_jit(functools.partial(fa.update_rows, catch_up="dense", **HYPER))
    after, state = step(grads, np.array([0, 1]), state, table)
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(state.extra["last"], [most, most])


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.91), (0.99, 0.999), (0.0, 0.3)])
def test_what_is_left_out_is_below_rounding(b1, b2):
    s = scalars(
        make_settings(ADAM, **(HYPER | dict(b1=b1, b2=b2))), jnp.int32(1), np.dtype(np.float32)
    )
    steps, q = int(R.steps_that_count(s.b1, s.b2)), b1 / np.sqrt(b2)
    rest = q**steps / (1 - q)
    assert rest <= 2**-24 * (1 + 1e-5)
    assert q == 0 or rest > 2**-24 * q**1.01  # and no more steps than that takes
    assert R.steps_that_count(s.b2, s.b1) == np.iinfo(np.int32).max


def test_numbers_may_be_traced_and_are_not_compiled_anew():
    table, state = jnp.ones((5, 2)), fa.init_rows(jnp.ones((5, 2)))

    @jax.jit
    def step(rate, b1, state, table):
        rows = jnp.array([1, 3])
        how = HYPER | dict(learning_rate=rate, b1=b1, catch_up="dense")
        return fa.update_rows(jnp.ones((2, 2)), rows, state, table, **how)

    plain = HYPER | {"catch_up": "dense"}
    one = fa.update_rows(jnp.ones((2, 2)), np.array([1, 3]), state, table, **plain)
    two = step(jnp.float32(0.01), jnp.float32(0.87), state, table)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)
    step(jnp.float32(0.02), jnp.float32(0.8), *two[::-1])
    assert step._cache_size() == 1


def test_eager_calls_share_their_programs():
    table, state = jnp.ones((4, 3)), fa.init_rows(jnp.ones((4, 3)))
    how = HYPER | {"catch_up": "dense", "eps": 0.004}
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        for i in range(3):
            before = len(compiled)
            table, state = fa.update_rows(np.ones((2, 3)), np.array([i, 1]), state, table, **how)
        assert len(compiled) == before
    finally:
        jax.monitoring.clear_event_listeners()
    assert before > 0


@pytest.mark.parametrize("catch_up", [pytest.param("lazy", marks=pytest.mark.slow), "dense"])
def test_many_tables_under_vmap(catch_up):
    rng = np.random.default_rng(0)
    tables = jnp.asarray(rng.normal(size=(3, 6, 2)), jnp.float32)
    rows, grads = rng.integers(0, 7, (3, 4)), rng.normal(size=(3, 4, 2)).astype(np.float32)
    states = jax.vmap(fa.init_rows)(tables)
    step = functools.partial(fa.update_rows, catch_up=catch_up, **HYPER)
    many, quick_step = quick_jit(jax.vmap(step)), quick_jit(step)
    once = many(grads, rows, states, tables)
    twice = many(grads, rows[:, ::-1], once[1], once[0])
    for i in range(3):
        state = jax.tree.map(lambda x, i=i: x[i], once[1])
        alone = quick_step(grads[i], rows[i, ::-1], state, once[0][i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-7),
            twice,
            alone,
        )
