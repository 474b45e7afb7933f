"""Train 64 networks on scikit-learn's digits at once, each with hyperparameters of its own.

Hyperparameters may be traced arrays, so `jax.vmap` runs over them: one compiled program trains a
grid over any two of them. The script prints the best members of the grid and draws `sweep.png`.
Then it trains one member again, alone and from Python floats, to check that it learns the same.
"""

import argparse
import functools
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from interrupts import answer_interrupts
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from train_digits import (
    Digits,
    batch_at,
    init_params,
    load,
    loss_and_accuracy,
    loss_of,
    matrices,
    number,
)

import functional_adam as fa

BATCH = 64
SHOWN = 5  # rows of the table and curves of the picture
LOSS_BOUND, PARAMETER_BOUND = 1e-5, 0.05  # in nats, in learning rates: gaps to a run alone
NOTE = """\
Learning rates are constant. The best members have the lowest final training loss."""


class Hyper(NamedTuple):
    """Five hyperparameters: numbers, or arrays whose first axis is over members of the grid."""

    learning_rate: Any = 0.003
    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8
    weight_decay: Any = 0.1


class Axis(NamedTuple):
    """The hyperparameter along one side of the grid, and its values."""

    name: str
    values: np.ndarray


class Result(NamedTuple):
    """The results of the members, along the first axis of every array."""

    params: Any
    curves: np.ndarray  # the loss of each step's batch
    steps_of_epoch: int
    loss: np.ndarray  # over all training digits at the end
    accuracy: np.ndarray  # over the held-out digits at the end


def spaced(name: str, low: float, high: float, count: int) -> np.ndarray:
    """`count` values a constant factor apart; for b1 and b2, the values of 1 - b are."""
    if name in ("b1", "b2"):
        return 1 - np.geomspace(1 - low, 1 - high, count)
    return np.geomspace(low, high, count)


def grid(x: Axis, y: Axis, others: Hyper) -> Hyper:
    """A member for each pair of values, with x varying fastest, in float32."""
    xs, ys = np.meshgrid(x.values, y.values)
    members = others._replace(**{x.name: xs.ravel(), y.name: ys.ravel()})
    return Hyper(*(np.broadcast_to(np.float32(value), xs.size) for value in members))


def member(hyper: Hyper, index: int) -> Hyper:
    """The hyperparameters of one member, as Python floats."""
    return Hyper(*(float(values[index]) for values in hyper))


def train_steps(hyper: Hyper, params, state, batches: Digits):
    """A step for each batch; returns final parameters and state, and the loss before each step."""
    tx = fa.adamw(**hyper._asdict(), mask=matrices)

    def step(carry, batch):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        updates, state = tx.update(grads, state, params)
        return (fa.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(step, (params, state), batches)
    return params, state, losses


@functools.partial(jax.jit, donate_argnums=(1, 2))
def train_all(hyper: Hyper, params, state, batches: Digits):
    """`train_steps` for every member, on the same batches."""
    return jax.vmap(train_steps, in_axes=(0, 0, 0, None))(hyper, params, state, batches)


def epochs_of(train: Digits, epochs: int, seed: int) -> list[Digits]:
    """One chunk of batches for each epoch; its axes are steps, images and pixels."""
    size = len(train.labels)
    steps = size // BATCH
    chunks = np.arange(epochs * steps).reshape(epochs, steps)
    orders = [np.stack([batch_at(i, seed, size, BATCH) for i in chunk]) for chunk in chunks]
    return [Digits(train.images[order], train.labels[order]) for order in orders]


def trained(train_chunk, params, state, chunks: list[Digits], advance=lambda: None):
    """Train on all chunks; return the final parameters and the loss of every step."""
    curves = []
    for chunk in chunks:
        params, state, losses = train_chunk(params, state, chunk)
        curves.append(np.asarray(losses))
        advance()
    return params, np.concatenate(curves, axis=-1)


def sweep(hyper: Hyper, start, chunks: list[Digits], advance=lambda: None):
    """Train all members at once."""
    members = len(hyper.learning_rate)
    params, state = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape)), (start, fa.init(start))
    )
    return trained(functools.partial(train_all, hyper), params, state, chunks, advance)


def alone(hyper: Hyper, start, chunks: list[Digits]):
    """Train one member alone; its hyperparameters are constants in its own compiled program."""
    train_chunk = jax.jit(functools.partial(train_steps, hyper))
    return trained(train_chunk, start, fa.init(start), chunks)


def measured(params, curves: np.ndarray, train: Digits, held_out: Digits) -> Result:
    """Measure the final parameters; the loss is infinite where a member diverged."""
    loss, _ = jax.vmap(loss_and_accuracy, in_axes=(0, None))(params, train)
    _, accuracy = jax.vmap(loss_and_accuracy, in_axes=(0, None))(params, held_out)
    loss = np.where(np.isfinite(loss), loss, math.inf)
    return Result(params, curves, len(train.labels) // BATCH, loss, np.asarray(accuracy))


def gaps(result: Result, hyper: Hyper, index: int, start, chunks) -> tuple[float, float]:
    """The largest gaps between a member and its run alone: of losses, and of parameters."""
    one = member(hyper, index)
    params, curve = alone(one, start, chunks)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(result.params), strict=True)
    apart = max(float(jnp.abs(a - b[index]).max()) for a, b in pairs)
    return float(np.abs(curve - result.curves[index]).max()), apart / one.learning_rate


def text(name: str, value: float) -> str:
    """A value with two significant digits; for b1 and b2, two digits of 1 - b."""
    if name in ("b1", "b2"):
        exponent = int(f"{1 - value:.1e}".partition("e")[2])
        return f"{value:.{1 - exponent}f}"
    return f"{value:.2g}"


def label(hyper: Hyper, index: int, axes: tuple[Axis, Axis]) -> list[str]:
    """The two swept values of a member."""
    return [text(axis.name, getattr(hyper, axis.name)[index]) for axis in axes]


def table_of(result: Result, hyper: Hyper, axes: tuple[Axis, Axis]) -> Table:
    """A table of the best members."""
    table = Table("member", *(axis.name for axis in axes), "training loss", "held-out accuracy")
    for index in result.loss.argsort(kind="stable")[:SHOWN]:
        numbers = f"{result.loss[index]:.5f}", f"{result.accuracy[index]:.2%}"
        table.add_row(str(index), *label(hyper, index, axes), *numbers)
    return table


def draw(path: Path, result: Result, hyper: Hyper, axes: tuple[Axis, Axis]) -> None:
    """Draw the grid on the left and the curves of the best members on the right."""
    figure = Figure(figsize=(13, 5.5), layout="constrained", facecolor="white")  # with Agg
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    draw_grid(figure, left, result, axes)
    draw_curves(right, result, hyper, axes)
    figure.savefig(path, format="png", dpi=100)


def draw_grid(figure, panel, result: Result, axes: tuple[Axis, Axis]) -> None:
    """Draw losses as colors, and accuracies as numbers if there is room."""
    x, y = axes
    shape = len(y.values), len(x.values)
    losses = np.ma.masked_invalid(result.loss.reshape(shape))
    scale = LogNorm(losses.min(), losses.max()) if losses.count() else None
    image = panel.imshow(losses, origin="lower", aspect="auto", cmap="viridis_r", norm=scale)
    figure.colorbar(image, label="training loss at the end (nats)")
    panel.set(title="Held-out accuracy (%) in the colour of the training loss")
    for axis, side in ((x, panel.xaxis), (y, panel.yaxis)):
        side.set_ticks(range(len(axis.values)), [text(axis.name, v) for v in axis.values])
        side.set_label_text(axis.name.replace("_", " "))
    if max(shape) <= 12:
        for (row, column), accuracy in np.ndenumerate(result.accuracy.reshape(shape)):
            loss = losses[row, column]
            dark = loss is not np.ma.masked and scale(loss) > 0.5  # this map ends dark
            colour = "white" if dark else "black"
            panel.text(column, row, f"{100 * accuracy:.1f}", ha="center", va="center", color=colour)
    best = np.unravel_index(result.loss.argmin(), shape)
    panel.plot(*best[::-1], "s", markersize=30, fillstyle="none", color="red", markeredgewidth=2)


def draw_curves(panel, result: Result, hyper: Hyper, axes: tuple[Axis, Axis]) -> None:
    """Draw the best member of each of the best columns; curves of neighbors would coincide.

    Points are means over an epoch, since batches differ more than members do.
    """
    width = len(axes[0].values)
    columns = result.loss.reshape(-1, width)
    best = width * columns.argmin(axis=0) + np.arange(width)
    best = best[result.loss[best].argsort(kind="stable")][:SHOWN]
    epoch = result.steps_of_epoch
    for index, line in zip(best, ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))), strict=False):
        means = np.convolve(result.curves[index], np.full(epoch, 1 / epoch), "valid")
        values = ", ".join(label(hyper, index, axes))
        steps = np.arange(epoch, epoch + len(means))
        panel.semilogy(steps, means, linestyle=line, label=f"{values}: {result.loss[index]:.4f}")
    x, y = (axis.name.replace("_", " ") for axis in axes)
    panel.legend(title=f"{x}, {y}: training loss at the end")
    panel.set(
        title=f"Best of each {x}: loss, mean of {epoch} steps",
        xlabel="step",
        ylabel="cross-entropy (nats)",
    )
    panel.grid(alpha=0.3)


def parse_axis(words: list[str]) -> Axis:
    """NAME LOW HIGH COUNT, or a ValueError that says what is wrong."""
    name, low, high, count = words
    if name not in Hyper._fields:
        raise ValueError(f"NAME must be one of {', '.join(Hyper._fields)}, not {name}")
    try:
        low, high, count = float(low), float(high), int(count)
    except ValueError:
        raise ValueError("LOW and HIGH must be numbers, COUNT a whole one") from None
    below_one = name in ("b1", "b2")
    if not (low < high < 1 if below_one else 0 < low < high < math.inf) or low < 0 or count < 2:
        limits = "0 <= LOW < HIGH < 1" if below_one else "0 < LOW < HIGH, finite,"
        raise ValueError(f"{name} needs {limits} and COUNT at least 2")
    values = spaced(name, low, high, count)
    for value in np.float32(values):
        # Traced values are not checked. A b1 of 1 - 1e-9, for example, is 1 in 32 bits: refuse it.
        fa.adamw(**{name: value})
    return Axis(name, values)


def parse_args() -> argparse.Namespace:
    """The options, with `axes` and `others` made from them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, shown=" (default: %(default)s)", **options) -> None:
        parser.add_argument(name, help=help + shown, **options)

    words = dict(nargs=4, metavar=("NAME", "LOW", "HIGH", "COUNT"))
    what = f"COUNT values of one of {', '.join(Hyper._fields)}"
    add("--x", what, default=["learning_rate", "1e-4", "0.1", "8"], **words)
    add("--y", "the same for the other side", default=["b2", "0.7", "0.9999", "8"], **words)
    for name, value in Hyper()._asdict().items():
        option = "--" + name.replace("_", "-")
        shown = f" (default: {value:g})"
        add(option, "the same for all members, if not swept", shown, type=number(float, 0))
    add("--epochs", "passes over the data", type=number(int, 1), default=5)
    add("--seed", "of weights and data order", type=number(int, 0, 2**32 - 1), default=0)
    add("--check", "the member to run alone", " (default: the best)", type=number(int, 0))
    add("--output", "the picture to write", type=Path, default=Path("sweep.png"), metavar="FILE")
    args = parser.parse_args()

    axes = []
    for side in ("x", "y"):
        try:
            axes.append(parse_axis(getattr(args, side)))
        except ValueError as error:
            parser.error(f"argument --{side}: {error}")
    args.axes = tuple(axes)
    names = [axis.name for axis in axes]
    if names[0] == names[1]:
        parser.error(f"argument --y: {names[1]} is swept by --x")
    given = {name: getattr(args, name) for name in Hyper._fields}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if name in names:
            parser.error(f"argument {option}: {name} is swept")
        try:
            fa.adamw(**{name: np.float32(value)})
        except ValueError as error:
            parser.error(f"argument {option}: {error}")
    args.others = Hyper(**given)
    members = math.prod(len(axis.values) for axis in axes)
    if args.check is not None and args.check >= members:
        parser.error(f"argument --check: there are {members} members, from 0 to {members - 1}")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> str | None:
    """Sweep, report, draw; return a message if the checked member differs from its run alone."""
    args = parse_args()
    answer_interrupts()
    train, held_out = load()
    hyper = grid(*args.axes, args.others)
    start, chunks = init_params(args.seed), epochs_of(train, args.epochs, args.seed)
    console = Console()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        members = len(hyper.learning_rate)
        task = progress.add_task(f"{members} members, epochs", total=args.epochs)
        params, curves = sweep(hyper, start, chunks, functools.partial(progress.advance, task))
    result = measured(params, curves, train, held_out)
    console.print(table_of(result, hyper, args.axes))
    print(NOTE)
    draw(args.output, result, hyper, args.axes)
    print(f"Wrote {args.output}")

    index = int(result.loss.argmin()) if args.check is None else args.check
    loss_gap, parameter_gap = gaps(result, hyper, index, start, chunks)
    print(
        f"Member {index} against its run alone, {curves.shape[1]} steps: losses within "
        f"{loss_gap:.1e} nats,\nparameters within {parameter_gap:.1e} learning rates."
    )
    if not (loss_gap <= LOSS_BOUND and parameter_gap <= PARAMETER_BOUND):
        return (
            f"That is more than {LOSS_BOUND:g} or {PARAMETER_BOUND:g}. At large rates, rounding "
            "errors grow from step to step; see docs/sweeps.md."
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
