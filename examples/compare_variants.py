"""Compare the variants of Adam on two tasks, each at the learning rate that suits it best.

The tasks are a small network on scikit-learn's digits and an ill-conditioned quadratic. One program
trains a variant at all rates of a grid and from all seeds: the learning rate may be a traced array,
so `jax.vmap` runs over rates as well as over seeds. The script prints a table and draws
`variants.png`.
"""

import argparse
import functools
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from interrupts import answer_interrupts
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from sklearn.isotonic import isotonic_regression
from train_digits import Digits, batch_at, load, loss_and_accuracy, loss_of, number

import functional_adam as fa

LAYERS = (64, 64, 10)  # smaller than in train_digits: 119 networks train at once
BATCH = 64
DIMENSIONS, CONDITION = 50, 1e4
SAMPLE = 10  # steps of the quadratic per point of its curve
RATES = np.geomspace(1e-3, 10, 17)  # four per decade, for all variants and both tasks
NOTE = """\
Each rate is constant: the one of the grid with the lowest loss. A loss is the mean
over the last tenth of a run, and the median over seeds. Other arguments have their
defaults, unless the name shows one. Seeds differ more than neighbors in the table.
simplified_ademamix has b1=0.99, alpha=10 and a hundredth of the rate. The modifiers
wrap adam; cautious_weight_decay wraps adamw with a weight decay of 0.01."""


class Variant(NamedTuple):
    """How to make a variant from a learning rate, and how to draw its line."""

    make: Callable[[Any], fa.GradientTransformation]
    colour: str
    line: str = "-"


def on_spheres(tx: fa.GradientTransformation) -> fa.GradientTransformation:
    """`tx` in hyperball, for matrices alone: a bias that starts at 0 would stay there."""
    return fa.hyperball(tx, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))


def simplified(rate: Any) -> fa.GradientTransformation:
    """A hundredth of the rate, since its m, a sum, is up to a hundred times an average."""
    return fa.simplified_ademamix(rate / 100, b1=0.99, alpha=10.0)


VARIANTS = {
    "adam": Variant(fa.adam, "black"),
    "adamw": Variant(fa.adamw, "gray", "--"),
    "nadam": Variant(fa.nadam, "tab:blue"),
    "nadam ψ=0.004": Variant(functools.partial(fa.nadam, momentum_decay=4e-3), "tab:blue", "--"),
    "amsgrad": Variant(fa.amsgrad, "tab:purple"),
    "adamax": Variant(fa.adamax, "tab:purple", "--"),
    "radam": Variant(fa.radam, "tab:cyan"),
    "adabelief": Variant(fa.adabelief, "tab:green"),
    "yogi": Variant(fa.yogi, "tab:green", "--"),
    "lamb": Variant(fa.lamb, "tab:brown"),
    "adopt": Variant(fa.adopt, "tab:orange"),
    # The default b3 averages over 10,000 steps, more than a run has.
    "ademamix b3=0.99": Variant(functools.partial(fa.ademamix, b3=0.99), "tab:red"),
    "simplified_ademamix": Variant(simplified, "tab:red", "--"),
    "laprop": Variant(fa.laprop, "tab:olive"),
    "adam_atan2": Variant(fa.adam_atan2, "tab:olive", "--"),
    "cautious": Variant(lambda rate: fa.cautious(fa.adam(rate)), "tab:pink"),
    "cautious_weight_decay": Variant(
        lambda rate: fa.cautious_weight_decay(fa.adamw(rate, weight_decay=0.01)), "tab:pink", "--"
    ),
    "clip_update_rms": Variant(lambda rate: fa.clip_update_rms(fa.adam(rate)), "black", ":"),
    "hyperball": Variant(lambda rate: on_spheres(fa.adam(rate)), "tab:brown", "--"),
}


class Task(NamedTuple):
    """What to minimize, where each seed starts, and the input of each of its steps."""

    loss: Callable[[Any, jax.Array], jax.Array]  # of the parameters and the input of a step
    starts: Any  # parameters with a leading axis of seeds
    given: jax.Array  # (seeds, points of the curve, steps per point, ...)


class Result(NamedTuple):
    """One variant on one task at its best rate."""

    rate: float
    loss: float
    curve: np.ndarray
    params: Any  # at the end, with a leading axis of seeds


def digits_task(train: Digits, epochs: int, seeds: int) -> Task:
    """Cross-entropy of a network with one hidden layer; the curve has one point per epoch."""
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
    steps = len(labels) // BATCH
    batches = [
        [batch_at(step, seed, len(labels), BATCH) for step in range(epochs * steps)]
        for seed in range(seeds)
    ]
    return Task(
        loss=lambda params, batch: loss_of(params, images[batch], labels[batch]),
        starts=jax.vmap(init_params)(jax.random.split(jax.random.key(0), seeds)),
        given=jnp.array(batches).reshape(seeds, epochs, steps, BATCH),
    )


def init_params(key: jax.Array) -> list[dict[str, jax.Array]]:
    """He initialization, as in train_digits."""
    he = jax.nn.initializers.he_normal()
    shapes = list(itertools.pairwise(LAYERS))
    keys = jax.random.split(key, len(shapes))
    return [
        {"w": he(key, shape), "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, shapes, strict=True)
    ]


def quadratic_task(steps: int, seeds: int, noise: float) -> Task:
    """(x - 1)ᵀ H (x - 1) / 2, the eigenvalues of H log-spaced from 1 / CONDITION to 1.

    H is rotated at random, so that no axis is special. The minimum is not at 0, because weight
    decay, and LAMB's steps in proportion to |x|, would lead there by themselves.
    """
    turning, starting, drawing = jax.random.split(jax.random.key(0), 3)
    axes = jax.random.orthogonal(turning, DIMENSIONS)
    hessian = (axes * jnp.geomspace(1 / CONDITION, 1, DIMENSIONS)) @ axes.T

    def loss(x, draw):
        # The value of the second term is 0; its gradient is noise * draw.
        return (x - 1) @ hessian @ (x - 1) / 2 + noise * draw @ (x - jax.lax.stop_gradient(x))

    return Task(
        loss=loss,
        starts=jax.random.normal(starting, (seeds, DIMENSIONS)),
        given=jax.random.normal(drawing, (seeds, steps // SAMPLE, SAMPLE, DIMENSIONS)),
    )


def train(loss_of_step, make, rate, params, given):
    """One run: its curve, whose points are means over steps, and its final parameters."""
    tx = make(rate)

    def step(carry, given):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of_step)(params, given)
        updates, state = tx.update(grads, state, params)
        return (fa.apply_updates(params, updates), state), loss

    def point(carry, given):
        carry, losses = jax.lax.scan(step, carry, given)
        return carry, losses.mean()

    (params, _), curve = jax.lax.scan(point, (params, tx.init(params)), given)
    return curve, params


@functools.partial(jax.jit, static_argnums=(0, 1))
def sweep(loss_of_step, make, rates, starts, given):
    """`train` at every rate and from every seed, the first two axes of the results."""
    over_seeds = jax.vmap(functools.partial(train, loss_of_step, make), in_axes=(None, 0, 0))
    return jax.vmap(over_seeds, in_axes=(0, None, None))(rates, starts, given)


def best(task: Task, make, rates: np.ndarray) -> Result:
    """The result at the rate with the lowest loss over the last tenth of the run."""
    curves, params = sweep(task.loss, make, jnp.asarray(rates, jnp.float32), *task[1:])
    curves = np.asarray(curves)
    curves = np.where(np.isfinite(curves), curves, math.inf)  # a run that diverged
    tail = math.ceil(curves.shape[-1] / 10)
    losses = np.median(curves[..., -tail:].mean(axis=-1), axis=1)
    at = losses.argmin()
    return Result(
        float(rates[at]),
        float(losses[at]),
        np.median(curves[at], axis=0),
        jax.tree.map(lambda leaf: leaf[at], params),
    )


def accuracy(params, digits: Digits) -> float:
    """The accuracy, as the median over the seeds."""
    _, correct = jax.vmap(loss_and_accuracy, in_axes=(0, None))(params, digits)
    return float(np.median(correct))


def bytes_per_parameter(make, params) -> float:
    """Bytes of the state, counter included, divided by the number of parameters."""
    state = make(0.1).init(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / size


def table_of(digits: dict[str, Result], quadratic: dict[str, Result], held_out: Digits) -> Table:
    """Best rates, losses, held-out accuracy, and bytes of the state per parameter."""
    table = Table()
    table.add_column("variant", no_wrap=True)
    for task, column in (
        *(("digits", "rate"), ("digits", "loss"), ("held-", "out")),
        *(("quadr.", "rate"), ("quadr.", "loss"), ("state", "bytes")),
    ):
        table.add_column(f"{task}\n{column}", justify="right")
    for name, result in digits.items():
        table.add_row(
            name,
            f"{result.rate:.2g}",
            f"{result.loss:.1e}",
            f"{accuracy(result.params, held_out):.1%}",
            f"{quadratic[name].rate:.2g}",
            f"{quadratic[name].loss:.1e}",
            f"{bytes_per_parameter(VARIANTS[name].make, result.params):.1f}",
        )
    return table


def draw(path: Path, digits: dict[str, Result], quadratic: dict[str, Result]) -> None:
    """Draw one panel for each task."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")  # draws with Agg: no display needed
    figure.suptitle(
        "Each variant at its best learning rate, given after its name; median over seeds"
    )
    left, right = figure.subplots(1, 2)
    left.set(title="Digits: training loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    right.set(
        title=f"Quadratic, {DIMENSIONS} dimensions, condition number {CONDITION:,.0f}",
        xlabel="step",
        ylabel="loss",
        xscale="log",
    )
    draw_curves(left, digits, 1)
    left.xaxis.get_major_locator().set_params(integer=True)
    draw_curves(right, quadratic, SAMPLE)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    # With a palette, the file has a quarter of the bytes.
    Image.open(drawn).convert("RGB").quantize(128).save(path, format="png", optimize=True)


def draw_curves(axes, results: dict[str, Result], width: int) -> None:
    """Draw curves with points `width` apart, each with a line to its name and rate on the right."""
    for name, result in results.items():
        _, colour, line = VARIANTS[name]
        x = width * np.arange(1, len(result.curve) + 1)
        axes.plot(x, result.curve, line, color=colour, linewidth=2 if name == "adam" else 1.4)
    axes.set(yscale="log", xlim=(x[0], x[-1]))
    axes.grid(alpha=0.3)
    ends = {name: result.curve[-1] for name, result in results.items()}
    heights = axes.transAxes.inverted().transform(
        axes.transData.transform([(x[-1], end) for end in ends.values()])
    )[:, 1]
    for (name, end), height in zip(ends.items(), spread(heights, 1 / 22), strict=True):
        _, colour, line = VARIANTS[name]
        leader = {"arrowstyle": "-", "color": colour, "linestyle": line, "linewidth": 0.8}
        axes.annotate(
            f"{name}, {results[name].rate:.2g}",
            xy=(x[-1], end),
            xytext=(1.1, height),
            textcoords="axes fraction",
            verticalalignment="center",
            color=colour,
            arrowprops={**leader, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 0},
        )


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """The heights in [0, 1] nearest to `heights`, no two of them closer than `gap`."""
    order = np.argsort(heights)
    room = gap * np.arange(len(heights))
    spaced = isotonic_regression(heights[order] - room, y_min=0, y_max=1 - room[-1]) + room
    return spaced[np.argsort(order)]


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        shown = "all" if default is VARIANTS else default
        parser.add_argument(name, help=f"{help} (default: {shown})", default=default, **options)

    add("--epochs", "passes over the digits", type=number(int, 2), default=20)
    add("--steps", "on the quadratic", type=number(int, 2 * SAMPLE), default=1000)
    add("--seeds", "runs to take the median of", type=number(int, 1), default=7)
    add("--noise", "in the quadratic's gradient", type=number(float, 0), default=0.0)
    add("--only", "these variants alone", VARIANTS, nargs="+", choices=VARIANTS, metavar="NAME")
    add("--output", "the picture to write", type=Path, default=Path("variants.png"), metavar="FILE")
    args = parser.parse_args()
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> None:
    """Train everything, report and draw."""
    args = parse_args()
    answer_interrupts()
    train_set, held_out = load()
    tasks = {
        "digits": digits_task(train_set, args.epochs, args.seeds),
        "quadratic": quadratic_task(args.steps, args.seeds, args.noise),
    }
    results = {name: {} for name in tasks}
    console = Console()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for task_name, task in tasks.items():
            for name in progress.track(args.only, description=task_name):
                results[task_name][name] = best(task, VARIANTS[name].make, RATES)
    console.print(table_of(**results, held_out=held_out))
    print(NOTE)
    draw(args.output, **results)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
