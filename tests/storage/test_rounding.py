"""Rounding to 16 bits: on average right, and exactly on the grid."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from short_floats import SHORT, enclosing, every, pairs, step, stochastic

import functional_adam as fa
from functional_adam._storage import noise as N
from functional_adam._storage import rounding as R

pytestmark = pytest.mark.usefixtures("strict")

RANDOM = np.random.default_rng(30).integers(0, 2**32, 4, dtype=np.uint32)
BITS = [np.uint32(0), np.uint32(2**32 - 1), *RANDOM]


# One number ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT)
def test_a_number_goes_to_one_of_its_two_neighbours_and_to_both(name):
    grid, rng = every(name), np.random.default_rng(31)
    spread = np.float32(grid[[0, -1]]).astype(np.float64)
    x = rng.choice([-1, 1], 20_000) * 2.0 ** rng.uniform(-30, np.log2(spread[1]), 20_000)
    x = np.concatenate([x, rng.uniform(-1e-6, 1e-6, 2000)]).astype(np.float32)
    x = x[np.abs(x) >= 2.0**-126]
    below, above = enclosing(grid, x)
    got = np.stack(
        [
            np.float64(stochastic(x, name, rng.integers(0, 2**32, x.size, dtype=np.uint32)))
            for _ in "12"
        ]
    )
    assert ((got == below) | (got == above)).all()
    inside = below < above
    assert 0.45 < (got == above)[:, inside].mean() < 0.55
    toward_zero = np.where(np.abs(below) < np.abs(above), below, above)
    np.testing.assert_array_equal(np.float64(stochastic(x, name, np.uint32(0))), toward_zero)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", SHORT)
def test_what_fits_is_not_changed(name, bits):
    x = every(name)
    got = stochastic(x.astype(np.float32), name, bits)
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(got).view(np.uint16), x.view(np.uint16))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", SHORT)
def test_the_largest_stays_finite_and_what_is_not_finite_passes(name, bits):
    largest = float(ml_dtypes.finfo(SHORT[name]).max)
    beyond = min(largest * 1.0019, float(np.finfo(np.float32).max))
    x = np.float32([largest, beyond, -beyond, np.inf, -np.inf, np.nan, 0.0])
    want = [largest, largest, -largest, np.inf, -np.inf, np.nan, 0.0]
    np.testing.assert_array_equal(np.float32(stochastic(x, name, bits)), np.float32(want))


COUNTS, ELEMENTS = 50_000, 128
# Off by this much at most, for one element: what windows leave, and five standard errors.
STREAM_ERRORS = {"nu": lambda _: 1e-3, "theta": lambda p: 5 * np.sqrt(p * (1 - p) / COUNTS)}


@pairs(("name", "stream"), SHORT, STREAM_ERRORS)
def test_the_mean_over_many_counts_is_the_number(name, stream):
    grid = every(name)
    at = np.searchsorted(grid.astype(np.float64), [0.37, 3e-3, 700.0])
    low, high = (grid[i].astype(np.float64) for i in (at, at + 1))
    x = (low + np.array([0.013, 0.62, 0.39]) * (high - low)).astype(np.float32)
    x = np.broadcast_to(x[:, None], (3, ELEMENTS))

    def body(ups, count):
        random = getattr(N.random_bits(N.step_noise(count), jnp.uint32(77), x.shape), stream)
        got = R.stochastic(jnp.asarray(x), np.dtype(SHORT[name]), random)
        return ups + (got.astype(jnp.float32) > x).astype(jnp.int32), None

    start = jnp.zeros(x.shape, jnp.int32)
    ups, _ = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(1, COUNTS + 1)))(start)
    part = (np.float64(x[:, :1]) - low[:, None]) / (high - low)[:, None]
    error, most = np.abs(np.asarray(ups) / COUNTS - part), STREAM_ERRORS[stream](part)
    # float16 drops 13 bits, of which the mean can be off by half of the last: 6e-5.
    assert (error < most + 6e-5).all()
    error = np.abs(np.asarray(ups).mean(axis=1) / COUNTS - part[:, 0])
    assert (error < np.ravel(most) / ELEMENTS**0.5 + 6e-5).all()


# Landing ------------------------------------------------------------------------------------------

LEARNING_RATE = 3e-3


def moderate(theta, seed):
    """Gradients of either sign over six octaves."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1, 1], theta.size)
    return np.float32(signs * 2.0 ** rng.uniform(-3, 3, theta.size))


@pairs(("rounding", "name"), ["stochastic", "compensated"], SHORT)
def test_an_update_lands_exactly_on_the_grid_beside_its_goal(rounding, name, standard):
    theta = every(name)
    grads = moderate(theta, 32)
    first, last = theta[[0, -1]].astype(np.float64)
    for learning_rate in (LEARNING_RATE, 1.7):
        # The first step of b1 = b2 = 0 is -alpha g / (|g| + eps).
        tx = fa.adam(learning_rate, b1=0.0, b2=0.0, eps=1.3, rounding=rounding)
        u, _ = step(tx, grads, theta)
        assert u.dtype == jnp.float32
        mine, theirs = fa.apply_updates(theta, u), optax.apply_updates(jnp.asarray(theta), u)
        np.testing.assert_array_equal(mine, theirs)
        got = np.asarray(mine).astype(np.float64)
        # Nothing is left to round when it is applied, but where one is so much larger that
        # both do not fit into 24 bits.
        sizes = np.sort(np.abs([np.float64(theta), got]), axis=0)
        close = sizes[1] <= {"bfloat16": 2.0**15, "float16": 2.0**12}[name] * sizes[0]
        np.testing.assert_array_equal((np.float32(theta) + np.asarray(u))[close], got[close])
        goal = theta.astype(np.float64) - learning_rate * grads / (np.abs(grads) + 1.3)
        slack = 1e-6 * learning_rate + 1e-7 * np.abs(goal)  # what float32 makes of the goal
        low, _ = enclosing(theta, (goal - slack).clip(first, last))
        _, high = enclosing(theta, (goal + slack).clip(first, last))
        assert ((low <= got) & (got <= high)).all()


@pytest.mark.parametrize("name", SHORT)
def test_compensated_parameters_are_the_nearest_numbers(name):
    theta = every(name)
    theta = theta[np.abs(theta.astype(np.float64)) < 1e4]
    grads = moderate(theta, 33)
    tx = fa.adam(LEARNING_RATE, b1=0.0, b2=0.0, eps=1.3, rounding="compensated")
    u, _ = step(tx, grads, theta)
    got = np.asarray(fa.apply_updates(theta, u)).astype(np.float64)
    goal = theta.astype(np.float64) - LEARNING_RATE * grads / (np.abs(grads) + 1.3)
    low, high = enclosing(theta, goal)
    least = np.minimum(goal - low, high - goal)
    # Of two neighbours that are equally near, but for a 256th, the upper one may be taken.
    nearest = np.abs(got - goal) <= least * (1 + 1e-3) + 1e-6 * np.abs(goal) + 1e-9
    upper = (got == high) & (np.abs(got - goal) <= least + (high - low) / 128)
    assert (nearest | upper).all()
    assert nearest.mean() > 0.99
