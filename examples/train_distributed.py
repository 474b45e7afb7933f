"""Train on the handwritten digits with several processes, any of which may be killed at any moment.

Start one process per host (`--processes N --process-id I --coordinator HOST:PORT`), or several on
this host (`--spawn N`). Each device reads its share of every batch and stores its share of Adam's
state (ZeRO-1). Checkpoints are written while training goes on. To resume, give the same command
again: it continues from the newest good checkpoint, also on other numbers of processes and devices.
With the same number of devices, the result has the bits of an uninterrupted run.
"""

import argparse
import functools
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from checkpoints import CheckpointError, Checkpoints, reason_of
from interrupts import answer_interrupts, leave
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from train_digits import batch_at, init_params, load, loss_of, matrices, number, schedule

import functional_adam as fa

AXIS = "data"
NOISE = 0.1  # standard deviation; the brightness of images is from 0 to 1
HEARTBEAT = 10  # seconds of silence after which a process counts as dead
AGAIN = 75  # exit status: start the same command again (EX_TEMPFAIL of sysexits.h)


class Run(NamedTuple):
    """All that the next step depends on, and so the contents of a checkpoint."""

    params: Any
    state: Any
    key: jax.Array  # the data of a PRNG key, since serializers need plain arrays
    position: jax.Array  # images read so far


def train_step(tx, run: Run, images, labels):
    """One step; XLA sums the gradients over all devices of all processes."""
    noise = jax.random.fold_in(jax.random.wrap_key_data(run.key), run.position)
    images += NOISE * jax.random.normal(noise, images.shape)
    loss, grads = jax.value_and_grad(loss_in_float32)(run.params, images, labels)
    updates, state = tx.update(grads, run.state, run.params)
    params = fa.apply_updates(run.params, updates)
    return Run(params, state, run.key, run.position + len(labels)), loss


def loss_in_float32(params, images, labels):
    """The loss, computed in float32 for weights of any dtype."""
    return loss_of(jax.tree.map(lambda p: p.astype(jnp.float32), params), images, labels)


def placed(tree: Any, shardings: Any) -> Any:
    """Make global arrays of NumPy arrays that are the same on every process."""

    def place(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree, shardings)


def fresh(tx, args) -> tuple[Run, Run]:
    """The run before its first step, and the sharding of each of its arrays."""
    everywhere = NamedSharding(Mesh(jax.devices(), AXIS), PartitionSpec())
    dtype = jnp.float32 if args.rounding == "nearest" else jnp.bfloat16
    params = jax.tree.map(lambda p: np.asarray(p.astype(dtype)), init_params(args.seed))
    where = jax.tree.map(lambda _: everywhere, params)
    states = fa.state_shardings(tx, params, where, zero_axis=AXIS)
    shardings = Run(where, states, everywhere, everywhere)
    params = placed(params, where)
    key = np.asarray(jax.random.key_data(jax.random.key(args.seed)))
    state = jax.jit(tx.init, out_shardings=states)(params)
    return Run(params, state, *placed((key, np.int32(0)), shardings[2:])), shardings


def fit(tx, args, checkpoints: Checkpoints, progress: Progress) -> float:
    """Train from the newest good checkpoint to the last step; return the loss."""
    run, shardings = fresh(tx, args)
    train, _ = load()
    start, loss = 0, np.nan
    if saved := checkpoints.restore(run):
        start, loss = saved.step, saved.notes["loss"]
        run = placed(saved.tree, shardings)
    checkpoints.say(
        f"Training from step {start} on {jax.device_count()} devices, {args.processes} processes."
    )
    split = NamedSharding(shardings.position.mesh, PartitionSpec(AXIS))
    # Without `out_shardings`, XLA chooses the shardings of results and may split parameters too.
    compiled = jax.jit(
        functools.partial(train_step, tx), donate_argnums=0, out_shardings=(shardings, None)
    )
    task = progress.add_task("training", total=args.steps, completed=start)
    for step in range(start, args.steps):
        batch = batch_at(step, args.seed, len(train.labels), args.batch_size)
        images, labels = placed((train.images[batch], train.labels[batch]), (split, split))
        run, loss = compiled(run, images, labels)
        if jax.default_backend() == "cpu":
            # With two steps in flight, CPU devices may each start a different one and wait forever.
            jax.block_until_ready(loss)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            checkpoints.save(step + 1, run, {"loss": float(loss)})
        progress.update(task, completed=step + 1)
    checkpoints.finish()
    return float(loss)


# ---- Processes ----


def join(args) -> None:
    """Join the other processes."""
    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
    if args.processes == 1:
        return
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM must end the process
    # JAX's own timeout would end the process with a stack trace.
    message = f"Not all {args.processes} processes came within {args.wait} s."
    timer = threading.Timer(args.wait, leave, (message, AGAIN))
    timer.start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.processes,
            args.process_id,
            initialization_timeout=args.wait + HEARTBEAT,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except RuntimeError as error:
        leave(f"No processes could meet at {args.coordinator}: {reason_of(error)}", 1)
    timer.cancel()


def die_with_parent() -> None:
    """End this process when its parent is gone, which closes the pipe to stdin."""

    def watch():
        sys.stdin.read()
        leave("The process that spawned this one is gone.", AGAIN)

    threading.Thread(target=watch, daemon=True).start()


def spawn(args) -> int:
    """Start all processes on this host; end all of them when one fails."""
    with socket.socket() as held:  # reserves the port, which the coordinator may share
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        command = [sys.executable, *sys.argv, "--processes", str(args.spawn), "--spawned"]
        command += ["--coordinator", address]
        children = [
            subprocess.Popen([*command, "--process-id", str(i)], stdin=subprocess.PIPE)
            for i in range(args.spawn)
        ]
        try:
            return wait_for(children)
        except KeyboardInterrupt:  # the children have received it too
            time.sleep(1)
            return 130
        finally:
            for child in children:
                child.kill()
                child.wait()
                child.stdin.close()


def wait_for(children: list[subprocess.Popen]) -> int:
    """0 if all end well. Else the first other status, after the others have had time to notice."""
    ended: dict[int, int] = {}
    deadline = np.inf
    while len(ended) < len(children) and time.monotonic() < deadline:
        for i, child in enumerate(children):
            if i not in ended and child.poll() is not None:
                ended[i] = child.returncode
                if child.returncode and deadline == np.inf:
                    deadline = time.monotonic() + HEARTBEAT + 4
                    print(f"Process {i} ended: {meaning(child.returncode)}.", file=sys.stderr)
        time.sleep(0.05)
    bad = [status for status in ended.values() if status]
    if not bad:
        return 0
    print("The same command goes on from the newest good checkpoint.", file=sys.stderr)
    return bad[0] if bad[0] > 0 else AGAIN


def meaning(status: int) -> str:
    """A child's exit status in words."""
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


# ---- Command line ----


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        parser.add_argument(name, help=f"{help} (default: {default})", default=default, **options)

    count = number(int, 1, 4096)
    parser.add_argument("--spawn", help="start N processes on this host", type=count, metavar="N")
    add("--processes", "number of processes, if you start each one", 1, type=count)
    add("--process-id", "number of this process, from 0", 0, type=number(int, 0))
    parser.add_argument("--coordinator", help="HOST:PORT of process 0")
    parser.add_argument("--spawned", help=argparse.SUPPRESS, action="store_true")
    add("--wait", "seconds to wait for the other processes", 60, type=number(int, 1))
    parser.add_argument(
        "--devices", help="CPU devices, for a run of one process", type=count, metavar="N"
    )
    add("--moments", "storage format", "full", choices=("full", "bfloat16", "int8"))
    roundings = ("nearest", "stochastic", "compensated", "split")
    add("--rounding", "of weights, which are bfloat16 unless nearest", "nearest", choices=roundings)
    add("--steps", "total number", 2000, type=number(int, 1))
    add("--batch-size", "images per step", 64, type=number(int, 1, 1437))
    add("--learning-rate", "the peak", 0.01, type=number(float, 0))
    add("--seed", "of weights and data order", 0, type=number(int, 0, 2**32 - 1))
    add("--checkpoint", "directory that all processes see", Path("distributed_run"), type=Path)
    add("--save-every", "steps between checkpoints", 100, type=number(int, 1), metavar="K")
    args = parser.parse_args()
    if args.spawn and not args.spawned and (args.processes > 1 or args.coordinator):
        parser.error("argument --spawn: give no --processes or --coordinator with it")
    if args.devices and (args.spawn or args.processes > 1):
        # With several devices per process, Gloo waits for threads that its own collectives occupy.
        parser.error("argument --devices: only for a run of one process")
    if args.processes > 1 and not args.coordinator:
        parser.error("argument --coordinator: needed with several processes")
    if args.process_id >= args.processes:
        parser.error(f"argument --process-id: must be below --processes, {args.processes}")
    if args.checkpoint.exists() and not args.checkpoint.is_dir():
        parser.error(f"argument --checkpoint: {args.checkpoint} is not a directory")
    return args


def main() -> int:
    """Join the others, train, report."""
    args = parse_args()
    if args.spawn and not args.spawned:
        return spawn(args)
    answer_interrupts()
    if args.spawned:
        die_with_parent()
    join(args)
    if args.batch_size % jax.device_count():
        leave(f"--batch-size must be a multiple of the {jax.device_count()} devices.", 2)
    console = Console(quiet=jax.process_index() > 0, soft_wrap=True, markup=False, highlight=False)
    names = ("steps", "batch_size", "learning_rate", "seed", "moments", "rounding")
    settings = {name: getattr(args, name) for name in names}
    checkpoints = Checkpoints(args.checkpoint, settings, console.print)
    checkpoints.answer_interrupts()
    rate = schedule(args.learning_rate, args.steps)
    tx = fa.adamw(
        rate, weight_decay=0.1, mask=matrices, moments=args.moments, rounding=args.rounding
    )
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            loss = fit(tx, args, checkpoints, progress)
    except CheckpointError as error:
        leave(str(error), 1)
    except (ValueError, RuntimeError, OSError) as error:
        if args.processes == 1:
            raise
        leave(
            f"A process is gone, or failed: {reason_of(error)}\n"
            f"The same command goes on from {checkpoints.left()}.",
            AGAIN,
        )
    console.print(f"Loss {loss:.6f} after {args.steps} steps.")
    if checkpoints.failed is not None:
        saved = checkpoints.good == args.steps
        leave(f"Saved: {checkpoints.left()}, of {args.steps}.", 0 if saved else 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
