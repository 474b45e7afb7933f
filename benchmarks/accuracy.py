"""Error of the float32 update of functional_adam, Optax and (where installed) PyTorch.

    python benchmarks/accuracy.py > accuracy.md

Each runs 10,000 steps on the same float32 gradients of 1,024 coordinates; the truth is
`tests/reference.py`, Adam in float64. The unit is u = 2**-24 * learning_rate * max(1, |update| /
learning_rate), about a rounding of the step. "rms" is over coordinates, at the worst of all steps;
"max" is over both. Hyperparameters are Python floats. Parameters are held at 0, so that the
updates of PyTorch, which returns only parameters, are read without a further rounding. The exit
status is 1 where functional_adam is over its limit.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import functional_adam as fa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference

LEARNING_RATE = 3e-4
SIZE = 1024


class Case(NamedTuple):
    b1: float
    b2: float
    eps: float = 1e-8
    constant: bool = False

    def limits(self) -> tuple[float, float]:
        """(rms, max) in u, as docs/precision.md promises them and says why."""
        if self.constant:
            stall = 0.6 / (1 - self.b2)
            return stall, stall
        if self.b1 < 0.9:
            return max(4.0, 0.15 / (1 - self.b2) ** 0.5), 50.0
        return 4.0, 40.0


CASES = [
    Case(0.9, 0.999),
    Case(0.9, 0.9999),
    Case(0.83, 0.97, 1e-6),
    Case(0.0, 0.999),
    Case(0.0, 0.9999),
    Case(0.0, 0.97, 1e-6),
    Case(0.9, 0.999, constant=True),
    Case(0.9, 0.9999, constant=True),
]


def gradients(case: Case, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if case.constant:
        return np.repeat(rng.standard_normal((1, SIZE)).astype(np.float32), steps, axis=0)
    return rng.standard_normal((steps, SIZE)).astype(np.float32)


def jax_updates(library, case: Case, grads: np.ndarray) -> np.ndarray:
    tx = library.adam(LEARNING_RATE, case.b1, case.b2, case.eps)

    def step(state, g):
        updates, state = tx.update(g, state)
        return state, updates

    state = tx.init(jnp.zeros(SIZE))
    _, updates = jax.jit(lambda state, grads: jax.lax.scan(step, state, grads))(state, grads)
    return np.asarray(updates)


def torch_updates(case: Case, grads: np.ndarray) -> np.ndarray:
    import torch

    p = torch.zeros(SIZE)
    optimizer = torch.optim.Adam([p], lr=LEARNING_RATE, betas=(case.b1, case.b2), eps=case.eps)
    updates = np.empty_like(grads)
    for t, g in enumerate(torch.from_numpy(grads)):
        p.grad = g
        p.zero_()
        optimizer.step()
        updates[t] = p.numpy()
    return updates


def error(updates: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(rms over coordinates at the worst step, max over all), in u."""
    units = reference.units(updates, truth, LEARNING_RATE)
    return float(np.sqrt((units**2).mean(axis=1)).max()), float(units.max())


def implementations():
    found = {
        "functional_adam": lambda *args: jax_updates(fa, *args),
        "optax": lambda *args: jax_updates(optax, *args),
    }
    if importlib.util.find_spec("torch") is not None:
        found["torch"] = torch_updates
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    steps = parser.parse_args().steps
    runs = implementations()
    names = ["jax", *runs]
    print(f"{platform.machine()}, {', '.join(f'{name} {version(name)}' for name in names)}.")
    print(f"Worst rms / max error in u over {steps:,} steps of {SIZE:,} coordinates.\n")
    print(f"| gradients | b1 | b2 | eps | {' | '.join(runs)} | limit |")
    print("|---" * (len(runs) + 5) + "|")
    good = True
    for case in CASES:
        grads = gradients(case, steps)
        hyper = {"learning_rate": LEARNING_RATE, "b1": case.b1, "b2": case.b2, "eps": case.eps}
        truth = reference.adam(grads, **hyper).updates
        errors = {name: error(run(case, grads), truth) for name, run in runs.items()}
        # Written so that a NaN fails.
        pairs = zip(errors["functional_adam"], case.limits(), strict=True)
        good &= all(found <= limit for found, limit in pairs)
        cells = [f"{rms:,.1f} / {worst:,.0f}" for rms, worst in (*errors.values(), case.limits())]
        kind = "constant" if case.constant else "N(0, 1)"
        print(
            f"| {kind} | {case.b1} | {case.b2} | {case.eps:g} | {' | '.join(cells)} |", flush=True
        )
    if not good:
        sys.exit("functional_adam is over its limit")


if __name__ == "__main__":
    main()
