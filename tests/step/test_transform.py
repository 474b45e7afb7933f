"""The public functions under JAX's transformations: loops, vmap, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from transform_runs import HYPER, reference_run, tree_gradients

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")
slow = pytest.mark.slow


def train(grads, params, state=None, **hyper):
    """`fa.update` over the stacked `grads`; (params, state) at the end."""
    state = fa.init(params) if state is None else state

    def body(carry, g):
        params, state = carry
        u, state = fa.update(g, state, params, **hyper)
        return (fa.apply_updates(params, u), state), None

    return jax.lax.scan(body, (params, state), grads)[0]


def is_trajectory(x):
    return isinstance(x, reference.Trajectory)


def assert_follows(params, state, truth, tolerance=2e-6):
    def check(name):
        def one(traj, have):
            np.testing.assert_allclose(
                have, getattr(traj, name)[-1], rtol=tolerance, atol=tolerance
            )

        return one

    for name, tree in (("params", params), ("mu", state.mu), ("nu", state.nu)):
        jax.tree.map(check(name), truth, tree, is_leaf=is_trajectory)
    assert state.count == len(jax.tree.leaves(truth)[0])


def test_update_follows_the_reference_in_a_tree():
    grads, params = tree_gradients()
    new, state = jax.jit(lambda g, p: train(g, p, **HYPER))(grads, params)
    assert_follows(new, state, reference_run(grads, params, **HYPER))


def test_the_factories_are_update_with_arguments_bound():
    grads, params = tree_gradients()
    g = jax.tree.map(lambda x: x[0], grads)
    no_decay = {k: v for k, v in HYPER.items() if k != "weight_decay"}
    direction = {k: v for k, v in no_decay.items() if k != "learning_rate"}
    coupled = no_decay | {"l2": 0.21, "eps_placement": "before_correction"}
    alone = HYPER | {"mask": {"w": True, "b": False}, "independent_weight_decay": True}
    for tx, hyper, factor in [
        (fa.adamw(**HYPER), HYPER, 1),
        (fa.adam(**coupled), coupled, 1),
        (fa.adamw(**alone), alone, 1),
        (fa.adam(**no_decay, nesterov=True), no_decay | {"nesterov": True}, 1),
        (fa.scale_by_adam(**direction), direction | {"learning_rate": 1.0}, -1),
    ]:
        state = fa.init(params)
        plain = fa.update(g, state, params, **hyper)
        bound = tx.update(g, tx.init(params), params)
        scaled = jax.tree.map(lambda u, factor=factor: factor * u, plain[0])
        jax.tree.map(np.testing.assert_array_equal, bound, (scaled, plain[1]))


def test_positional_arguments_are_those_of_the_signature():
    params = jnp.array([2.0])
    by_position = fa.adamw(3e-3, 0.83, 0.97, 1e-5, 1e-6, "bfloat16", 0.3, [True])
    by_name = fa.adamw(**HYPER, mu_dtype="bfloat16", mask=[True])
    g, params = [jnp.array([0.7])], [params]
    a = by_position.update(g, by_position.init(params), params)
    b = by_name.update(g, by_name.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a[1].mu[0].dtype == jnp.bfloat16


def test_scan_loop_and_eager_agree():
    grads, params = tree_gradients(6)
    scanned, scan_state = train(grads, params, **HYPER)
    state, looped = fa.init(params), params
    for step in range(6):
        g = jax.tree.map(lambda x, i=step: x[i], grads)
        u, state = fa.update(g, state, looped, **HYPER)
        looped = fa.apply_updates(looped, u)
    truth = reference_run(grads, params, **HYPER)
    assert_follows(scanned, scan_state, truth)
    assert_follows(looped, state, truth)


def test_while_loop_and_cond_carry_the_state():
    grads, params = tree_gradients(8)

    def step(carry):
        params, state = carry
        g = jax.tree.map(lambda x: x[state.count], grads)
        u, state = fa.update(g, state, params, **HYPER)
        return fa.apply_updates(params, u), state

    @jax.jit
    def loop(params):
        def body(carry):
            return jax.lax.cond(carry[1].count < 8, step, lambda c: c, carry)

        return jax.lax.while_loop(lambda carry: carry[1].count < 8, body, (params, fa.init(params)))

    assert_follows(*loop(params), reference_run(grads, params, **HYPER))


def test_vmap_over_parameters_and_gradients():
    members = [tree_gradients(seed=seed) for seed in range(3)]
    grads, params = jax.tree.map(lambda *x: jnp.stack(x), *members)
    new, state = jax.jit(jax.vmap(lambda g, p: train(g, p, **HYPER)))(grads, params)
    for i, (g, p) in enumerate(members):
        member = jax.tree.map(lambda x, i=i: x[i], (new, state))
        assert_follows(*member, reference_run(g, p, **HYPER))


SWEEP = {
    "learning_rate": [1e-3, 0.07],
    "b1": [0.0, 0.7, 0.95],
    "b2": [0.0, 0.9, 0.995],
    "eps": [1e-7, 0.3],
    "eps_root": [0.0, 0.2],
    "weight_decay": [0.0, 0.9],
}


def test_vmap_over_each_hyperparameter():
    """One batch: in each row one hyperparameter is another; in the last all are."""
    grads, params = tree_gradients()
    rows = [HYPER | {name: value} for name, values in SWEEP.items() for value in values]
    rows.append({name: 0.9 * value for name, value in HYPER.items()})
    batch = {name: jnp.array([row[name] for row in rows], jnp.float32) for name in HYPER}
    result = jax.jit(jax.vmap(lambda hyper: train(grads, params, **hyper)))(batch)
    for i in range(len(rows)):
        member = jax.tree.map(lambda x, i=i: x[i], result)
        hyper = {name: values[i] for name, values in batch.items()}
        assert_follows(*member, reference_run(grads, params, **hyper), 1e-5)


@pytest.mark.parametrize("name", ["b2", *(pytest.param(n, marks=slow) for n in SWEEP if n != "b2")])
def test_vmap_over_one_hyperparameter_among_numbers(name):
    grads, params = tree_gradients()
    sweep = jax.jit(jax.vmap(lambda x: train(grads, params, **HYPER | {name: x})))
    result = sweep(jnp.array(SWEEP[name], jnp.float32))
    for i, value in enumerate(SWEEP[name]):
        member = jax.tree.map(lambda x, i=i: x[i], result)
        assert_follows(
            *member, reference_run(grads, params, **HYPER | {name: np.float32(value)}), 1e-5
        )


@slow
def test_gradients_through_updates_are_finite_and_right(x64):
    target = jnp.array([1.0, -0.5, 0.0, 0.0])
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])  # the loss never touches two coordinates

    def loss(theta):
        return (mask * (jnp.sin(theta) - target) ** 2).sum()

    @jax.jit
    def unrolled(theta, hyper):
        state = fa.init(theta)
        for _ in range(5):
            u, state = fa.update(jax.grad(loss)(theta), state, theta, **hyper)
            theta = fa.apply_updates(theta, u)
        return loss(theta) + (theta**2).sum()

    theta = jnp.array([0.3, 0.2, 0.1, 0.0])
    hyper = {k: jnp.float64(v) for k, v in HYPER.items()}
    hyper |= {"eps_root": jnp.float64(0), "eps": jnp.float64(3e-3)}
    slopes = jax.jit(jax.grad(unrolled, argnums=(0, 1)))(theta, hyper)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slopes))

    h = 1e-6
    for i in range(4):
        step = jnp.zeros(4).at[i].set(h)
        central = (unrolled(theta + step, hyper) - unrolled(theta - step, hyper)) / (2 * h)
        np.testing.assert_allclose(slopes[0][i], central, rtol=1e-6, atol=1e-8)
    for name in ("learning_rate", "b1", "b2", "eps", "weight_decay"):
        h = 1e-5 * hyper[name]
        up, down = hyper | {name: hyper[name] + h}, hyper | {name: hyper[name] - h}
        central = (unrolled(theta, up) - unrolled(theta, down)) / (2 * h)
        np.testing.assert_allclose(slopes[1][name], central, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [pytest.param("b1", marks=slow), "b2"])
def test_the_gradient_is_right_at_a_decay_rate_of_zero(x64, name):
    grads, params = jax.tree.map(jnp.float64, tree_gradients(4))
    size = lambda x: sum((leaf**2).sum() for leaf in jax.tree.leaves(x))  # noqa: E731
    objective = lambda b: size(train(grads, params, **HYPER | {name: b})[0])  # noqa: E731
    both = jax.jit(jax.value_and_grad(objective))
    (here, slope), (ahead, _) = both(jnp.float64(0)), both(jnp.float64(1e-9))
    np.testing.assert_allclose(slope, (ahead - here) / 1e-9, rtol=1e-4)
