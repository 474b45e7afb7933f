"""`torch.optim.SparseAdam` on record: makes `tests/data/torch_sparse.npz`, compares with it.

    python tests/record_rows.py            # write the recording (needs torch)
    python tests/record_rows.py --check    # compare torch as installed, the recording and ours

`tests/rows/test_sparse_adam.py` uses `batches`, `ours` and `difference`, which need no torch.

What is recorded: in float64 the table, both moments and the number of steps after each of `ROWS`,
of a run in which rows come several times in a batch, after long gaps, and some never.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import functional_adam as fa

RECORDING = Path(__file__).parent / "data" / "torch_sparse.npz"
STEPS, SIZE, SHAPE = 120, 6, (17, 5)
ROWS = np.array([0, 1, 2, 5, 11, 23, 47, 83, STEPS - 1])  # the steps recorded, from 0
NUMBERS = {"learning_rate": 4e-3, "b1": 0.87, "b2": 0.973, "eps": 3e-5}


def batches(seed=20_260_107):
    """(row numbers, their gradients, the table) in float32 values."""
    rng = np.random.default_rng(seed)
    rows = ((SHAPE[0] - 2) * rng.random((STEPS, SIZE)) ** 4).astype(np.int32)
    grads = rng.standard_normal((STEPS, SIZE, SHAPE[1])) * 10.0 ** rng.integers(-4, 2, SHAPE[1])
    return rows, grads.astype(np.float32), rng.standard_normal(SHAPE).astype(np.float32)


def torch_run():
    """{"table", "mu", "nu"}: each after the steps `ROWS`."""
    import torch

    rows, grads, start = batches()
    table = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    betas = NUMBERS["b1"], NUMBERS["b2"]
    tx = torch.optim.SparseAdam(
        [table], lr=NUMBERS["learning_rate"], betas=betas, eps=NUMBERS["eps"]
    )
    found = {"table": [], "mu": [], "nu": []}
    for t in range(STEPS):
        indices = torch.tensor(rows[t], dtype=torch.int64)[None]
        values = torch.tensor(grads[t], dtype=torch.float64)
        table.grad = torch.sparse_coo_tensor(
            indices, values, SHAPE, check_invariants=True
        )  # not coalesced: some rows come twice
        tx.step()
        if t in ROWS:
            (state,) = tx.state.values()
            now = table.detach(), state["exp_avg"], state["exp_avg_sq"]
            for name, x in zip(found, now, strict=True):
                found[name].append(x.numpy().copy())
    assert int(state["step"]) == STEPS
    return {name: np.stack(x) for name, x in found.items()}


def ours(catch_up="lazy"):
    """The same of ours, in float64."""
    rows, grads, start = batches()
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        table = jnp.asarray(start, jnp.float64)

        def step(carry, given):
            table, state = carry
            how = NUMBERS | {"eps_placement": "before_correction", "catch_up": catch_up}
            carry = fa.update_rows(given[1], given[0], state, table, **how)
            return carry, {"table": carry[0], "mu": carry[1].mu, "nu": carry[1].nu}

        carry = table, fa.init_rows(table)
        given = jnp.asarray(rows), jnp.asarray(grads, jnp.float64)
        every = jax.jit(lambda carry: jax.lax.scan(step, carry, given)[1])(carry)
    return {name: np.asarray(x)[ROWS] for name, x in every.items()}


def difference(found, recording):
    """The largest of all, relative to the largest number of each column."""
    worst = 0.0
    for name in ("table", "mu", "nu"):
        size = np.max(np.abs(recording[name]), axis=(0, 1))
        worst = max(worst, float(np.max(np.abs(found[name] - recording[name]) / size)))
    return worst


def recorded():
    with np.load(RECORDING) as file:
        return dict(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    try:
        import torch
    except ImportError:
        sys.exit("This needs torch.")
    found = torch_run()
    if check:
        print(f"torch {torch.__version__} and the recording: {difference(found, recorded()):.1e}")
        print(f"torch {torch.__version__} and ours: {difference(ours(), found):.1e}")
        return int(max(difference(found, recorded()), difference(ours(), found)) > 1e-12)
    about = {"torch": str(torch.__version__), **NUMBERS}
    np.savez_compressed(RECORDING, about=json.dumps(about), **found)
    print(f"{RECORDING}: torch and ours differ by {difference(ours(), found):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
