"""Compile optimizer steps for TPUs and a GPU that are not there, and count what they would move.

    python tools/aot.py                        # v5e and h100, every case
    python tools/aot.py v6e v5p --only int8    # these targets, cases whose name has "int8" in it
    python tools/aot.py --check                # fails where a step moves more than it has to

One row a case: kernels that pass over leaves, bytes of main memory a parameter, the least that a
step can move (everything it is given and everything that changes, once), temporary bytes a
parameter, whether all donated memory is used again, and seconds to compile. `make aot` installs
what it needs into an environment of its own.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ahead import devices, hlo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from workloads import STATES, gpt2

Tree = Any


class Case(NamedTuple):
    """A step to compile: `step(grads, state, params)`, of parameters of these shapes and dtype."""

    name: str
    init: Callable[[Tree], Tree]
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    shapes: Tree
    dtype: str
    is_one_pass: bool  # whether `--check` holds it to one kernel a leaf


class Count(NamedTuple):
    """What was counted of a compiled step."""

    leaves: int
    kernels: int  # those that pass over leaves
    bytes: float  # of main memory, a parameter
    least: float
    temporary: float  # bytes a parameter
    is_donated: bool
    collectives: int
    seconds: float


def main() -> int:
    """Print a table a target; 1 where `--check` finds something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {devices.TARGETS}")
    parser.add_argument("--only", nargs="*", default=[""], help="words in the names of cases")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a step wastes")
    parser.add_argument("--keep", metavar="FOLDER", help="write each program's HLO there")
    asked = parser.parse_args()
    for target in set(asked.targets) - set(devices.TARGETS):
        parser.error(f"no target {target!r}: choose from {', '.join(devices.TARGETS)}")
    devices.prepare()
    wrong = []
    for target in asked.targets or ["v5e", "h100"]:
        print(f"\n**{target}**\n\n{HEADER}", flush=True)
        for case in cases():
            if any(word in case.name for word in asked.only):
                count = measured(case, devices.devices(target)[0])
                print(row(case, count), flush=True)
                wrong += [f"{target}, {case.name}: {fault}" for fault in faults(case, count)]
    print(*wrong, sep="\n", file=sys.stderr)
    return int(asked.check and bool(wrong))


# ---- Cases ----


TREES = {"one": {"w": (4096, 4096)}, "gpt2": gpt2(blocks=2)}


def cases() -> Iterator[Case]:
    """Every step that the table has."""
    import optax

    import functional_adam as fa

    for tree, shapes in TREES.items():
        tx = optax.adamw(1e-3)
        yield Case(
            f"{tree}, optax", tx.init, stepped(tx, optax.apply_updates), shapes, "float32", True
        )
        for name, (dtype, arguments) in STATES.items():
            tx = fa.adamw(1e-3, **arguments)
            step = functools.partial(fa.step, tx)
            yield Case(f"{tree}, {name}", tx.init, step, shapes, dtype, True)


def stepped(tx: Any, apply: Callable[[Tree, Tree], Tree]) -> Callable[..., tuple[Tree, Tree]]:
    """`update` and `apply_updates`, one after the other."""

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    return step


# ---- Counting ----


def measured(case: Case, device: Any) -> Count:
    """The step of a case, compiled for a device, parameters and state donated."""
    import jax

    here = jax.sharding.SingleDeviceSharding(device)

    def placed(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    params = jax.tree.map(
        lambda shape: placed(shape, case.dtype),
        case.shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    state = jax.tree.map(lambda x: placed(x.shape, x.dtype), jax.eval_shape(case.init, params))

    # Taken in the order in which they are returned: JAX gives donated memory to the first result
    # of its shape, and moments in place of parameters would have to be copied.
    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        return case.step(grads, state, params)

    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=here)
    begin = time.perf_counter()
    compiled = jitted.lower(params, state, params).compile()
    return counted(compiled, params, time.perf_counter() - begin)


def counted(compiled: Any, params: Tree, seconds: float) -> Count:
    """What a compiled program moves; a kernel that moves less than a leaf's block is a scalar's."""
    import jax

    leaves = jax.tree.leaves(params)
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    memory = compiled.memory_analysis()
    found = hlo.kernels(compiled.as_text())
    smallest = min(math.prod(leaf.shape) for leaf in leaves)
    over_leaves = [k for k in found if k.bytes >= smallest and not k.is_transfer]
    changes = memory.output_size_in_bytes
    return Count(
        leaves=len(leaves),
        kernels=len(over_leaves),
        bytes=sum(k.bytes for k in found) / size,
        least=(memory.argument_size_in_bytes + changes) / size,
        temporary=memory.temp_size_in_bytes / size,
        is_donated=memory.alias_size_in_bytes >= changes - SCALARS,
        collectives=sum(k.is_collective for k in found),
        seconds=seconds,
    )


SCALARS = 4096  # bytes of the count and of what the compiler rounds up
HEADER = (
    "| case | kernels / leaves | bytes a parameter | least | temporary | donated | compiled in |\n"
    "|---|---|---|---|---|---|---|"
)


def row(case: Case, count: Count) -> str:
    """A row of the table."""
    return (
        f"| {case.name} | {count.kernels} / {count.leaves} | {count.bytes:.2f} | {count.least:.2f} "
        f"| {count.temporary:.3f} | {'all' if count.is_donated else 'not all'} "
        f"| {count.seconds:.1f} s |"
    )


def faults(case: Case, count: Count) -> list[str]:
    """What of a step is more than it has to be."""
    return [
        fault
        for is_wrong, fault in (
            (case.is_one_pass and count.kernels > count.leaves, f"{count.kernels} kernels"),
            (count.bytes > 1.1 * count.least, f"{count.bytes:.2f} bytes, not {count.least:.2f}"),
            (count.temporary > 0.1, f"{count.temporary:.3f} temporary bytes a parameter"),
            (not count.is_donated, "not all that was donated is used again"),
        )
        if is_wrong
    ]


if __name__ == "__main__":
    sys.exit(main())
