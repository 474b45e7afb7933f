"""Which variant of Adam trains a byte transformer best, each at a rate of its own? Run by hand.

    python benchmarks/variants.py --results build/variants.jsonl             # an hour on 2 cores
    python benchmarks/variants.py --results build/variants.jsonl --report

All variants get the same: five rates, a factor of 2 apart, around a first guess, and two more
beyond an end at which the best of them is; two seeds to choose one of them by the held-out loss;
then further seeds at that rate. Runs of one seed have the same first weights and batches, so that
differences from AdamW are taken seed by seed. Student's intervals hold with 95 % for all variants
together; where one has 0 in it, the difference is noise. The rate rises for 5 % of the steps and
falls to 0 along a cosine; whatever takes a decay has 0.1, but for norms and biases. A finished
variant is a line of the results file and is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from baselines import TASKS, data_of
from low_memory import read, schedule
from rich.console import Console
from rich.progress import Progress
from scipy import stats

import functional_adam as fa

TASK = TASKS["transformer"]
STEPS = 300
FACTORS = 2.0 ** np.arange(-2, 3)
BEYOND = 2.0 ** np.arange(1, 3)  # beyond an end of these
TUNING, FURTHER = (100, 101), 6  # seeds
BASE = "adamw"


def matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


DECAY: dict[str, Any] = {"weight_decay": 0.1, "mask": matrices}
adamw = functools.partial(fa.adamw, **DECAY)


class Variant(NamedTuple):
    make: Callable[[Any], fa.GradientTransformation]
    guess: float = 2e-3  # the middle of its rates


VARIANTS = {
    "adam": Variant(fa.adam),
    "adamw": Variant(adamw),
    "nadamw": Variant(functools.partial(fa.nadamw, **DECAY)),
    "amsgrad": Variant(functools.partial(fa.amsgrad, **DECAY), 4e-3),
    "adamaxw": Variant(functools.partial(fa.adamaxw, **DECAY), 8e-3),
    "radam": Variant(functools.partial(fa.radam, **DECAY), 4e-3),
    "adabelief": Variant(functools.partial(fa.adabelief, **DECAY)),
    "yogi": Variant(functools.partial(fa.yogi, **DECAY), 8e-3),
    "lamb": Variant(functools.partial(fa.lamb, **DECAY), 2e-2),
    "adopt": Variant(functools.partial(fa.adopt, **DECAY)),
    "ademamix b3=0.99": Variant(functools.partial(fa.ademamix, b3=0.99, **DECAY)),
    "simplified_ademamix": Variant(
        functools.partial(fa.simplified_ademamix, b1=0.99, alpha=10.0, **DECAY), 4e-5
    ),
    "laprop": Variant(functools.partial(fa.laprop, **DECAY)),
    "adam_atan2": Variant(functools.partial(fa.adam_atan2, **DECAY)),
    "cautious(adamw)": Variant(lambda rate: fa.cautious(adamw(rate))),
    "cautious_weight_decay(adamw)": Variant(lambda rate: fa.cautious_weight_decay(adamw(rate))),
    "clip_update_rms(adamw)": Variant(lambda rate: fa.clip_update_rms(adamw(rate))),
    "hyperball(adam)": Variant(lambda rate: fa.hyperball(fa.adam(rate), matrices), 1e-2),
}


# ---- Training ----


def held_out(name: str, rates: np.ndarray, seeds: Any, steps: int) -> np.ndarray:
    """The held-out loss at the end of a run for each pair of rate and seed."""
    data, test = data_of("transformer")
    make = VARIANTS[name].make

    @jax.jit
    @jax.vmap
    def run(peak: jax.Array, seed: jax.Array) -> jax.Array:
        params = TASK.init(jax.random.key(seed))

        def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
            params, state = carry
            batch = TASK.batch(data, jax.random.fold_in(jax.random.key(1000 + seed), count))
            grads = jax.grad(TASK.loss)(params, batch)
            tx = make(schedule(count, peak, jnp.float32(steps)))
            return fa.step(tx, grads, state, params), None

        start = params, make(peak).init(params)
        (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
        return TASK.loss(params, test)

    return np.asarray(run(jnp.asarray(rates, jnp.float32), jnp.asarray(seeds)))


def tuned(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates in ascending order, and the mean held-out loss at each; the best is at no end."""

    def tried(rates: np.ndarray) -> np.ndarray:
        pairs = np.repeat(rates, len(TUNING)), np.tile(TUNING, len(rates))
        losses = held_out(name, *pairs, steps).reshape(len(rates), -1).mean(1)
        return np.where(np.isfinite(losses), losses, np.inf)

    rates = VARIANTS[name].guess * FACTORS
    losses = tried(rates)
    while (best := int(np.argmin(losses))) in (0, len(rates) - 1):
        beyond = rates[0] / BEYOND[::-1] if best == 0 else rates[-1] * BEYOND
        order = np.argsort(np.append(rates, beyond))
        losses = np.append(losses, tried(beyond))[order]
        rates = np.append(rates, beyond)[order]
    return rates, losses


def study(name: str, options: argparse.Namespace) -> dict[str, Any]:
    rates, tuning = tuned(name, options.steps)
    best = int(np.argmin(tuning))
    seeds = np.arange(options.seeds)
    losses = held_out(name, np.full(options.seeds, rates[best]), seeds, options.steps)
    return {
        "name": name,
        "rates": rates.tolist(),
        "tuning": tuning.tolist(),
        "best": best,
        "losses": losses.tolist(),
        "steps": options.steps,
    }


# ---- Report ----


def row(found: dict[str, Any], base: dict[str, Any], level: float) -> list[str]:
    losses = np.array(found["losses"])
    cells = [found["name"], f"{found['rates'][found['best']]:.2g}", f"{losses.mean():.3f}"]
    if found is base:
        return [*cells, "", ""]
    gaps = losses - np.array(base["losses"])
    half = stats.t.ppf((1 + level) / 2, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    is_noise = abs(gaps.mean()) <= half
    verdict = "noise" if is_noise else "better" if gaps.mean() < 0 else "worse"
    return [*cells, f"{gaps.mean():+.3f} ± {half:.3f}", verdict]


def report(found: list[dict[str, Any]]) -> None:
    base = next(x for x in found if x["name"] == BASE)
    level = 1 - 0.05 / max(len(found) - 1, 1)
    print(f"| Variant | Best rate | Held-out loss | Difference from {BASE} | |")
    print("|---|---|---|---|---|")
    for x in sorted(found, key=lambda x: float(np.mean(x["losses"]))):
        print(f"| {' | '.join(row(x, base, level))} |")


# ---- Command line ----


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--results", type=Path, required=True, help="where finished variants are kept (JSON lines)")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--seeds", type=int, default=FURTHER, help=f"at the best rate (default {FURTHER})")
    add("--steps", type=int, default=STEPS, help=f"of a run (default {STEPS})")
    add("--report", action="store_true", help="run nothing: print the table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.report:
        return report(read(options.results))
    done = [found["name"] for found in read(options.results)]
    todo = [name for name in options.variants if name not in done]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name in progress.track(todo):
            found = study(name, options)
            with options.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
    return None


if __name__ == "__main__":
    main()
