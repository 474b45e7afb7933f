"""Moments in 8 bits: no gradients make an update larger than Adam's largest."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from hypothesis import strategies as st

import functional_adam as fa
from functional_adam._equations.numerics import Rate, largest_ratio

pytestmark = pytest.mark.usefixtures("strict")


def bound(b1, b2, t):
    """C(t) in float64, term by term."""
    q = np.float64(b1) ** 2 / b2
    return (1 - b1) * math.sqrt(math.fsum(q ** np.arange(t, dtype=np.float64)) / (1 - b2))


@pytest.mark.parametrize("t", [1, 2, 7, 450, 100_000])
@pytest.mark.parametrize(
    ("b1", "b2"),
    [(0.9, 0.999), (0.9, 0.95), (0.0, 0.97), (0.95, 0.9025), (0.83, 0.69), (0.99, 0.98015)],
)
def test_the_bound_of_the_ratio_is_its_sum(b1, b2, t):
    got = jax.jit(largest_ratio)(rate(b1), rate(b2), jnp.float32(t))
    np.testing.assert_allclose(got, bound(b1, b2, t), rtol=1e-5)


@pytest.mark.parametrize("t", [1, 2, 7, 60])
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.7), (0.97, 0.93)])
def test_the_bound_is_its_sum_where_it_grows_without_end(b1, b2, t):
    got = jax.jit(largest_ratio)(rate(b1), rate(b2), jnp.float32(t))
    np.testing.assert_allclose(got, bound(b1, b2, t), rtol=1e-5)


def rate(b):
    """A rate as `_scalars` makes it: complement and logarithm from the exact b."""
    log = math.log(b) if b else -math.inf
    return Rate(*map(jnp.float32, (b, 1 - b, log, 1 if b > 0.5 else b, 1 if b > 0.5 else 0)))


STEPS, WIDTH = 50, 32
ADVERSARIAL = [(0.9, 0.999), (0.9, 0.95), (0.6, 0.97)]


@functools.cache
def adversarial(b1, b2):
    tx = fa.adam(1.0, b1=b1, b2=b2, moments=CODES)

    def body(state, g):
        u, state = tx.update(g, state)
        return state, u

    state = tx.init(jnp.zeros(WIDTH))
    return jax.jit(lambda g: jax.lax.scan(body, state, g)[1])


def largest_updates(b1, b2):
    """What |u| / alpha can be at each step: C(t), corrected."""
    t = np.arange(1, STEPS + 1)
    return np.array([bound(b1, b2, t) for t in t]) * np.sqrt(1 - b2**t) / (1 - b1**t)


VALUES = st.sampled_from([0.0, 1.0, -1.0, 1e-3, 1e-17, -3e-12, 1e7, -1e15, 1e18, 4.7, -0.2])


@pytest.mark.parametrize(("b1", "b2"), ADVERSARIAL)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_no_gradients_make_an_update_larger_than_adams_largest(b1, b2, data):
    seed = data.draw(st.integers(0, 2**31))
    values = data.draw(st.lists(VALUES, min_size=1, max_size=8))
    growth = data.draw(st.sampled_from([1.0, b2 / b1, 2.0, 0.5]))
    rng = np.random.default_rng(seed)
    grads = rng.choice(values, (STEPS, WIDTH))
    with np.errstate(all="ignore"):
        grads = np.float32(grads * growth ** np.arange(STEPS)[:, None])
    grads = np.clip(grads, -1e18, 1e18)
    updates = np.abs(np.asarray(adversarial(b1, b2)(grads)))
    assert np.isfinite(updates).all()
    assert (updates.max(axis=1) <= largest_updates(b1, b2) * (1 + 1e-5)).all()


@pytest.mark.parametrize(("b1", "b2"), ADVERSARIAL)
def test_the_gradients_with_adams_largest_update_have_it_in_8_bits(b1, b2):
    # Equality in Cauchy and Schwarz: g grows by b2 / b1 a step.
    steps = np.arange(STEPS)[:, None]
    grads = np.float32(1e-3 * (b2 / b1) ** steps * np.linspace(0.6, 1, WIDTH))
    updates = np.abs(np.asarray(adversarial(b1, b2)(grads)))
    c = largest_updates(b1, b2)
    np.testing.assert_allclose(updates.mean(axis=1), c, rtol=0.05)
    assert (updates.max(axis=1) <= c * (1 + 1e-5)).all()
