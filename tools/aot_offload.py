"""Compile steps with moments on the host, for devices that are not there, and count their trips.

    python tools/aot_offload.py                # v5e and h100, every case
    python tools/aot_offload.py h100 --check   # fails where a step moves more than it has to

One row a case: the arrays that wait on the host, the copies of a step to and from the device, the
bytes per parameter that they move both ways together, how many times the moments of the largest
leaf the device holds beside what a step without `offload` needs, and whether a step writes the
host's memory in place. "At once" is the same with the whole state moved by one `jax.device_put`
before the update and one after it.
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
# Leaves whose moments are on the device at once: one that comes and one that goes. The scheduler
# of TPUs fetches one or two more ahead.
MOST = {"h100": 2, "v5e": 4, "v6e": 4, "v5p": 4}
# What compilers for TPUs before libtpu 0.0.52 say of 8-bit matrices on the host.
KNOWN = "Source and destination buffers in CopyDone arguments need to be the same shape"


class Case(NamedTuple):
    """A step, of parameters of these shapes and dtype, and what `offload` says of its state."""

    name: str
    step: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    without: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]  # whose state stays on the device
    offloaded: Any
    params: Tree
    is_ordered: bool  # leaf by leaf


class Count(NamedTuple):
    """What was counted of a compiled step."""

    arrays: int  # that wait on the host
    over: int  # copies to the device
    back: int
    waiting: int  # bytes on the host
    moved: float  # bytes of the copies, both ways
    parameters: int
    temporary: float  # in moments of the largest leaf
    is_in_place: bool


def main() -> int:
    """Print a table a target; 1 where `--check` finds something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {devices.TARGETS}")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a step wastes")
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
    """Every step that the table has."""
    import functools

    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import functional_adam as fa

    # JAX's descriptions of GPUs have no memory of the host: traced as for a TPU, lowered for both.
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
    """A step that fetches the whole state, and sends it back."""
    import jax

    import functional_adam as fa

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        state = jax.device_put(state, offloaded.device_shardings)
        params, state = fa.step(tx, grads, state, params)
        return params, jax.device_put(state, offloaded.shardings)

    return step


# ---- Counting ----


def compiled(case: Case, target: str) -> tuple[Any, Any]:
    """The step of a case and the one without `offload`, parameters and state donated."""
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
    """What a compiled step moves."""
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
    "| case | arrays that wait | copies over / back | bytes a parameter | leaves at once "
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
    """What of a step is more than it has to be."""
    if not case.is_ordered:
        return []
    pairs = count.over == count.back == count.arrays
    most = MOST[target] + 0.05
    has_equal_leaves = case.name.startswith("eight")
    return [
        fault
        for is_wrong, fault in (
            (not pairs, f"{count.over} and {count.back} copies of {count.arrays} arrays"),
            (count.moved > 2 * count.waiting, "bytes of what does not wait"),
            (has_equal_leaves and count.temporary > most, f"{count.temporary:.2f} leaves at once"),
            (not count.is_in_place, "memory of the host that is not used again"),
        )
        if is_wrong
    ]


if __name__ == "__main__":
    sys.exit(main())
