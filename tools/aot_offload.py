"""Compile steps with moments on the host, for devices that are not present, and count transfers.

    python tools/aot_offload.py                # v5e and h100, every case
    python tools/aot_offload.py h100 --check   # fails if a step moves more than it has to

The script prints one row per case, with these columns:

- arrays that wait: the arrays on the host between steps;
- copies over / back: a step's copies to the device and from it;
- bytes per parameter: what these copies move, both ways together;
- leaves at once: the device memory that the step needs beyond a step without `offload`, in units of
  the moments of the largest leaf;
- in place: whether the step writes the host's memory in place.

The case "at once" moves the whole state with one `jax.device_put` before the update and one after.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ahead import devices, hlo
from aot import gpt2, stepped

Tree = Any

TREES = {"eight": {f"w{n}": (4096, 4096) for n in range(8)}, "gpt2": gpt2(blocks=2)}
STATES = {
    "float32": ("float32", {}),
    "bfloat16": ("float32", {"moments": "bfloat16"}),
    "int8": ("float32", {"moments": "int8"}),
    "bfloat16, compensated": ("bfloat16", {"moments": "bfloat16", "rounding": "compensated"}),
}
# Leaves whose moments may be on the device at once: one that arrives and one that leaves. The
# scheduler for TPUs fetches one or two further ahead.
MOST = {"h100": 2, "v5e": 4, "v6e": 4, "v5p": 4}
# A known error of TPU compilers before libtpu 0.0.52, for 8-bit matrices on the host.
KNOWN = "Source and destination buffers in CopyDone arguments need to be the same shape"


class Case(NamedTuple):
    """A step, its parameters as shapes, and what `offload` returned for them."""

    name: str
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    without: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]  # the same, state on the device
    offloaded: Any
    params: Tree
    is_ordered: bool  # whether the step must go leaf by leaf


class Count(NamedTuple):
    """What a compiled step transfers and how much memory it needs."""

    arrays: int  # arrays that wait on the host
    over: int  # copies to the device
    back: int
    waiting: int  # bytes on the host
    moved: float  # bytes of the copies, both ways
    parameters: int
    temporary: float  # more than without offload, in moments of the largest leaf
    is_in_place: bool


def main() -> int:
    """Print a table for each target; return 1 if `--check` finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="target",
        help=f"of {', '.join(devices.TARGETS)}; default: v5e h100",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a step moves too much")
    asked = parser.parse_args()
    for target in set(asked.targets) - set(devices.TARGETS):
        parser.error(f"no target {target!r}: choose from {', '.join(devices.TARGETS)}")
    devices.prepare()
    wrong = []
    for target in asked.targets or ["v5e", "h100"]:
        print(f"\n**{target}**\n\n{HEADER}", flush=True)
        for case in cases(target):
            try:
                count = counted(case, *compiled(case, target))
            except Exception as error:
                said = " ".join(str(error).split())
                print(f"| {case.name} | {said[:150]} |", flush=True)
                wrong += [] if KNOWN in said else [f"{target}, {case.name}: {said}"]
                continue
            print(row(case, count), flush=True)
            wrong += [f"{target}, {case.name}: {fault}" for fault in faults(case, count, target)]
    print(*wrong, sep="\n", file=sys.stderr)
    return int(asked.check and bool(wrong))


# ---- Cases ----


def cases(target: str) -> Iterator[Case]:
    """The cases of the table."""
    import functools

    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import functional_adam as fa

    # JAX's GPU topologies have no host memory, so steps for GPUs are traced with TPU shardings.
    traced_for = "v5e" if target == "h100" else target
    whole = NamedSharding(Mesh(np.array(devices.devices(traced_for)[:1]), "x"), PartitionSpec())
    for tree, shapes in TREES.items():
        for name, (dtype, arguments) in STATES.items():
            tx = fa.adamw(1e-3, **arguments)
            params = jax.tree.map(
                lambda shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole),
                shapes,
                is_leaf=lambda x: isinstance(x, tuple),
            )
            offloaded = fa.offload(tx, params)
            step, without = (functools.partial(fa.step, this) for this in (offloaded.tx, tx))
            case = Case(f"{tree}, {name}", step, without, offloaded, params, True)
            yield case
            if (tree, name) == ("eight", "float32"):
                updates = stepped(offloaded.tx, fa.apply_updates)
                yield case._replace(name=f"{case.name}, update", step=updates)
                at_once = moved_at_once(tx, offloaded)
                yield case._replace(name=f"{case.name}, at once", step=at_once, is_ordered=False)


def moved_at_once(tx: Any, offloaded: Any) -> Callable[..., tuple[Tree, Tree]]:
    """A step that fetches the whole state at once and sends it back at once."""
    import jax

    import functional_adam as fa

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        state = jax.device_put(state, offloaded.device_shardings)
        params, state = fa.step(tx, grads, state, params)
        return params, jax.device_put(state, offloaded.shardings)

    return step


# ---- Counting ----


def compiled(case: Case, target: str) -> tuple[Any, Any]:
    """The compiled step of a case and that without `offload`; both donate parameters and state."""
    import jax

    of_params = jax.tree.map(lambda x: x.sharding, case.params)
    fresh = jax.eval_shape(case.offloaded.tx.init, case.params)

    def program(step: Callable[..., Any], shardings: Tree) -> Any:
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            *(fresh, shardings),
        )
        jitted = jax.jit(
            lambda params, state, grads: step(grads, state, params),
            donate_argnums=(0, 1),
            out_shardings=(of_params, shardings),
        )
        traced = jitted.trace(case.params, state, case.params)
        return devices.compile_gpu(traced) if target == "h100" else traced.lower().compile()

    without = program(case.without, case.offloaded.device_shardings)
    return program(case.step, case.offloaded.shardings), without


def counted(case: Case, compiled: Any, without: Any) -> Count:
    """Count what a compiled step transfers; `without` is the step without `offload`."""
    import jax

    state = jax.eval_shape(case.offloaded.tx.init, case.params)
    waits = jax.tree.map(lambda x: x.memory_kind == "pinned_host", case.offloaded.shardings)
    sizes: dict[str, int] = {}  # by the path of the parameter
    arrays = waiting = 0
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, x), this in zip(leaves, jax.tree.leaves(waits), strict=True):
        if this:
            size = math.prod(x.shape) * x.dtype.itemsize
            arrays, waiting = arrays + 1, waiting + size
            leaf = jax.tree_util.keystr(path[1:])
            sizes[leaf] = sizes.get(leaf, 0) + size
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes - without.memory_analysis().temp_size_in_bytes
    over, back = hlo.trips(compiled.as_text())
    return Count(
        arrays=arrays,
        over=len(over),
        back=len(back),
        waiting=waiting,
        moved=sum(over) + sum(back),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(case.params)),
        temporary=temporary / max(sizes.values()),
        is_in_place=memory.host_alias_size_in_bytes >= memory.host_output_size_in_bytes,
    )


HEADER = (
    "| case | arrays that wait | copies over / back | bytes per parameter | leaves at once "
    "| in place |\n|---|---|---|---|---|---|"
)


def row(case: Case, count: Count) -> str:
    """A row of the table."""
    return (
        f"| {case.name} | {count.arrays} | {count.over} / {count.back} "
        f"| {count.moved / count.parameters:.2f} | {count.temporary:.2f} "
        f"| {'all' if count.is_in_place else 'not all'} |"
    )


def faults(case: Case, count: Count, target: str) -> list[str]:
    """The faults of a step: what it moves or holds beyond what it has to."""
    if not case.is_ordered:
        return []
    pairs = count.over == count.back == count.arrays
    most = MOST[target] + 0.05
    has_equal_leaves = case.name.startswith("eight")
    return [
        fault
        for is_wrong, fault in (
            (not pairs, f"{count.over} and {count.back} copies for {count.arrays} arrays"),
            (count.moved > 2 * count.waiting, "copies of arrays that do not wait on the host"),
            (has_equal_leaves and count.temporary > most, f"{count.temporary:.2f} leaves at once"),
            (not count.is_in_place, "memory of the host that is not written in place"),
        )
        if is_wrong
    ]


if __name__ == "__main__":
    sys.exit(main())
