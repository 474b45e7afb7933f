"""Runs of members and modifiers that other packages have for PyTorch, recorded in `tests/data/`.

    python tests/record_family.py

needs torch, adam-atan2-pytorch, torch-optimi and heavyball, in an environment of its own; the tests
need the recording alone. heavyball computes in float32, the others in float64.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

RECORDING = Path(__file__).parent / "data" / "torch_family.npz"
STEPS = 60
SHAPES = {"w": (5, 7), "b": (3,)}


class Case(NamedTuple):
    """Their package and optimizer, and the numbers of both in our names."""

    package: str
    optimizer: str
    numbers: dict
    theirs_only: dict
    dtype: str = "float64"


RATE = {"learning_rate": 7e-3}
CASES = {
    "atan2": Case(
        "adam_atan2_pytorch",
        "AdamAtan2",
        RATE | {"b1": 0.87, "b2": 0.963, "a": 0.9, "b": 1.3, "weight_decay": 0.37},
        {"cautious_wd": True},
    ),
    "clipped": Case(
        "optimi",
        "StableAdamW",
        RATE | {"b1": 0.83, "b2": 0.94, "eps": 3e-4, "weight_decay": 0.37},
        {"foreach": False, "triton": False},
    ),
    "laprop": Case(
        "heavyball",
        "LaProp",
        RATE | {"b1": 0.89, "b2": 0.973, "eps": 1e-15, "weight_decay": 0.37},
        {"multi_tensor": False, "compile_step": False},
        "float32",
    ),
}


def data(seed=20_261_129):
    """Gradients, one row a step, of sizes that jump; and parameters: float32 values."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(1.5 * rng.standard_normal(STEPS))
    draw = rng.standard_normal
    grads = {k: (sizes.reshape(-1, *[1] * len(s)) * draw((STEPS, *s))) for k, s in SHAPES.items()}
    params = {name: draw(shape) for name, shape in SHAPES.items()}
    return tuple({k: x.astype(np.float32) for k, x in tree.items()} for tree in (grads, params))


def run_torch(case, grads, start):
    """The parameters after each step, a dict of leaves."""
    import importlib

    import torch

    given = dict(case.numbers)
    settings = {"lr": given.pop("learning_rate"), "betas": (given.pop("b1"), given.pop("b2"))}
    params = {k: torch.tensor(p, dtype=getattr(torch, case.dtype)) for k, p in start.items()}
    leaves = [torch.nn.Parameter(p) for p in params.values()]
    made = getattr(importlib.import_module(case.package), case.optimizer)
    optimizer = made(leaves, **settings, **given, **case.theirs_only)
    after = {name: [] for name in params}
    for t in range(STEPS):
        for name, leaf in zip(params, leaves, strict=True):
            leaf.grad = torch.tensor(grads[name][t], dtype=leaf.dtype)
        optimizer.step()
        for name, leaf in zip(params, leaves, strict=True):
            after[name].append(leaf.detach().numpy().copy())
    return {name: np.stack(rows) for name, rows in after.items()}


def record():
    from importlib.metadata import version

    grads, params = data()
    arrays = {f"grads/{k}": x for k, x in grads.items()} | {
        f"params/{k}": params[k] for k in params
    }
    for name, case in CASES.items():
        arrays |= {f"{name}/{k}": x for k, x in run_torch(case, grads, params).items()}
    packages = "torch", "adam-atan2-pytorch", "torch-optimi", "heavyball"
    about = {name: version(name) for name in packages}
    np.savez_compressed(RECORDING, about=json.dumps(about), **arrays)
    print(f"{RECORDING.name}: {RECORDING.stat().st_size / 1e3:.0f} kB, {about}")


if __name__ == "__main__":
    record()
