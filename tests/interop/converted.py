"""Gradients of many sizes for a live state, and its conversion, compiled."""

import functools

import jax.numpy as jnp
import numpy as np
from codes import format_named
from quick import quick_jit

import functional_adam as fa

B1, B2 = 0.87, 0.993
PARAMS = {"w": jnp.ones((3, 256)), "short": jnp.ones((2, 128), jnp.bfloat16)}


def gradients(steps):
    """The first of a sequence, of each coordinate's own size over some six octaves of v."""
    rng = np.random.default_rng(40)
    sizes = {name: np.exp2(rng.uniform(-3, 0, x.shape)) for name, x in PARAMS.items()}
    rngs = {name: np.random.default_rng(41 + i) for i, name in enumerate(PARAMS)}
    return {
        name: np.float32(rngs[name].standard_normal((steps, *size.shape)) * size)
        for name, size in sizes.items()
    }


@functools.partial(quick_jit, static_argnames="moments")
def converted(state, moments, params=PARAMS):
    return fa.convert_moments(state, params, moments=format_named(moments))
