"""Learn Adam's learning rate by gradient descent through forty steps of Adam.

The inner task is softmax regression on scikit-learn's digits. The held-out loss after its last step
is a function of the learning rate, and `jax.grad` differentiates it through all updates. A second
Adam minimizes it, once from a rate that is far too low and once from one that is far too high. The
script checks the derivatives against central differences and the results against a sweep over all
rates, and draws `learning_rate.png`.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from interrupts import answer_interrupts
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from train_digits import Digits, load, loss_of, number

import functional_adam as fa

STARTS = (1e-4, 10.0)
B1 = 0.9
META_ADAM = fa.adam(0.4, b1=0.8, b2=0.99)  # the first step: a factor of exp(0.4) = 1.5
SWEEP = np.geomspace(1e-4, 10, 201)
NOTE = """\
The sweep must finish before its best rate is known. The held-out digits choose the
rate here, so an honest estimate of the final loss would need a third set of digits."""


class Hyper(NamedTuple):
    """Hyperparameters, transformed so that they have no bounds."""

    log_rate: jax.Array
    logit_b1: jax.Array


class Descent(NamedTuple):
    """Rates and held-out losses, of shape (starts, meta-steps + 1), from the start to the end."""

    rates: np.ndarray
    losses: np.ndarray


def held_out_loss(train: Digits, held_out: Digits, steps: int, hyper: Hyper) -> jax.Array:
    """Train on all of `train` in every step, starting at zeros; return the loss on `held_out`.

    Four pixels are black in every image. Their gradients and their v are always 0, where the slope
    of the square root is infinite. `fa.adam` takes 0 as this slope; otherwise all derivatives would
    be NaN.
    """
    tx = fa.adam(jnp.exp(hyper.log_rate), b1=jax.nn.sigmoid(hyper.logit_b1))
    params = [{"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}]

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params, *train), state, params)
        return (fa.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return loss_of(params, *held_out)


def at_rate(rate) -> Hyper:
    """Hyperparameters with this learning rate and the fixed b1."""
    return Hyper(jnp.log(rate), jax.scipy.special.logit(jnp.full_like(rate, B1)))


def descend(loss: Callable[[Hyper], jax.Array], meta_steps: int, progress) -> Descent:
    """Minimize over the logarithm of the rate with Adam, from all starts at once."""
    loss_and_slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    hyper = at_rate(jnp.array(STARTS))
    state = META_ADAM.init(hyper)
    rates, losses = [], []
    for _ in progress.track(range(meta_steps + 1), description="meta-steps"):
        loss_now, slope = loss_and_slope(hyper)
        rates.append(jnp.exp(hyper.log_rate))
        losses.append(loss_now)
        # None as gradient keeps b1 fixed: over both there are several minima, each near some start.
        updates, state = META_ADAM.update(slope._replace(logit_b1=None), state)
        hyper = fa.apply_updates(hyper, updates)
    return Descent(np.array(rates).T, np.array(losses).T)


def derivatives(loss: Callable[[Hyper], jax.Array], hyper: Hyper, h: float = 1e-4):
    """`{name: (by jax.grad, by central difference)}`; the error of the latter is of order h²."""
    slope = jax.grad(loss)(hyper)
    both = {}
    for name, value in hyper._asdict().items():
        above, below = (loss(hyper._replace(**{name: value + step})) for step in (h, -h))
        both[name] = float(getattr(slope, name)), float(above - below) / (2 * h)
    return both


def table_of_derivatives(loss: Callable[[Hyper], jax.Array]) -> Table:
    """Derivatives at both starts and halfway between them."""
    table = Table("rate", "by", "jax.grad", "central difference", "relative difference")
    for rate in (STARTS[0], float(np.sqrt(np.prod(STARTS))), STARTS[1]):
        for name, (exact, difference) in derivatives(loss, at_rate(jnp.array(rate))).items():
            gap = abs(exact / difference - 1)
            table.add_row(f"{rate:.3g}", name, f"{exact:.9f}", f"{difference:.9f}", f"{gap:.0e}")
    return table


def table_of(descent: Descent, sweep: np.ndarray) -> Table:
    """The learned rate from each start, and the best rate of the sweep."""
    table = Table("start", "its loss", "learned rate", "its loss", "above the best")
    best = sweep.min()
    for rates, losses in zip(descent.rates, descent.losses, strict=True):
        above = f"{losses[-1] / best - 1:.2%}"
        row = f"{rates[0]:g}", f"{losses[0]:.4f}", f"{rates[-1]:.4f}", f"{losses[-1]:.4f}", above
        table.add_row(*row)
    table.add_row("sweep", "", f"{SWEEP[sweep.argmin()]:.4f}", f"{best:.4f}", "0.00%")
    return table


def draw(path: Path, descent: Descent, sweep: np.ndarray, steps: int) -> None:
    """Draw the losses of all rates with the path of each descent, and the rates by meta-step."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")  # draws with Agg: no display needed
    left, right = figure.subplots(1, 2)
    left.loglog(SWEEP, sweep, color="black", linewidth=1, label="all rates")
    best = SWEEP[sweep.argmin()]
    right.axhline(best, color="black", linewidth=1, label="best of all rates")
    for rates, losses, mark in zip(*descent, ("o", "s"), strict=True):
        label = f"from {rates[0]:g}"
        (line,) = left.plot(rates, losses, mark, markersize=5, alpha=0.6, label=label)
        right.semilogy(rates, mark + "-", markersize=4, color=line.get_color(), label=label)
    left.set(
        title=f"Held-out loss after {steps} steps of Adam",
        xlabel="learning rate",
        ylabel="cross-entropy (nats)",
    )
    right.set(
        title="Gradient descent on the learning rate", xlabel="meta-step", ylabel="learning rate"
    )
    left.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=110)


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, **options) -> None:
        parser.add_argument(name, help=help + " (default: %(default)s)", **options)

    add("--steps", "of the inner task", type=number(int, 1), default=40)
    add("--meta-steps", "on the learning rate", type=number(int, 1), default=50)
    add("--output", "to write", type=Path, default=Path("learning_rate.png"), metavar="FILE")
    args = parser.parse_args()
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> None:
    """Check the derivatives, descend, sweep, report and draw."""
    args = parse_args()
    answer_interrupts()
    # In 32 bits, central differences have only two or three correct digits.
    jax.config.update("jax_enable_x64", True)
    loss = jax.jit(functools.partial(held_out_loss, *load(), args.steps))
    console = Console()
    console.print(table_of_derivatives(loss))
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        descent = descend(loss, args.meta_steps, progress)
    sweep = np.asarray(jax.vmap(loss)(at_rate(jnp.array(SWEEP))))
    console.print(table_of(descent, sweep))
    print(NOTE)
    draw(args.output, descent, sweep, args.steps)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
