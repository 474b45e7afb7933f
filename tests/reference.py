"""What the numbers must be: Adam from its papers, slowly, importing nothing from the package.

`adam` runs Algorithm 1 of Kingma & Ba (2015) in float64 (complex128 for complex gradients), with
the decoupled decay of Loshchilov & Hutter (2019) and the simplified Nesterov form of Dozat (2016).
`adam_mp` does the same for one coordinate with 50 decimal digits and hyperparameters given as
decimal strings. `first_moment_sum` is the algebraic closed form. `units` measures an error as the
documentation does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mpmath
import numpy as np

DIGITS = 50


class Trajectory(NamedTuple):
    """One row a step: the updates, the parameters after them, and the two moments."""

    updates: np.ndarray
    params: np.ndarray
    mu: np.ndarray
    nu: np.ndarray


def _at(value, count):
    return value(count) if callable(value) else value


def adam(
    grads: Sequence[np.ndarray] | np.ndarray,
    params: np.ndarray | float = 0.0,
    *,
    learning_rate=1e-3,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    weight_decay=0.0,
    nesterov=False,
    real=np.float64,
) -> Trajectory:
    """Every step of Adam over `grads`; schedules (count -> value) see the count before the step.

    `real` is the dtype to compute in: where float64 itself is measured, np.longdouble.
    """
    grads = np.asarray(grads)
    kind = np.result_type(real, np.complex64) if np.iscomplexobj(grads) else np.dtype(real)
    grads = grads.astype(kind)
    theta = np.zeros(grads.shape[1:], kind) + params
    m, v = np.zeros_like(theta), np.zeros(theta.shape, real)
    b1, b2, eps, eps_root = real(b1), real(b2), real(eps), real(eps_root)
    rows = []
    for t, g in enumerate(grads, start=1):
        alpha, decay = real(_at(learning_rate, t - 1)), real(_at(weight_decay, t - 1))
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        u = -alpha * (m_hat / (np.sqrt(v_hat + eps_root) + eps) + decay * theta)
        theta = theta + u
        rows.append((u, theta, m, v))
    return Trajectory(*(np.stack(column) for column in zip(*rows, strict=True)))


def adam_mp(
    grads: Sequence[float],
    theta: float = 0.0,
    *,
    learning_rate: str = "0.001",
    b1: str = "0.9",
    b2: str = "0.999",
    eps: str = "1e-8",
    eps_root: str = "0",
    weight_decay: str = "0",
) -> list[mpmath.mpf]:
    """The updates of one coordinate, hyperparameters being exact decimals."""
    with mpmath.workdps(DIGITS):
        alpha, b1, b2, eps, eps_root, decay = map(
            mpmath.mpf, (learning_rate, b1, b2, eps, eps_root, weight_decay)
        )
        theta, m, v = mpmath.mpf(theta), mpmath.mpf(0), mpmath.mpf(0)
        updates = []
        for t, value in enumerate(grads, start=1):
            g = mpmath.mpf(float(value))
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
            u = -alpha * (m_hat / (mpmath.sqrt(v_hat + eps_root) + eps) + decay * theta)
            theta += u
            updates.append(u)
        return updates


def bias_correction_mp(b: str | float, t: int) -> mpmath.mpf:
    """1 - b**t to 50 digits."""
    with mpmath.workdps(DIGITS):
        return 1 - mpmath.mpf(b) ** t


def first_moment_sum(grads: np.ndarray, b1: float) -> np.ndarray:
    """m_t = (1 - b1) * sum over i of b1**(t - i) * g_i, the closed form of the recursion."""
    grads = np.asarray(grads, np.float64)
    powers = b1 ** np.arange(len(grads) - 1, -1, -1.0)
    return (1 - b1) * np.tensordot(powers, grads, axes=1)


def units(updates: np.ndarray, truth: np.ndarray, learning_rate: float) -> np.ndarray:
    """|updates - truth| in u = 2**-24 * learning_rate * max(1, |truth| / learning_rate)."""
    size = np.maximum(1.0, np.abs(truth) / learning_rate)
    return np.abs(np.asarray(updates, np.float64) - truth) / (2.0**-24 * learning_rate * size)
