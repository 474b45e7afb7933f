"""Train a small transformer on handwritten digits with Adam and with SGD, at equal budgets.

The gradients are sparse: each pixel's grey level looks up one of 1,088 rows of an embedding table.
Both optimizers start from the same weights and get the same batches, schedule and number of steps.
Both try the same number of learning rates, and each is shown at its best. The script prints a table
and a summary, and draws `adam_and_sgd.png`.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from interrupts import answer_interrupts
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Column, Table
from train_digits import Digits, batch_at, load, number, schedule

import functional_adam as fa

SIDE, LEVELS = 8, 17  # 8 rows of 8 pixels, each of 17 grey levels
WIDTH, BLOCKS, HEADS = 32, 2, 4
EVERY = 10  # steps between two points of a curve
GOAL = 0.1  # training loss, in nats, to which steps are counted
RATES = {  # about a factor of 3 apart, up to where training diverges or stalls
    "Adam": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "SGD with momentum": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
}
MAKE = {"Adam": fa.adam, "SGD with momentum": functools.partial(optax.sgd, momentum=0.9)}


class Run(NamedTuple):
    """One training run: its peak rate, and what was measured every `EVERY` steps."""

    rate: float
    losses: np.ndarray  # training loss, after 0, EVERY, 2 EVERY, … steps
    held_out: np.ndarray  # accuracy

    def steps_to(self, goal: float) -> float:
        """Steps until the training loss is first measured at `goal` or below; infinite if never."""
        reached = np.flatnonzero(self.losses <= goal)
        return EVERY * float(reached[0]) if len(reached) else np.inf


def as_rows(digits: Digits) -> Digits:
    """Each image as 8 tokens of 8 numbers: the row of the table that each pixel looks up."""
    levels = np.int32(np.rint(16 * digits.images))
    looked_up = levels + LEVELS * np.arange(SIDE * SIDE, dtype=np.int32)
    return Digits(looked_up.reshape(-1, SIDE, SIDE), digits.labels)


def init_params(seed: int):
    """Variance 1 / inputs, less for matrices that add to the residual stream, to keep its size."""
    keys = iter(jax.random.split(jax.random.key(seed), 7))

    def matrices(*shape, variance):
        return jax.random.normal(next(keys), shape) * variance**0.5

    added = 1 / (2 * BLOCKS)
    return {
        "embedding": matrices(SIDE * SIDE * LEVELS, WIDTH, variance=0.25 / SIDE),
        "position": matrices(SIDE, WIDTH, variance=0.25),
        "blocks": {  # the first axis is over blocks
            "attention_norm": jnp.ones((BLOCKS, WIDTH)),
            "qkv": matrices(BLOCKS, WIDTH, 3 * WIDTH, variance=1 / WIDTH),
            "out": matrices(BLOCKS, WIDTH, WIDTH, variance=added / WIDTH),
            "mlp_norm": jnp.ones((BLOCKS, WIDTH)),
            "up": matrices(BLOCKS, WIDTH, 4 * WIDTH, variance=2 / WIDTH),
            "down": matrices(BLOCKS, 4 * WIDTH, WIDTH, variance=added / (4 * WIDTH)),
        },
        "norm": jnp.ones(WIDTH),
        "logits": matrices(WIDTH, 10, variance=1 / WIDTH),
    }


def normalized(x, scale):
    """RMSNorm: x scaled to a root mean square of 1, times `scale`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def block(x, p):
    """Add attention and then an MLP to the residual stream x, of shape (n, SIDE, WIDTH)."""
    qkv = (normalized(x, p["attention_norm"]) @ p["qkv"]).reshape(*x.shape[:2], 3, HEADS, -1)
    attended = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0))
    x += attended.reshape(x.shape) @ p["out"]
    return x + jax.nn.relu(normalized(x, p["mlp_norm"]) @ p["up"]) @ p["down"], None


def logits_of(params, rows):
    """The network: sum 8 rows of the table per token, apply blocks, take the mean over tokens."""
    x = params["embedding"][rows].sum(axis=-2) + params["position"]
    x, _ = jax.lax.scan(block, x, params["blocks"])
    return normalized(x.mean(axis=1), params["norm"]) @ params["logits"]


def loss_and_accuracy(params, digits: Digits):
    """Mean cross-entropy, in nats, and the share of digits read correctly."""
    logits = logits_of(params, digits.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, digits.labels)
    return losses.mean(), (logits.argmax(-1) == digits.labels).mean()


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def train(name: str, rate, steps: int, params, batches, data: tuple[Digits, Digits]):
    """Train from `params`; the rate is traced, so that all rates share one compiled program."""
    shape = schedule(1.0, steps)
    tx = MAKE[name](lambda count: rate * shape(count))

    def step(carry, batch):
        params, state = carry
        chosen = Digits(data[0].images[batch], data[0].labels[batch])
        grads, _ = jax.grad(loss_and_accuracy, has_aux=True)(params, chosen)
        updates, state = tx.update(grads, state, params)
        return (fa.apply_updates(params, updates), state), None

    def measure(params):
        return loss_and_accuracy(params, data[0])[0], loss_and_accuracy(params, data[1])[1]

    def some_steps(carry, batches):
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, measure(carry[0])

    batches = batches.reshape(-1, EVERY, batches.shape[1])
    _, later = jax.lax.scan(some_steps, (params, tx.init(params)), batches)
    return jax.tree.map(jnp.append, measure(params), later)


def best_of(runs: list[Run]) -> Run:
    """The run that reaches the goal first; on a tie, or if none does, the one of lowest loss."""
    last = [run.losses[-1] if np.isfinite(run.losses[-1]) else np.inf for run in runs]
    return min(zip(runs, last, strict=True), key=lambda r: (r[0].steps_to(GOAL), r[1]))[0]


def middle(rates: tuple[float, ...], count: int) -> tuple[float, ...]:
    """The `count` rates in the middle."""
    start = (len(rates) - count) // 2
    return rates[start:][:count]


def in_steps(steps: float) -> str:
    """A number of steps as text."""
    return f"{steps:.0f}" if np.isfinite(steps) else "not reached"


def table_of(runs: dict[str, list[Run]]) -> Table:
    """Every run; a star marks the best rate of each optimizer."""
    columns = "peak rate", f"steps to loss {GOAL:g}", "last loss", "held-out accuracy"
    table = Table(Column("run", no_wrap=True), *columns)
    for name, tried in runs.items():
        best = best_of(tried)
        for run in tried:
            mark = " *" if run is best else ""
            steps, loss = in_steps(run.steps_to(GOAL)), f"{run.losses[-1]:.4f}"
            table.add_row(name, f"{run.rate:g}{mark}", steps, loss, f"{run.held_out[-1]:.1%}")
    return table


def summary(runs: dict[str, list[Run]]) -> str:
    """The result in one line."""
    parts = [
        f"{name} {in_steps(best_of(tried).steps_to(GOAL))}, {best_of(tried).held_out[-1]:.1%}"
        for name, tried in runs.items()
    ]
    return f"Steps to a training loss of {GOAL:g}, final held-out accuracy: {'; '.join(parts)}."


def draw(path: Path, runs: dict[str, list[Run]]) -> None:
    """Draw training loss and accuracy at the best rates, and the final loss of every rate."""
    figure = Figure(figsize=(12, 4), layout="constrained")  # draws with Agg: no display needed
    left, middle, right = figure.subplots(1, 3)
    for (name, tried), line in zip(runs.items(), ("-", "--"), strict=True):
        best = best_of(tried)
        steps = EVERY * np.arange(len(best.losses))
        left.semilogy(steps, best.losses, line, label=f"{name}, rate {best.rate:g}")
        middle.plot(steps, 100 * best.held_out, line, label=f"{100 * best.held_out[-1]:.1f} %")
        last = [run.losses[-1] for run in tried]
        right.loglog([run.rate for run in tried], last, line, marker="o")
    left.axhline(GOAL, color="gray", linewidth=0.8)
    left.set(title="Training loss, best rate", xlabel="step", ylabel="cross-entropy (nats)")
    left.set_ylim(top=20)  # room for the names
    middle.set(title="Held-out accuracy", xlabel="step", ylabel="digits read correctly (%)")
    right.set(title="Final training loss of every rate", xlabel="peak learning rate")
    right.set(ylabel="cross-entropy (nats)")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    left.legend(loc="upper right")
    middle.legend(loc="lower right", title="at the end")
    figure.savefig(path, format="png", dpi=120)


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    count = number(int, EVERY)

    def add(name: str, help: str, **options) -> None:
        parser.add_argument(name, help=f"{help} (default: %(default)s)", **options)

    add("--steps", f"length of each run, a multiple of {EVERY}", type=count, default=300)
    add("--batch-size", "images per step", type=number(int, 1, 1437), default=64)
    add(
        "--rates",
        "how many of the six rates to try, taken from the middle",
        type=number(int, 1, 6),
        default=6,
    )
    add("--seed", "of weights and data order", type=number(int, 0, 2**32 - 1), default=0)
    add("--output", "the picture to write", type=Path, default=Path("adam_and_sgd.png"))
    args = parser.parse_args()
    if args.steps % EVERY:
        parser.error(f"argument --steps: must be a multiple of {EVERY}, not {args.steps}")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> str | None:
    """Train with every rate and report; return a message if Adam never reaches the goal."""
    args = parse_args()
    answer_interrupts()
    train_data, held_out = load()
    size = len(train_data.labels)
    chosen = [batch_at(step, args.seed, size, args.batch_size) for step in range(args.steps)]
    batches, data = jnp.asarray(np.stack(chosen)), (as_rows(train_data), as_rows(held_out))
    params = init_params(args.seed)

    console = Console()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    runs: dict[str, list[Run]] = {name: [] for name in RATES}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name, rates in RATES.items():
            for rate in progress.track(middle(rates, args.rates), description=name):
                curves = train(name, rate, args.steps, params, batches, data)
                runs[name].append(Run(rate, *map(np.asarray, curves)))
    console.print(table_of(runs))
    draw(args.output, runs)
    print(f"Wrote {args.output}")
    print(summary(runs))
    if not np.isfinite(best_of(runs["Adam"]).steps_to(GOAL)):
        return f"Adam did not reach a training loss of {GOAL:g} within {args.steps} steps."
    return None


if __name__ == "__main__":
    sys.exit(main())
