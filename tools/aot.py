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
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ahead import devices, hlo

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
from workloads import STATES, gpt2

Tree = Any


class Case(NamedTuple):
    """A step to compile: `step(grads, state, params)`, of parameters of these shapes and dtype."""

    name: str
    tx: Any
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    shapes: Tree
    dtype: str
    is_divided: bool = False  # over four devices, along both axes of each leaf


class Count(NamedTuple):
    """What was counted of a compiled step; a parameter is one that a device has."""

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
                compiled, params, seconds = compile_step(case, devices.devices(target))
                count = counted(compiled, params, seconds)
                print(row(case, count), flush=True)
                if asked.keep:
                    file = pathlib.Path(asked.keep, f"{target}, {case.name}.txt")
                    file.write_text(compiled.as_text())
                wrong += [f"{target}, {case.name}: {fault}" for fault in faults(count)]
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
        yield Case(f"{tree}, optax", tx, stepped(tx, optax.apply_updates), shapes, "float32")
        for name, (dtype, arguments) in STATES.items():
            tx = fa.adamw(1e-3, **arguments)
            step = functools.partial(fa.step, tx)
            yield Case(f"{tree}, {name}", tx, step, shapes, dtype)
            if tree == "one" and "int8" in name:
                yield Case(f"{tree}, {name}, on 2 x 2 devices", tx, step, shapes, dtype, True)


def stepped(tx: Any, apply: Callable[[Tree, Tree], Tree]) -> Callable[..., tuple[Tree, Tree]]:
    """`update` and `apply_updates`, one after the other."""

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = tx.update(grads, state, params)
        return apply(params, updates), state

    return step


# ---- Counting ----


def compile_step(case: Case, devices: list[Any]) -> tuple[Any, Tree, float]:
    """The step of a case, parameters and state donated; the parameters; seconds to compile."""
    import jax

    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, case.dtype, sharding=place(case, devices)),
        case.shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    state = state_of(case, params)

    # Taken in the order in which they are returned: JAX gives donated memory to the first result
    # of its shape, and moments in place of parameters would have to be copied.
    def step(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        return case.step(grads, state, params)

    shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
    begin = time.perf_counter()
    compiled = jitted.lower(params, state, params).compile()
    return compiled, params, time.perf_counter() - begin


def place(case: Case, devices: list[Any]) -> Any:
    """Where the parameters of a case lie."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    if not case.is_divided:
        return jax.sharding.SingleDeviceSharding(devices[0])
    # Explicit: XLA for TPUs can divide no kernel.
    mesh = Mesh(np.reshape(devices[:4], (2, 2)), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    return NamedSharding(mesh, PartitionSpec("x", "y"))


def state_of(case: Case, params: Tree) -> Tree:
    """The state of these parameters, and where it lies."""
    import jax

    import functional_adam as fa

    state = jax.eval_shape(
        case.tx.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    )
    first = jax.tree.leaves(params)[0].sharding
    shardings = jax.tree.map(lambda _: first, state)
    if case.is_divided:
        shardings = fa.state_shardings(case.tx, params)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        shardings,
    )


def counted(compiled: Any, params: Tree, seconds: float) -> Count:
    """What a compiled program moves; a kernel that moves less than a leaf's block is a scalar's."""
    import jax

    leaves = jax.tree.leaves(params)
    sizes = [math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves]
    size = sum(sizes)
    memory = compiled.memory_analysis()
    found = hlo.kernels(compiled.as_text())
    over_leaves = [k for k in found if k.bytes >= min(sizes) and not k.is_transfer]
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


def faults(count: Count) -> list[str]:
    """What of a step is more than it has to be."""
    return [
        fault
        for is_wrong, fault in (
            (count.kernels > count.leaves, f"{count.kernels} kernels"),
            (count.collectives > 0, f"{count.collectives} messages between devices"),
            (count.bytes > 1.1 * count.least, f"{count.bytes:.2f} bytes, not {count.least:.2f}"),
            (count.temporary > 0.1, f"{count.temporary:.3f} temporary bytes a parameter"),
            (not count.is_donated, "not all that was donated is used again"),
        )
        if is_wrong
    ]


if __name__ == "__main__":
    sys.exit(main())
