"""What the cases of sharding share: meshes of 8 devices, modes, trees of numbers, one step.

`test_sharding.py` runs the cases (`cases_*.py`) in processes that have 8 devices. By hand:
XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest -p no:xdist tests/devices/cases_*.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from codes import format_named
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functional_adam as fa

HYPER = dict(learning_rate=0.03, b1=0.85, b2=0.97, eps=1e-6, weight_decay=0.2)
OTHERS = {
    "half": dict(learning_rate=0.02, b1=0.8),
    "vector": dict(weight_decay=0.03, eps=1e-7),
    "middle": dict(learning_rate=0.01),
}


def of_leaf(path, leaf):
    """In all modes some leaves have hyperparameters of their own."""
    return OTHERS.get(path, {})


HALF = jnp.bfloat16
MESHES = {
    "8": ((8,), ("data",)),
    "2x4": ((2, 4), ("data", "model")),
    "4x2": ((4, 2), ("data", "model")),
}
# Explicit axes need what came with jax 0.7.2.
EXPLICIT = hasattr(jax, "set_mesh")
FORMATS, ROUNDINGS = ("full", "bfloat16", "int8"), ("nearest", "stochastic", "compensated")
MODES = {
    f"{moments} {rounding}": fa.adamw(
        **HYPER, overrides=of_leaf, moments=format_named(moments), rounding=rounding
    )
    for moments in FORMATS
    for rounding in (*ROUNDINGS, "split")
}
# Every device has 8192 elements or more of each leaf, and of float32 rows more than a block. Of
# smaller parts XLA for the CPU may make another loop, and round an operation once instead of
# twice: see `test_of_small_parts_the_state_has_the_same_bits`.
SHAPES = {
    "half": ((128, 1024), jnp.bfloat16),  # divided by columns: one block of 128 on each of 8
    "matrix": ((64, 1024), jnp.float32),  # by all axes
    "vector": ((65536,), jnp.float32),  # by none, so that ZeRO-1 has something to divide
}


def mesh_of(name, kind="Auto"):
    shape, axes = MESHES[name]
    return jax.make_mesh(shape, axes, axis_types=(getattr(AxisType, kind),) * len(axes))


def shardings_on(mesh):
    # JAX compiles anew for P("x") after P("x", None). XLA returns the first, explicit axes the
    # second.
    pad = [None] if AxisType.Explicit in mesh.axis_types else []
    specs = {
        "half": P(None, mesh.axis_names[-1]),
        "matrix": P(*mesh.axis_names, *pad[len(mesh.axis_names) - 1 :]),
        "vector": P(*pad),
    }
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


@functools.cache
def numbers(seed):
    """A tree of numbers, over about ten orders of magnitude."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape))).astype(dtype)
        for name, (shape, dtype) in SHAPES.items()
    }


def one_step(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state


def zero_step(tx, of_params, of_state, params, state, grads):
    """ZeRO-1 with explicit axes, where nothing is moved unasked."""
    theta, grads = jax.sharding.reshard((params, grads), (of_state.mu, of_state.mu))
    updates, state = tx.update(grads, state, theta)
    return fa.apply_updates(params, jax.sharding.reshard(updates, of_params)), state


@functools.cache
def step_on(mode, mesh, zero):
    """The jitted step, which donates its parameters and state; all cases share its program."""
    tx, of_params = MODES[mode], shardings_on(mesh)
    step = functools.partial(one_step, tx)
    if zero is None:  # nothing but the eager init says where the state lies
        return jax.jit(step, donate_argnums=(0, 1))
    of_state = fa.state_shardings(tx, jax.device_put(numbers(0), of_params), zero_axis=zero)
    if AxisType.Explicit in mesh.axis_types:
        step = functools.partial(zero_step, tx, of_params, of_state)
    return jax.jit(step, out_shardings=(of_params, of_state), donate_argnums=(0, 1))


def prepared(mode, mesh, zero=None):
    """(params, state, jitted step, their shardings) on a mesh."""
    tx, of_params = MODES[mode], shardings_on(mesh)
    params = jax.device_put(numbers(0), of_params)
    of_state = fa.state_shardings(tx, params, zero_axis=zero)
    init = tx.init if zero is None else jax.jit(tx.init, out_shardings=of_state)
    return params, init(params), step_on(mode, mesh, zero), (of_params, of_state)


def run(step, params, state, of_params=None, steps=3):
    for i in range(1, 1 + steps):
        params, state = step(params, state, jax.device_put(numbers(i), of_params))
    return params, state


@functools.cache
def step_alone(mode):
    return jax.jit(functools.partial(one_step, MODES[mode]))


@functools.cache
def on_one_device(mode, steps=3):
    params = jax.device_put(numbers(0), jax.devices()[0])
    return run(step_alone(mode), params, MODES[mode].init(params), None, steps)


def differing(found, wanted):
    """How many elements have other bits, by leaf."""
    counts = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, a), b in pairs:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        bits = [np.asarray(x).reshape(-1).view(f"u{x.dtype.itemsize}") for x in (a, b)]
        counts[jax.tree_util.keystr(path)] = int(np.sum(bits[0] != bits[1]))
    return {path: n for path, n in counts.items() if n}


def lies_as(tree, shardings):
    return jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, tree, shardings))
