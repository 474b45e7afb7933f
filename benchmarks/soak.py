"""A hundred thousand updates in one process: does anything grow, compile again or drift away?

    python benchmarks/soak.py
    python benchmarks/soak.py --steps 20000 --only "int8"

Linux alone, for its /proc. Gradients come from a table by step, whatever the parameters, so that
Adam in float64 can be run beside. Checked, with an exit status of 1 where one fails:

- resident memory at a tenth of the steps and at the end, and the arrays alive;
- compilations: one of the function that is called, and none at all after the first tenth;
- the count, the moments, the updates of the last 100 steps and the parameters. Float32 within
  docs/precision.md; small moments within docs/measurements-memory.md, by their rms, their bias
  and the bias of their second moment;
- then the count set to 50 below 2**31 - 1 and 100 more updates: it stops there, and updates are
  those of Algorithm 1 with bias corrections of 1.

Updates go 1,000 at a time through `lax.scan`, or one jitted call each ("calls"), as where Python
could leak.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from exact import (
    ALPHA,
    B1,
    B2,
    DECAY,
    EPS,
    PERIOD,
    SIZE,
    Exact,
    flat,
    start_of_parameters,
    table_of_gradients,
    tree_of,
    update_of,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import functional_adam as fa

HYPER = dict(learning_rate=ALPHA, b1=B1, b2=B2, eps=EPS, weight_decay=DECAY)
CHUNK, LAST = 1000, 100
END = 2**31 - 1
U = 2.0**-24


class Run(NamedTuple):
    """What is run, and the errors that the documentation allows."""

    moments: str | fa.Int8 = "full"
    rounding: str = "nearest"
    calls: bool = False
    error: float = 0.0  # rms error of the updates, relative; 0: as float32
    weights: float = 0.1  # rms error of the parameters, in their movement

    @property
    def dtype(self) -> Any:
        return jnp.float32 if self.rounding == "nearest" else jnp.bfloat16


CODES = fa.Int8(min_size=0)  # leaves are small here

# int8's error is the target of docs/measurements-memory.md; bfloat16's, 0.014 on the worst of its
# plain streams, has some room, as gradients here swell besides. Stochastic rounding makes a random
# walk of bfloat16 parameters.
RUNS = {
    "float32, calls": Run(calls=True),
    "float32": Run(),
    "bfloat16": Run("bfloat16", error=0.02),
    "int8": Run(CODES, error=0.07),
    "float32, stochastic weights": Run(rounding="stochastic", error=1e-5, weights=0.5),
    "bfloat16, stochastic weights": Run("bfloat16", "stochastic", error=0.02, weights=0.5),
    "float32, compensated weights": Run(rounding="compensated", error=1e-5),
    "int8, compensated weights": Run(CODES, "compensated", error=0.07),
    "int8, compensated weights, calls": Run(CODES, "compensated", calls=True, error=0.07),
}


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


COMPILED: list[str] = []


def listen(event: str, seconds: float, **_: Any) -> None:
    """A line for every program that XLA compiles."""
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(f"{seconds:.3f} s")


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


class Soak:
    """One run: its functions, what it has reached, and what it has found."""

    def __init__(self, run: Run, grads: np.ndarray) -> None:
        self.run, self.grads = run, jnp.asarray(grads)
        self.tx = fa.adamw(**HYPER, moments=run.moments, rounding=run.rounding)
        self.params = tree_of(jnp.asarray(start_of_parameters(), run.dtype))
        self.state = self.tx.init(self.params)
        self.wrong: list[str] = []

        def one(params: Any, state: Any, t: Any, grads: Any) -> Any:
            updates, state = self.tx.update(tree_of(grads[t % PERIOD]), state, params)
            return fa.apply_updates(params, updates), state, updates

        def many(params: Any, state: Any, t: Any, grads: Any) -> Any:
            body = lambda kept, i: (one(*kept, i, grads)[:2], None)  # noqa: E731
            return jax.lax.scan(body, (params, state), t + jnp.arange(CHUNK))[0]

        self.one, self.many = jax.jit(one), jax.jit(many)
        self.wide = jax.jit(
            lambda params, state: (
                fa.master_params(params, state) if run.rounding == "compensated" else params,
                fa.convert_moments(state, params, moments="full"),
            )
        )

    def check(self, good: bool, what: str) -> None:
        if not good:
            self.wrong.append(what)

    def update(self, t: int, theta: np.ndarray, counted: float) -> np.ndarray:
        """The update of step t; where parameters are rounded, what their moments make of theta."""
        self.params, self.state, u = self.one(self.params, self.state, np.int32(t), self.grads)
        if self.run.rounding == "nearest":
            return flat(u)
        _, m, v = self.seen()
        return update_of(m, v, theta, counted)

    def seen(self) -> tuple[np.ndarray, ...]:
        """Parameters and moments in float64."""
        theta, full = self.wide(self.params, self.state)
        return flat(theta), flat(full.mu), flat(full.nu)

    def walk(self, steps: int, advance: Any) -> dict[str, Any]:
        """All steps but the last 100; what memory and compiler did meanwhile."""
        for f in (self.one, self.many):  # compile, and throw the result away
            jax.block_until_ready(f(self.params, self.state, np.int32(0), self.grads))
        self.seen()
        noted: dict[str, Any] = {}
        t, begun = 0, time.perf_counter()
        while t < steps - LAST:
            if t >= steps // 10 and not noted:
                jax.block_until_ready(self.state)
                noted = dict(rss=resident(), alive=len(jax.live_arrays()), compiled=len(COMPILED))
            if self.run.calls or t + CHUNK > steps - LAST:
                args = self.params, self.state, np.int32(t), self.grads
                self.params, self.state, _ = self.one(*args)
                t += 1
            else:
                args = self.params, self.state, np.int32(t), self.grads
                self.params, self.state = self.many(*args)
                t += CHUNK
            advance(t)
        jax.block_until_ready(self.state)
        return noted | {"seconds": time.perf_counter() - begun}

    def compare(self, what: str, updates: list[Any], wanted: list[Any], room: float = 1.0) -> str:
        found, true = np.array(updates), np.array(wanted)
        if not self.run.error:
            units = np.abs(found - true) / (U * ALPHA * np.maximum(1, np.abs(true) / ALPHA))
            worst = np.sqrt(np.mean(units**2, axis=1)).max()
            self.check(worst <= 4 and units.max() <= 40, f"{what}: updates")
            return f"{worst:.1f} u / {units.max():.0f} u"
        error, ratio = rms(found - true) / rms(true), rms(found) / rms(true)
        self.check(error <= room * self.run.error, f"{what}: error of the updates")
        self.check(abs(ratio - 1) <= 0.03, f"{what}: size of the updates")
        return f"{error:.2g} / {ratio:.4f}"

    def moments(self, m: np.ndarray, v: np.ndarray, exact: Exact) -> str:
        bias = float(np.mean(np.log2(v / exact.v)))
        if not self.run.error:
            errors = (
                np.abs(m - exact.m).max() / np.abs(exact.m).max(),
                np.abs(v / exact.v - 1).max(),
            )
            # A step rounds three times, and it is remembered for 1 / (1 - b) steps.
            self.check(errors[0] <= 3 * U / (1 - B1), "the first moment")
            self.check(errors[1] <= 0.6 * U / (1 - B2), "the second moment")
            return f"{errors[0] / U:.1f} / {errors[1] / U:.1f} x 2^-24"
        error = rms(m - exact.m) / rms(exact.m)
        self.check(error <= self.run.error, "the first moment")
        self.check(abs(bias) <= 0.05, "the bias of the second moment")
        return f"{error:.2g} / {bias:+.4f}"

    def weights(self, theta: np.ndarray, exact: Exact) -> str:
        off, remembered = theta - exact.theta, 1 / (ALPHA * DECAY)  # steps, for all that decays
        error = rms(off) / rms(exact.theta - start_of_parameters())
        self.check(error <= self.run.weights, "the parameters")
        if self.run.error:
            # Right on average down to a float32 rounding of each sum.
            limit = 5 * rms(off) / SIZE**0.5 + remembered * U * np.abs(theta).mean()
            self.check(abs(off.mean()) <= limit, "the parameters' mean")
        else:
            limit = 0.5 * remembered * U * np.abs(theta).max()
            self.check(np.abs(off).max() <= limit, "the parameters to a rounding of each sum")
        return f"{error:.2g} / {off.mean() / rms(off):+.2f}"


def soaked(
    run: Run, steps: int, allowed: float, grads: np.ndarray, exact: Any, advance: Any
) -> list[str]:
    """The row of a run."""
    soak, (truth, wanted) = Soak(run, grads), exact
    noted = soak.walk(steps, advance)
    updates = [
        soak.update(t, theta, t + 1)
        for t, (_, theta) in zip(range(steps - LAST, steps), wanted, strict=True)
    ]
    soak.check(int(soak.state.count) == steps, "the count")
    theta, m, v = soak.seen()
    rss, alive, compiled = resident(), len(jax.live_arrays()), len(COMPILED)
    soak.check(rss - noted["rss"] <= allowed, "memory grows")
    soak.check(alive <= noted["alive"], "arrays are left over")
    soak.check(compiled == noted["compiled"], "something was compiled again")
    row = [
        f"{1e6 * noted['seconds'] / steps:.0f}",
        f"{noted['rss']:.1f} → {rss:.1f} ({rss - noted['rss']:+.1f})",
        f"{alive - noted['alive']:+d}",
        f"{(soak.one if run.calls else soak.many)._cache_size()} / {compiled - noted['compiled']}",
        f"{int(soak.state.count):,}",
        soak.moments(m, v, truth),
        soak.compare("at the end", updates, [u for u, _ in wanted]),
        soak.weights(theta, truth),
    ]
    # Past the end of the count.
    soak.state = soak.state._replace(count=jnp.int32(END - LAST // 2))
    late, updates, wanted = Exact(theta, m, v, late=True), [], []
    for t in range(steps, steps + LAST):
        late.theta = theta = soak.seen()[0]  # one update is compared, with the decay of what is
        wanted.append(late.step(grads[t % PERIOD].astype(np.float64)))
        updates.append(soak.update(t, theta, np.inf))
    soak.check(int(soak.state.count) == END, "the count past its end")
    soak.check(soak.one._cache_size() == soak.many._cache_size() == 1, "more than one compilation")
    # The random bits are made of the count: they are the same from there on, no longer right on
    # average, and small moments begin to leave their place.
    past = soak.compare("past the end", updates, wanted, room=2.0)
    return [*row, past, ", ".join(soak.wrong) or "good"]


COLUMNS = [
    "run",
    "µs a step",
    "RSS at 10 % → 100 %, MiB",
    "arrays alive",
    "compiled / after 10 %",
    "count",
    "moments: m / v",
    f"updates, last {LAST}",
    "parameters",
    "past 2**31 - 1",
    "verdict",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="of each run (default 100000)")
    parser.add_argument("--only", default="", metavar="TEXT", help="runs with this in their names")
    parser.add_argument("--allowed", type=float, default=8.0, metavar="MIB", help="growth allowed")
    args = parser.parse_args()
    if args.steps < 20 * LAST:
        parser.error(f"--steps must be at least {20 * LAST}")
    jax.monitoring.register_event_duration_secs_listener(listen)
    grads, wanted = table_of_gradients(), []
    wide, exact = grads.astype(np.float64), Exact(start_of_parameters())
    chosen = {name: run for name, run in RUNS.items() if args.only in name}
    table, console = Table(*COLUMNS), Console(width=None if sys.stdout.isatty() else 250)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("float64", total=args.steps)
        for t in range(args.steps):
            before, u = exact.theta, exact.step(wide[t % PERIOD])
            if t >= args.steps - LAST:
                wanted.append((u, before))
            if t % CHUNK == 0:
                progress.update(bar, completed=t)
        for name, run in chosen.items():
            progress.reset(bar, description=name)
            advance = functools.partial(_show, progress, bar)
            row = soaked(run, args.steps, args.allowed, grads, (exact, wanted), advance)
            table.add_row(name, *row)
    console.print(table)
    console.print(
        f"{SIZE:,} parameters, {args.steps:,} steps; jax {version('jax')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}.\n"
        "moments and updates of float32: largest error of m and of v; rms and largest error in u "
        "of docs/precision.md.\nOthers: rms error of m, log2 bias of v; rms error of the updates, "
        "their size over float64's.\nParameters: rms error over rms movement; mean over rms error."
    )
    return int(any(verdict != "good" for verdict in table.columns[-1].cells))


def _show(progress: Progress, bar: Any, t: int) -> None:
    if t % CHUNK == 0:
        progress.update(bar, completed=t)


if __name__ == "__main__":
    sys.exit(main())
