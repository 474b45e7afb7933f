"""The public functions under JAX: transformations, one compilation, stable types, donation."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from chex import assert_max_traces, clear_trace_counter

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")
slow = pytest.mark.slow

HYPER = dict(learning_rate=3e-3, b1=0.83, b2=0.97, eps=1e-5, eps_root=1e-6, weight_decay=0.3)


def tree_gradients(steps=12, seed=0):
    """A stacked tree of gradients, first axis the step, and parameters to go with it."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "b": {"x": (5,), "y": ()}}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731

    def draw(scale, *lead):
        make = lambda s: jnp.asarray(scale * rng.standard_normal((*lead, *s)), jnp.float32)  # noqa: E731
        return jax.tree.map(make, shapes, is_leaf=is_shape)

    return draw(0.3, steps), draw(2.0)


def reference_run(grads, params, **hyper):
    """The reference, leaf by leaf: a tree of trajectories."""
    return jax.tree.map(lambda g, p: reference.adam(g, np.float64(p), **hyper), grads, params)


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


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


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


# Transformations ------------------------------------------------------------------------------


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


# Contract -------------------------------------------------------------------------------------

SCALARS = {
    "python": lambda x: x,
    "numpy 64": np.float64,
    "numpy 32": np.float32,
    "numpy 16": np.float16,
    "jax 32": jnp.float32,
    "jax 16": jnp.bfloat16,
}


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("grad_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_types_are_those_of_init_whatever_the_scalars(kind, grad_dtype, param_dtype):
    check_types(kind, grad_dtype, param_dtype)


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("grad_dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_types_are_those_of_init_in_64_bit_mode(x64, kind, grad_dtype, param_dtype):
    check_types(kind, grad_dtype, param_dtype)


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("grad_dtype", [jnp.complex64, jnp.complex128])
@pytest.mark.parametrize("param_dtype", [jnp.complex64, jnp.complex128])
def test_types_are_those_of_init_for_complex_leaves(x64, kind, grad_dtype, param_dtype):
    check_types(kind, grad_dtype, param_dtype)


@pytest.mark.parametrize("kind", SCALARS)
def test_types_are_those_of_init_when_run(x64, kind):
    for evaluate in (lambda f, *args: f(*args), lambda f, *args: jax.jit(f)(*args)):
        check_types(kind, jnp.bfloat16, jnp.float32, evaluate)


def check_types(kind, grad_dtype, param_dtype, evaluate=jax.eval_shape):
    hyper = {name: SCALARS[kind](value) for name, value in HYPER.items()}
    if kind == "jax 16":  # decay rates of so few bits are refused
        hyper |= {name: jnp.float32(HYPER[name]) for name in ("b1", "b2")}
    params = {"a": jnp.ones((2, 3), param_dtype), "b": jnp.ones((), param_dtype)}
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 0.7, grad_dtype), params)
    tx = fa.adamw(**hyper)
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        wider = jnp.promote_types(grad_dtype, param_dtype)
    updates, after = evaluate(tx.update, grads, state, params)
    assert avals(after) == avals(state)
    assert all(u.dtype == wider for u in jax.tree.leaves(updates))
    assert avals(evaluate(fa.apply_updates, params, updates)) == avals(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_one_compilation_over_many_steps():
    clear_trace_counter()
    grads, params = tree_gradients(6)
    tx = fa.adamw(lambda count: 1e-3 / (1.0 + jnp.float32(count)), b1=0.83, weight_decay=0.3)

    @jax.jit
    @assert_max_traces(n=1)
    def step(params, state, g, scale):
        del scale
        u, state = tx.update(g, state, params)
        return fa.apply_updates(params, u), state

    state = tx.init(params)
    for i in range(6):
        g = jax.tree.map(lambda x, i=i: x[i], grads)
        params, state = step(params, state, g, jnp.float32(i))
    assert state.count == 6


def test_hyperparameters_as_data_need_one_compilation():
    clear_trace_counter()
    grads, params = tree_gradients(1)
    g = jax.tree.map(lambda x: x[0], grads)
    step = jax.jit(assert_max_traces(lambda h: fa.update(g, fa.init(params), params, **h), n=1))
    for factor in (1.0, 0.9, 0.5):
        hyper = {k: factor * v for k, v in HYPER.items()}
        u, _ = step(hyper)
        truth = reference_run(grads, params, **hyper)
        np.testing.assert_allclose(u["w"], truth["w"].updates[0], rtol=1e-5)


def test_donation_is_complete():
    grads, params = tree_gradients(1)
    g = jax.tree.map(lambda x: x[0], grads)
    tx = fa.adamw(**HYPER)
    state = tx.init(params)

    def step(params, state, g):
        u, state = tx.update(g, state, params)
        return fa.apply_updates(params, u), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, g).compile()
    size = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert compiled.memory_analysis().alias_size_in_bytes == size
    compiled(params, state, g)  # warns, which fails the test, where a buffer is not donated
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))


def test_every_leaf_of_a_fresh_state_is_its_own_buffer():
    state = fa.init([jnp.zeros((2, 3))] * 3)
    leaves = jax.tree.leaves(state)
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves) == 7


def test_eval_shape_needs_no_arrays():
    params = {"w": jax.ShapeDtypeStruct((10**6, 10**6), jnp.bfloat16)}
    tx = fa.adamw(**HYPER)
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert (state.nu["w"].shape, state.nu["w"].dtype) == ((10**6, 10**6), jnp.float32)
    assert updates["w"].dtype == jnp.bfloat16
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_a_compiled_step_moves_nothing_between_host_and_device():
    grads, params = tree_gradients(1)
    g = jax.tree.map(lambda x: x[0], grads)
    tx = fa.adamw(**HYPER)
    state = tx.init(params)
    step = jax.jit(tx.update)
    step(g, state, params)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            _, state = step(g, state, params)
    assert state.count == 3


def test_inputs_are_never_changed():
    grads, params = tree_gradients(1)
    g = jax.tree.map(lambda x: np.array(x[0]), grads)
    host = jax.tree.map(np.array, params)
    state = jax.tree.map(np.array, fa.init(params))
    kept = jax.tree.map(np.copy, (g, host, state))
    u, _ = fa.update(g, state, host, **HYPER)
    fa.apply_updates(host, u)
    jax.tree.map(np.testing.assert_array_equal, (g, host, state), kept)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, functional_adam as fa
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("data",))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
params = jax.device_put(jnp.linspace(-1.0, 2.0, 3072).reshape(64, 48), split)
state = fa.init(params)
assert state.mu.sharding == state.nu.sharding == split, state.mu.sharding
assert state.count.sharding == whole, state.count.sharding
traces = []
grads = jnp.cos(jnp.arange(3072.0)).reshape(64, 48)
def step(params, state, grads):
    traces.append(1)
    u, state = fa.update(grads, state, params, learning_rate=0.03, weight_decay=0.2)
    return fa.apply_updates(params, u), state
jitted = jax.jit(step)
plain, plain_state = jnp.asarray(np.asarray(params)), fa.init(np.asarray(params))
for _ in range(4):
    params, state = jitted(params, state, grads)
assert len(traces) == 1 == jitted._cache_size(), (traces, jitted._cache_size())
for _ in range(4):
    plain, plain_state = jax.jit(step)(plain, plain_state, grads)
for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves((plain, plain_state))):
    np.testing.assert_array_equal(a, b)
print("as it should be")
"""


@slow
def test_sharded_parameters_keep_their_mesh_and_need_one_compilation():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "as it should be\n", done.stderr
