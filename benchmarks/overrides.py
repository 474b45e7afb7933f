"""What hyperparameters per layer cost: kernels in the compiled step, and time to compile it.

    python benchmarks/overrides.py              # the figures of docs/per-layer.md
    python benchmarks/overrides.py --moments int8

The tree is GPT-2 small's, 148 leaves, 64 wide. Times are CPU time in one process, the ways in turn,
as medians relative to the first.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import functional_adam as fa

LAYERS, WIDTH = 12, 64
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 100, 1000)


def parameters() -> dict[str, Any]:
    """Shapes alone."""
    d = WIDTH
    norm = {"scale": (d,), "bias": (d,)}
    dense = lambda n, m: {"kernel": (n, m), "bias": (m,)}  # noqa: E731
    attn, mlp = {"qkv": (d, 3 * d), "out": (d, d)}, {"up": (d, 4 * d), "down": (4 * d, d)}
    layer = {
        "ln_1": norm,
        "attn": {name: dense(*shape) for name, shape in attn.items()},
        "ln_2": norm,
        "mlp": {name: dense(*shape) for name, shape in mlp.items()},
    }
    tree = {"wte": (500, d), "wpe": (128, d), "layers": [layer] * LAYERS, "ln_f": norm}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda count: factor * SCHEDULE(count)


THREE = [
    (r"wte|wpe", dict(weight_decay=0.0)),
    (r"(^|/)(bias|scale)$", dict(weight_decay=0.0, learning_rate=scaled(2.0))),
]
THIRTEEN = [
    (rf"^layers/{layer}/", dict(learning_rate=scaled(0.8 ** (LAYERS - layer))))
    for layer in range(LAYERS)
]


def ways(moments: Any) -> dict[str, Any]:
    """One group, three, thirteen, and three parts of a partition."""

    def make(rate: Any = SCHEDULE, **changes: Any) -> Any:
        return fa.adamw(rate, **{"weight_decay": 0.1, "moments": moments, **changes})

    def label(path: Any, _: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((pattern for pattern, _ in THREE if re.search(pattern, name)), "")

    parts = {pattern: make(**{"rate": SCHEDULE, **_renamed(x)}) for pattern, x in THREE}
    labels = jax.tree_util.tree_map_with_path(label, parameters())
    return {
        "one group": make(),
        "three groups": make(overrides=THREE),
        "thirteen groups": make(overrides=THIRTEEN),
        "a partition of three": optax.partition({"": make(), **parts}, labels),
    }


def _renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"rate" if k == "learning_rate" else k: x for k, x in arguments.items()}


def compiled(tx: Any) -> tuple[float, str]:
    """CPU seconds for tracing and compiling a step, and the program."""
    params = parameters()
    state = jax.eval_shape(tx.init, params)
    jax.clear_caches()
    begin = time.process_time()
    step = jax.jit(tx.update).lower(params, state, params).compile()
    return time.process_time() - begin, step.as_text()


def kernels(program: str) -> tuple[int, int]:
    """How many kernels have results with elements, and how many scalars alone."""
    results = re.findall(r" = (\S.*?) fusion\(", program[program.index("ENTRY") :])
    arrays = sum(re.search(r"\[\d", result) is not None for result in results)
    return arrays, len(results) - arrays


def main() -> None:
    """Count and compile each way, print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--moments", default="full", help="of the state (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="compilations (default: %(default)s)")
    args = parser.parse_args()
    every = ways(args.moments)
    for tx in every.values():
        compiled(tx)  # what the first compilation of a process does besides
    runs = [{name: compiled(tx) for name, tx in every.items()} for _ in range(args.rounds)]
    for name in every:
        arrays, scalars = kernels(runs[0][name][1])
        ratio = np.median([run[name][0] / run["one group"][0] for run in runs])
        print(f"{name:21} {arrays} kernels, {scalars} of scalars; compiles in {ratio:.2f} times")


if __name__ == "__main__":
    main()
