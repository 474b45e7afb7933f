"""Train a byte-level transformer on several devices, with Adam's state sharded (ZeRO-1) or not.

Each device reads its share of every batch and has all parameters. With `--zero`, it stores only its
share of the moments. On a computer without accelerators, the devices are parts of its CPU. The
script prints the bytes of the state on one device, predicted and counted, and the losses, which do
not depend on the sharding of the state.
"""

import argparse
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from interrupts import answer_interrupts
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from train_digits import number, schedule
from train_small_memory import (
    CONTEXT,
    HEADS,
    init_params,
    load,
    loss_of,
    no_norms,
    windows_at,
)

import functional_adam as fa

AXIS = "data"
EVERY = 10  # steps between two updates of the progress bar
NOTE = """\
"Computed" is the prediction of `fa.memory_report(tx, params, shardings)`; "found" is
counted on the first device. Devices that are parts of a CPU share its cores, so more
of them do not train faster."""


class Run(NamedTuple):
    """The results of training."""

    state: Any
    losses: list[float]  # of each step's batch
    rate: float  # windows per second, without the first steps and their compilation


def train_step(tx, params, state, windows):
    """One step; XLA sums the gradients over the devices, and splits or gathers where needed."""
    loss, grads = jax.value_and_grad(loss_of)(params, windows)
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state, loss


def fit(tx, params, state, text, args, progress) -> Run:
    """Train to the last step; parameters and state keep their shardings."""
    places = jax.tree.map(lambda x: x.sharding, (params, state))
    split = NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, PartitionSpec(AXIS))
    # Without `out_shardings`, XLA chooses the shardings of results and may split parameters too.
    compiled = jax.jit(
        functools.partial(train_step, tx), donate_argnums=(0, 1), out_shardings=(*places, None)
    )
    task = progress.add_task("training", total=args.steps, rate="")
    order, losses, start = np.random.default_rng(args.seed), [], 0.0
    for step in range(args.steps):
        starts = order.integers(len(text) - CONTEXT, size=args.batch_size)
        windows = jax.device_put(windows_at(text, starts), split)
        params, state, loss = compiled(params, state, windows)
        losses.append(loss)
        if step + 1 == EVERY:
            jax.block_until_ready(loss)
            start = time.perf_counter()
        if step + 1 > EVERY and step % EVERY == 0:
            done = (step + 1 - EVERY) * args.batch_size / (time.perf_counter() - start)
            progress.update(task, completed=step + 1, rate=f"{done:,.0f} windows per second")
    jax.block_until_ready(losses)
    seconds = time.perf_counter() - start
    progress.update(task, completed=args.steps)
    rate = (args.steps - EVERY) * args.batch_size / seconds
    return Run(state, [float(loss) for loss in losses], rate)


def held(tree: Any, device: jax.Device) -> int:
    """The bytes of a tree that are on a device."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def table_of(report: Any, run: Run, args) -> Table:
    """The bytes of the state, and the losses."""
    table = Table("what")
    table.add_column("value", justify="right")
    first = jax.tree.leaves(run.state)[0].sharding.mesh.devices.ravel()[0]
    rows = {
        "devices": args.devices,
        "parameters": f"{report.parameters:,}",
        "bytes of Adam's state, in all": f"{report.state_bytes:,}",
        "on a device, computed": f"{report.state_bytes_per_device:,}",
        "on a device, found": f"{held(run.state, first):,}",
        "windows per second": f"{run.rate:,.0f}",
        "loss of the first steps": f"{np.mean(run.losses[:EVERY]):.4f}",
        "loss of the last steps": f"{np.mean(run.losses[-EVERY:]):.4f}",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        parser.add_argument(name, help=f"{help} (default: {default})", default=default, **options)

    add("--devices", "to train on", 8, type=number(int, 1, 512))
    parser.add_argument("--zero", action="store_true", help="shard the moments over the devices")
    add("--moments", "storage format", "full", choices=("full", "bfloat16", "int8"))
    add("--steps", f"at least {2 * EVERY}", 100, type=number(int, 2 * EVERY))
    add("--width", f"of the model, a multiple of {HEADS}", 128, type=number(int, HEADS))
    add("--batch-size", "windows per step, a multiple of the devices", 16, type=number(int, 1))
    add("--learning-rate", "the peak", 0.003, type=number(float, 0))
    add("--seed", "of weights and data order", 0, type=number(int, 0, 2**32 - 1))
    args = parser.parse_args()
    for name, divisor in (("width", HEADS), ("batch_size", args.devices)):
        if getattr(args, name) % divisor:
            option = name.replace("_", "-")
            parser.error(
                f"argument --{option}: must be a multiple of {divisor}, not {getattr(args, name)}"
            )
    jax.config.update("jax_num_cpu_devices", args.devices)  # before JAX looks for devices
    if len(jax.devices()) < args.devices:
        parser.error(f"argument --devices: there are {len(jax.devices())}")
    return args


def main() -> None:
    """Place parameters and state on the devices, train, report."""
    args = parse_args()
    answer_interrupts()
    mesh = Mesh(jax.devices()[: args.devices], AXIS)  # XLA inserts the communication
    params = init_params(args.seed, args.width, jnp.float32)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    rate = schedule(args.learning_rate, args.steps)
    tx = fa.adamw(rate, b2=0.99, weight_decay=0.1, mask=no_norms, moments=args.moments)

    shardings = fa.state_shardings(tx, params, zero_axis=AXIS if args.zero else None)
    state = jax.jit(tx.init, out_shardings=shardings)(params)

    console = Console()
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        run = fit(tx, params, state, load()[0], args, progress)
    console.print(table_of(fa.memory_report(tx, params, shardings), run, args))
    print(NOTE)


if __name__ == "__main__":
    main()
