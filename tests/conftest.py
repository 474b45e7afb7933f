"""Fixtures that switch JAX's global modes, or its compiler, for one test, and back."""

import jax
import pytest
from modes import switched

pytest.register_assert_rewrite(
    "crossings",
    "extended",
    "family_members",
    "format_runs",
    "optax_runs",
    "recipes",
    "same_bits",
    "state_dict_stores",
    "step_runs",
    "watched",
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


@pytest.fixture
def quickly_compiled(request, monkeypatch):
    """Compile several times sooner; slow tests take the time."""
    from quick import quick_jit  # compiles to see what XLA knows, so only where it is needed

    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(jax, "jit", quick_jit)
