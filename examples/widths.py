"""Find Adam's learning rate on a narrow network and use it on wide ones, with muP and without.

Networks of several widths train on scikit-learn's digits, each with a grid of rates. With one rate
for all parameters, the best rate falls as the network gets wider. With muP (Yang et al. 2022), it
stays what it is at the smallest width. For muP, one rule in `overrides` divides the rate of all
matrices with a wide input by the width, and the last matrix starts smaller. The script prints the
best rate of each width and draws `widths.png`.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from interrupts import answer_interrupts
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from train_digits import Digits, batch_at, load, loss_of, number

import functional_adam as fa

BATCH = 64
HIDDEN = 6  # layers; with fewer layers, the best rate depends less on the width
RATES = 2.0 ** np.arange(-12, -3)
WAYS = {False: "one rate", True: "muP"}
NOTE = """\
Losses are over all training digits after the last step (geometric mean over seeds).
Rates fall linearly to 0; the rate shown is that of the first step."""


def start(seed: int, width: int, base: int, mup: bool) -> list[dict[str, jax.Array]]:
    """He initialization; with muP, wider networks start with a smaller last matrix."""
    sizes = [64, *[width] * HIDDEN, 10]
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    he = jax.nn.initializers.he_normal()
    params = [
        {"w": he(key, (inputs, outputs)), "b": jnp.zeros(outputs)}
        for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    if mup:
        params[-1]["w"] *= (base / width) ** 0.5
    return params


def optimizer(rate, steps: int, width: int, base: int, mup: bool) -> fa.GradientTransformation:
    """Adam; with muP, the rate of all matrices except the first is divided by width / base."""

    def falling(peak):
        return lambda count: peak * (1 - count / steps)

    wide = [(r"^[1-9]/w$", dict(learning_rate=falling(rate * base / width)))]
    return fa.adam(falling(rate), b2=0.99, overrides=wide if mup else None)


@functools.partial(jax.jit, static_argnames=("width", "base", "mup"))
def losses_of(rates, params, batches: Digits, train: Digits, width: int, base: int, mup: bool):
    """The final loss for each rate. One compiled program trains with one rate after another."""

    def loss_at_end(rate):
        tx = optimizer(rate, len(batches.labels), width, base, mup)

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(loss_of)(params, *batch)
            return fa.step(tx, grads, state, params), None

        (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return loss_of(trained, *train)

    return jax.lax.map(loss_at_end, rates)


def curve(width: int, base: int, mup: bool, args, train: Digits) -> np.ndarray:
    """The loss for each of `RATES`, as a geometric mean over seeds; infinite if a run diverged."""
    logs = []
    for seed in range(args.seeds):
        order = [batch_at(i, seed, len(train.labels), BATCH) for i in range(args.steps)]
        batches = Digits(train.images[np.stack(order)], train.labels[np.stack(order)])
        params = start(seed, width, base, mup)
        found = losses_of(jnp.float32(RATES), params, batches, train, width, base, mup)
        logs.append(np.log(np.asarray(found, float)))
    return np.exp(np.nan_to_num(np.mean(logs, axis=0), nan=np.inf))


def table_of(curves: dict[tuple[bool, int], np.ndarray]) -> Table:
    """The best rate of each width, and the loss at the best rate of the smallest width."""
    base = min(width for _, width in curves)
    table = Table("rates", "width", "best rate", "its loss", f"loss at the best of {base}")
    for (mup, width), losses in curves.items():
        best, of_base = losses.argmin(), curves[mup, base].argmin()
        numbers = f"{RATES[best]:.5f}", f"{losses[best]:.4f}", f"{losses[of_base]:.4f}"
        table.add_row(WAYS[mup], str(width), *numbers)
    return table


def draw(path: Path, curves: dict[tuple[bool, int], np.ndarray]) -> None:
    """Draw a panel for each way and a curve for each width, with its best rate marked."""
    figure = Figure(figsize=(11, 4.5), layout="constrained", facecolor="white")
    panels = dict(zip(WAYS, figure.subplots(1, 2, sharey=True), strict=True))
    for (mup, width), losses in curves.items():
        (line,) = panels[mup].loglog(RATES, losses, label=f"width {width}", base=2)
        best = losses.argmin()
        panels[mup].plot(RATES[best], losses[best], "o", color=line.get_color(), markersize=9)
    for mup, panel in panels.items():
        panel.set(title=f"{WAYS[mup]}: best rates marked", xlabel="learning rate (first step)")
        panel.set_yscale("log", base=10)
        panel.grid(alpha=0.3)
    panels[False].set_ylabel("training loss at the end (nats)")
    panels[True].legend()
    figure.savefig(path, format="png", dpi=100)


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, **options) -> None:
        parser.add_argument(name, help=help + " (default: %(default)s)", **options)

    add("--widths", "of the networks", type=number(int, 1), nargs="+", default=[64, 128, 256, 512])
    add("--steps", "of each run", type=number(int, 1), default=100)
    add("--seeds", "number of seeds for weights and data order", type=number(int, 1), default=2)
    add("--output", "the picture to write", type=Path, default=Path("widths.png"), metavar="FILE")
    args = parser.parse_args()
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> None:
    """Train, report, draw."""
    args = parse_args()
    answer_interrupts()
    train, _ = load()
    runs = [(mup, width) for mup in WAYS for width in args.widths]
    console, curves = Console(), {}
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for mup, width in progress.track(runs, description="Networks"):
            curves[mup, width] = curve(width, min(args.widths), mup, args, train)
    console.print(table_of(curves))
    print(NOTE)
    draw(args.output, curves)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
