"""Fixtures that switch JAX's global modes for one test, and back."""

import jax
import pytest


def switched(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    yield
    jax.config.update(name, before)


@pytest.fixture
def x64():
    """64-bit mode."""
    yield from switched("jax_enable_x64", True)


@pytest.fixture
def strict():
    """Strict dtype promotion: mixing dtypes raises."""
    yield from switched("jax_numpy_dtype_promotion", "strict")
