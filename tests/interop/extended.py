"""A live state of each transformation, and parameters to extend it for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from codes import CODES
from quick import quick_jit

import functional_adam as fa

RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02}
OLD = {
    "dense": {"kernel": jnp.linspace(-1, 2, 6).reshape(2, 3), "bias": jnp.arange(3.0) + 0.3},
    "gain": jnp.float32(0.7),
}
HEAD = {"kernel": jnp.linspace(0.2, 1, 12).reshape(3, 4), "bias": None}
NEW = {**OLD, "head": HEAD}


def gradients(params, scale):
    return jax.tree.map(lambda p: (p * scale + 0.1).astype(p.dtype), params)


@functools.partial(quick_jit, static_argnums=0)
def step(tx, params, state, scale):
    updates, state = tx.update(gradients(params, scale), state, params)
    return fa.apply_updates(params, updates), state


def run(tx, params, state, scales=(0.7, -1.3, 0.4)):
    for scale in scales:
        params, state = step(tx, params, state, scale)
    return params, state


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(map(same, jax.tree.leaves(a), jax.tree.leaves(b)))


def only_kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path[-1]), params)


def labels(params):
    kinds = {True: "kernel", False: "other"}
    return jax.tree.map(kinds.get, only_kernels(params))


ADAMW = fa.adamw(0.03, weight_decay=0.1, **RATES)
TXS = {
    "adam": fa.adam(0.03, **RATES),
    "bfloat16": fa.adam(0.03, **RATES, moments="bfloat16"),
    "int8": fa.adam(0.03, **RATES, moments=CODES),
    "amsgrad": fa.amsgrad(0.03, **RATES),
    "ademamix": fa.ademamix(0.03),
    "chain": optax.chain(optax.clip(0.9), optax.trace(0.4), ADAMW),
    "named_chain": optax.named_chain(("clip", optax.clip(0.9)), ("adam", ADAMW)),
    "masked": optax.masked(ADAMW, only_kernels),
    "inject": optax.inject_hyperparams(fa.adamw)(lambda count: 0.1 / (1 + count), **RATES),
    "partition": optax.partition({"kernel": ADAMW, "other": fa.adam(0.2)}, labels),
    "MultiSteps": optax.MultiSteps(ADAMW, 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(ADAMW, 3),
}


@functools.cache
def live(name):
    tx = TXS[name]
    return tx, *run(tx, OLD, tx.init(OLD))


BIAS = "params['dense']['bias']"
