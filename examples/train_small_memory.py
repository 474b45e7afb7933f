"""Train a transformer with 16 bytes per parameter for weights, gradients and Adam's state, or 7.

A byte-level model of 0.7 million parameters learns Python's own standard library in five settings:
float32 Adam, bfloat16 moments, 8-bit moments, bfloat16 weights rounded to nearest, and compensated
bfloat16 weights with 8-bit moments. All settings start from the same weights and get the same
batches. The script prints tables of bytes and losses and draws `small_memory.png`.
"""

import argparse
import functools
import sys
import sysconfig
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
from train_digits import number, schedule

import functional_adam as fa

TRAIN_BYTES, HELD_OUT_BYTES = 1_500_000, 200_000
BLOCKS, HEADS, CONTEXT, BATCH = 3, 4, 64, 8
EVERY = 20  # steps between two points of a curve; one compiled program runs them
HELD_OUT_WINDOWS = 64
NOTE = """\
Sizes are bytes per parameter without activations and temporaries; losses are nats per
byte. With compensated rounding, losses are measured at `fa.master_params`: the state
holds a third byte of each weight."""


class Setting(NamedTuple):
    """How weights and moments are stored, and how to draw the line."""

    label: str
    weights: Any
    options: dict[str, Any]  # of fa.adamw
    colour: str
    width: float
    dashes: str = "-"


SMALLEST = dict(moments="int8", rounding="compensated")
F32, BF16 = jnp.float32, jnp.bfloat16
SETTINGS = {
    "float32": Setting("float32 Adam", F32, {}, "silver", 7),
    "bf16-moments": Setting("bfloat16 moments", F32, dict(moments="bfloat16"), "tab:blue", 3),
    "int8-moments": Setting("int8 moments", F32, dict(moments="int8"), "gold", 1.5),
    "nearest": Setting("bfloat16 weights,\nto nearest", BF16, {}, "tab:red", 1.5),
    "everything": Setting(
        "bfloat16 weights,\ncompensated,\nint8 moments", BF16, SMALLEST, "black", 1.5, ":"
    ),
}


class Result(NamedTuple):
    """A setting's bytes per parameter (weights, gradients, state) and its held-out losses."""

    sizes: np.ndarray
    losses: list[float]  # from step 0, every `EVERY` steps


def load() -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the standard library's modules: every eighth held out, the others to train on."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    held_out, train = (
        b"".join(path.read_bytes() for i, path in enumerate(files) if (i % 8 == 0) == wanted)
        for wanted in (True, False)
    )
    if len(train) < TRAIN_BYTES or len(held_out) < HELD_OUT_BYTES:
        sys.exit(f"Too little to learn: {folder} holds {len(files)} .py files, of a whole Python.")
    texts = train[:TRAIN_BYTES], held_out[:HELD_OUT_BYTES]
    return tuple(np.frombuffer(text, np.uint8) for text in texts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init_params(seed: int, width: int, dtype) -> dict[str, Any]:
    """Variance 1 / inputs, less for matrices that add to the residual stream, to keep its size."""
    keys = iter(jax.random.split(jax.random.key(seed), 7))

    def matrices(*shape, variance):
        return (jax.random.normal(next(keys), shape) * variance**0.5).astype(dtype)

    added = 1 / (2 * BLOCKS)
    return {
        "embedding": matrices(256, width, variance=0.25),
        "position": matrices(CONTEXT, width, variance=0.25),
        "blocks": {  # the first axis is over blocks
            "attention_norm": jnp.ones((BLOCKS, width), dtype),
            "qkv": matrices(BLOCKS, width, 3 * width, variance=1 / width),
            "out": matrices(BLOCKS, width, width, variance=added / width),
            "mlp_norm": jnp.ones((BLOCKS, width), dtype),
            "up": matrices(BLOCKS, width, 4 * width, variance=2 / width),
            "down": matrices(BLOCKS, 4 * width, width, variance=added / (4 * width)),
        },
        "norm": jnp.ones(width, dtype),
        "logits": matrices(width, 256, variance=1 / width),
    }


def normalized(x, scale):
    """RMSNorm: x scaled to a root mean square of 1, times `scale`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def block(x, p):
    """Add attention and then an MLP to the residual stream x, of shape (n, CONTEXT, width)."""
    qkv = normalized(x, p["attention_norm"]) @ p["qkv"]
    qkv = qkv.reshape(*x.shape[:2], 3, HEADS, -1)
    attended = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=True)
    x += attended.reshape(x.shape) @ p["out"]
    return x + jax.nn.relu(normalized(x, p["mlp_norm"]) @ p["up"]) @ p["down"], None


def loss_of(params, windows):
    """Mean cross-entropy, in nats, of each next byte in `windows` of shape (n, CONTEXT + 1)."""
    # CPUs are fast in float32. The gradients still have the dtype of the weights.
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    x = params["embedding"][windows[:, :-1]] + params["position"]
    x, _ = jax.lax.scan(block, x, params["blocks"])
    logits = normalized(x, params["norm"]) @ params["logits"]
    targets = jnp.int32(windows[:, 1:])
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


@jax.jit
def held_out_loss(params, state, windows):
    """The loss at the parameters, including their rounding errors if the state stores them."""
    if state.residual is not None:  # rounding="compensated"
        params = fa.master_params(params, state)
    return loss_of(params, windows)


def windows_at(text, starts):
    """CONTEXT + 1 bytes from each start."""
    return text[starts[:, None] + np.arange(CONTEXT + 1)]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_steps(tx, params, state, text, starts):
    """A step for each row of `starts`; donates the old parameters and state."""

    def step(carry, starts):
        params, state = carry
        grads = jax.grad(loss_of)(params, windows_at(text, starts))
        updates, state = tx.update(grads, state, params)
        return (fa.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), starts)[0]


def no_norms(params):
    """The mask for weight decay: all parameters except those of the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in str(path[-1]), params)


def optimizer(setting: Setting, args) -> fa.GradientTransformation:
    """AdamW with warmup and cosine decay."""
    rate = schedule(args.learning_rate, args.steps)
    return fa.adamw(rate, b2=0.99, weight_decay=0.1, mask=no_norms, **setting.options)


def cost(setting: Setting, windows, args) -> np.ndarray:
    """Bytes per parameter of weights, gradients and state, computed without allocating them."""
    params = jax.eval_shape(lambda: init_params(args.seed, args.width, setting.weights))
    report = fa.memory_report(optimizer(setting, args), params)
    grads = jax.tree.leaves(jax.eval_shape(jax.grad(loss_of), params, windows))
    gradient_bytes = sum(grad.size * grad.dtype.itemsize for grad in grads)
    sizes = report.parameter_bytes, gradient_bytes, report.state_bytes
    return np.array(sizes) / report.parameters


def fit(setting: Setting, train, held_out, args, advance) -> list[float]:
    """Train with one setting; return the held-out loss at the start and every `EVERY` steps."""
    tx = optimizer(setting, args)
    params = init_params(args.seed, args.width, setting.weights)
    state = tx.init(params)
    losses = [float(held_out_loss(params, state, held_out))]
    rows = args.steps // EVERY, EVERY, BATCH
    for starts in np.random.default_rng(args.seed).integers(len(train) - CONTEXT, size=rows):
        params, state = train_steps(tx, params, state, train, starts)
        losses.append(float(held_out_loss(params, state, held_out)))
        advance(EVERY)
    return losses


def table_of(results: dict[str, Result]) -> Table:
    """Bytes per parameter, and the first and last losses."""
    table = Table("setting")
    for column in ("weights", "gradients", "state", "in all", "first loss", "last loss"):
        table.add_column(column, justify="right")
    for name, (sizes, losses) in results.items():
        cells = [f"{size:.3f}" for size in (*sizes, sizes.sum())]
        table.add_row(name, *cells, *(f"{losses[at]:.4f}" for at in (0, -1)))
    return table


def draw(path: Path, results: dict[str, Result]) -> None:
    """Draw losses, their differences from the first setting, and bytes."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")  # draws with Agg: no display needed
    axes = figure.subplot_mosaic([["loss", "bytes"], ["more", "bytes"]], height_ratios=(2, 1))
    first = next(iter(results))
    for name, (_, losses) in results.items():
        label, _, _, *look = SETTINGS[name]
        look = dict(zip(("color", "linewidth", "linestyle"), look, strict=True), marker=".")
        steps = EVERY * np.arange(1, len(losses))  # without the first loss, which is far higher
        label = f"{losses[-1]:.3f}  {label}".replace("\n", " ")
        axes["loss"].plot(steps, losses[1:], label=label, **look)
        axes["more"].plot(steps, np.subtract(losses, results[first].losses)[1:], **look)
    axes["loss"].set(title="Held-out loss", ylabel="nats per byte")
    axes["loss"].legend(title="at the end")
    title = f"Difference from {SETTINGS[first].label}"
    axes["more"].set(title=title, xlabel="step", ylabel="nats per byte")
    for name in ("loss", "more"):
        axes[name].grid(alpha=0.3)
    draw_bytes(axes["bytes"], results)
    figure.savefig(path, format="png", dpi=110)


def draw_bytes(axes, results: dict[str, Result]) -> None:
    """Draw one bar for each setting."""
    labels = [SETTINGS[name].label for name in results]
    parts = np.array([result.sizes for result in results.values()]).T
    ends = parts.cumsum(axis=0)
    colours = {"weights": "lightsteelblue", "gradients": "cornflowerblue", "Adam's state": "orange"}
    for (name, colour), sizes, end in zip(colours.items(), parts, ends, strict=True):
        bars = axes.barh(labels, sizes, left=end - sizes, color=colour, label=name)
        axes.bar_label(bars, [f"{size:.3g}" for size in sizes], label_type="center")
    axes.bar_label(bars, [f"{end:.3g}" for end in ends[-1]], padding=4, fontweight="bold")
    axes.set(title="Memory", xlabel="bytes per parameter", xlim=(0, 1.1 * ends[-1].max()))
    axes.invert_yaxis()
    axes.legend(loc="lower right")


def parse_args() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])

    def add(name: str, help: str, default, **options) -> None:
        shown = "all" if default is SETTINGS else default
        parser.add_argument(name, help=f"{help} (default: {shown})", default=default, **options)

    add("--steps", f"of each run, a multiple of {EVERY}", 400, type=number(int, EVERY))
    add("--width", f"of the model, a multiple of {HEADS}", 128, type=number(int, HEADS))
    add("--learning-rate", "the peak", 0.003, type=number(float, 0))
    add("--seed", "of weights and data order", 0, type=number(int, 0, 2**32 - 1))
    add("--settings", "the settings to run", SETTINGS, nargs="+", choices=SETTINGS, metavar="NAME")
    add("--output", "the picture to write", Path("small_memory.png"), type=Path, metavar="FILE")
    args = parser.parse_args()
    for name, value, divisor in (("steps", args.steps, EVERY), ("width", args.width, HEADS)):
        if value % divisor:
            parser.error(f"argument --{name}: must be a multiple of {divisor}, not {value}")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} is not a file in an existing directory")
    return args


def main() -> None:
    """Train with every setting, report and draw."""
    args = parse_args()
    answer_interrupts()
    train, held_out = load()
    starts = np.arange(HELD_OUT_WINDOWS) * (len(held_out) // HELD_OUT_WINDOWS)
    data = jnp.asarray(train), windows_at(held_out, starts)
    console, results = Console(), {}
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for name in dict.fromkeys(args.settings):
            task = progress.add_task(name, total=args.steps)
            advance = functools.partial(progress.advance, task)
            sizes = cost(SETTINGS[name], data[1], args)
            results[name] = Result(sizes, fit(SETTINGS[name], *data, args, advance))
    if "int8-moments" in results:
        params = init_params(args.seed, args.width, jnp.float32)
        print(fa.memory_report(optimizer(SETTINGS["int8-moments"], args), params))
    console.print(table_of(results))
    print(NOTE)
    draw(args.output, results)
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    main()
