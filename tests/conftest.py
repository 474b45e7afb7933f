"""Fixtures that switch JAX's global modes for one test, and back."""

import pytest
from modes import switched

pytest.register_assert_rewrite(
    "crossings", "family_members", "format_runs", "optax_runs", "state_dict_stores", "step_runs"
)


@pytest.fixture
def x64():
    """64-bit mode."""
    with switched("jax_enable_x64", True):
        yield


@pytest.fixture
def unoptimized():
    """XLA leaves most optimizations out, and compiles in half the time."""
    with switched("jax_disable_most_optimizations", True):
        yield


@pytest.fixture
def strict():
    """Strict dtype promotion: mixing dtypes raises."""
    with switched("jax_numpy_dtype_promotion", "strict"):
        yield


@pytest.fixture
def standard():
    """Standard promotion after all: Optax adds what differs in dtype."""
    with switched("jax_numpy_dtype_promotion", "standard"):
        yield
