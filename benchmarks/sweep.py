"""Time of 64 runs with 64 pairs of learning rate and b2, from nothing to the last loss.

    python benchmarks/sweep.py            # five minutes on two idle cores

Three ways, compilation included. "separate": `optax.adamw` with Python numbers, jitted anew for
each of the 64, as a loop over a script does. "optax": one program for all, `jax.vmap` over a
function that makes `optax.adamw` from traced numbers. "functional_adam": the same with `fa.adamw`,
and once more as the control. Each starts with cleared caches. They run in rounds, in an order that
rotates and reverses, "separate" only in the first few; reported are medians of times and of ratios
by round, with the 95 % bootstrap interval of benchmarks/step.py. Compilations are those that JAX
itself reports.

What "separate" takes longer is 63 more compilations, and calls of many small operations: that is
saved by `jax.vmap`, with Optax's functions as with ours, and counts for less as runs get longer.
It is not a faster Adam. Where "optax" takes less than ours, it is less to compile: ours has
more operations before XLA optimizes them. Running takes the same time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import Progress
from step import machine, ratio, rounds, show

import functional_adam as fa

NETWORKS = {"64-32-10": (64, 32, 10), "64-256-256-10": (64, 256, 256, 10)}
BATCH = 64
OURS, CONTROL, OPTAX, SEPARATE = "functional_adam", "the same again", "optax", "separate"
COMPILATION = "/jax/core/compile/backend_compile_duration"


def network(widths: tuple[int, ...], steps: int) -> tuple[Any, Any]:
    """First weights, and a batch of images and labels a step: sizes of the digits, N(0, 1)."""
    rng = np.random.default_rng(0)
    normal = functools.partial(rng.standard_normal, dtype=np.float32)
    params = [
        {"w": normal((m, n)) * np.float32(np.sqrt(2 / m)), "b": np.zeros(n, np.float32)}
        for m, n in itertools.pairwise(widths)
    ]
    labels = rng.integers(widths[-1], size=(steps, BATCH), dtype=np.int32)
    return params, (normal((steps, BATCH, widths[0])), labels)


def grid() -> dict[str, np.ndarray]:
    """Eight rates times eight b2."""
    rates, gaps = np.meshgrid(np.geomspace(1e-4, 1e-1, 8), np.geomspace(0.3, 1e-4, 8))
    return {"learning_rate": np.float32(rates.ravel()), "b2": np.float32(1 - gaps.ravel())}


def loss_of(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        images = jax.nn.relu(images @ layer["w"] + layer["b"])
    logits = images @ last["w"] + last["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(library: Any, params: Any, batches: Any, hyper: dict[str, Any]) -> jax.Array:
    """The loss before each step."""
    tx = library.adamw(**hyper, weight_decay=0.1)

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        updates, state = tx.update(grads, state, params)
        return (library.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, tx.init(params)), batches)[1]


def at_once(library: Any, params: Any, batches: Any) -> np.ndarray:
    """All members in one program."""
    run = jax.jit(jax.vmap(functools.partial(train, library), in_axes=(None, None, 0)))
    return np.asarray(run(params, batches, grid()))


def separately(params: Any, batches: Any) -> np.ndarray:
    """A program for each member, its hyperparameters constants of it."""
    hyper = grid()
    members = [{name: float(values[i]) for name, values in hyper.items()} for i in range(64)]
    runs = [jax.jit(functools.partial(train, optax, hyper=member)) for member in members]
    return np.stack([run(params, batches) for run in runs])


WAYS: dict[str, Callable[[Any, Any], np.ndarray]] = {
    OURS: functools.partial(at_once, fa),
    CONTROL: functools.partial(at_once, fa),
    OPTAX: functools.partial(at_once, optax),
    SEPARATE: separately,
}


compilations: list[float] = []


def note_compilation(event: str, seconds: float, **_: Any) -> None:
    if event == COMPILATION:
        compilations.append(seconds)


def timed(name: str, params: Any, batches: Any) -> tuple[float, int, np.ndarray]:
    """Seconds, compilations and losses, of what nothing is cached of."""
    jax.clear_caches()
    compilations.clear()
    start = time.perf_counter()
    losses = WAYS[name](params, batches)
    return time.perf_counter() - start, len(compilations), losses


def rows(name: str, options: argparse.Namespace, advance: Callable[[], None]) -> list[dict]:
    """A row a way."""
    params, batches = network(NETWORKS[name], options.steps)
    params, batches = jax.device_put((params, batches))
    timed(OURS, params, batches)  # a warm-up: of what is imported only when used
    actions = {way: functools.partial(timed, way, params, batches) for way in WAYS}
    found = rounds(actions, options.rounds, advance)
    del actions[SEPARATE]
    for way, results in rounds(actions, options.more, advance).items():
        found[way] += results
    times = {way: [seconds for seconds, _, _ in results] for way, results in found.items()}
    for way, results in found.items():  # all of them do the same: later steps amplify rounding
        np.testing.assert_allclose(results[0][2][:, :3], found[OURS][0][2][:, :3], rtol=1e-3)
        assert len({compiled for _, compiled, _ in results}) == 1, way
    return [
        {
            "network": name,
            "way": way,
            "seconds": statistics.median(times[way]),
            "compilations": found[way][0][1],
            "by round, to ours": ratio(times[way], times[OURS][: len(times[way])]),
        }
        for way in WAYS
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=22, help="of each run (default 22)")
    parser.add_argument("--rounds", type=int, default=3, help="of all four (default 3)")
    parser.add_argument("--more", type=int, default=6, help="without separate (default 6)")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    jax.monitoring.register_event_duration_secs_listener(note_compilation)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    table = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(
            "rounds", total=(options.rounds + options.more) * len(options.networks)
        )
        for name in options.networks:
            table += rows(name, options, lambda: progress.advance(task))
    count = f"{options.rounds} + {options.more} rounds"
    title = f"64 runs of {options.steps} steps, compilation included, {count}"
    show(title, table, options.markdown)
    print(__doc__.split("\n\n")[-1])


if __name__ == "__main__":
    main()
