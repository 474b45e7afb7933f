"""The measurements of `python -m functional_adam`: errors, compilation, donation, bytes, times.

Everything runs on JAX's default device. Optax and PyTorch are measured too if they are installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._apply import apply_updates
from functional_adam._optimizers.adam import adam, adamw
from functional_adam._types import GradientTransformation, PyTree
from functional_adam._watch.report import memory_report

RATE = 3e-4
RATES = ((0.9, 0.999), (0.9, 0.9999))
FORMATS = ("full", "bfloat16", "int8")
# Bytes that a step must move per float32 parameter: gradient and parameter are read, the parameter
# is written, and the moments are read and written.
MOVED = {"full": 12 + 16, "bfloat16": 12 + 8, "int8": 12 + 4}


# Largest error of updates by moment format: rms error over rms update, in 40 steps.
COARSENESS = {"full": 1e-6, "bfloat16": 0.01, "int8": 0.04}


class Precision(NamedTuple):
    """A dtype of gradients, and the largest error of its updates."""

    dtype: str
    bits: int  # of its significand
    steps: int
    size: int
    rms: float  # in units of 2**-bits times the step
    worst: float


# A 16-bit update has at least its own rounding error: half a unit, for a step that may be up to
# twice as long as the unit's. float64 is compared with decimal arithmetic, so with few numbers.
PRECISIONS = (
    Precision("float32", 24, 10_000, 1024, 4.0, 40.0),
    Precision("bfloat16", 8, 1_000, 1024, 1.0, 1.0),
    Precision("float16", 11, 1_000, 1024, 1.0, 1.0),
    Precision("float64", 53, 1_000, 16, 4.0, 40.0),
)


class Error(NamedTuple):
    """The distance of updates from Algorithm 1: rms over coordinates at the worst step; maximum."""

    library: str
    dtype: str
    b1: float
    b2: float
    rms: float
    worst: float


# ---- Errors ----


def gradients(of: Precision) -> np.ndarray[Any, Any]:
    """Gradients from N(0, 1), rounded to the dtype."""
    drawn = np.random.default_rng(0).standard_normal((of.steps, of.size))
    return drawn.astype(np.float32).astype(jnp.dtype(of.dtype))


def algorithm_1(grads: np.ndarray[Any, Any], b1: float, b2: float) -> np.ndarray[Any, Any]:
    """The updates by the paper's formulas, in float64."""
    m = v = np.zeros(grads.shape[1])
    updates = np.empty(grads.shape)
    for t, g in enumerate(grads.astype(np.float64), 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        updates[t - 1] = -RATE * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
    return updates


def algorithm_1_in_decimal(
    grads: np.ndarray[Any, Any], b1: float, b2: float
) -> np.ndarray[Any, Any]:
    """The same to 40 digits, rounded to float64, because not every platform has 80-bit floats."""
    with localcontext() as context:
        context.prec = 40
        d1, d2, rate, eps = (Decimal(x) for x in (b1, b2, RATE, 1e-8))
        m = v = np.full(grads.shape[1], Decimal(0))
        p1 = p2 = Decimal(1)
        updates = []
        for row in grads:
            g = np.array([Decimal(float(x)) for x in row])
            m, v = d1 * m + (1 - d1) * g, d2 * v + (1 - d2) * g * g
            p1, p2 = p1 * d1, p2 * d2
            root = np.array([(x / (1 - p2)).sqrt() for x in v])
            updates.append(-rate * (m / (1 - p1)) / (root + eps))
        return np.array(updates).astype(np.float64)


def scanned(tx: GradientTransformation, grads: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The updates of an Optax-style transformation."""

    def step(state: PyTree, g: jax.Array) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(g, state)
        return state, updates

    run = jax.jit(lambda grads: jax.lax.scan(step, tx.init(jnp.zeros_like(grads[0])), grads)[1])
    return np.asarray(run(jnp.asarray(grads)))


def in_torch(grads: np.ndarray[Any, Any], b1: float, b2: float) -> np.ndarray[Any, Any]:
    """PyTorch's updates; parameters are reset to 0, so that updates are read without rounding."""
    torch: Any = importlib.import_module("torch")
    dtype = getattr(torch, grads.dtype.name)
    p = torch.zeros(grads.shape[1], dtype=dtype)
    optimizer = torch.optim.Adam([p], lr=RATE, betas=(b1, b2), eps=1e-8)
    updates = np.empty(grads.shape)
    for t, g in enumerate(grads.astype(np.float64)):
        p.grad = torch.from_numpy(g).to(dtype)
        p.zero_()
        optimizer.step()
        updates[t] = p.double().numpy()
    return updates


def libraries() -> dict[str, Callable[..., np.ndarray[Any, Any]]]:
    """The libraries whose updates are measured: this one, and the others that are installed."""
    found: dict[str, Any] = {"functional_adam": lambda g, b1, b2: scanned(adam(RATE, b1, b2), g)}
    if importlib.util.find_spec("optax"):
        optax: Any = importlib.import_module("optax")
        found["optax"] = lambda g, b1, b2: scanned(optax.adam(RATE, b1, b2), g)
    if importlib.util.find_spec("torch"):
        found["torch"] = in_torch
    return found


def errors(of: Precision) -> Iterator[Error]:
    """The errors of every library, for both pairs of rates."""
    grads = gradients(of)
    for b1, b2 in RATES:
        truth = (algorithm_1_in_decimal if of.bits == 53 else algorithm_1)(grads, b1, b2)
        unit = 2.0**-of.bits * np.maximum(RATE, np.abs(truth))
        for name, updates_of in libraries().items():
            with wide(of.bits == 53), np.errstate(invalid="ignore"):
                off = np.abs(updates_of(grads, b1, b2).astype(np.float64) - truth) / unit
            rms = float(np.sqrt((off**2).mean(axis=1)).max())
            yield Error(name, of.dtype, b1, b2, rms, float(off.max()))


@contextlib.contextmanager
def wide(on: bool) -> Generator[None]:
    """Turn 64-bit mode on for a while."""
    before = bool(jax.config.read("jax_enable_x64"))
    jax.config.update("jax_enable_x64", on or before)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def coarseness(moments: Any) -> tuple[float, bool]:
    """A format's error, and whether a NaN stays NaN, which fast math may break."""
    grads = gradients(PRECISIONS[0]._replace(steps=40, size=4096))  # too large for a small leaf
    truth = algorithm_1(grads, *RATES[0])
    off = scanned(adam(RATE, *RATES[0], moments=moments), grads) - truth
    grads[10, 7] = np.nan
    stays = np.isnan(scanned(adam(RATE, *RATES[0], moments=moments), grads)[10:, 7]).all()
    return float(np.sqrt((off**2).mean() / (truth**2).mean())), bool(stays)


# ---- Compilation, donation, bytes ----


def training_step(tx: Any) -> Callable[..., tuple[PyTree, PyTree]]:
    """One jitted step with donated parameters and state."""

    def step(params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def compilations_and_donation(moments: Any) -> tuple[int, float]:
    """How many programs ten steps with a schedule compile, and the share of bytes reused."""
    tx = adamw(lambda count: 1e-3 / (1 + count), moments=moments)
    params = {"w": jnp.ones((64, 256)), "b": jnp.ones(256)}
    state, step = tx.init(params), training_step(tx)
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    donated = jax.tree.leaves((params, state))
    params, state = step(params, state, grads)
    reused = sum(x.nbytes for x in donated if x.is_deleted()) / sum(x.nbytes for x in donated)
    for _ in range(9):
        params, state = step(params, state, grads)
    return int(getattr(step, "_cache_size")()), reused  # noqa: B009 (no public name for it)


def state_bytes(moments: Any) -> tuple[float, float]:
    """Bytes of state per parameter, measured on the arrays and from `memory_report`."""
    params, tx = jnp.zeros((1024, 1024)), adam(moments=moments)
    found = sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))
    return found / params.size, memory_report(tx, params).state_bytes / params.size


# ---- Time ----


class Timing(NamedTuple):
    """A format's time relative to Optax's step, and its bytes per second relative to a copy's."""

    moments: str
    to_optax: float | None
    of_copy: float


def timings(size: int = 2**22, seconds: float = 6.0) -> Iterator[Timing]:
    """Medians over interleaved rounds, all in one process."""
    grads = jax.random.normal(jax.random.key(0), (size,))
    acts = {"copy": _copying(4 * size)}  # as much memory as a step takes
    # Of two equal programs, the one that allocated its memory last is about 4 % faster. So Optax's
    # step is measured both before and after the others.
    optax = importlib.util.find_spec("optax") and importlib.import_module("optax").adam(RATE)
    if optax:
        acts["optax before"] = _stepping(optax, grads)
    acts |= {name: _stepping(adam(RATE, moments=name), grads) for name in FORMATS}
    if optax:
        acts["optax after"] = _stepping(optax, grads)
    taken: dict[str, list[float]] = {name: [] for name in acts}
    end, order = time.perf_counter() + seconds, list(acts)
    while time.perf_counter() < end or len(taken["copy"]) < 5:
        order.reverse()  # the previous program affects the caches
        for name in order:
            start = time.perf_counter()
            acts[name]()
            taken[name].append(time.perf_counter() - start)
    copied = statistics.median(32 * size / t for t in taken["copy"])
    for name in FORMATS:
        ratio = None
        if optax:
            both = zip(taken["optax before"], taken["optax after"], strict=True)
            ratios = (2 * a / sum(b) for a, b in zip(taken[name], both, strict=True))
            ratio = statistics.median(ratios)
        moved = MOVED[name] * size / statistics.median(taken[name])
        yield Timing(name, ratio, moved / copied)


def _stepping(tx: Any, grads: jax.Array) -> Callable[[], None]:
    params = jnp.zeros_like(grads)
    kept, step = [params, tx.init(params)], training_step(tx)

    def act() -> None:
        kept[:] = jax.block_until_ready(step(*kept, grads))

    act()
    return act


def _copying(size: int) -> Callable[[], None]:
    # In place: on a CPU a copy to another array would read its target too before writing.
    kept = [jnp.ones(size)]
    copy = jax.jit(lambda x: x * 1.5, donate_argnums=0)

    def act() -> None:
        kept[0] = jax.block_until_ready(copy(kept[0]))

    act()
    return act
