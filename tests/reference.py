"""What the numbers must be: Adam from its papers, slowly, importing nothing from the package.

`adam` runs Algorithm 1 of Kingma & Ba (2015) in float64 (complex128 for complex gradients), with
the decoupled decay of Loshchilov & Hutter (2019) and the simplified Nesterov form of Dozat (2016).
`adam_of_rows` does so for a table of which a step sees some rows. `adam_mp` does the same for one
coordinate with 50 decimal digits and hyperparameters given as decimal strings. `first_moment_sum`
is the algebraic closed form. `units` measures an error as the documentation does.
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
    return float(value(count)) if callable(value) else value


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


def adam_of_rows(
    grads: np.ndarray,
    seen: np.ndarray,
    table: np.ndarray,
    catch_up: str,
    *,
    learning_rate,
    b1,
    b2,
    eps,
    eps_root=0.0,
    weight_decay=0.0,
    eps_placement="after_correction",
) -> Trajectory:
    """Adam of the rows of a table (steps, rows, ...) of which step t has seen `seen[t]`.

    "dense": every step updates every row. "moments": every step decays all moments, and moves the
    rows it has seen. "lazy": whatever a step has not seen it leaves as it is.
    """
    theta = table.astype(np.float64)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    taken = []
    seen = seen.reshape(seen.shape + (1,) * (theta.ndim - 1))
    for t, (g, row) in enumerate(zip(grads.astype(np.float64), seen, strict=True), start=1):
        alpha, decay = _at(learning_rate, t - 1), _at(weight_decay, t - 1)
        new_m, new_v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        remembers = row | (catch_up != "lazy")
        m, v = np.where(remembers, new_m, m), np.where(remembers, new_v, v)
        late = np.sqrt(1 - b2**t) if eps_placement == "before_correction" else 1.0
        root = np.sqrt(v / (1 - b2**t) + eps_root / late**2) + eps / late
        u = -alpha * (m / (1 - b1**t) / root + decay * theta)
        u = np.where(row | (catch_up == "dense"), u, 0.0)
        theta = theta + u
        taken.append((u, theta, m, v))
    return Trajectory(*(np.stack(column) for column in zip(*taken, strict=True)))


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


# ---- The family: each from its paper's formulas, in the paper's order, nothing rearranged ----
#
# A rule takes the step t = 1, 2, ..., the gradient, a dict `k` of what is kept (changed in place)
# and the hyperparameters `h`, and returns the direction d; `family` makes updates of it.


def _first(k, g, h):
    k["m"] = h.b1 * k["m"] + (1 - h.b1) * g
    return k["m"]


def _second(k, g, h):
    k["v"] = h.b2 * k["v"] + (1 - h.b2) * np.abs(g) ** 2
    return k["v"]


def _m_hat(t, g, k, h):
    if h.get("nesterov"):
        return h.b1 * k["m"] / (1 - h.b1 ** (t + 1)) + (1 - h.b1) * g / (1 - h.b1**t)
    return k["m"] / (1 - h.b1**t)


def _root(t, v, h):
    """sqrt(v_hat + eps_root) + eps; or Keras's, whose correction is outside."""
    c2 = 1 - h.b2**t
    if h.get("eps_placement") == "before_correction":
        return (np.sqrt(v + h.get("eps_root", 0)) + h.eps) / np.sqrt(c2)
    return np.sqrt(v / c2 + h.get("eps_root", 0)) + h.eps


def _adam(t, g, k, h):
    _first(k, g, h)
    _second(k, g, h)
    return _m_hat(t, g, k, h) / _root(t, k["v"], h)


def _nadam(t, g, k, h):
    """Dozat 2016, Algorithm 2, with the momentum schedule of his section 3 (PyTorch's NAdam)."""
    if h.get("momentum_decay") is None:
        return _adam(t, g, k, h | {"nesterov": True})
    mu, ahead = (h.b1 * (1 - 0.5 * 0.96 ** (i * h.momentum_decay)) for i in (t, t + 1))
    k["product"] = k.get("product", 1.0) * mu
    m, v = _first(k, g, h), _second(k, g, h)
    m_hat = ahead * m / (1 - k["product"] * ahead) + (1 - mu) * g / (1 - k["product"])
    return m_hat / _root(t, v, h)


def _amsgrad(t, g, k, h):
    """Reddi, Kale & Kumar 2018, Algorithm 2, with bias corrections where h says."""
    m, v = _first(k, g, h), _second(k, g, h)
    m = m / (1 - h.b1**t) if h.get("bias_correction_mu", True) else m
    c2 = 1 - h.b2**t if h.get("bias_correction_nu", True) else 1.0
    after = h.get("maximum", "after_correction") == "after_correction"
    k["nu_max"] = np.maximum(k.get("nu_max", 0.0), v / c2 if after else v)
    if after:
        return m / (np.sqrt(k["nu_max"] + h.get("eps_root", 0)) + h.eps)
    return m / _root(t, k["nu_max"], h)


def _adamax(t, g, k, h):
    """Kingma & Ba 2015, Algorithm 2, eps as in Optax and PyTorch."""
    m = _first(k, g, h)
    k["v"] = np.maximum(h.b2 * k["v"], np.abs(g) + h.eps)
    return m / (1 - h.b1**t) / k["v"]


def _radam(t, g, k, h):
    """Liu et al. 2020, Algorithm 2, with a threshold other than its 4."""
    _first(k, g, h)
    _second(k, g, h)
    rho_inf = 2 / (1 - h.b2) - 1
    rho = rho_inf - 2 * t * h.b2**t / (1 - h.b2**t)
    m_hat = _m_hat(t, g, k, h)
    if rho < h.get("threshold", 5.0):
        return m_hat
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return r * m_hat / _root(t, k["v"], h)


def _adabelief(t, g, k, h):
    """Zhuang et al. 2020, Algorithm 2, its two epsilons being eps_root and eps."""
    m = _first(k, g, h)
    k["v"] = h.b2 * k["v"] + (1 - h.b2) * np.abs(g - m) ** 2 + h.eps_root
    return _m_hat(t, g, k, h) / (np.sqrt(k["v"] / (1 - h.b2**t)) + h.eps)


def _yogi(t, g, k, h):
    """Zaheer et al. 2018, Algorithm 2, with bias corrections and a start as in Optax."""
    if t == 1:
        k["m"], k["v"] = (k[x] + h.get("initial_accumulator_value", 1e-6) for x in ("m", "v"))
    square = np.abs(g) ** 2
    _first(k, g, h)
    k["v"] = k["v"] - (1 - h.b2) * np.sign(k["v"] - square) * square
    return _m_hat(t, g, k, h) / _root(t, k["v"], h)


def _adopt(t, g, k, h):
    """Taniguchi et al. 2024, Algorithm 2; the first step only initialises v."""
    k["x"] = np.zeros_like(g)
    if t == 1:
        k["v"] = np.abs(g) ** 2
        return np.zeros_like(g)
    x = g / np.maximum(np.sqrt(k["v"]), h.eps)
    if h.get("use_clipping", True):
        bound, size = _at(h.get("clip_value_fn", lambda count: count**0.25), t - 1), np.abs(x)
        x = np.where(size > bound, x / np.where(size > 0, size, 1) * bound, x)
    k["x"] = x
    m = _first(k, x, h)
    _second(k, g, h)
    return h.b1 * m + (1 - h.b1) * x if h.get("nesterov") else m


def _ademamix(t, g, k, h):
    """Pagliardini, Ablin & Grangier 2024, Algorithm 1."""
    b3, mix = (_at(h[name], t - 1) for name in ("b3", "alpha"))
    _first(k, g, h)
    v = _second(k, g, h)
    k["mu_slow"] = b3 * k.get("mu_slow", 0.0) + (1 - b3) * g
    return (_m_hat(t, g, k, h) + mix * k["mu_slow"]) / _root(t, v, h)


def _simplified_ademamix(t, g, k, h):
    """Morwani et al. 2025, section 4, as Optax has it."""
    k["m"] = h.b1 * k["m"] + g
    return (k["m"] + _at(h["alpha"], t - 1) * g) / _root(t, _second(k, g, h), h)


def _laprop(t, g, k, h):
    """Ziyin, Wang & Ueda 2020, Algorithm 1."""
    k["x"] = g / (np.sqrt(_second(k, g, h) / (1 - h.b2**t)) + h.eps)
    return _first(k, k["x"], h) / (1 - h.b1**t)


def _adam_atan2(t, g, k, h):
    """Everett et al. 2024, Algorithm 2, with factors; a complex m keeps its phase."""
    m_hat, v_hat = _first(k, g, h) / (1 - h.b1**t), _second(k, g, h) / (1 - h.b2**t)
    size = np.abs(m_hat)
    return h.a * np.arctan2(size, h.b * np.sqrt(v_hat)) * m_hat / np.where(size > 0, size, 1.0)


RULES = {
    "adam": _adam,
    "nadam": _nadam,
    "amsgrad": _amsgrad,
    "adamax": _adamax,
    "radam": _radam,
    "adabelief": _adabelief,
    "yogi": _yogi,
    "lamb": _adam,  # but for what `family` makes of the direction
    "adopt": _adopt,
    "ademamix": _ademamix,
    "simplified_ademamix": _simplified_ademamix,
    "laprop": _laprop,
    "adam_atan2": _adam_atan2,
}


class _Hyper(dict):
    """A dict whose entries are attributes too, so that rules read like formulas."""

    __getattr__ = dict.__getitem__

    def __or__(self, other):
        return _Hyper(dict.__or__(self, other))


def _cautious(d, x):
    agrees = np.real(d * np.conj(x)) > 0
    return d * agrees / max(agrees.mean(), 1e-3)


def _over_leaf(sum_or_mean, x, stacked):
    """Over all axes but the first `stacked`, which stay."""
    return sum_or_mean(x, axis=tuple(range(stacked, np.ndim(x))), keepdims=True)


def _norm(x, stacked):
    return np.sqrt(_over_leaf(np.sum, np.abs(x) ** 2, stacked))


def _clipped(rate, threshold, name, t, x, k, h, stacked):
    """Wortsman et al. 2023, Algorithm 2: the rate of a step, less where the gradient is large."""
    if name == "adamax":
        size = k["v"]
    elif name in NORMALIZED:
        x, size = k["x"], 1.0
    elif h.get("eps_placement") == "before_correction":
        size = np.maximum(np.sqrt(k["v"]), h.eps) / np.sqrt(1 - h.b2**t)
    else:
        size = np.maximum(np.sqrt(k["v"] / (1 - h.b2**t)), h.get("eps", 0.0))
    ratio = np.abs(x) / np.where(size > 0, size, 1.0)
    rms = np.sqrt(_over_leaf(np.mean, ratio**2, stacked))
    return rate / np.maximum(1.0, rms / threshold)


def _on_sphere(theta, d, alpha, stacked):
    """Wen et al. 2026: R n(theta - alpha R n(d)) - theta; theta stays where a norm is 0."""
    size, length = _norm(theta, stacked), _norm(d, stacked)
    moved = theta - alpha * size * d / np.where(length > 0, length, 1.0)
    new_size = _norm(moved, stacked)
    moved = size * moved / np.where(new_size > 0, new_size, 1.0)
    return np.where((size > 0) & (length > 0), moved - theta, 0.0)


NORMALIZED = {"adopt", "laprop"}  # what they average was divided before: `k["x"]`


def family(
    name,
    grads,
    params=0.0,
    *,
    learning_rate=1e-3,
    weight_decay=0.0,
    independent_weight_decay=False,
    l2=0.0,
    cautious=False,
    cautious_weight_decay=False,
    threshold_of_rms=None,
    hyperball=False,
    stacked=0,
    train=True,
    **hyper,
):
    """(updates, parameters, kept) after every step, one array each; `kept` is a dict of them.

    `name` is that of `RULES`. One leaf; with `train=False` the parameters stay where they are.
    """
    grads = np.asarray(grads)
    kind = np.complex128 if np.iscomplexobj(grads) else np.float64
    grads = grads.astype(kind)
    theta = np.zeros(grads.shape[1:], kind) + params
    k, h, rows = {"m": np.zeros_like(theta), "v": np.zeros(theta.shape)}, _Hyper(hyper), []
    for t, g in enumerate(grads, start=1):
        alpha, decay, coupled = (_at(x, t - 1) for x in (learning_rate, weight_decay, l2))
        x = g + coupled * theta
        d = RULES[name](t, x, k, h)
        d = _cautious(d, x) if cautious else d
        if threshold_of_rms is not None:
            limit = _at(threshold_of_rms, t - 1)
            alpha = _clipped(alpha, limit, name, t, x, k, h, stacked)
        shrinks = np.real(d * np.conj(theta)) >= 0  # Chen et al. 2025, Algorithm 1
        decaying = theta * shrinks if cautious_weight_decay else theta
        if hyperball:
            u = _on_sphere(theta, d, alpha, stacked)
        elif name == "lamb":  # You et al. 2020, Algorithm 2
            d = d + decay * decaying
            sizes = np.linalg.norm(theta), np.linalg.norm(d)
            u = -alpha * (sizes[0] / sizes[1] if min(sizes) > 0 else 1.0) * d
        else:
            u = -alpha * d - (1 if independent_weight_decay else alpha) * decay * decaying
        theta = theta + u if train else theta
        rows.append((u, theta, dict(k)))
    updates, thetas, kept = zip(*rows, strict=True)
    return (
        np.stack(updates),
        np.stack(thetas),
        {key: np.stack([np.asarray(row[key]) for row in kept]) for key in kept[-1]},
    )
