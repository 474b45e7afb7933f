"""Time and memory of one step of each variant, beside Optax's of the same name.

    python benchmarks/family.py
    python benchmarks/family.py --trees gpt2 --variants radam lamb --pairs 20

`step.py` says how it measures and what the verdict means; this is its method for the rest of the
family. Some have no peer: NAdam with its schedule stands beside Optax's NAdam without; LaProp,
Adam-atan2 and the modifiers beside our own Adam, which then is "theirs" and the control too.
Gradients are the same in every step; what AdaBelief then averages tends to 0, and its `eps_root`
keeps that from becoming denormal.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from entrants import HYPERPARAMETERS, TREES, Entrant, Pair, pair_of
from rich.console import Console
from rich.progress import Progress
from step import machine, memory_row, show, step_rows

import functional_adam as fa

DECAY = {"weight_decay": 0.037}
PLAIN = functools.partial(fa.adam, **HYPERPARAMETERS)


WITHOUT_EPS = {name: x for name, x in HYPERPARAMETERS.items() if name != "eps"}


def beside_adam(make: Callable[[], Any]) -> Pair:
    return Pair(Entrant(fa, make), Entrant(fa, PLAIN), "our own adam")


def of_optax(kind: str, **arguments: Any) -> Pair:
    return pair_of(kind, **HYPERPARAMETERS, **arguments)


VARIANTS = {
    "nadam": of_optax("nadam"),
    "nadam, schedule": of_optax("nadam")._replace(
        ours=Entrant(fa, functools.partial(fa.nadam, **HYPERPARAMETERS, momentum_decay=0.0043))
    ),
    "nadamw": of_optax("nadamw", **DECAY),
    "amsgrad": of_optax("amsgrad"),
    "adamax": of_optax("adamax"),
    "adamaxw": of_optax("adamaxw", **DECAY),
    "radam": of_optax("radam"),
    "adabelief": of_optax("adabelief", eps_root=1e-12),
    "yogi": of_optax("yogi"),
    "lamb": of_optax("lamb", **DECAY),
    "adopt": of_optax("adopt"),
    "ademamix": of_optax("ademamix", b3=0.9983, alpha=4.1, **DECAY),
    "simplified_ademamix": of_optax("simplified_ademamix", alpha=4.1, **DECAY),
    "laprop": beside_adam(lambda: fa.laprop(**HYPERPARAMETERS)),
    "adam_atan2": beside_adam(lambda: fa.adam_atan2(**WITHOUT_EPS)),
    "cautious adam": beside_adam(lambda: fa.cautious(PLAIN())),
    "clipped adam": beside_adam(lambda: fa.clip_update_rms(PLAIN())),
    "adam on spheres": beside_adam(lambda: fa.hyperball(PLAIN())),
    "cautious decay": beside_adam(
        lambda: fa.cautious_weight_decay(fa.adamw(**HYPERPARAMETERS, **DECAY))
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=["mlp", "leaf20"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--pairs", type=int, default=60, help="rounds of timing (default 60)")
    parser.add_argument("--steps", type=int, help="steps a timing (default: about 50 ms' worth)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--markdown", action="store_true", help="Markdown tables, never folded")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    jax.config.update("jax_enable_compilation_cache", False)
    report: dict[str, Any] = {"machine": machine(), "steps": [], "memory": []}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    cases = list(itertools.product(options.trees, options.variants))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        timing = progress.add_task("", total=len(cases) * options.pairs)
        for tree, variant in cases:
            progress.update(timing, description=f"{tree}, {variant}")
            advance = lambda: progress.advance(timing)  # noqa: E731
            pair, label = VARIANTS[variant], {"variant": variant}
            report["steps"] += [label | r for r in step_rows(pair, tree, options, advance)]
            report["memory"].append(label | memory_row(pair, tree))
            gc.collect()  # this case's arrays, before the next one's
    show("Time of a step (ours / theirs)", report["steps"], options.markdown)
    show("Memory of a step (ours / theirs)", report["memory"], options.markdown)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
