"""Adam in float64, on the gradients and parameters of `soak.py`, to compare its runs with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ALPHA, B1, B2, EPS, DECAY = 3e-3, 0.91, 0.997, 1e-7, 0.11
SHAPES = {"b": (40,), "w": (24, 160)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
PERIOD = 997


def table_of_gradients() -> np.ndarray:
    """N(0,1), growing and shrinking by half in the course of its period."""
    rng = np.random.default_rng(11)
    swell = 1 + 0.5 * np.sin(2 * np.pi * np.arange(PERIOD) / PERIOD)
    return (rng.standard_normal((PERIOD, SIZE)) * swell[:, None]).astype(np.float32)


def start_of_parameters() -> np.ndarray:
    """Of some 0.1, and numbers of bfloat16, so that every run has the same."""
    numbers = 0.1 * np.random.default_rng(12).standard_normal(SIZE)
    return np.asarray(jnp.asarray(numbers, jnp.bfloat16), np.float64)


def flat(tree: Any) -> np.ndarray:
    """One row of float64 of a tree."""
    return np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)])


def tree_of(row: Any) -> dict[str, Any]:
    """The tree of a row, its leaves in the order in which `flat` takes them."""
    found, begin = {}, 0
    for name, shape in SHAPES.items():
        found[name] = row[begin : begin + int(np.prod(shape))].reshape(shape)
        begin += found[name].size
    return found


class Exact:
    """Algorithm 1 in float64 from some state on; without corrections where `late`."""

    def __init__(self, theta: np.ndarray, m: Any = 0.0, v: Any = 0.0, late: bool = False) -> None:
        self.theta, self.m, self.v, self.late, self.t = theta, m + 0 * theta, v + 0 * theta, late, 0

    def step(self, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        self.v = B2 * self.v + (1 - B2) * g * g
        u = update_of(self.m, self.v, self.theta, np.inf if self.late else self.t)
        self.theta = self.theta + u
        return u


def update_of(m: np.ndarray, v: np.ndarray, theta: np.ndarray, t: float) -> np.ndarray:
    m_hat, v_hat = m / (1 - B1**t), v / (1 - B2**t)
    return -ALPHA * (m_hat / (np.sqrt(v_hat) + EPS) + DECAY * theta)
