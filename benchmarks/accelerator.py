"""Time optimizer steps on a GPU or TPU beside Optax's, and compare their bits with the CPU's.

    python benchmarks/accelerator.py              # one device with 16 GB of memory; minutes
    python benchmarks/accelerator.py --quick      # small trees, to see that it runs; also on a CPU

How it measures. A measurement is one call of one compiled program, which takes `--steps` steps in
a loop on the device, with parameters and state donated, and blocks at the end. Python dispatches
once per measurement, not once per step. An optimization barrier in the loop hides from XLA that
the gradients stay the same. All contestants of a tree live in one process and run in rounds, in an
order that rotates and reverses. "ms" is the median of the rounds; "/ optax" is the median of the
ratios by round, with its 95 % bootstrap interval. "update, again" is Optax's step compiled a second
time, which shows by how much equal programs seem to differ.

"Bytes" is the least that a step can move per parameter: everything that it is given and everything
that it changes, once. "GB/s" is that least divided by the time, and "of copy" is GB/s as a share of
what a copy from device memory to device memory reads and writes per second in the same rounds. A
step that moves more than the least shows a smaller share. "Compile" is the time to trace, lower and
compile such a program, whose loop holds one step, once and with empty caches.

The second table takes one step from one random state on the device and on the CPU, and counts the
elements whose bits differ.
"""

from __future__ import annotations

import argparse
import gc
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from entrants import HYPERPARAMETERS
from step import machine, ratio, rounds, seconds
from workloads import STATES, Shapes, gpt2, mlp

import functional_adam as fa
from functional_adam._kernels.choice import HAS_KERNELS, SWITCH, mode

Tree = Any
HYPER = {**HYPERPARAMETERS, "weight_decay": 0.037}
# Of leaves whose bits are compared: whole and ragged blocks, a short axis, a single axis.
ODD = {"w": (768, 3072), "rows": (1003, 200), "heads": (48, 3, 640), "bias": (5000,)}
COPIES = 16  # per measurement
TIMES = "| parameters | state | by | bytes | ms | GB/s | of copy | / optax | compile, s |"
BITS = "| state | by | p | mu | nu | nu_scale | residual | update / learning rate |"


class Contestant(NamedTuple):
    """One way to take a step. All but "fa.step" call `update`, then `apply_updates`."""

    state: str
    way: str
    dtype: str
    tx: Any

    @property
    def name(self) -> str:
        return f"{self.state}, {self.way}"

    def step(self, params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree, Tree]:
        """Parameters, state and, where there is one, the update."""
        if self.way == "fa.step":
            return *fa.step(self.tx, grads, state, params), None
        updates, state = self.tx.update(grads, state, params)
        apply = fa.apply_updates if self.state in STATES else optax.apply_updates
        return apply(params, updates), state, updates


def contestants() -> list[Contestant]:
    """Optax twice, then ours."""
    theirs = [
        Contestant("optax.adamw", way, "float32", optax.adamw(**HYPER))
        for way in ("update", "update, again")
    ]
    return theirs + [
        Contestant(state, way, dtype, fa.adamw(**HYPER, **arguments))
        for state, (dtype, arguments) in STATES.items()
        for way in ("update", "fa.step")
    ]


# ---- Time ----


def normal(shapes: Shapes, dtype: str, seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    draw = partial(rng.standard_normal, dtype=np.float32)
    return {name: jnp.asarray(draw(shape), dtype) for name, shape in shapes.items()}


def least(contestant: Contestant, shapes: Shapes) -> int:
    """Bytes of a step: gradients, parameters and state are read, the last two written."""
    params = {k: jax.ShapeDtypeStruct(shape, contestant.dtype) for k, shape in shapes.items()}
    state = jax.eval_shape(contestant.tx.init, params)
    moved = params, (params, state), (params, state)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(moved))


def looped(contestant: Contestant, steps: int) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
    """`steps` steps on the same gradients, as one program."""

    def run(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        def once(_: Any, carry: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            # Without it XLA computes (1 - b1) g before the loop, and a step reads more than g.
            (params, state), now = jax.lax.optimization_barrier((carry, grads))
            return contestant.step(params, state, now)[:2]

        return jax.lax.fori_loop(0, steps, once, (params, state))

    return run


def compiled(contestant: Contestant, steps: int, *arguments: Tree) -> tuple[Any, float]:
    """The program, whose parameters and state are donated, and the seconds that it took."""
    jax.clear_caches()
    gc.collect()
    begin = time.perf_counter()
    jitted = jax.jit(looped(contestant, steps), donate_argnums=(0, 1))
    program = jitted.lower(*arguments).compile()
    taken = time.perf_counter() - begin
    print(f"compiled {contestant.name}: {taken:.1f} s", file=sys.stderr)
    return program, taken


def copier(size: int) -> Callable[[int], None]:
    """A function that copies `size` float32 so many times, each time the last copy."""
    source = jnp.ones(size, jnp.float32)
    copy = jax.jit(jnp.copy).lower(source).compile()

    def run(times: int) -> None:
        x = source
        for _ in range(times):
            x = copy(x)
        jax.block_until_ready(x)

    return run


def prepared(shapes: Shapes, steps: int) -> tuple[dict[str, Callable[[], float]], dict[str, float]]:
    """What times a step of each contestant, and the seconds that each took to compile."""
    grads = {dtype: normal(shapes, dtype, seed=2) for dtype in ("float32", "bfloat16")}
    carries: dict[str, tuple[Tree, Tree]] = {}  # both ways to step a state take turns on the same
    actions, compiling = {}, {}
    for c in contestants():
        if c.state not in carries:
            params = normal(shapes, c.dtype, seed=1)
            carries[c.state] = params, jax.jit(c.tx.init)(params)
        program, compiling[c.name] = compiled(c, steps, *carries[c.state], grads[c.dtype])

        def run(_: int, c: Contestant = c, program: Any = program) -> None:
            after = program(*carries[c.state], grads[c.dtype])
            carries[c.state] = jax.block_until_ready(after)

        actions[c.name] = partial(seconds, run, steps)
    return actions, compiling


def time_rows(name: str, shapes: Shapes, options: argparse.Namespace) -> Iterator[list[str]]:
    """The lines of a tree in the first table."""
    actions, compiling = prepared(shapes, options.steps)
    actions["copy"] = partial(seconds, copier(options.size**2), COPIES)
    for action in actions.values():
        action()  # a warm-up
    times = rounds(actions, options.rounds, lambda: None)
    copied = 8 * options.size**2 / np.array(times["copy"])
    for c in contestants():
        moved = least(c, shapes)
        each = f"{moved / sum(map(math.prod, shapes.values())):.2f}"
        line = figures(moved, times[c.name], copied)
        against = str(ratio(times[c.name], times["optax.adamw, update"]))
        yield [name, c.state, c.way, each, *line, against, f"{compiling[c.name]:.1f}"]
    line = figures(8 * options.size**2, times["copy"], copied)
    yield [name, "copy", "", "8.00", *line, "", ""]


def figures(moved: float, times: list[float], copied: Any) -> list[str]:
    """Milliseconds, GB/s, and their share of what the copies moved per second."""
    rates = moved / np.array(times)
    share = np.median(rates / copied)
    return [f"{1e3 * np.median(times):.3f}", f"{np.median(rates) / 1e9:,.1f}", f"{share:.0%}"]


# ---- Bits ----


def bit_rows(device: Any, shapes: Shapes) -> Iterator[list[str]]:
    """The lines of the second table: a fourth step on the device and on the CPU."""
    rng = np.random.default_rng(3)

    def gradients(dtype: str) -> Tree:
        """Over many orders of magnitude, and some 0."""
        wide = lambda s: rng.standard_normal(s) * np.exp(2 * rng.standard_normal(s))  # noqa: E731
        return {k: jnp.asarray(wide(s) * (rng.random(s) > 0.01), dtype) for k, s in shapes.items()}

    cpu = jax.devices("cpu")[0]
    for c in contestants()[2:]:  # without Optax's
        step = jax.jit(c.step)
        params = jax.device_put(normal(shapes, c.dtype, seed=1), cpu)
        state = jax.jit(c.tx.init)(params)
        for _ in range(3):
            params, state, _ = step(params, state, jax.device_put(gradients(c.dtype), cpu))
        given = params, state, gradients(c.dtype)
        results = (jax.device_get(step(*jax.device_put(given, x))) for x in (device, cpu))
        yield [c.state, c.way, *compared(*results)]


def compared(ours: tuple[Tree, Tree, Tree], theirs: tuple[Tree, Tree, Tree]) -> list[str]:
    """Cells for two results of a step, as NumPy arrays."""
    arrays = [(p, s.mu, s.nu, s.nu_scale, s.residual) for p, s, _ in (ours, theirs)]
    cells = list(map(differing, *arrays))
    updates = ours[2] or {}  # `fa.step` makes none
    distances = [
        np.abs(u - theirs[2][name]).max() / HYPER["learning_rate"]
        for name, u in updates.items()
        if ours[0][name].dtype == np.float32
    ]
    return [*cells, f"{max(distances):.2g}" if distances else ""]


def differing(ours: Tree, theirs: Tree) -> str:
    """How many elements have other bits, of how many."""
    trees = (jax.tree.leaves(tree) for tree in (ours, theirs))
    pairs = [[x.view(f"u{x.itemsize}") for x in pair] for pair in zip(*trees, strict=True)]
    count = sum(np.count_nonzero(a != b) for a, b in pairs)
    return f"{count:,} of {sum(a.size for a, _ in pairs):,}" if pairs else ""


# ---- Reporting ----


def about(device: Any, options: argparse.Namespace) -> str:
    """What was measured, on what, with what."""
    driver = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d{3,}\.[\d.]+", driver.read_text()) if driver.exists() else None
    facts = machine() | {
        "runtime": " ".join(device.client.platform_version.split()),
        "driver": found.group() if found else "unknown",
        SWITCH: mode() if HAS_KERNELS else "no kernels with this JAX",
    }
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    note = "JAX found no GPU or TPU: these are times of a CPU. " * (device.platform == "cpu")
    return f"{note}{words}; {options.rounds} rounds of {options.steps} steps."


def table(title: str, head: str, rows: Iterator[list[str]]) -> None:
    print(f"\n{title}\n\n{head}\n|{'---|' * (head.count('|') - 1)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, help="rounds of timing (default 20)")
    parser.add_argument("--steps", type=positive, help="steps in a measurement (default 16)")
    parser.add_argument("--size", type=positive, help="sides of the one leaf (default 8192)")
    parser.add_argument("--quick", action="store_true", help="defaults 3, 2 and 256; small trees")
    options = parser.parse_args()
    defaults = (3, 2, 256) if options.quick else (20, 16, 8192)
    for name, default in zip(("rounds", "steps", "size"), defaults, strict=True):
        setattr(options, name, getattr(options, name) or default)
    return options


def with_cpu(platforms: str | None) -> str | None:
    """The platforms that JAX is to load (None: all), as the bits are compared with the CPU's."""
    return platforms if not platforms or "cpu" in platforms.split(",") else f"{platforms},cpu"


def main() -> None:
    options = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_platforms", with_cpu(jax.config.jax_platforms))
    device = jax.devices()[0]
    print(about(device, options))
    last, tiny = contestants()[-1], normal({"w": (32, 128)}, "bfloat16", seed=0)
    compiled(last, 1, tiny, last.tx.init(tiny), tiny)  # a warm-up of compilers
    trees = {"MLP": mlp()} if options.quick else {"GPT-2 small, 148 leaves": gpt2()}
    trees["one leaf"] = {"w": (options.size, options.size)}
    rows = (row for name, shapes in trees.items() for row in time_rows(name, shapes, options))
    table("Time of a step", TIMES, rows)
    table("Bits that differ from the CPU's after one step", BITS, bit_rows(device, ODD))


if __name__ == "__main__":
    main()
