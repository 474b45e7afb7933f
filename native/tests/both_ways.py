"""A step with the native kernel and without it."""

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa
from functional_adam._kernels.native import SWITCH

CALL = "functional_adam_step"
HYPER = {"learning_rate": 0.004, "b1": 0.87, "b2": 0.993, "eps": 1e-7, "weight_decay": 0.03}


def wild(shape, dtype, t, seed):
    """Gradients with zeros of both signs, spikes and subnormals, then NaN and infinities."""
    random = np.random.default_rng([seed, t])
    g = random.normal(size=shape) * np.exp(2 * random.normal(size=shape)) * 1e-3
    g = np.where(random.random(shape) < 0.02, -0.0, g).astype(np.float32)
    flat = g.reshape(-1)
    if flat.size > 16:
        flat[3], flat[7] = 1e-41, flat[7] * 1e4
        if t == 2:
            flat[5], flat[-1], flat[-3], flat[9] = np.nan, np.inf, -np.inf, 1e30
    return jnp.asarray(g, dtype)


def trees(shapes, dtype, steps, grad_dtype=None):
    """Parameters, and the gradients of some steps."""
    params = {
        k: jnp.asarray(np.random.default_rng(n).normal(size=shape), dtype)
        for n, (k, shape) in enumerate(shapes.items())
    }
    grads = [
        {k: wild(shape, grad_dtype or dtype, t, n) for n, (k, shape) in enumerate(shapes.items())}
        for t in range(steps)
    ]
    return params, grads


def jitted(monkeypatch, way, step, **options):
    """`step` under jit; the switch is read when it is traced."""

    def traced(*args):
        monkeypatch.setenv(SWITCH, way)
        return step(*args)

    return jax.jit(traced, **options)


def stepped(monkeypatch, way, tx, params, grads):
    """(parameters, state) after steps with these gradients."""
    step = jitted(monkeypatch, way, lambda p, state, g: fa.step(tx, g, state, p))
    state = tx.init(params)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def assert_same_bits(found, wanted):
    """All leaves, but which NaN a NaN is."""
    leaves, tree = jax.tree.flatten_with_path(found)
    others, other_tree = jax.tree.flatten(wanted)
    assert tree == other_tree
    for (path, a), b in zip(leaves, others, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(_bits(a), _bits(b), jax.tree_util.keystr(path))


def _bits(x):
    x = np.asarray(x)
    if x.dtype.kind in "iu":
        return x
    return np.where(np.isnan(x), np.float32(np.nan), x.astype(np.float32)).view(np.uint32)


def calls(compiled):
    """How often a compiled program calls the kernel."""
    return compiled.as_text().count(f'custom_call_target="{CALL}"')
