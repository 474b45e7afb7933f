"""`torch.optim`'s Adam family on record: makes `tests/data/torch_adam.npz`, compares with it.

    python tests/record_torch.py            # write the recording (needs torch)
    python tests/record_torch.py --check    # compare torch as installed, the recording and ours

`test_peers_torch.py` and `test_peers_optax.py` use the second half of this module; it needs no
torch.

What is recorded. Of 200 steps the parameters after each of the first twelve and after every ninth
from the twentieth on; and the states after the last. In float64 an ordinary run: whatever goes
wrong in a step that is not recorded is in all later ones. In float32 such a run would show little:
parameters around 1 are stored to 2**-24 while a step is 3e-3, so their differences hold torch's
update only to 1e-5 of a step. These updates depend on the gradients and (through the decay) on the
current parameters, not on former ones; so here the parameters, a few steps in size, are put back
to their initial values after each step, and "after - before" is torch's own float32 update to
about 1e-6 of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import functional_adam as fa

RECORDING = Path(__file__).parent / "data" / "torch_adam.npz"
STEPS = 200
ROWS = np.array([*range(12), *range(19, STEPS, 9)])  # the steps recorded, from 0
LEAVES = {  # shape, scale of the gradients, share of them that is zero
    "scalar": ((), 1.3, 0.0),
    "bias": ((5,), 31.0, 0.0),
    "matrix": ((3, 7), 0.013, 0.0),
    "kernel": ((2, 1, 4), 1.7e-5, 0.0),  # not far above eps
    "sparse": ((4, 3), 0.9, 0.85),
}
DTYPES = ("float32", "float64")
IMPLEMENTATIONS = {  # of torch; the first is recorded
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
HAVE_FUSED = "Adam", "AdamW"
MOMENTS = {  # torch's names, and ours
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "exp_inf": "nu",
    "max_exp_avg_sq": "nu_max",
}


class Case(NamedTuple):
    """An optimizer: what ours and torch's are called, what only one of them need be told, numbers.

    The numbers go by our names.
    """

    ours: str
    ours_only: dict[str, str]
    theirs: str
    theirs_only: dict[str, bool]
    numbers: dict[str, float]


def odd(learning_rate, b1, b2, eps, **others):
    return {"learning_rate": learning_rate, "b1": b1, "b2": b2, "eps": eps} | others


ADAM = "adam", {}, "Adam", {}
AMSGRAD = "amsgrad", {"maximum": "before_correction"}, "Adam", {"amsgrad": True}
AMSGRADW = "amsgrad", {"maximum": "before_correction"}, "AdamW", {"amsgrad": True}
NADAM = "nadam", {}, "NAdam", {}
NADAMW = "nadamw", {}, "NAdam", {"decoupled_weight_decay": True}
RADAM = "radam", {"eps_placement": "before_correction"}, "RAdam", {}
ADAMAX = "adamax", {}, "Adamax", {}
CASES = {
    "adam": Case(*ADAM, odd(3e-3, 0.83, 0.97, 1e-6)),
    "adam, l2": Case(*ADAM, odd(4e-3, 0.87, 0.981, 7e-7, l2=0.023)),
    "adamw": Case("adamw", {}, "AdamW", {}, odd(7e-3, 0.91, 0.9973, 3e-7, weight_decay=0.037)),
    "amsgrad": Case(*AMSGRAD, odd(3e-3, 0.85, 0.963, 2e-6)),
    "amsgrad, l2": Case(*AMSGRAD, odd(6e-3, 0.92, 0.977, 5e-7, l2=0.031)),
    "amsgrad, decay": Case(*AMSGRADW, odd(5e-3, 0.79, 0.991, 4e-7, weight_decay=0.041)),
    "nadam": Case(*NADAM, odd(4e-3, 0.94, 0.973, 6e-7, momentum_decay=0.31)),
    "nadam, l2": Case(*NADAM, odd(3e-3, 0.86, 0.985, 2e-7, momentum_decay=0.17, l2=0.019)),
    "nadamw": Case(*NADAMW, odd(6e-3, 0.89, 0.9961, 8e-7, momentum_decay=0.23, weight_decay=0.029)),
    "radam": Case(*RADAM, odd(8e-3, 0.88, 0.961, 3e-6)),
    "radam, l2": Case(*RADAM, odd(9e-3, 0.81, 0.983, 2e-6, l2=0.027)),
    "adamax": Case(*ADAMAX, odd(4e-3, 0.84, 0.979, 5e-6)),
    "adamax, l2": Case(*ADAMAX, odd(7e-3, 0.93, 0.957, 3e-6, l2=0.033)),
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


def implementations(case):
    """The names of those that torch has of this optimizer."""
    return [name for name in IMPLEMENTATIONS if name != "fused" or case.theirs in HAVE_FUSED]


@contextlib.contextmanager
def torch_default(dtype):
    """NAdam keeps a product of 200 factors in this dtype, whatever that of the parameters."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def torch_optimizer(case, params, implementation):
    import torch

    given = dict(case.numbers)
    settings = {"lr": given.pop("learning_rate"), "betas": (given.pop("b1"), given.pop("b2"))}
    if "l2" in given:
        given["weight_decay"] = given.pop("l2")
    settings |= given | case.theirs_only | IMPLEMENTATIONS[implementation]
    return getattr(torch.optim, case.theirs)(params, **settings)


def run_torch(case, dtype, grads, start, implementation="for-loop"):
    """{"params": after each of `ROWS`, "mu", "nu", ...: at the end}, each a dict of leaves."""
    import torch

    with torch_default(dtype):
        params = {name: torch.tensor(p, dtype=getattr(torch, dtype)) for name, p in start.items()}
        optimizer = torch_optimizer(case, list(params.values()), implementation)
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
    return {"params": {name: np.stack(rows)[ROWS] for name, rows in after.items()}} | {
        ours: {name: state[theirs].numpy() for name, state in states.items()}
        for theirs, ours in MOMENTS.items()
        if theirs in states["scalar"]
    }


def record():
    import torch

    grads, params = data()
    runs = {
        name: {dtype: run_torch(case, dtype, grads, params) for dtype in DTYPES}
        for name, case in CASES.items()
    }
    cases = {name: case._asdict() for name, case in CASES.items()}
    about = {"torch": torch.__version__, "cases": cases}
    arrays = _flat({"grads": grads, "params": params, "runs": runs})
    RECORDING.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDING, about=json.dumps(about), **arrays)
    print(f"{RECORDING.name}: {RECORDING.stat().st_size / 1e3:.0f} kB, torch {torch.__version__}")


def load():
    """What `record` wrote: {"cases", "torch", "grads", "params", "runs": {name: {dtype: run}}}."""
    tree, about = read(RECORDING)
    cases = {name: Case(**fields) for name, fields in about["cases"].items()}
    return tree | {"torch": about["torch"], "cases": cases}


def read(recording):
    """The arrays of a recording as a tree (`/` parts a name's keys), and what is said of them."""
    tree = {}
    with np.load(recording) as file:
        for key in file.files:
            *path, last = key.split("/")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = file[key]
    return tree, json.loads(str(tree.pop("about")))


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flat(node, f"{prefix}/{key}" if prefix else key) for key, node in tree.items())
    return {path: leaf for part in parts for path, leaf in part.items()}


# ---- Comparing: no torch from here to `check`. float64 needs 64-bit mode. ----


def run_ours(case, dtype, grads, start):
    """As `run_torch`, and the "updates" of the same steps."""
    tx = getattr(fa, case.ours)(**case.numbers, **case.ours_only)
    grads, start = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (grads, start))

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        after = fa.apply_updates(params, updates)
        return (start if dtype == "float32" else after, state), (updates, after)

    scan = jax.jit(lambda carry, grads: jax.lax.scan(step, carry, grads))
    (_, state), rows = jax.tree.map(np.asarray, scan((start, tx.init(start)), grads))
    updates, after = jax.tree.map(lambda x: x[ROWS], rows)
    moments = {"mu": state.mu, "nu": state.nu} | (state.extra or {})
    return {"params": after, "updates": updates} | moments


def tolerances(dtype, hyperparameters):
    """The largest `differences` allowed.

    Torch multiplies its moments by decay rates that float32 rounds, by up to 2**-25; over the
    1 / (1 - b) steps that a moment remembers this grows to 2**-25 / (1 - b). Four times that
    leaves room for its other roundings, which are larger but not all of one sign; and in AdaMax,
    which rounds one product a step, for a maximum that lasts four times as long.

    A step is a quotient of these, rounded about eight times, in which nothing cancels: of its
    1e-5 the drift of b2 takes up to 2**-26 / (1 - b2), 6e-6 for the largest b2 here. NAdam's
    product of decay rates, which torch keeps in float32, adds 2**-24 for each of the few steps
    until it is small beside 1.
    """
    if dtype == "float64":
        return dict.fromkeys(("step", "mu", "nu", "nu_max"), 1e-12)
    drift = {b: 2.0**-23 / (1 - hyperparameters[b]) for b in ("b1", "b2")}
    return {"step": 1e-5, "mu": drift["b1"], "nu": drift["b2"], "nu_max": drift["b2"]}


def differences(ours, theirs, dtype, case, start):
    """The worst over leaves and steps, each in the unit that matters to it.

    step: of the update (float64: the parameters, hence the sum of all updates so far), relative
    to the learning rate, or the update where that is larger. mu: relative to what the update
    divides it by, sqrt(nu), or nu in AdaMax. nu, nu_max: relative.
    """
    kept = [name for name in MOMENTS.values() if name in theirs]
    worst = dict.fromkeys(("step", *kept), 0.0)
    for name, p in start.items():
        wide = {key: np.asarray(theirs[key][name], np.float64) for key in ("params", *kept)}
        found = ours["params"][name] - p.astype(np.float64)
        if dtype == "float32" and "updates" in ours:
            found = np.asarray(ours["updates"][name], np.float64)
        wanted = wide["params"] - p
        learning_rate = case.numbers["learning_rate"]
        size = np.maximum(learning_rate, np.abs(wanted) if dtype == "float32" else 0)
        tiny = np.finfo(np.float64).tiny  # so that 0 against 0 is 0
        units = {key: np.maximum(wide[key], tiny) for key in kept}
        units["mu"] = units["nu"] if case.ours == "adamax" else np.sqrt(units["nu"])
        relative = {key: (ours[key][name] - wide[key]) / units[key] for key in kept}
        for key, values in {"step": (found - wanted) / size, **relative}.items():
            worst[key] = float(np.maximum(worst[key], np.abs(values).max()))  # keeps a NaN
    return worst


def check():
    """Prints every comparison; True if all are within tolerance."""
    import torch

    jax.config.update("jax_enable_x64", True)
    recorded = load()
    grads, start = recorded["grads"], recorded["params"]
    print(f"torch {torch.__version__}, recorded with {recorded['torch']}; ", end="")
    print(f"functional_adam {fa.__version__}, jax {jax.__version__}. Worst differences (allowed):")
    columns = "step", "mu", "nu", "nu_max"
    print(f"\n| optimizer | dtype | compared | {' | '.join(columns)} | |\n{'|---' * 8}|")
    good = True
    for name, case in recorded["cases"].items():
        for dtype in DTYPES:
            common = case, dtype, grads, start
            torch_runs = {kind: run_torch(*common, kind) for kind in implementations(case)}
            tape, ours = recorded["runs"][name][dtype], run_ours(*common)
            pairs = {f"ours, torch {kind}": (ours, run) for kind, run in torch_runs.items()}
            pairs["ours, recording"] = ours, tape
            pairs["torch for-loop, recording"] = torch_runs["for-loop"], tape
            allowed = tolerances(dtype, case.numbers)
            for label, pair in pairs.items():
                worst = differences(*pair, dtype, case, start)
                passed = all(worst[key] <= allowed[key] for key in worst)
                cells = (
                    f"{worst[k]:.1e} ({allowed[k]:.1e})" if k in worst else "" for k in columns
                )
                verdict = "" if passed else "FAILED"
                print(f"| {name} | {dtype} | {label} | {' | '.join(cells)} | {verdict} |")
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
