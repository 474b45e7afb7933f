"""Train a transformer the way a large one is trained: FSDP, 16-bit weights, 8-bit moments.

A byte-level model in Flax NNX learns Python's own standard library. Its bfloat16 weights, their
gradients and Adam's state are sharded over all devices (FSDP). A step accumulates the gradients of
several micro-batches, clips them, and writes weights and state in one pass; it skips a batch that
would spoil the run. With `--offload`, the moments are in the host's memory between steps.

Checkpoints are written while training goes on; the same command resumes from the newest one. On a
computer without accelerators, the devices are parts of its CPU. The script prints what each device
stores, and draws the loss (`large.png`).
"""

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from interrupts import answer_interrupts
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from train_digits import number, schedule
from train_small_memory import load

import functional_adam as fa

AXIS = "fsdp"
BLOCKS, HEADS, CONTEXT = 2, 4, 64
WAITING = 1024  # bytes of moments on a device that make a leaf wait; the default is 1 MiB
LAST = 10  # the mean loss of this many last steps is printed
MAX_NORM = 1.0
NO_DECAY = (r"norm|embedding", {"weight_decay": 0.0})


# ---- The model ----


class Block(nnx.Module):
    """Attention, then an MLP, each added to the residual stream."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, width, use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x, mask):
        x += self.attention(self.attention_norm(x), mask=mask, decode=False)
        return x + self.down(nnx.relu(self.up(self.mlp_norm(x))))


class Transformer(nnx.Module):
    """The logits of each next byte."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(256, width, rngs=rngs)
        self.position_embedding = nnx.Embed(CONTEXT, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(BLOCKS)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.logits = nnx.Linear(width, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens) + self.position_embedding(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.logits(self.norm(x))


def make_params(width: int, seed: int):
    """Initial weights in bfloat16."""
    params = nnx.state(Transformer(width, nnx.Rngs(seed)), nnx.Param)
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.to_pure_dict(params))


def loss_of(graph, params, windows):
    """Mean cross-entropy, in nats, of each next byte in `windows` of shape (n, CONTEXT + 1)."""
    # CPUs are fast in float32. On GPUs and TPUs, leave this line out.
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    logits = nnx.merge(graph, params)(jnp.int32(windows[:, :-1]))
    targets = jnp.int32(windows[:, 1:])
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


# ---- Optimizer and shardings ----


def fsdp(mesh: Mesh, leaf: Any) -> NamedSharding:
    """Shard a leaf along its longest dimension that is a multiple of the devices, if any."""
    sizes = [size if size % mesh.size == 0 else 0 for size in leaf.shape]
    spec = [None] * leaf.ndim
    if any(sizes):
        spec[int(np.argmax(sizes))] = AXIS
    return NamedSharding(mesh, PartitionSpec(*spec))


def optimizer(args) -> fa.GradientTransformation:
    """AdamW with the smallest state that trains like float32 does, guarded against spikes."""
    return fa.skip_spikes(
        fa.adamw(
            schedule(args.learning_rate, args.steps),
            b2=0.95,
            weight_decay=0.1,
            overrides=[NO_DECAY],
            moments="int8",
            rounding="compensated",
        ),
        window=32,
    )


class Run(NamedTuple):
    """All that the next step depends on, and so the contents of a checkpoint."""

    params: Any
    state: Any


def laid_out(args) -> tuple[fa.GradientTransformation, Any, Run]:
    """The optimizer, the model's structure, and the shapes, dtypes and shardings of a run."""
    tx, mesh = optimizer(args), Mesh(jax.devices()[: args.devices], AXIS)
    model = nnx.eval_shape(lambda: Transformer(args.width, nnx.Rngs(0)))  # allocates nothing
    params = jax.eval_shape(functools.partial(make_params, args.width, args.seed))
    where = jax.tree.map(functools.partial(fsdp, mesh), params)
    shapes = Run(params, jax.eval_shape(tx.init, params))
    places = fa.state_shardings(tx, params, where)
    if args.offload:
        tx, places, _ = fa.offload(tx, params, places, leaves=WAITING)

    def with_sharding(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return tx, nnx.graphdef(model), jax.tree.map(with_sharding, shapes, Run(where, places))


# ---- A step ----


def train_step(graph, tx, run: Run, batches):
    """One step on micro-batches of shape (n, windows, CONTEXT + 1); returns run, loss and norm."""

    def accumulate(total, windows):
        new = jax.value_and_grad(functools.partial(loss_of, graph))(run.params, windows)
        return jax.tree.map(lambda sum, x: sum + x / len(batches), total, new), None

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), run.params)
    (loss, grads), _ = jax.lax.scan(accumulate, (jnp.float32(0), zeros), batches)
    norm = optax.tree.norm(grads)
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, MAX_NORM / norm), grads)
    # One pass over weights and state. `skip_spikes` judges the norm before clipping.
    params, state = fa.step(tx, grads, run.state, run.params, value=loss, grad_norm=norm)
    return Run(params, state), (loss, norm)


def batches_at(step: int, text, args) -> np.ndarray:
    """The windows of a step, from seed and step alone, so that a resumed run gets the same."""
    shape = args.accumulate, args.batch_size // args.accumulate
    starts = np.random.default_rng((args.seed, step)).integers(len(text) - CONTEXT, size=shape)
    return text[starts[..., None] + np.arange(CONTEXT + 1)]


def fit(args, manager: ocp.CheckpointManager, progress: Progress) -> tuple[Run, Any, int]:
    """Train from the newest checkpoint to the last step; return the run, its losses, its start."""
    tx, graph, like = laid_out(args)
    shardings = jax.tree.map(lambda x: x.sharding, like)
    start = manager.latest_step() or 0
    if start:
        run = Run(**manager.restore(start, args=ocp.args.StandardRestore(like._asdict())))
    else:
        make = functools.partial(make_params, args.width, args.seed)
        params = jax.jit(make, out_shardings=shardings.params)()
        run = Run(params, jax.jit(tx.init, out_shardings=shardings.state)(params))
    compiled = jax.jit(
        functools.partial(train_step, graph, tx), donate_argnums=0, out_shardings=(shardings, None)
    )
    split = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec(None, AXIS))
    task = progress.add_task("training", total=args.steps, completed=start, loss="")
    text, seen = load()[0], []
    for step in range(start, args.steps):
        run, result = compiled(run, jax.device_put(batches_at(step, text, args), split))
        seen.append(jax.device_get(result))  # waits, since two steps in flight can block a CPU
        manager.save(step + 1, args=ocp.args.StandardSave(run._asdict()))
        progress.update(task, completed=step + 1, loss=f"loss {seen[-1][0]:.3f}")
    if args.steps not in manager.all_steps():
        manager.save(args.steps, args=ocp.args.StandardSave(run._asdict()), force=True)
    manager.wait_until_finished()
    return run, np.array(seen).reshape(-1, 2), start


# ---- Report and picture ----


def held(tree: Any, device: jax.Device, on_host: bool = False) -> int:
    """The bytes of a tree in a device's memory, or those that its host stores for the device."""
    leaves = jax.tree.leaves(tree)
    leaves = [x for x in leaves if (x.sharding.memory_kind == "pinned_host") == on_host]
    shards = itertools.chain.from_iterable(x.addressable_shards for x in leaves)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def table_of(run: Run, seen: np.ndarray) -> Table:
    """The bytes that each device holds, and how training ended."""
    first = jax.tree.leaves(run.params)[0].sharding.mesh.devices.ravel()[0]
    parameters = sum(p.size for p in jax.tree.leaves(run.params))
    table = Table("what")
    table.add_column("value", justify="right")
    rows = {
        "parameters": f"{parameters:,}",
        "devices": f"{first.client.device_count()}",
        "bytes per parameter, weights and state": f"{nbytes(run) / parameters:.2f}",
        "bytes of weights on a device": f"{held(run.params, first):,}",
        "bytes of Adam's state on a device": f"{held(run.state, first):,}",
        "bytes of Adam's state on the host": f"{held(run.state, first, on_host=True):,}",
        "steps taken": f"{int(run.state.accepted):,}",
        "steps skipped": f"{int(run.state.skipped):,}",
    }
    if len(seen):
        rows["loss of the last steps"] = f"{seen[-LAST:, 0].mean():.4f}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def nbytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def draw(path: Path, seen: np.ndarray, start: int) -> None:
    """Draw loss and gradient norm of each step since the run was started or resumed."""
    figure = Figure(figsize=(9, 5), layout="constrained")  # draws with Agg: no display needed
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = start + np.arange(len(seen))
    above.plot(steps, seen[:, 0], color="tab:blue")
    above.set(title="Loss of each step's batch", ylabel="nats per byte")
    below.plot(steps, seen[:, 1], color="tab:orange")
    below.axhline(MAX_NORM, color="gray", linestyle=":", label="clipped to this")
    below.set(title="Norm of the gradient", xlabel="step", yscale="log")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        parser.add_argument(name, help=f"{help} (default: {default})", default=default, **options)

    add("--devices", "to train on", 8, type=number(int, 1, 512))
    add("--steps", "total number", 200, type=number(int, 1))
    add("--width", f"of the model, a multiple of {HEADS}", 128, type=number(int, HEADS))
    add("--batch-size", "windows per step", 32, type=number(int, 1))
    add("--accumulate", "micro-batches per step", 2, type=number(int, 1))
    add("--learning-rate", "the peak", 0.003, type=number(float, 0))
    add("--seed", "of weights and data order", 0, type=number(int, 0, 2**32 - 1))
    parser.add_argument("--offload", action="store_true", help="moments wait in the host's memory")
    add("--folder", "for checkpoints", Path("checkpoints"), type=Path, metavar="DIR")
    add("--save-every", "steps between checkpoints", 50, type=number(int, 1))
    add("--output", "the picture to write", Path("large.png"), type=Path, metavar="FILE")
    args = parser.parse_args()
    parts = args.accumulate * args.devices
    for name, divisor in (("width", HEADS), ("batch_size", parts)):
        if getattr(args, name) % divisor:
            option = name.replace("_", "-")
            parser.error(
                f"argument --{option}: must be a multiple of {divisor}, not {getattr(args, name)}"
            )
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    jax.config.update("jax_num_cpu_devices", args.devices)  # before JAX looks for devices
    if len(jax.devices()) < args.devices:
        parser.error(f"argument --devices: there are {len(jax.devices())}")
    return args


def main() -> None:
    """Train, report, draw."""
    args = parse_args()
    answer_interrupts()
    console = Console()
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    options = ocp.CheckpointManagerOptions(save_interval_steps=args.save_every, max_to_keep=2)
    with (
        ocp.CheckpointManager(args.folder.resolve(), options=options) as manager,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        run, seen, start = fit(args, manager, progress)
    console.print(f"Trained from step {start} to step {args.steps}.")
    console.print(table_of(run, seen))
    draw(args.output, seen, start)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
