"""Draws docs/schedules.png: a learning rate that rises and falls, and what it does to a small run.

    python tools/figures/schedules.py

The network of `examples/train_digits.py` trains for 800 steps with warm-up and cosine decay, and
once more at the constant peak rate; `fa.diagnostics` watches every step. Half a minute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import functional_adam as fa

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from train_digits import batch_at, init_params, load, loss_of, matrices

ROOT = Path(__file__).resolve().parents[2]
STEPS, WARMUP, BATCH, PEAK = 800, 80, 64, 0.01
RATES = {
    "warm-up, then cosine": optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, STEPS),
    "constant": PEAK,
}
STYLES = {
    "constant": {"color": "#D55E00", "linestyle": "--", "linewidth": 1.2},
    "warm-up, then cosine": {"color": "#0072B2", "linewidth": 1.6},
}
PANELS = {
    "learning_rate": ("learning rate", "linear"),
    "update_to_param": ("‖update‖ / ‖parameters‖", "log"),
    "direction_rms": ("rms of m̂ / (√v̂ + ε)", "linear"),
}


def watched(rate, steps: int) -> dict[str, np.ndarray]:
    """What `fa.diagnostics` says of each step."""
    train, _ = load()
    batches = np.stack([batch_at(step, 0, len(train.labels), BATCH) for step in range(steps)])
    tx = fa.adamw(rate, weight_decay=0.1, mask=matrices)

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(loss_of)(params, *batch)
        updates, state = tx.update(grads, state, params)
        found = fa.diagnostics(updates, state, params, learning_rate=rate)
        return (fa.apply_updates(params, updates), state), found

    params = init_params(0)
    digits = jnp.asarray(train.images[batches]), jnp.asarray(train.labels[batches])
    _, found = jax.jit(lambda carry: jax.lax.scan(step, carry, digits))((params, tx.init(params)))
    return {name: np.asarray(found[name]) for name in PANELS}


def draw(path: Path, runs: dict[str, dict[str, np.ndarray]]) -> None:
    """A panel for each quantity, one below the other."""
    figure = Figure(figsize=(8, 7), layout="constrained", facecolor="white")
    for axes, (key, (label, scale)) in zip(
        figure.subplots(len(PANELS), 1, sharex=True), PANELS.items(), strict=True
    ):
        for name, style in STYLES.items():
            y = runs[name][key]
            axes.plot(np.arange(1, len(y) + 1), np.where(y > 0, y, np.nan), label=name, **style)
        axes.set(ylabel=label, yscale=scale, xlim=(0, len(y)))
        axes.axvline(WARMUP, color="grey", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
        if scale == "linear":
            axes.set_ylim(bottom=0)
    figure.axes[0].legend(loc="lower center")
    figure.axes[0].set_ylim(0, 1.1 * PEAK)
    figure.axes[-1].set_xlabel("step (dotted: end of the warm-up)")
    figure.savefig(path, format="png", dpi=120)


def main() -> None:
    """Train and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "schedules.png")
    args = parser.parse_args()
    runs = {name: watched(rate, STEPS) for name, rate in RATES.items()}
    draw(args.output, runs)
    for name, run in runs.items():
        for key in ("update_to_param", "direction_rms"):
            at = {t: f"{run[key][t - 1]:.2g}" for t in (2, 20, WARMUP, 400, 700, 790)}
            print(f"{name}, {key} at steps {at}")
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
