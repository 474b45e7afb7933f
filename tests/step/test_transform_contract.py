"""The public functions under JAX: one compilation, stable types, donation, shardings."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import assert_max_traces, clear_trace_counter
from transform_runs import HYPER, reference_run, tree_gradients

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")
slow = pytest.mark.slow


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


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
