"""One gradient stream after another through 8-bit Adams: ours, torchao's, bitsandbytes'.

    python benchmarks/peers_8bit.py                   # those that are installed; ten minutes

Each runs Adam at learning rate 1 and the default decay rates on the same gradients, and is compared
with Adam in float64: rms of the difference over the rms of the true update, and the largest update,
which for Adam on these streams is near 1. torchao compiles its step and needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import functional_adam as fa

B1, B2, EPS = 0.9, 0.999, 1e-8


def streams(steps: int, size: int) -> dict[str, np.ndarray]:
    rng, t = np.random.default_rng(0), np.arange(steps)[:, None]
    normal = rng.standard_normal((steps, size))
    scale = np.exp(0.5 * rng.standard_normal(size))
    return {
        "constant": np.ones((steps, size)) * scale,
        "1 + 0.1 N": (1 + 0.1 * normal) * scale,
        "N": normal * scale,
        "every 55 steps": (t % 55 == 0) * scale,
        "2 % of the steps": np.where(rng.random((steps, size)) < 0.02, normal, 0) * scale,
        "heavy tails": rng.standard_t(2, size=(steps, size)),
        "4 decades within 32": normal * 10.0 ** (-4 * (np.arange(size) % 32) / 31),
        "10 decades": normal * 10 ** rng.uniform(-8, 2, size),
    }


def exact(grads: np.ndarray) -> np.ndarray:
    """The updates of Adam in float64."""
    m = v = np.zeros(grads.shape[1])
    out = []
    for t, g in enumerate(grads.astype(np.float64), 1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
        out.append(-(m / (1 - B1**t)) / (np.sqrt(v / (1 - B2**t)) + EPS))
    return np.array(out)


def of_ours(moments: str) -> Callable[[np.ndarray], np.ndarray]:
    def run(grads: np.ndarray) -> np.ndarray:
        tx = fa.adam(1.0, B1, B2, EPS, moments=moments)
        step = lambda state, g: tx.update(g, state)[::-1]  # noqa: E731
        first = tx.init(jnp.zeros(grads.shape[1]))
        return np.asarray(jax.jit(lambda g: jax.lax.scan(step, first, g)[1])(grads))

    return run


def of_torch(make: Callable[..., Any]) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def run(grads: np.ndarray) -> np.ndarray:
        parameter = torch.nn.Parameter(torch.zeros(grads.shape[1]))
        optimizer, out = make([parameter]), []
        for g in grads:
            parameter.data.zero_()
            parameter.grad = torch.from_numpy(g.copy())
            optimizer.step()
            out.append(parameter.detach().numpy().copy())
        return np.array(out)

    return run


def contestants() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    found = {f"ours, {name}": of_ours(name) for name in ("int8", "bfloat16")}
    if importlib.util.find_spec("torchao"):
        from torchao.optim import AdamW8bit

        found["torchao"] = of_torch(lambda p: AdamW8bit(p, 1.0, (B1, B2), EPS, weight_decay=0))
    if importlib.util.find_spec("bitsandbytes"):
        from bitsandbytes.optim import Adam8bit

        found["bitsandbytes"] = of_torch(lambda p: Adam8bit(p, 1.0, (B1, B2), EPS, min_8bit_size=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=8192, help="coordinates (default 8192)")
    options = parser.parse_args()
    runs = contestants()
    table = Table("stream", "float64: largest", *(f"{name}: error, largest" for name in runs))
    for name, grads in track(streams(options.steps, options.size).items(), transient=True):
        true = exact(grads.astype(np.float32))
        cells = []
        for run in runs.values():
            u = run(grads.astype(np.float32)).astype(np.float64)
            error = np.sqrt(((u - true) ** 2).mean() / (true**2).mean())
            cells.append(f"{error:.1%}, {abs(u).max():,.2f}")
        table.add_row(name, f"{abs(true).max():.2f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
