"""Train a transformer on data with three bad batches: as it is, clipped, and with skip_spikes.

The model is the byte-level transformer of `train_small_memory.py`. The bad batches are random bytes
with a loss that is a thousand times too large, as from a mean over a nearly empty mask. The script
prints how each way of training copes with them, and draws `skip_spikes.png`.
"""

import argparse
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from interrupts import answer_interrupts
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from train_digits import number
from train_small_memory import (
    BATCH,
    CONTEXT,
    EVERY,
    HEADS,
    HELD_OUT_WINDOWS,
    SETTINGS,
    init_params,
    load,
    loss_of,
    optimizer,
    windows_at,
)

import functional_adam as fa

WAYS = {  # name: (colour, width and style of its line, whether its data has bad batches)
    "no bad batches": ("silver", 7, "-", False),
    "bad batches": ("tab:red", 1.5, "-", True),
    "clipped": ("tab:blue", 1.5, "-", True),
    "skip_spikes": ("black", 1.5, ":", True),
}


class Run(NamedTuple):
    """The result of one way of training."""

    losses: list[float]  # held-out loss every `EVERY` steps, from step 0
    norms: np.ndarray  # gradient norm of each step
    skipped: np.ndarray  # whether each step was skipped


def transformation(name: str, args) -> fa.GradientTransformation:
    """AdamW with the wrapper of this way of training, if it has one."""
    adamw = optimizer(SETTINGS["float32"], args)
    if name == "clipped":
        return optax.chain(optax.clip_by_global_norm(1.0), adamw)
    return fa.skip_spikes(adamw, window=args.window) if name == "skip_spikes" else adamw


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_steps(tx, params, state, text, rows):
    """A step for each row: (starts of the windows, factor of the loss, bytes of a bad batch)."""

    def step(carry, row):
        params, state = carry
        starts, scale, junk = row
        windows = jnp.where(scale == 1, windows_at(text, starts), junk)
        loss, grads = jax.value_and_grad(lambda p: scale * loss_of(p, windows))(params)
        params, state = fa.step(tx, grads, state, params, value=loss)
        is_guarded = isinstance(state, fa.SkipSpikesState)
        skipped = ~state.last_accepted if is_guarded else jnp.array(False)
        return (params, state), (optax.tree.norm(grads), skipped)

    return jax.lax.scan(step, (params, state), rows)


def data_of(train, args, is_bad: bool) -> tuple[np.ndarray, ...]:
    """The rows of all steps, in groups of `EVERY`."""
    rng = np.random.default_rng(args.seed)
    starts = rng.integers(len(train) - CONTEXT, size=(args.steps, BATCH))
    junk = rng.integers(256, size=(args.steps, BATCH, CONTEXT + 1), dtype=np.uint8)
    scale = np.ones(args.steps, np.float32)
    if is_bad:  # two in a row, one alone
        first = 3 * args.steps // 8
        scale[[first, first + 1, 7 * args.steps // 10]] = args.scale
    return tuple(x.reshape(-1, EVERY, *x.shape[1:]) for x in (starts, scale, junk))


def fit(name: str, train, held_out, args, advance) -> tuple[Run, Any]:
    """Train in one way; return the result and the last state."""
    tx = transformation(name, args)
    params = init_params(args.seed, args.width, jnp.float32)
    state, measure = tx.init(params), jax.jit(loss_of)
    losses, norms, skipped = [float(measure(params, held_out))], [], []
    for rows in zip(*data_of(train, args, WAYS[name][-1]), strict=True):
        (params, state), (some_norms, some_skipped) = train_steps(tx, params, state, train, rows)
        losses.append(float(measure(params, held_out)))
        norms.append(some_norms)
        skipped.append(some_skipped)
        advance(EVERY)
    return Run(losses, np.concatenate(norms), np.concatenate(skipped)), state


def table_of(runs: dict[str, Run], state: fa.SkipSpikesState) -> Table:
    """Steps and last losses. For skip_spikes, steps are those that its state has counted."""
    table = Table("run")
    for column in ("taken", "skipped", "largest norm", "last held-out loss"):
        table.add_column(column, justify="right")
    for name, run in runs.items():
        counts = len(run.norms), 0
        if name == "skip_spikes":
            counts = int(state.accepted), int(state.skipped)
        largest = f"{run.norms.max():.3g}"
        table.add_row(name, *map(str, counts), largest, f"{run.losses[-1]:.4f}")
    return table


def draw(path: Path, runs: dict[str, Run]) -> None:
    """Draw held-out losses above, gradient norms and skipped steps below."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")  # draws with Agg: no display needed
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for name, run in runs.items():
        colour, width, dashes, _ = WAYS[name]
        steps = EVERY * np.arange(len(run.losses))
        look = dict(color=colour, linewidth=width, linestyle=dashes)
        above.plot(steps, run.losses, label=f"{run.losses[-1]:.3f}  {name}", **look)
    above.set(title="Held-out loss", ylabel="nats a byte", yscale="log")
    above.legend(title="at the end")
    guarded = runs["skip_spikes"]
    steps = 1 + np.arange(len(guarded.norms))
    below.plot(steps, guarded.norms, color="black", linewidth=0.8)
    off = guarded.skipped
    below.plot(steps[off], guarded.norms[off], "x", color="tab:red", markersize=9, label="skipped")
    title = "Norm of the gradients, with skip_spikes"
    below.set(title=title, xlabel="step", ylabel="norm", yscale="log")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        parser.add_argument(name, help=f"{help} (default: {default})", default=default, **options)

    add("--steps", f"of each run, a multiple of {EVERY}", 400, type=number(int, EVERY))
    add("--width", f"of the model, a multiple of {HEADS}", 128, type=number(int, HEADS))
    add("--learning-rate", "the peak", 0.003, type=number(float, 0))
    add("--window", "of skip_spikes", 128, type=number(int, 2))
    add("--scale", "of the bad batches' loss", 1000.0, type=number(float, 1))
    add("--seed", "of weights and data", 0, type=number(int, 0, 2**32 - 1))
    add("--output", "the picture to write", Path("skip_spikes.png"), type=Path, metavar="FILE")
    args = parser.parse_args()
    for name, value, divisor in (("steps", args.steps, EVERY), ("width", args.width, HEADS)):
        if value % divisor:
            parser.error(f"argument --{name}: must be a multiple of {divisor}, not {value}")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> None:
    """Train in every way, report and draw."""
    args = parse_args()
    answer_interrupts()
    train, held_out = load()
    starts = np.arange(HELD_OUT_WINDOWS) * (len(held_out) // HELD_OUT_WINDOWS)
    data = jnp.asarray(train), windows_at(held_out, starts)
    console, runs, state = Console(), {}, None
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name in WAYS:
            task = progress.add_task(name, total=args.steps)
            advance = functools.partial(progress.advance, task)
            runs[name], state = fit(name, *data, args, advance)
    console.print(table_of(runs, state))
    draw(args.output, runs)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
