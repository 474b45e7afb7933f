"""`torch.optim.Adam` and `AdamW` on record: makes `tests/data/torch_adam.npz` and compares with it.

    python tests/record_torch.py            # write the recording (needs torch)
    python tests/record_torch.py --check    # compare torch as installed, the recording and ours

`test_peers.py` uses the second half of this module and needs no torch.

What is recorded. In float64 an ordinary run: the parameters after each of 200 steps. In float32
such a run would show little: parameters around 1 are stored to 2**-24 while a step is 3e-3, so
their differences hold torch's update only to 1e-5 of a step. Adam's update depends on the
gradients and (through the decay) on the current parameters, not on former ones; so here the
parameters, a few steps in size, are put back to their initial values after each step, and
"after - before" is torch's own float32 update to about 1e-6 of a step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np

import functional_adam as fa

RECORDING = Path(__file__).parent / "data" / "torch_adam.npz"
STEPS = 200
LEAVES = {  # shape, scale of the gradients, share of them that is zero
    "scalar": ((), 1.3, 0.0),
    "bias": ((5,), 31.0, 0.0),
    "matrix": ((3, 7), 0.013, 0.0),
    "kernel": ((2, 1, 4), 1.7e-5, 0.0),  # not far above eps
    "sparse": ((4, 3), 0.9, 0.85),
}
HYPERPARAMETERS = {
    "adam": {"learning_rate": 3e-3, "b1": 0.83, "b2": 0.97, "eps": 1e-6},
    "adamw": {"learning_rate": 7e-3, "b1": 0.91, "b2": 0.9973, "eps": 3e-7, "weight_decay": 0.037},
}
DTYPES = ("float32", "float64")
IMPLEMENTATIONS = {  # of torch; the first is recorded
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def data(seed=20_240_229):
    """Gradients (one row a step) and initial parameters: float32 values, for both dtypes."""
    rng = np.random.default_rng(seed)
    grads, params = {}, {}
    for name, (shape, scale, zeros) in LEAVES.items():
        g = scale * rng.standard_normal((STEPS, *shape))
        g[rng.random(g.shape) < zeros] = 0.0
        if zeros:
            g[:, 0] = 0.0  # and some coordinates never get a gradient
        grads[name] = g.astype(np.float32)
        params[name] = np.asarray(0.02 * rng.standard_normal(shape), np.float32)
    return grads, params


def run_torch(kind, dtype, hyperparameters, grads, start, implementation="for-loop"):
    """{"params": after each step, "mu": at the end, "nu": at the end}, each a dict of leaves."""
    import torch

    hyper = dict(hyperparameters)
    params = {name: torch.tensor(p, dtype=getattr(torch, dtype)) for name, p in start.items()}
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
        list(params.values()),
        lr=hyper["learning_rate"],
        betas=(hyper["b1"], hyper["b2"]),
        eps=hyper["eps"],
        weight_decay=hyper.get("weight_decay", 0.0),
        **IMPLEMENTATIONS[implementation],
    )
    after = {name: [] for name in params}
    for t in range(STEPS):
        for name, p in params.items():
            p.grad = torch.tensor(grads[name][t], dtype=p.dtype)
        optimizer.step()
        for name, p in params.items():
            after[name].append(p.numpy().copy())
            if dtype == "float32":
                p.copy_(torch.as_tensor(start[name]))
    states = {name: optimizer.state[p] for name, p in params.items()}
    return {
        "params": {name: np.stack(rows) for name, rows in after.items()},
        "mu": {name: s["exp_avg"].numpy() for name, s in states.items()},
        "nu": {name: s["exp_avg_sq"].numpy() for name, s in states.items()},
    }


def record():
    import torch

    grads, params = data()
    runs = {
        kind: {dtype: run_torch(kind, dtype, hyper, grads, params) for dtype in DTYPES}
        for kind, hyper in HYPERPARAMETERS.items()
    }
    about = {"torch": torch.__version__, "hyperparameters": HYPERPARAMETERS}
    arrays = _flat({"grads": grads, "params": params, "runs": runs})
    RECORDING.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDING, about=json.dumps(about), **arrays)
    print(f"{RECORDING.name}: {RECORDING.stat().st_size / 1e3:.0f} kB, torch {torch.__version__}")


def load():
    """What `record` wrote: {"about", "grads", "params", "runs": {kind: {dtype: run_torch(…)}}}."""
    tree = {}
    with np.load(RECORDING) as file:
        for key in file.files:
            *path, last = key.split("/")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = file[key]
    return tree | {"about": json.loads(str(tree["about"]))}


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flat(node, f"{prefix}/{key}" if prefix else key) for key, node in tree.items())
    return {path: leaf for part in parts for path, leaf in part.items()}


# ---- Comparing: no torch from here to `check`. float64 needs 64-bit mode. ----


def run_ours(kind, dtype, hyperparameters, grads, start):
    """As `run_torch`, and the "updates" of every step."""
    tx = getattr(fa, kind)(**hyperparameters)
    grads, start = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (grads, start))

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        after = fa.apply_updates(params, updates)
        return (start if dtype == "float32" else after, state), (updates, after)

    scan = jax.jit(lambda carry, grads: jax.lax.scan(step, carry, grads))
    (_, state), (updates, after) = jax.tree.map(np.asarray, scan((start, tx.init(start)), grads))
    return {"params": after, "updates": updates, "mu": state.mu, "nu": state.nu}


def tolerances(dtype, hyperparameters):
    """The largest `differences` allowed.

    Torch multiplies its moments by decay rates that float32 rounds, by up to 2**-25; over the
    1 / (1 - b) steps that a moment remembers this grows to 2**-25 / (1 - b). Four times that
    leaves room for its other roundings, which are larger but not all of one sign.
    """
    if dtype == "float64":
        return {"step": 1e-12, "mu": 1e-12, "nu": 1e-12}
    drift = {b: 2.0**-23 / (1 - hyperparameters[b]) for b in ("b1", "b2")}
    return {"step": 1e-5, "mu": drift["b1"], "nu": drift["b2"]}


def differences(ours, theirs, dtype, learning_rate, start):
    """The worst over leaves and steps, each in the unit that matters to it.

    step: of the update (float64: the parameters, hence the sum of all updates so far), relative
    to the learning rate, or the update where that is larger. mu: relative to sqrt(nu), as the
    update sees it. nu: relative.
    """
    worst = dict.fromkeys(("step", "mu", "nu"), 0.0)
    for name, p in start.items():
        wide = {key: np.asarray(theirs[key][name], np.float64) for key in ("params", "mu", "nu")}
        found = ours["params"][name] - p.astype(np.float64)
        if dtype == "float32" and "updates" in ours:
            found = np.asarray(ours["updates"][name], np.float64)
        wanted = wide["params"] - p
        size = np.maximum(learning_rate, np.abs(wanted) if dtype == "float32" else 0)
        nu = np.maximum(wide["nu"], np.finfo(np.float64).tiny)  # so that 0 against 0 is 0
        relative = {
            "step": (found - wanted) / size,
            "mu": (ours["mu"][name] - wide["mu"]) / np.sqrt(nu),
            "nu": (ours["nu"][name] - wide["nu"]) / nu,
        }
        for key, values in relative.items():
            worst[key] = float(np.maximum(worst[key], np.abs(values).max()))  # keeps a NaN
    return worst


def check():
    """Prints every comparison; True if all are within tolerance."""
    import torch

    jax.config.update("jax_enable_x64", True)
    recorded = load()
    grads, start = recorded["grads"], recorded["params"]
    print(f"torch {torch.__version__}, recorded with {recorded['about']['torch']}; ", end="")
    print(f"functional_adam {fa.__version__}, jax {jax.__version__}. Worst differences (allowed):")
    print("\n| optimizer | dtype | compared | step | mu | nu | |\n|---|---|---|---|---|---|---|")
    good = True
    for kind, hyper in recorded["about"]["hyperparameters"].items():
        for dtype in DTYPES:
            common = kind, dtype, hyper, grads, start
            torch_runs = {name: run_torch(*common, name) for name in IMPLEMENTATIONS}
            tape, ours = recorded["runs"][kind][dtype], run_ours(*common)
            pairs = {f"ours, torch {name}": (ours, run) for name, run in torch_runs.items()}
            pairs["ours, recording"] = ours, tape
            pairs["torch for-loop, recording"] = torch_runs["for-loop"], tape
            allowed = tolerances(dtype, hyper)
            for label, pair in pairs.items():
                worst = differences(*pair, dtype, hyper["learning_rate"], start)
                passed = all(worst[key] <= allowed[key] for key in worst)
                cells = " | ".join(f"{worst[key]:.1e} ({allowed[key]:.1e})" for key in worst)
                print(f"| {kind} | {dtype} | {label} | {cells} | {'' if passed else 'FAILED'} |")
                good &= passed
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of recording")
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        sys.exit("record_torch.py needs PyTorch (the CPU build will do): pip install torch")
    if not arguments.check:
        record()
    elif not check():
        sys.exit("torch and functional_adam differ by more than allowed (see FAILED above)")


if __name__ == "__main__":
    main()
