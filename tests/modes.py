"""JAX's global modes, switched for a while."""

import contextlib

import jax


@contextlib.contextmanager
def switched(name, value):
    """`jax.config`'s `name` at `value` for what runs inside."""
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)
