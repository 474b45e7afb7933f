"""The numbers of a step: closed forms, and the leaf rules."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from step_runs import assert_within, normal_gradients, run

import functional_adam as fa
from functional_adam._equations import formulas as F
from functional_adam._equations.family import Variant
from functional_adam._settings import make_settings
from functional_adam._transform import transformation

pytestmark = pytest.mark.usefixtures("strict")


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


def test_float64_gradients_are_averaged_and_divided_in_float64_over_float32_moments(x64):
    g = jnp.array([0.3, -7e-4, 12.7], jnp.float64)
    settings = dict(b1=0.83, b2=0.971, eps=1e-3, mu_dtype="float32", nu_dtype="float32")
    tx = fa.adam(0.013, **settings)
    u, after = tx.update(g, tx.init(g))
    assert after.mu.dtype == after.nu.dtype == jnp.float32
    np.testing.assert_allclose(u, -0.013 * g / (abs(g) + 1e-3), rtol=1e-13)


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


# Traces ---------------------------------------------------------------------------------------


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
