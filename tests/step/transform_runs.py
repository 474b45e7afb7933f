"""A training run with every hyperparameter set, and the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import reference

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
