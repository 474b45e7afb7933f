"""The error bound of DESIGN section 4, and one value in every form that it may be given in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from step_runs import STEPS, assert_within, normal_gradients, run, run_stack

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")
# Over how many coordinates. The pages say 1,024.
widths = pytest.mark.parametrize("size", [192, pytest.param(1024, marks=pytest.mark.slow)])


# The error of a step --------------------------------------------------------------------------

SETTINGS = [
    dict(learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-8),
    dict(learning_rate=3e-4, b1=0.9, b2=0.9999, eps=1e-8),
    dict(learning_rate=7e-3, b1=0.95, b2=0.98, eps=1e-6, eps_root=3e-5),
    dict(learning_rate=0.6, b1=0.9, b2=0.9995, eps=3e-3),
    dict(learning_rate=2e-3, b1=0.93, b2=0.95, eps=1e-10),
    dict(learning_rate=1.1, b1=0.0, b2=0.0, eps=0.3),
    dict(learning_rate=0.2, b1=0.1, b2=0.03, eps=1e-8),
]


@widths
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_float32_error_of_a_step(settings, size):
    grads = normal_gradients(size=size)
    truth = reference.adam(grads, **settings).updates
    updates, _ = run(fa.adam(**settings), grads)
    assert_within(updates, truth, settings["learning_rate"], rms=4, worst=40)


@pytest.mark.parametrize("weight_decay", [0.03, 1.7])
def test_float32_error_of_a_step_with_decay(weight_decay):
    settings = dict(learning_rate=2e-3, b1=0.9, b2=0.9995, eps=1e-7)
    grads = normal_gradients(3000)
    theta = 3 * normal_gradients(seed=1, steps=1)[0]
    decay = settings["learning_rate"] * weight_decay * theta.astype(np.float64)
    truth = reference.adam(grads, **settings).updates - decay
    updates, _ = run(fa.adamw(**settings, weight_decay=weight_decay), grads, jnp.asarray(theta))
    assert_within(updates, truth, settings["learning_rate"], rms=4, worst=40)


@widths
@pytest.mark.parametrize(("b1", "b2"), [(0.0, 0.999), (0.0, 0.9999), (0.5, 0.999), (0.7, 0.9999)])
def test_float32_error_of_a_step_with_little_momentum(b1, b2, size):
    # Every step rounds v; such errors live 1 / (1 - b2) steps and reach u in proportion to the
    # direction, whose rms is 0.23 at b1 = 0.9 and 1 at b1 = 0. No storage of 24 bits does better.
    grads = normal_gradients(size=size)
    truth = reference.adam(grads, b1=b1, b2=b2).updates
    updates, _ = run(fa.adam(b1=b1, b2=b2), grads)
    assert_within(updates, truth, 1e-3, rms=0.15 / np.sqrt(1 - b2), worst=50)


# Rates of which m stalls first, and of which v does: each below its limit, by half a unit over the
# part of the way that a step goes.
STALLS = [(0.9, 0.9), (0.9, 0.83), (0.99, 0.985), (0.97, 0.95), (0.7, 0.5)]
STALLS += [(0.0, 0.9), (0.9, 0.97), (0.9, 0.999), (0.9, 0.9999)]


@pytest.mark.parametrize(("b1", "b2"), STALLS)
def test_float32_error_of_a_step_on_constant_gradients(b1, b2):
    sizes = np.exp2(np.linspace(-5, 1.6, 64)) * np.where(np.arange(64) % 3, 1, -1)
    steps = min(STEPS, int(20 / (1 - b2)))
    grads = np.tile(np.float32(sizes), (steps, 1))
    truth = reference.adam(grads, b1=b1, b2=b2, eps=0.0).updates
    np.testing.assert_allclose(truth, -1e-3 * np.sign(grads), rtol=1e-6)  # m_hat = g, v_hat = g**2
    updates, _ = run(fa.adam(b1=b1, b2=b2, eps=0.0), grads)
    most = max(1 / (1 - b1), 0.5 / (1 - b2)) + 4
    assert_within(updates, truth, 1e-3, rms=most, worst=most)


def test_float32_error_of_a_step_with_a_memory_of_a_hundred_thousand_steps():
    # It begins at the end of the first such memory, with v = 1: 10,000 steps on, errors have grown
    # to where the bound for shorter memories and fewer steps is left behind.
    b1, b2, late, n = 0.9, 0.99999, 300_000, 64
    tx = fa.adam(1e-3, b1=b1, b2=b2)
    state = tx.init(jnp.zeros(n))._replace(count=jnp.int32(late), nu=jnp.ones(n))
    grads = normal_gradients(30_000, n, seed=3)
    u = jax.jit(lambda s: jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], s, grads)[1])(state)
    m, v, off = 0.0, 1.0, []
    for t, (g, found) in enumerate(zip(np.float64(grads), np.float64(u), strict=True), late + 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        true = -1e-3 * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        off.append((found - true) / np.maximum(1e-3, np.abs(true)) * 2**24)
    off = np.array(off)
    by_step = np.sqrt((off**2).mean(axis=1))
    assert 4 < by_step.max() <= 1.5e-3 / (1 - b2)
    assert np.abs(off).max() <= 1.5e-2 / (1 - b2)


def test_float32_error_of_the_first_steps_in_any_setting():
    # Early on all coordinates share the roundings of the scalars, so that one unlucky setting
    # does not average out: hence many settings, and a wider bound.
    rng = np.random.default_rng(11)
    grads = jnp.asarray(normal_gradients(4, 256))
    hyper = {
        "learning_rate": 10 ** rng.uniform(-5, 0, 400),
        "b1": 1 - 10 ** rng.uniform(-3, -1, 400),
        "b2": 1 - 10 ** rng.uniform(-4.5, -1.3, 400),
    }
    hyper = {name: np.float32(value) for name, value in hyper.items()}
    updates = jax.jit(jax.vmap(lambda h: run_stack(fa.adam(**h), grads)))(hyper)
    worst = []
    for i in range(400):
        one = {name: float(value[i]) for name, value in hyper.items()}
        error = reference.units(
            updates[i], reference.adam(grads, **one).updates, one["learning_rate"]
        )
        worst.append(np.sqrt((error**2).mean(axis=1)).max())
    assert np.median(worst) <= 2
    assert np.max(worst) <= 6


def test_nesterov_error_of_a_step():
    settings = dict(learning_rate=7e-3, b1=0.87, b2=0.999, eps=1e-6, nesterov=True)
    grads = normal_gradients(3000)
    updates, _ = run(fa.adam(**settings), grads)
    truth = reference.adam(grads, **settings).updates
    assert_within(updates, truth, 7e-3, rms=4, worst=60)


def test_fifty_digits_agree_at_spot_checks():
    grads = normal_gradients(400, 2, seed=5)
    decimal = dict(learning_rate="0.003", b1="0.87", b2="0.9993", eps="1e-7", eps_root="1e-6")
    settings = {name: float(value) for name, value in decimal.items()}
    updates, _ = run(fa.adam(**settings), grads)
    for column in range(2):
        truth = np.array(reference.adam_mp(grads[:, column], **decimal), np.float64)
        assert reference.units(updates[:, column], truth, 3e-3).max() <= 40
        plain = reference.adam(grads[:, column], **settings).updates
        np.testing.assert_allclose(plain, truth, rtol=1e-11, atol=1e-17)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_gradients_are_averaged_and_divided_in_float32(dtype):
    settings = dict(learning_rate=0.7, b1=0.9, b2=0.999, eps=1e-8)
    grads = jnp.asarray(normal_gradients(2000)).astype(dtype)
    updates, state = run(fa.adam(**settings), grads)
    assert updates.dtype == dtype
    truth = reference.adam(np.asarray(grads, np.float64), **settings)
    # The 16-bit update is the rounded truth: half a unit of its own, and 40 u before rounding.
    half = 0.5 * np.spacing(np.abs(truth.updates).astype(dtype)).astype(np.float64)
    u = 2.0**-24 * np.maximum(0.7, np.abs(truth.updates))
    assert (np.abs(updates.astype(np.float64) - truth.updates) <= half + 40 * u).all()
    np.testing.assert_allclose(state.mu, truth.mu[-1], rtol=0, atol=40 * 2.0**-24)
    np.testing.assert_allclose(state.nu, truth.nu[-1], rtol=80 * 2.0**-24)


def test_float64_error_of_a_step(x64):
    settings = dict(learning_rate=3e-3, b1=0.87, b2=0.9993, eps=1e-8, eps_root=1e-9)
    grads = normal_gradients(2000, 64).astype(np.float64) * np.pi
    truth = reference.adam(grads, real=np.longdouble, **settings)
    updates, state = run(fa.adam(**settings), grads)
    assert updates.dtype == np.float64
    assert np.abs(updates - truth.updates).max() <= 1e-13 * 3e-3
    np.testing.assert_allclose(state.mu, truth.mu[-1], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(state.nu, truth.nu[-1], rtol=1e-12)


# The same hyperparameter, however it is given ---------------------------------------------------

HELD = {
    name: float(np.float32(value))  # what a float32 holds, so that all forms have one value
    for name, value in dict(learning_rate=3e-3, b1=0.87, b2=0.9993, eps=1e-6, eps_root=1e-6).items()
}


def test_a_traced_float64_rate_keeps_its_digits_over_float32_leaves(x64):
    grads = jnp.asarray(normal_gradients(2000, 64))
    hyper = dict(learning_rate=1e-3, b1=0.9, b2=0.9999)
    traced = jax.jit(lambda h: run_stack(fa.adam(**h), grads))(
        {name: jnp.float64(value) for name, value in hyper.items()}
    )
    assert traced.dtype == jnp.float32
    assert_within(traced, reference.adam(grads, **hyper).updates, 1e-3, rms=4, worst=40)
    python = np.float64(run_stack(fa.adam(**hyper), grads))
    assert reference.units(traced, python, 1e-3).max() <= 4


def vmapped(grads):
    def one(hyper):
        return run_stack(fa.adam(**hyper), grads)

    stacked = {name: jnp.stack([jnp.float32(x)] * 2) for name, x in HELD.items()}
    return jax.vmap(one)(stacked)[1]


FORMS = {
    "numpy": lambda g: run_stack(fa.adam(**{k: np.float32(x) for k, x in HELD.items()}), g),
    "numpy 0-d": lambda g: run_stack(fa.adam(**{k: np.array(x) for k, x in HELD.items()}), g),
    "jax scalar": lambda g: run_stack(fa.adam(**{k: jnp.float32(x) for k, x in HELD.items()}), g),
    "traced": lambda g: jax.jit(lambda h: run_stack(fa.adam(**h), g))(
        {k: jnp.float32(x) for k, x in HELD.items()}
    ),
    "weak traced": lambda g: jax.jit(lambda h: run_stack(fa.adam(**h), g))(HELD),
    "vmapped": vmapped,
    "schedule": lambda g: run_stack(
        fa.adam(**HELD | dict(learning_rate=lambda _: HELD["learning_rate"])), g
    ),
}


@functools.cache
def in_python():
    return np.float64(run_stack(fa.adam(**HELD), normal_gradients(300, 64)))


@pytest.mark.parametrize("form", FORMS)
def test_one_value_gives_one_trajectory_in_every_form(form):
    grads = jnp.asarray(normal_gradients(300, 64))
    updates = FORMS[form](grads)
    assert reference.units(updates, in_python(), HELD["learning_rate"]).max() <= 4
    truth = reference.adam(grads, **HELD).updates
    assert reference.units(updates, truth, HELD["learning_rate"]).max() <= 40


@pytest.mark.parametrize("zero", [0, 0.0, False + 0, np.int64(0), np.float32(0)])
def test_zero_decay_rates_give_the_sign_of_the_gradient(zero):
    grads = normal_gradients(20, 8)
    updates, _ = run(fa.adam(1, b1=zero, b2=zero, eps=0), grads)
    np.testing.assert_allclose(updates, -np.sign(grads), rtol=1e-6)
    traced = jax.jit(lambda b: run_stack(fa.adam(1, b1=b, b2=b, eps=0), jnp.asarray(grads)))
    np.testing.assert_allclose(traced(jnp.asarray(zero)), -np.sign(grads), rtol=1e-6)


def test_traced_integers_are_numbers():
    one = jax.jit(lambda a: fa.adam(a).update(jnp.array([3.0]), fa.init(jnp.zeros(1))))(1)[0]
    np.testing.assert_allclose(one, [-1.0], rtol=1e-6)
