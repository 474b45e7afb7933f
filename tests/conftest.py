"""Fixtures that switch JAX's global modes for one test, and back."""

import jax
import pytest


@pytest.fixture
def x64():
    """64-bit mode."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def strict():
    """Strict dtype promotion: mixing dtypes raises."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "standard")
