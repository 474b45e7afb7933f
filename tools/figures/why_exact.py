"""Draws docs/why_exact.png: the error of float32 updates over 10,000 steps, three implementations.

    python tools/figures/why_exact.py                 # with docs/data/torch_error.json for PyTorch
    python tools/figures/why_exact.py --record        # measure PyTorch and write that file

Gradients, truth and units are those of `benchmarks/accuracy.py`. Where PyTorch is installed it is
measured; elsewhere its curve is the recorded one. `--record` needs PyTorch, JAX, Optax, NumPy and
mpmath, no matplotlib. Half a minute.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import accuracy

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10_000
CASES = [accuracy.Case(0.9, 0.999), accuracy.Case(0.9, 0.9999)]
RECORDED = ROOT / "docs" / "data" / "torch_error.json"
# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes tell in grey too.
STYLES = {
    "optax": ("Optax", "#D55E00", "--"),
    "torch": ("PyTorch", "#009E73", "-."),
    "functional_adam": ("functional_adam", "#0072B2", "-"),
}


def bins(steps: int) -> list[np.ndarray]:
    """The steps 1, 2, ... in groups of about equal length on a logarithmic axis."""
    edges = np.unique(np.geomspace(1, steps + 1, 60).round().astype(int))
    return [np.arange(low, high) for low, high in itertools.pairwise(edges)]


def curve(run, case: accuracy.Case, steps: int) -> list[float]:
    """The rms error over coordinates and the steps of each bin, in u."""
    grads = accuracy.gradients(case, steps)
    hyper = {"b1": case.b1, "b2": case.b2, "eps": case.eps}
    truth = accuracy.reference.adam(grads, learning_rate=accuracy.LEARNING_RATE, **hyper).updates
    units = accuracy.reference.units(run(case, grads), truth, accuracy.LEARNING_RATE)
    squares = (units**2).mean(axis=1)
    return [float(np.sqrt(squares[ts - 1].mean())) for ts in bins(steps)]


def measured(name: str, run, steps: int) -> dict:
    """The curves of one implementation, its version and how they were made."""
    curves = {str(case.b2): curve(run, case, steps) for case in CASES}
    return {"name": name, "version": version(name), "steps": steps, "curves": curves}


def implementations(steps: int) -> dict[str, dict]:
    """What is installed is measured; PyTorch may be what was recorded."""
    found = {name: measured(name, run, steps) for name, run in accuracy.implementations().items()}
    if "torch" not in found and RECORDED.exists():
        recorded = json.loads(RECORDED.read_text())
        if recorded["steps"] == steps:
            found["torch"] = recorded
    return found


def draw(path: Path, found: dict[str, dict], steps: int) -> None:
    """A panel for each b2."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (--record does without)

    t = [np.exp(np.log(ts).mean()) for ts in bins(steps)]
    figure = Figure(figsize=(8, 4.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(CASES), sharey=True)
    for axes, case in zip(panels, CASES, strict=True):
        for name, (shown, colour, line) in STYLES.items():
            if name in found:
                label = f"{shown} {found[name]['version'].partition('+')[0]}"
                errors = found[name]["curves"][str(case.b2)]
                axes.plot(t, errors, line, color=colour, linewidth=2, label=label)
        axes.axvline(1 / (1 - case.b2), color="grey", linewidth=0.8, linestyle=":")
        axes.text(0.9 / (1 - case.b2), 0.32, "1/(1-b2)", color="dimgrey", ha="right")
        axes.set(title=f"b1 = {case.b1}, b2 = {case.b2}", xlabel="step t")
        axes.set(xscale="log", yscale="log", xlim=(1, 2 * steps), ylim=(0.25, 4000))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("error of the update, rms (u = 2⁻²⁴ of the learning rate)")
    panels[0].legend(loc="upper right")
    figure.savefig(path, format="png", dpi=120)


def main() -> None:
    """Measure, then record or draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name} and stop")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "why_exact.png")
    args = parser.parse_args()
    if args.record:
        if importlib.util.find_spec("torch") is None:
            parser.error("--record needs torch")
        RECORDED.parent.mkdir(exist_ok=True)
        found = measured("torch", accuracy.torch_updates, args.steps)
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
        print(f"Wrote {RECORDED.relative_to(ROOT)}")
        return
    found = implementations(args.steps)
    draw(args.output, found, args.steps)
    for name, result in found.items():
        ends = {
            b2: f"{curve[0]:.3g} first, {curve[-1]:.3g} last"
            for b2, curve in result["curves"].items()
        }
        print(f"{name} {result['version']}: {ends}")
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
