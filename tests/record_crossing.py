"""A run of torch on record, to be taken over in the middle: makes `tests/data/torch_crossing.npz`.

    python tests/record_crossing.py   # write the recording (needs torch)

`test_crossing_*.py` use all of this module, what needs torch only where there is torch.

What is recorded. Of 400 steps the `state_dict()` after the 200th and the last, as torch returns
them, and the parameters after the 200th and some later ones. As in `record_torch.py`, the float32
run puts its parameters back to their initial values after each step, so that "after - before" is
torch's own float32 update to about 1e-6 of a step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from quick import quick_jit
from record_torch import read, torch_default

import functional_adam as fa

RECORDING = Path(__file__).parent / "data" / "torch_crossing.npz"
HALF, STEPS = 200, 400
ROWS = np.array([*range(HALF, HALF + 12), *range(HALF + 19, STEPS, 15), STEPS - 1])
DTYPES = ("float32", "float64")
LEAVES = {"bias": ((3,), 31.0), "kernel": ((5, 3), 0.013), "scale": ((), 1.3)}
UNUSED = {"unused": ((2,), 0.0)}  # never has a gradient: torch has no state of it
NAMES = {"bias": "linear.bias", "kernel": "linear.weight", "scale": "scale"}


class Case(NamedTuple):
    """Torch's optimizer: its class, what all groups share, and each group's leaves and settings."""

    theirs: str
    common: dict
    groups: list  # of (leaves, settings)
    named: bool


DECAYED = {"lr": 7e-3, "betas": [0.91, 0.9953], "eps": 3e-7, "weight_decay": 0.037}
OTHERS = {"lr": 3e-3, "betas": [0.83, 0.97], "eps": 1e-6, "weight_decay": 0.011}
COUPLED = {"lr": 6e-3, "betas": [0.92, 0.977], "eps": 5e-7, "weight_decay": 0.031}
CASES = {
    "adamw, two groups": Case(
        "AdamW", {}, [[["kernel"], DECAYED], [["scale", "bias"], OTHERS]], True
    ),
    "amsgrad, l2": Case(
        "Adam",
        {"amsgrad": True},
        [[["bias", "kernel"], COUPLED], [["scale", "unused"], COUPLED]],
        False,
    ),
}


def data(seed=20_251_123):
    """Gradients (one row a step) and initial parameters: float32 values, for both dtypes."""
    rng = np.random.default_rng(seed)
    grads = {k: s * rng.standard_normal((STEPS, *shape)) for k, (shape, s) in LEAVES.items()}
    fading = 1 / (1 + 0.02 * np.arange(STEPS))  # so that a maximum shows
    grads["scale"] *= fading
    shapes = {k: shape for k, (shape, _) in (LEAVES | UNUSED).items()}
    params = {k: np.asarray(0.02 * rng.standard_normal(shape)) for k, shape in shapes.items()}
    return tuple({k: x.astype(np.float32) for k, x in tree.items()} for tree in (grads, params))


def turned(path, x):
    """Kernels are (in, out) here and (out, in) in torch."""
    return x.T if "kernel" in path else x


# ---- Ours ----


def ours(name):
    """The same optimizer of this package."""
    case = CASES[name]

    def numbers(settings, decay):
        b1, b2 = settings["betas"]
        rate = {"learning_rate": settings["lr"], decay: settings["weight_decay"]}
        return {"b1": b1, "b2": b2, "eps": settings["eps"]} | rate

    if name.startswith("amsgrad"):
        return fa.amsgrad(**numbers(COUPLED, "l2"), maximum="before_correction")
    parts = {str(i): fa.adamw(**numbers(s, "weight_decay")) for i, (_, s) in enumerate(case.groups)}
    labels = {leaf: str(i) for i, (leaves, _) in enumerate(case.groups) for leaf in leaves}
    return optax.partition(parts, labels)


def leaves_of(name):
    return [leaf for leaves, _ in CASES[name].groups for leaf in leaves]


def is_adam(x):
    return isinstance(x, fa.AdamState)


def taken_over(name, state_dict, start):
    """Torch's state as that of `ours(name)`."""
    given = {"transform": turned} | ({"names": NAMES} if CASES[name].named else {})
    state = ours(name).init(start)
    return jax.tree.map(lambda s: fa.from_torch(state_dict, s.mu, **given), state, is_leaf=is_adam)


def handed_back(name, state, state_dict):
    """A state of `ours(name)` in the place of that in `state_dict`."""
    given = {"transform": turned} | ({"names": NAMES} if CASES[name].named else {})
    for adam_state in jax.tree.leaves(state, is_leaf=is_adam):
        state_dict = fa.to_torch(adam_state, state_dict, **given)
    return state_dict


def run_ours(name, dtype, state, grads, params, start, tx=None):
    """(updates, parameters after each step), the last state; float64 needs 64-bit mode."""
    tx = ours(name) if tx is None else tx
    cast = lambda tree: {k: jnp.asarray(tree[k], dtype) for k in leaves_of(name)}  # noqa: E731
    params, start = cast(params), cast(start)
    grads = {k: jnp.asarray(g, dtype) for k, g in grads.items()}
    missing = dict.fromkeys(set(params) - set(grads))

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g | missing, state, params)
        after = fa.apply_updates(params, updates)
        return (start if dtype == "float32" else after, state), (updates, after)

    scan = quick_jit(lambda carry, grads: jax.lax.scan(step, carry, grads))
    (_, state), rows = scan((params, state), grads)
    return *jax.tree.map(np.asarray, rows), state


# ---- Torch's ----


class Torch:
    """Torch's optimizer at work on its own parameters."""

    def __init__(self, name, dtype, start):
        import torch

        self.dtype, case = dtype, CASES[name]
        self.start = {
            k: torch.tensor(turned(k, start[k]), dtype=getattr(torch, dtype))
            for k in leaves_of(name)
        }
        self.params = {k: p.clone() for k, p in self.start.items()}
        groups = [
            {"params": [(NAMES[k], self.params[k]) if case.named else self.params[k] for k in keys]}
            | settings
            for keys, settings in case.groups
        ]
        self.optimizer = getattr(torch.optim, case.theirs)(groups, foreach=False, **case.common)

    def run(self, grads):
        """The parameters after each step."""
        import torch

        rows = {k: [] for k in self.params}
        with torch_default(self.dtype):
            for t in range(len(grads["bias"])):
                for k, g in grads.items():
                    p = self.params[k]
                    p.grad = torch.tensor(turned(k, g[t]), dtype=p.dtype)
                self.optimizer.step()
                for k, p in self.params.items():
                    rows[k].append(turned(k, p.numpy().copy()))
                    if self.dtype == "float32":
                        p.copy_(self.start[k])
        return {k: np.stack(r) for k, r in rows.items()}


# ---- The recording ----


def plain(state_dict):
    """With NumPy arrays for tensors."""
    numpy = {i: {k: x.numpy().copy() for k, x in s.items()} for i, s in state_dict["state"].items()}
    return {"state": numpy, "param_groups": state_dict["param_groups"]}


def record():
    import torch

    grads, start = data()
    arrays = {f"grads/{k}": g for k, g in grads.items()}
    arrays |= {f"start/{k}": p for k, p in start.items()}
    groups = {}
    for name in CASES:
        for dtype in DTYPES:
            run = Torch(name, dtype, start)
            rows = []
            for half in (slice(0, HALF), slice(HALF, STEPS)):
                rows.append(run.run({k: g[half] for k, g in grads.items()}))
                state_dict = plain(run.optimizer.state_dict())
                for i, held in state_dict["state"].items():
                    key = f"{name}/{dtype}/{half.stop}/{i}"
                    arrays |= {f"{key}/{k}": x for k, x in held.items()}
            groups[name] = state_dict["param_groups"]
            kept = {k: np.concatenate([rows[0][k], rows[1][k]]) for k in rows[0]}
            arrays |= {f"{name}/{dtype}/before/{k}": x[HALF - 1] for k, x in kept.items()}
            arrays |= {f"{name}/{dtype}/params/{k}": x[ROWS] for k, x in kept.items()}
    cases = {name: case._asdict() for name, case in CASES.items()}
    about = {"torch": torch.__version__, "cases": cases, "groups": groups}
    np.savez_compressed(RECORDING, about=json.dumps(about), **arrays)
    print(f"{RECORDING.name}: {RECORDING.stat().st_size / 1e3:.0f} kB, torch {torch.__version__}")


def load():
    """What `record` wrote; the state dicts by name, dtype and step."""
    tree, about = read(RECORDING)
    for name, groups in about["groups"].items():
        for run in tree[name].values():
            for steps in (HALF, STEPS):
                state = {int(i): held for i, held in run.pop(str(steps)).items()}
                run[steps] = {"state": state, "param_groups": groups}
    return tree | {"cases": {name: Case(**case) for name, case in about["cases"].items()}}


if __name__ == "__main__":
    record()
