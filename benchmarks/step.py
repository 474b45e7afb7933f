"""Time and memory of one training step beside Optax and PyTorch.

    python benchmarks/step.py                              # everything; many minutes
    python benchmarks/step.py --trees mlp leaf20 --pairs 10 --compare adam

How it measures. All optimizers of a comparison live in one process and run in rounds, in an order
that rotates and reverses, so that drift of the machine meets all alike. A round gives one ratio
of times. Reported is the median of the ratios with a 95 % bootstrap interval *of that median*
(10,000 resamples of the rounds, percentiles). A second, separately compiled Optax in the same
rounds is the control: by how much equal programs seem to differ. The verdict is "ok" where our
median is at most 1.00 (1,000 leaves and compilation: 1.10), or 0.02 above the upper end of the
control's interval.

Our step is `functional_adam.step`, Optax's is update plus apply_updates. Both are jitted and donate
parameters and state; a timing blocks on its results. Gradients
are N(0, 1), so that nothing becomes denormal. "torch" is its default, on a GPU foreach, on a CPU
a loop over the leaves. "of copy" (accelerators only) is the 28 bytes a parameter that a step must
move (read g, p, m, v and write p, m, v in float32; 36 with a third moment) per second, as a share
of what a copy on the device moves in the same process. Compilation (tracing, lowering, compiling)
is timed in the same kind of rounds, each time with fresh functions and cleared caches; bytes are
XLA's own count. Where functional-adam-native is installed, "native" is the ratio of our step with
it, all other figures of ours are without.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from entrants import (
    CEILINGS,
    CONTROL,
    NATIVE,
    OPTAX,
    OURS,
    PAIRS,
    TREES,
    Pair,
    abstract,
    dtype_of,
    entrant,
    held,
    jitted_step,
    ours,
    size,
    steppers,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HAS_TORCH = importlib.util.find_spec("torch") is not None


# ---- Measuring ----


class Ratio(NamedTuple):
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(times: list[float], others: list[float]) -> Ratio:
    """Median of the ratios by round, with its 95 % bootstrap interval."""
    ratios = np.array(times) / np.array(others)
    resampled = np.random.default_rng(0).choice(ratios, size=(10_000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def compared(times: dict[str, list[float]], name: str, ceiling: float) -> dict[str, Any]:
    """Our ratio to `name`; beside it, where there is a control, that and the verdict."""
    found = ratio(times[OURS], times[name])
    native = {"native": ratio(times[NATIVE], times[name])} if NATIVE in times else {}
    if CONTROL not in times:
        return {"ratio": found} | native
    control = ratio(times[CONTROL], times[name])
    allowed = max(ceiling, control.high + 0.02) if ceiling >= 1 else ceiling
    verdict = "ok" if found.median <= allowed else f"over {allowed:.3f}"
    return {"ratio": found} | native | {"control": control, "verdict": verdict}


def rounds(
    actions: dict[str, Callable[[], Any]], count: int, advance: Callable[[], None]
) -> dict[str, list[Any]]:
    """{name: what each call returned}; the order rotates, and reverses after each rotation."""
    names, results = list(actions), {name: [] for name in actions}
    for i in range(count):
        turns, shift = divmod(i, len(names))
        order = names[shift:] + names[:shift]
        for name in order[:: -1 if turns % 2 else 1]:
            results[name].append(actions[name]())
        advance()
    return results


def seconds(run: Callable[[int], Any], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def copy_bandwidth(size: int) -> float:
    """Bytes read and written per second by a copy of `size` float32 on the device."""
    copy, x = jax.jit(jnp.copy), jnp.ones(size)
    run = lambda steps: jax.block_until_ready([copy(x) for _ in range(steps)])  # noqa: E731
    run(1)
    return 8 * size / statistics.median(seconds(run, 4) for _ in range(9))


def step_rows(pair: Pair | None, tree: str, options: Any, advance: Any) -> list[dict[str, Any]]:
    entrants = steppers(pair, tree)
    warm = 3 if size(tree) > 2**22 else 50
    for run in entrants.values():
        run(warm)
    steps = options.steps or int(np.clip(0.05 / seconds(entrants[OURS], 3), 1, 200))
    actions = {name: lambda run=run: seconds(run, steps) for name, run in entrants.items()}
    times = rounds(actions, options.pairs, advance)
    milliseconds = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    row = {"tree": tree, "parameters": size(tree), "steps": steps}
    end = {"compilations": entrants[OURS](max(1, 50 - warm))}  # over 50 steps or more
    if jax.default_backend() != "cpu":
        moved = 4 + 2 * held(pair or PAIRS["adam"], tree)  # the gradient is only read
        moved *= size(tree) / (1e-3 * milliseconds[OURS])
        end["of copy"] = moved / copy_bandwidth(max(size(tree), 2**26))
    return [
        row
        | {"against": pair.against if pair else f"{name} adam"}
        | {"ms": (milliseconds[OURS], milliseconds[name])}
        | compared(times, name, max(pair.ceiling if pair else 1.0, CEILINGS.get(tree, 1.0)))
        | end
        for name in times
        if name not in (OURS, NATIVE, CONTROL)
    ]


def compile_once(name: str, pair: Pair, tree: str) -> tuple[list[float], Any]:
    """(seconds of [tracing, lowering, compiling], the compiled step)."""
    params = abstract(tree, dtype_of(name, pair))
    state = jax.eval_shape(entrant(name, pair).make().init, params)
    step = jitted_step(name, pair)
    jax.clear_caches()
    gc.collect()
    clock = [time.perf_counter()]
    traced = step.trace(params, state, params)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    compiled = lowered.compile()
    clock.append(time.perf_counter())
    return np.diff(clock).tolist(), compiled


def compile_row(pair: Pair, tree: str, options: Any, advance: Any) -> dict[str, Any]:
    names = *ours(), OPTAX, CONTROL
    actions = {name: lambda name=name: compile_once(name, pair, tree)[0] for name in names}
    for action in actions.values():
        action()  # a warm-up
    stages = rounds(actions, options.compiles, advance)
    row = {"tree": tree, "against": pair.against}
    medians = [1e3 * np.median(stages[name], axis=0) for name in (OURS, OPTAX)]
    for i, stage in enumerate(("trace", "lower", "compile")):
        row[f"{stage}, ms"] = tuple(float(m[i]) for m in medians)
    times = {name: [sum(parts) for parts in rows] for name, rows in stages.items()}
    return row | compared(times, OPTAX, pair.compile_ceiling)


def memory_row(pair: Pair, tree: str) -> dict[str, Any]:
    compiled = [compile_once(name, pair, tree)[1] for name in (OURS, OPTAX)]
    usage = [c.memory_analysis() for c in compiled]
    accessed = [c.cost_analysis()["bytes accessed"] for c in compiled]
    return {
        "tree": tree,
        "against": pair.against,
        "accessed, B/param": tuple(b / size(tree) for b in accessed),
        "temporary, B/param": tuple(u.temp_size_in_bytes / size(tree) for u in usage),
        "donated": tuple(u.alias_size_in_bytes / size(tree) / held(pair, tree) for u in usage),
    }


# ---- Reporting ----


def machine() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ["jax", "functional_adam", "optax", *(["torch"] if HAS_TORCH else [])]
    return {
        "cpu": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
    } | {name: version(name) for name in packages}


def cell(value: Any) -> str:
    if isinstance(value, tuple) and not isinstance(value, Ratio):
        return " / ".join(map(cell, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(title: str, rows: list[dict[str, Any]], markdown: bool) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell(row.get(column, "")) for column in columns] for row in rows]
    if not markdown:
        table = Table(*columns, title=title)
        for line in cells:
            table.add_row(*line)
        Console().print(table)
        return
    print(f"\n{title}\n")
    for line in (columns, ["---"] * len(columns), *cells):
        print(f"| {' | '.join(line)} |")


def arguments() -> argparse.Namespace:
    comparisons = [*PAIRS, *(["torch"] if HAS_TORCH else [])]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--compare", nargs="+", choices=comparisons, default=comparisons)
    parser.add_argument("--pairs", type=int, default=60, help="rounds of timing (default 60)")
    parser.add_argument("--steps", type=int, help="steps a timing (default: about 50 ms' worth)")
    parser.add_argument("--compiles", type=int, default=12, help="rounds of compiling; 0: none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--markdown", action="store_true", help="Markdown tables, never folded")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    report: dict[str, Any] = {"machine": machine(), "steps": [], "compiling": [], "memory": []}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    cases = list(itertools.product(options.trees, options.compare))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        timing = progress.add_task("", total=len(cases) * options.pairs)
        for tree, comparison in cases:
            progress.update(timing, description=f"{tree}, {comparison}")
            advance = lambda: progress.advance(timing)  # noqa: E731
            rows = step_rows(PAIRS.get(comparison), tree, options, advance)
            report["steps"] += [{"ours": comparison} | row for row in rows]
            gc.collect()  # this case's arrays, before the next one's
        compiled = [case for case in cases if case[1] != "torch" and options.compiles]
        compiling = progress.add_task("compiling", total=len(compiled) * options.compiles)
        for tree, kind in compiled:
            advance = lambda: progress.advance(compiling)  # noqa: E731
            label = {"ours": kind}
            report["compiling"].append(label | compile_row(PAIRS[kind], tree, options, advance))
            report["memory"].append(label | memory_row(PAIRS[kind], tree))
    titles = "Time of a step", "Time to compile", "Memory of a step"
    for title, rows in zip(titles, list(report.values())[1:], strict=True):
        if rows:
            show(f"{title} (ours / theirs)", rows, options.markdown)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
