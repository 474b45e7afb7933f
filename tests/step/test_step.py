"""The numbers of a step: closed forms, the error bound of DESIGN section 4, and the leaf rules."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import functional_adam as fa
from functional_adam._equations import formulas as F
from functional_adam._equations.family import Variant
from functional_adam._settings import make_settings
from functional_adam._transform import transformation

pytestmark = pytest.mark.usefixtures("strict")
# Over how many coordinates. The pages say 1,024.
widths = pytest.mark.parametrize("size", [192, pytest.param(1024, marks=pytest.mark.slow)])

STEPS = 10_000


@functools.cache
def normal_gradients(steps=STEPS, size=1024, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, size)).astype(np.float32)


def run(tx, grads, params=None):
    """(updates of every step, last state) of `tx`; `params` stay as they are."""
    state = tx.init(grads[0] if params is None else params)

    def body(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    state, updates = jax.jit(lambda s, g: jax.lax.scan(body, s, g))(state, grads)
    return np.asarray(updates), state


def assert_within(updates, truth, learning_rate, rms, worst):
    error = reference.units(updates, truth, learning_rate)
    by_step = np.sqrt((error**2).mean(axis=1))
    assert by_step.max() <= rms, f"rms {by_step.max():.2f} u at t = {by_step.argmax() + 1}"
    assert error.max() <= worst, f"max {error.max():.1f} u"


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


def run_stack(tx, grads):
    body = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
    return jax.lax.scan(body, tx.init(grads[0]), grads)[1]


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


# Algebra --------------------------------------------------------------------------------------


def test_the_first_moment_is_its_sum():
    grads = normal_gradients(60, 32)
    _, state = run(fa.adam(b1=0.83, b2=0.97), grads)
    np.testing.assert_allclose(state.mu, reference.first_moment_sum(grads, 0.83), atol=1e-6)
    np.testing.assert_allclose(
        state.nu, reference.first_moment_sum(grads.astype(np.float64) ** 2, 0.97), rtol=2e-6
    )
    assert state.count == 60


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_first_direction_is_the_gradient_over_its_size(nesterov):
    g = np.array([0.0, 1e-7, -3e-4, 0.5, -20.0], np.float32)
    b1, eps, eps_root = 0.83, 1e-3, 1e-4
    tx = fa.scale_by_adam(b1=b1, b2=0.97, eps=eps, eps_root=eps_root, nesterov=nesterov)
    direction, _ = tx.update(jnp.asarray(g), tx.init(g))
    ahead = b1 / (1 + b1) + 1 if nesterov else 1
    truth = ahead * g / (np.sqrt(g.astype(np.float64) ** 2 + eps_root) + eps)
    np.testing.assert_allclose(direction, truth, rtol=1e-6)


def test_decay_alone_shrinks_geometrically():
    alpha, decay, steps = 0.03, 0.7, 200
    theta = jnp.array([1.5, -0.2])
    tx = fa.adamw(alpha, weight_decay=decay)
    state, start = tx.init(theta), np.float64(theta)
    for _ in range(steps):
        u, state = tx.update(jnp.zeros(2), state, theta)
        theta = fa.apply_updates(theta, u)
    np.testing.assert_allclose(theta, start * (1 - alpha * decay) ** steps, rtol=2e-5)


def test_schedules_see_the_count_before_the_step():
    alpha = lambda count: 0.1 / (1.0 + jnp.float32(count))  # noqa: E731
    decay = lambda count: 0.2 * jnp.float32(count)  # noqa: E731
    grads = normal_gradients(7, 5)
    theta = jnp.linspace(-1.0, 2.0, 5)
    settings = dict(learning_rate=alpha, weight_decay=decay, b1=0.7, b2=0.9)
    truth = reference.adam(grads, np.float64(theta), **settings)
    tx = fa.adamw(**settings)
    state = tx.init(theta)
    for g, want in zip(grads, truth.params, strict=True):
        u, state = jax.jit(tx.update)(g, state, theta)
        theta = fa.apply_updates(theta, u)
        np.testing.assert_allclose(theta, want, rtol=3e-6)


def test_the_mask_says_which_leaves_decay():
    params = {"a": jnp.array([2.0]), "b": {"c": jnp.array([4.0]), "d": jnp.array([-8.0])}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    masks = [{"a": False, "b": True}, {"a": False, "b": {"c": True, "d": np.True_}}]
    masks.append(lambda p: jax.tree.map(lambda x: (x > 3).item() or (x < 0).item(), p))
    for mask in masks:
        tx = fa.adamw(0.5, weight_decay=0.1, mask=mask)
        u, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_allclose([u["a"][0], u["b"]["c"][0], u["b"]["d"][0]], [0, -0.2, 0.4])


def test_the_count_saturates_instead_of_wrapping():
    state = fa.init(jnp.zeros(3))._replace(count=jnp.int32(2**31 - 2))
    for _ in range(3):
        u, state = fa.update(jnp.array([0.3, -0.2, 5.0]), state)
        assert state.count == 2**31 - 1
        assert jnp.isfinite(u).all()


# Leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_zero_gradient_gives_a_zero_update(dtype):
    updates, state = run(fa.adam(), jnp.zeros((50, 4), dtype))
    np.testing.assert_array_equal(np.float32(updates), 0)
    assert not state.mu.any()
    assert not state.nu.any()


def test_default_moments_are_float32_for_sixteen_bit_parameters_and_overridable():
    state = fa.init(jnp.zeros((3, 2), jnp.bfloat16))
    assert state.mu.dtype == state.nu.dtype == jnp.float32
    state = fa.init(jnp.zeros(3), mu_dtype="bfloat16", nu_dtype=jnp.float16)
    assert (state.mu.dtype, state.nu.dtype) == (jnp.bfloat16, jnp.float16)


def test_moment_dtypes_store_the_rounded_moment_and_use_the_full_one():
    grads = normal_gradients(1, 256)
    tx = fa.adam(0.7, b1=0.83, b2=0.97, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    updates, state = run(tx, grads)
    truth = reference.adam(grads, learning_rate=0.7, b1=0.83, b2=0.97)
    assert_within(updates, truth.updates, 0.7, rms=4, worst=40)
    for name in ("mu", "nu"):
        want = getattr(truth, name)[-1].astype(np.float32).astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.float32(getattr(state, name)), np.float32(want))


def test_float64_parameters_keep_float64_moments_under_float32_gradients(x64):
    tx = fa.adam(b1=0.83)
    state = tx.init(jnp.zeros(3, jnp.float64))
    u, after = tx.update(jnp.ones(3, jnp.float32), state)
    assert u.dtype == jnp.float32
    assert after.mu.dtype == after.nu.dtype == jnp.float64
    np.testing.assert_allclose(after.mu, 1 - 0.83, rtol=1e-15)


def complex_gradients(steps=300, size=40):
    rng = np.random.default_rng(6)
    parts = rng.standard_normal((2, steps, size)).astype(np.float32)
    return parts[0] + 1j * parts[1]


@pytest.mark.parametrize("nesterov", [False, True])
def test_complex_leaves_have_a_complex_mean_and_a_real_second_moment(nesterov):
    settings = dict(learning_rate=3e-3, b1=0.83, b2=0.97, eps=1e-4, nesterov=nesterov)
    grads = complex_gradients()
    truth = reference.adam(grads, **settings)
    updates, state = run(fa.adam(**settings), grads)
    assert updates.dtype == state.mu.dtype == jnp.complex64
    assert state.nu.dtype == jnp.float32
    assert reference.units(updates.real, truth.updates.real, 3e-3).max() <= 40
    assert reference.units(updates.imag, truth.updates.imag, 3e-3).max() <= 40
    np.testing.assert_allclose(state.mu, truth.mu[-1], atol=1e-6)
    np.testing.assert_allclose(state.nu, truth.nu[-1], rtol=1e-5)


def test_the_conjugate_of_jax_grad_descends_on_complex_parameters():
    goal = np.complex64(1 - 4j)
    loss = lambda w: jnp.abs(w - goal) ** 2  # noqa: E731
    tx = fa.adam(0.1, b1=0.85, b2=0.98)
    final = {}
    for conjugated in (True, False):

        @jax.jit
        def step(w, state, conjugated=conjugated):
            g = jax.grad(loss)(w)
            updates, state = tx.update(g.conj() if conjugated else g, state)
            return fa.apply_updates(w, updates), state, g

        w = jnp.zeros((), jnp.complex64)
        state = tx.init(w)
        for _ in range(150):
            before = w
            w, state, g = step(w, state)
            np.testing.assert_allclose(g.conj(), 2 * (before - goal), rtol=1e-5)  # dL/dx + i dL/dy
        final[conjugated] = w
    assert loss(jnp.zeros((), jnp.complex64)) == 17
    np.testing.assert_allclose(final[True], goal, atol=0.05)
    # By the gradient itself the real part arrives all the same; the imaginary one climbs.
    np.testing.assert_allclose(final[False].real, 1, atol=0.5)
    assert final[False].imag > 10
    assert loss(final[False]) > (4 + 10) ** 2


def test_complex_leaves_decay():
    theta = jnp.array([1 + 2j, -3j], jnp.complex64)
    tx = fa.adamw(0.5, weight_decay=0.1)
    u, _ = tx.update(jnp.zeros_like(theta), tx.init(theta), theta)
    np.testing.assert_allclose(u, -0.05 * theta, rtol=1e-6)


@pytest.mark.parametrize("frozen", [None, jnp.array([7, 8])])
def test_no_gradient_needs_no_trainable_parameter(frozen):
    state = fa.init({"a": jnp.array([2.0]), "b": jnp.array([3.0, 4.0])})
    grads, params = {"a": jnp.array([0.3]), "b": None}, {"a": jnp.array([2.0]), "b": frozen}
    u, _ = fa.update(grads, state, params, learning_rate=0.1, weight_decay=0.5)
    np.testing.assert_allclose(u["a"], [-0.1 * (1 + 0.5 * 2)], rtol=1e-6)
    np.testing.assert_array_equal(u["b"], [0, 0])


def test_a_missing_gradient_skips_its_leaf_alone():
    params = {"a": jnp.array([2.0]), "b": [jnp.array([3.0]), None]}
    tx = fa.adamw(0.1, b1=0.7, weight_decay=0.5)
    first = {"a": jnp.array([0.3]), "b": [jnp.array([0.5]), None]}
    _, before = tx.update(first, tx.init(params), params)
    u, after = tx.update({"a": jnp.array([0.2]), "b": [None, None]}, before, params)
    np.testing.assert_array_equal(u["b"][0], [0.0])
    assert u["b"][1] is None
    assert after.mu["b"][0] == before.mu["b"][0] != 0
    assert after.nu["b"][0] == before.nu["b"][0] != 0
    assert after.count == 2
    truth = reference.adam(np.float32([[0.3], [0.2]]), b1=0.7)
    np.testing.assert_allclose(after.mu["a"], truth.mu[-1], rtol=1e-6)
    assert fa.apply_updates(params, u)["b"] == params["b"]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1), (2, 3)])
def test_any_shape(shape):
    grads = np.random.default_rng(7).standard_normal((5, *shape)).astype(np.float32)
    updates, state = run(fa.adam(0.3, b1=0.7), grads)
    truth = reference.adam(grads, learning_rate=0.3, b1=0.7)
    assert state.mu.shape == state.nu.shape == shape
    np.testing.assert_allclose(updates, truth.updates, rtol=1e-5)


def test_python_numbers_and_numpy_arrays_are_leaves():
    params = {"x": 2.0, "y": np.array([1.0, -1.0])}
    tx = fa.adamw(0.1, weight_decay=0.3)
    u, _ = tx.update({"x": 4.0, "y": np.array([3.0, 0.0])}, tx.init(params), params)
    new = fa.apply_updates(params, u)
    np.testing.assert_allclose(new["x"], 2 - 0.1 * (1 + 0.3 * 2), rtol=1e-6)
    np.testing.assert_allclose(new["y"], [1 - 0.1 * 1.3, -1 + 0.1 * 0.3], rtol=1e-6)


@pytest.mark.parametrize("tree", [{}, [], None, (), {"a": {}}, {"a": None}])
def test_trees_without_leaves(tree):
    tx = fa.adamw()
    u, state = tx.update(tree, tx.init(tree), tree)
    assert u == state.mu == state.nu == tree
    assert state.count == 1


# Gradients of fewer bits ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [
        (jnp.bfloat16, "nearest"),
        (jnp.float16, "nearest"),
        (jnp.float16, "stochastic"),
        (jnp.bfloat16, "compensated"),
    ],
)
def test_float32_weights_decay_beside_gradients_of_16_bits(dtype, rounding):
    # The decay's part of a step is 2e-3 of it, less than half a unit of either dtype.
    hyper = dict(learning_rate=3e-3, b1=0.83, b2=0.97, eps=1e-6)
    theta, steps = np.float32([1.7, -0.6, 2.3]), 200
    grads = np.tile(np.asarray([0.3, -0.8, 0.11], dtype), (steps, 1))

    def end(make, params, **decay):
        tx = make(**hyper, **decay)

        def body(carry, g):
            updates, state = tx.update(g, carry[1], carry[0])
            assert updates.dtype == jnp.float32
            return (fa.apply_updates(carry[0], updates), state), None

        return np.asarray(jax.lax.scan(body, (params, tx.init(params)), jnp.asarray(grads))[0][0])

    make = functools.partial(fa.adamw, rounding=rounding)
    lost = end(make, jnp.asarray(theta), weight_decay=1e-3) - end(
        make, jnp.asarray(theta), weight_decay=0.0
    )
    truth = [reference.adam(grads, theta, **hyper, weight_decay=x).params[-1] for x in (1e-3, 0.0)]
    np.testing.assert_allclose(lost, truth[0] - truth[1], rtol=0.02)  # theta is rounded


@pytest.mark.parametrize("rate", [1e-7, 3e-8])
def test_a_small_rate_is_taken_beside_gradients_of_float16(rate):
    params, grads = jnp.float32([0.4, -2.0]), jnp.float16([0.03, -7.0])
    tx = fa.adam(rate, b1=0.7, b2=0.93)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, [-rate, rate], rtol=1e-6)


@pytest.mark.parametrize(("a", "b"), [("bfloat16", "float16"), ("float16", "bfloat16")])
def test_neither_kind_of_16_bits_holds_the_other(a, b):
    params, grads = jnp.ones(2, a), jnp.ones(2, b)
    updates, _ = fa.adam(0.1).update(grads, fa.init(params), params)
    assert updates.dtype == jnp.float32
    assert fa.apply_updates(params, updates).dtype == params.dtype


# Steps without gradients ----------------------------------------------------------------------

ABSENT = {
    "adamw": fa.adamw(lambda n: 0.02 / (1 + jnp.float32(n)), b1=0.83, b2=0.97, weight_decay=0.3),
    "adopt": fa.adopt(0.02, b1=0.83, b2=0.97),
    "amsgrad": fa.amsgrad(0.02, b1=0.83, b2=0.97, moments="bfloat16"),
    "int8": fa.adamw(0.02, b1=0.83, b2=0.97, moments="int8", rounding="compensated"),
    "stochastic": fa.nadam(0.02, b1=0.83, b2=0.97, rounding="stochastic"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_step_without_any_gradient_is_none_at_all(name):
    tx = ABSENT[name]
    params = {"a": jnp.float32([1.0, -2.0]), "b": [jnp.ones((3, 2), jnp.bfloat16)], "c": None}
    grads = {"a": jnp.float32([0.3, -0.2]), "b": [jnp.full((3, 2), 0.7, jnp.bfloat16)], "c": None}
    state = tx.init(params)
    for i in range(3):
        if i == 1:
            none = {"a": None, "b": [None], "c": None}
            updates, after = jax.jit(tx.update)(none, state, params)
            jax.tree.map(np.testing.assert_array_equal, after, state)
            assert jax.tree.structure(after) == jax.tree.structure(state)
            stepped, _ = tx.update(grads, state, params)
            dtypes = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (updates, stepped)]
            assert dtypes[0] == dtypes[1]
            assert not any(map(np.any, jax.tree.leaves(updates)))
        _, state = tx.update(grads, state, params)
    assert state.count == 3


def test_a_partition_without_gradients_goes_on_as_if_it_had_waited():
    # Group "x" has a gradient in steps 0, 3 and 4 of five; torch's Adam corrects as of three steps.
    hyper = dict(learning_rate=0.02, b1=0.83, b2=0.97)
    tx = optax.partition({"x": fa.adam(**hyper), "y": fa.adam(**hyper)}, {"w": "x", "v": "y"})
    params = {"w": jnp.float32([1.0, -2.0]), "v": jnp.float32([0.5])}
    grads = np.float32([[0.3, -0.8], [1.1, 0.4], [-0.2, 0.9], [0.7, 0.1], [0.05, -1.3]])
    state, moved = tx.init(params), []
    for t, g in enumerate(grads):
        given = jnp.asarray(g) if t in (0, 3, 4) else None
        updates, state = tx.update({"w": given, "v": jnp.float32([0.1])}, state, params)
        moved.append(np.zeros(2) if updates["w"] is None else np.asarray(updates["w"]))
    truth = reference.adam(grads[[0, 3, 4]], **hyper).updates
    np.testing.assert_allclose(np.array(moved)[[0, 3, 4]], truth, rtol=1e-5)
    assert not np.any(np.array(moved)[[1, 2]])


def test_one_gradient_is_enough_to_count():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = fa.adam()
    _, state = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
    assert state.count == 1
    for update in (tx.update, fa.update):
        with pytest.raises(
            ValueError, match=r"grads must have the structure of .*\['b'\] is missing"
        ):
            update({"a": None}, state, params)


def test_leaves_of_one_shape_share_a_trace_and_one_set_of_scalars():
    calls = collections.Counter()

    def counted(function):
        def call(*args):
            calls[function.__name__] += 1
            return function(*args)

        return call

    variant = Variant(correction=counted(F.eps_after_correction), update_moments=counted(F.adam))
    tx = transformation(make_settings(variant, learning_rate=0.1, b1=0.9, b2=0.99, eps=1e-8))
    params = [jnp.ones(37)] * 50 + [jnp.ones(41)] * 50 + [jnp.ones(37, jnp.complex64)] * 50
    jax.make_jaxpr(tx.update)(params, tx.init(params))
    assert calls == {"adam": 3, "eps_after_correction": 1}
