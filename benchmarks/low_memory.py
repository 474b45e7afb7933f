"""Do small moments and 16-bit weights train as well as float32? A study, run by hand.

    python benchmarks/low_memory.py --results low_memory.jsonl              # all of it: hours
    python benchmarks/low_memory.py --results low_memory.jsonl --parts streams
    python benchmarks/low_memory.py --results low_memory.jsonl --parts train --tasks cnn --seeds 100
    python benchmarks/low_memory.py --results low_memory.jsonl --report docs

Every finished run is a line of the results file and is not run again. Contestants share first
weights and batches, seed by seed. `replay` trains in float32 and gives each format the same
gradients; `streams` does without a model. Weights of 16 bits are read as float32 in the forward
pass, so their gradients are bfloat16 and nothing else is. The rate rises for 5 % of the steps and
then falls to 0 along a cosine. The transformer reads Python's own standard library.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from baselines import B2S, CHUNK, CONTESTANTS, FORMATS, MOMENTS, TASKS, data_of, streams
from low_memory_report import report
from rich.console import Console
from rich.progress import Progress

import functional_adam as fa


@functools.cache
def held_out_loss(task: str) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(TASKS[task].loss)


# ---- Training and replay ----


def schedule(t: jax.Array, peak: jax.Array, steps: jax.Array) -> jax.Array:
    rise = jnp.minimum((t + 1) / (0.05 * steps), 1)
    return peak * rise * (1 + jnp.cos(jnp.pi * t / steps)) / 2


def largest(tree: Any) -> jax.Array:
    return functools.reduce(jnp.maximum, [jnp.abs(x).max() for x in jax.tree.leaves(tree)])


def sum_of_squares(tree: Any) -> jax.Array:
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))


@functools.cache
def trainer(task_name: str, name: str, b2: float):
    task, contestant = TASKS[task_name], CONTESTANTS[name]

    @jax.jit
    def run(carry, data, key, peak, steps):
        def step(carry, _):
            params, state = carry
            batch = task.batch(data, jax.random.fold_in(key, state.count))
            loss, grads = jax.value_and_grad(task.loss)(params, batch)
            rate = schedule(state.count, peak, steps)
            updates, state = contestant.update(grads, state, params, rate, b2)
            return (fa.apply_updates(params, updates), state), (loss, largest(updates) / rate)

        return jax.lax.scan(step, carry, length=CHUNK)

    return run


@functools.cache
def replayer(task_name: str, b2: float):
    """Trains in float32; the others see its gradients and are compared at a rate of 1."""
    task, rivals = TASKS[task_name], {name: CONTESTANTS[name] for name in FORMATS}

    def compare(truth, u):
        gap = jax.tree.map(jnp.subtract, u, truth)
        return jnp.stack([sum_of_squares(gap), sum_of_squares(u), largest(u)])

    @jax.jit
    def run(carry, data, key, peak, steps):
        def step(carry, _):
            params, states = carry
            count = states["float32"].count
            grads = jax.grad(task.loss)(params, task.batch(data, jax.random.fold_in(key, count)))
            done = {k: c.update(grads, states[k], None, 1.0, b2) for k, c in rivals.items()}
            truth = done["float32"][0]
            rate = schedule(count, peak, steps)
            params = fa.apply_updates(params, jax.tree.map(lambda u: rate * u, truth))
            figures = {k: compare(truth, u) for k, (u, _) in done.items()}
            return (params, {k: state for k, (_, state) in done.items()}), figures

        return jax.lax.scan(step, carry, length=CHUNK)

    return run


def chunks(run, carry, job: dict[str, Any], advance: Callable[[int], None]):
    """The last carry, and what the steps reported, one after another."""
    data, key = data_of(job["task"])[0], jax.random.key(1000 + job["seed"])
    figures = []
    for _ in range(job["steps"] // CHUNK):
        carry, found = run(carry, data, key, job["rate"], job["steps"])
        figures.append(jax.tree.map(np.asarray, found))
        advance(CHUNK)
    return carry, jax.tree.map(lambda *parts: np.concatenate(parts), *figures)


def train(job: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    name, contestant = job["task"], CONTESTANTS[job["contestant"]]
    params = contestant.first_weights(TASKS[name], job["seed"])
    run = trainer(name, job["contestant"], job["b2"])
    (params, state), (losses, worst) = chunks(run, (params, contestant.init(params)), job, advance)
    held_out = data_of(name)[1]
    found = {"held_out": float(held_out_loss(name)(params, held_out))}
    if contestant.rounding in ("compensated", "split"):
        master = fa.master_params(params, state)
        found["held_out_master"] = float(held_out_loss(name)(master, held_out))
    found |= {"last": float(losses[-len(losses) // 10 :].mean()), "worst": float(worst.max())}
    return found | {"losses": losses.reshape(-1, CHUNK).mean(1).tolist()}


def replay(job: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    params = CONTESTANTS["float32"].first_weights(TASKS[job["task"]], job["seed"])
    states = {name: CONTESTANTS[name].init(params) for name in FORMATS}
    run = replayer(job["task"], job["b2"])
    (_, states), figures = chunks(run, (params, states), job, advance)
    squares = figures["float32"][:, 1].sum()
    flat = lambda k: np.concatenate(  # noqa: E731
        [np.ravel(v) for v in jax.tree.leaves(CONTESTANTS[k].second_moment(states[k]))]
    )
    truth = flat("float32")
    found = {}
    for name, (gap, own, worst) in ((k, f.T) for k, f in figures.items()):
        found[name] = {"error": float(np.sqrt(gap.sum() / squares)), "worst": float(worst.max())}
        found[name] |= {"rms_ratio": float(np.sqrt(own.sum() / squares))}
        found[name] |= bias_of(flat(name), truth)
    return {"contestants": found}


# ---- Streams ----


@functools.cache
def streamer(name: str, b2: float):
    contestant = CONTESTANTS[name]
    if contestant.moments == "int8":  # streams are smaller than its min_size
        contestant = contestant._replace(moments=fa.Int8(min_size=0))

    @jax.jit
    def run(stream):
        def step(state, g):
            u, state = contestant.update(g, state, None, 1.0, b2)
            return state, (u, contestant.second_moment(state))

        return jax.lax.scan(step, contestant.init(stream[0]), stream)[1]

    return lambda stream: [np.asarray(x, np.float64) for x in run(stream)]


def bias_of(v: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean log2 of v / truth where neither is 0, and the share where only v is."""
    alive = truth > 1e-36
    both = alive & (v > 0)
    log = np.log2(np.float64(v[both])) - np.log2(np.float64(truth[both]))
    return {"bias": float(log.mean()), "lost": float((alive & (v == 0)).sum() / alive.sum())}


def stream_row(job: dict[str, Any], advance: Callable[[int], None]) -> dict[str, Any]:
    """All from step 100 on, but the worst update."""
    stream = streams()[job["stream"]]
    (u, v), (u32, v32) = (streamer(k, job["b2"])(stream) for k in (job["contestant"], "float32"))
    rms = lambda x, axis=None: np.sqrt(np.mean(x[100:] ** 2, axis))  # noqa: E731
    moved = rms(u, 0) / rms(u32, 0)
    advance(1)
    found = {"rms_ratio": rms(u) / rms(u32), "error": rms(u - u32) / rms(u32)}
    found |= {"worst": np.abs(u).max(), "worst32": np.abs(u32).max(), "least_moved": moved.min()}
    found = {key: float(value) for key, value in found.items()}
    return found | bias_of(v[100:], v32[100:]) | {"moved": moved.round(4).tolist()}


# ---- Jobs ----

PARTS = {"train": train, "long": train, "replay": replay, "streams": stream_row}


def jobs(options: argparse.Namespace):
    """Everything asked for, seed by seed."""
    if "replay" in options.parts:
        for task, b2 in itertools.product(options.tasks, B2S):
            base = {"part": "replay", "task": task, "b2": b2, "seed": 0}
            yield base | {"rate": TASKS[task].rates[0], "steps": options.steps or 400}
    if "streams" in options.parts:
        for name, b2, stream in itertools.product(FORMATS, B2S, streams(2, 2)):
            yield {"part": "streams", "stream": stream, "contestant": name, "b2": b2}
    if "long" in options.parts:
        for seed, name in itertools.product((0, 1), FORMATS[:3]):
            base = {"part": "long", "task": "transformer", "contestant": name, "b2": 0.999}
            rate = TASKS["transformer"].rates[0]
            yield base | {"rate": rate, "steps": options.steps or 2000, "seed": seed}
    if "train" not in options.parts:
        return
    for seed, task, b2 in itertools.product(range(options.seeds), options.tasks, B2S):
        for place, rate in enumerate(TASKS[task].rates):
            main = b2 == B2S[0] and place == 0
            if not main and options.cells == "main":
                continue
            for name in options.contestants or (CONTESTANTS if main else MOMENTS):
                if CONTESTANTS[name].keep and seed >= 10:
                    continue
                base = {"part": "train", "task": task, "contestant": name, "b2": b2, "rate": rate}
                yield base | {"steps": options.steps or TASKS[task].steps, "seed": seed}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def work(options: argparse.Namespace) -> None:
    done = [row["job"] for row in read(options.results)]
    todo = [job for job in jobs(options) if job not in done]
    total = sum(job.get("steps", 1) for job in todo)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        for job in todo:
            progress.update(bar, description=", ".join(str(x) for x in job.values()))
            advance = functools.partial(progress.advance, bar)
            row = {"job": job, "found": PARTS[job["part"]](job, advance)}
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")


# ---- Command line ----


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--results", type=Path, required=True, help="where finished runs are kept (JSON lines)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--contestants", nargs="+", choices=CONTESTANTS, help="of `train`; default: all")
    add("--seeds", type=int, default=8, help="of `train` (default 8; of the baselines at most 10)")
    add("--cells", choices=("main", "all"), default="all", help="main: b2 0.999, lower rate")
    add("--steps", type=int, help=f"a run, a multiple of {CHUNK} (default: the part's own)")
    add("--report", type=Path, metavar="DIR", help="run nothing: print tables, draw plots there")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.report:
        report(read(options.results), options.report)
    else:
        work(options)


if __name__ == "__main__":
    main()
