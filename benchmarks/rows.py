"""Rows of an embedding against dense Adam: time, bytes and temporaries of a step.

    python benchmarks/rows.py                    # the table of docs/rows.md: 10**6 x 64, 4,096 rows
    python benchmarks/rows.py --height 100000
    python benchmarks/rows.py --errors           # the table of docs/math.md: "dense" and dense Adam

The dense step is that of Optax for a gradient of the whole table, which is made of the same row
gradients by a scatter. Times are paired: in each round every way takes a step, in an order drawn
anew, and its time is divided by that of Optax in the round; medians. "optax again" is the control.
Bytes are those of the compiled program. XLA counts an array of which rows are written in place as
if all of it were read and written; two heights tell that part, and it is taken off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import functional_adam as fa

RATE, LONGEST = 1e-3, 10_000


class Way(NamedTuple):
    """`start(table)` makes a state, `step(table, state, grads, rows)` the next of both."""

    dtype: Any
    start: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any]]
    in_place: bool = True


def dense() -> Way:
    tx = optax.adam(RATE)

    def step(table: Any, state: Any, grads: Any, rows: Any) -> Any:
        whole = jnp.zeros_like(table).at[rows].add(grads)
        updates, state = tx.update(whole, state, table)
        return optax.apply_updates(table, updates), state

    return Way(jnp.float32, tx.init, step, in_place=False)


def by_rows(catch_up: str, dtype: Any = jnp.float32, **storage: Any) -> Way:
    def start(table: jax.Array) -> Any:
        """A state in which rows have waited for up to `LONGEST` steps, and have moments."""
        state = fa.init_rows(table, **storage)
        ages = jax.random.randint(jax.random.key(1), table.shape[:1], 0, LONGEST)
        filled = {name: jnp.ones_like(getattr(state, name)) for name in ("mu", "nu")}
        return state._replace(
            count=jnp.int32(LONGEST), extra={"last": jnp.int32(LONGEST) - ages}, **filled
        )

    def step(table: Any, state: Any, grads: Any, rows: Any) -> Any:
        how = {"learning_rate": RATE, "catch_up": catch_up, **storage}
        return fa.update_rows(grads, rows, state, table, **how)

    return Way(dtype, start, step)


WAYS = {
    "optax.adam, dense": dense(),
    "optax again": dense(),
    "lazy": by_rows("lazy"),
    "moments": by_rows("moments"),
    "dense": by_rows("dense"),
    "lazy, int8": by_rows("lazy", moments="int8"),
    "dense, int8": by_rows("dense", moments="int8"),
}


def compiled(way: Way, shape: tuple[int, int], size: int) -> Any:
    table = jax.ShapeDtypeStruct(shape, way.dtype)
    state = _state(way, table)
    grads = jax.ShapeDtypeStruct((size, shape[1]), jnp.float32)
    rows = jax.ShapeDtypeStruct((size,), jnp.int32)
    return jax.jit(way.step, donate_argnums=(0, 1)).lower(table, state, grads, rows).compile()


def _state(way: Way, table: Any) -> Any:
    return jax.eval_shape(lambda: way.start(jnp.zeros(table.shape, table.dtype)))


def accessed(way: Way, shape: tuple[int, int], size: int) -> float:
    """Bytes that a step reads and writes."""
    here, twice = (
        compiled(way, (height, shape[1]), size).cost_analysis()["bytes accessed"]
        for height in (shape[0], 2 * shape[0])
    )
    return 2 * here - twice if way.in_place else here


def times(shape: tuple[int, int], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the steps of each way, round by round."""
    rng = np.random.default_rng(0)
    steps = {name: compiled(way, shape, size) for name, way in WAYS.items()}
    held = {}
    for name, way in WAYS.items():
        table = jnp.zeros(shape, way.dtype)
        held[name] = table, way.start(table)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds + 2):
        # Some words come often, most seldom; some of those twice in a batch.
        rows = jnp.asarray(shape[0] * rng.random(size) ** 4, jnp.int32)
        grads = jnp.asarray(rng.standard_normal((size, shape[1])), jnp.float32)
        for name in rng.permutation(list(WAYS)):
            begin = time.perf_counter()
            held[name] = steps[name](*held[name], grads, rows)
            jax.block_until_ready(held[name])
            found[name].append(time.perf_counter() - begin)
    return {name: seconds[2:] for name, seconds in found.items()}


CASES = [  # b1, b2, eps
    (0.9, 0.999, 1e-8),
    (0.9, 0.95, 1e-8),
    (0.95, 0.99, 1e-8),
    (0.99, 0.999, 1e-8),
    (0.93, 0.9, 1e-8),
    (0.9, 0.999, 1e-2),
    (0.93, 0.9, 1e-2),
]


def errors(steps: int = 3000, shape: tuple[int, int] = (400, 16), size: int = 8) -> None:
    """How far rows that waited, and dense float32 Adam, are from dense Adam in float64."""
    rng = np.random.default_rng(0)
    rows = jnp.asarray(shape[0] * rng.random((steps, size)) ** 3, jnp.int32)
    grads = rng.standard_normal((steps, size, shape[1])) * 10.0 ** rng.uniform(-4, 1, shape[1])
    table = rng.standard_normal(shape)

    def run(step: Any, state: Any, dtype: Any) -> Any:
        given = rows, jnp.asarray(grads, dtype)
        carry = jnp.asarray(table, dtype), state(jnp.asarray(table, dtype))
        scanned = jax.jit(lambda x: jax.lax.scan(lambda c, g: (step(*c, *g), None), x, given)[0])
        return scanned(carry)

    print("| b1 | b2 | eps | rows that waited | dense float32 | missed steps replayed |")
    print("|---|---|---|---|---|---|")
    for b1, b2, eps in CASES:
        how = dict(learning_rate=RATE, b1=b1, b2=b2, eps=eps, weight_decay=0.1)

        def by_row(table: Any, state: Any, rows: Any, grads: Any, how: Any = how) -> Any:
            return fa.update_rows(grads, rows, state, table, catch_up="dense", **how)

        def whole(table: Any, state: Any, rows: Any, grads: Any, how: Any = how) -> Any:
            updates, state = fa.update(
                jnp.zeros_like(table).at[rows].add(grads), state, table, **how
            )
            return fa.apply_updates(table, updates), state

        waited = run(by_row, fa.init_rows, jnp.float32)
        waited = fa.flush_rows(waited[1], waited[0], catch_up="dense", **how)[0]
        dense = run(whole, fa.init, jnp.float32)[0]
        with jax.enable_x64(True):
            truth = np.asarray(run(whole, fa.init, jnp.float64)[0])
        found = [np.abs(np.asarray(x, np.float64) - truth).max() / RATE for x in (waited, dense)]
        terms = int(np.ceil(np.log(2.0**-24 * (1 - b1 / b2**0.5)) / np.log(b1 / b2**0.5)))
        print(f"| {b1} | {b2} | {eps:g} | {found[0]:.1e} | {found[1]:.1e} | {terms:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--height", type=int, default=10**6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--errors", action="store_true", help="measure errors and not times")
    given = parser.parse_args()
    if given.errors:
        errors()
        return
    shape = given.height, given.width
    found = times(shape, given.rows, given.rounds)
    first = next(iter(WAYS))
    base = accessed(WAYS[first], shape, given.rows)
    print(f"{shape[0]:,} x {shape[1]}, {given.rows:,} rows a step; jax {jax.__version__}, CPU")
    print("| step | time | bytes moved | of which dense = 1 | temporaries | state |")
    print("|---|---|---|---|---|---|")
    for name, way in WAYS.items():
        pairs = zip(found[name], found[first], strict=True)
        ratio = float(np.median([mine / theirs for mine, theirs in pairs]))
        moved = accessed(way, shape, given.rows)
        made = compiled(way, shape, given.rows)
        table = jax.ShapeDtypeStruct(shape, way.dtype)
        state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_state(way, table)))
        temporary = made.memory_analysis().temp_size_in_bytes
        print(
            f"| {name} | {ratio:.3f} | {moved / 1e6:,.1f} MB | {moved / base:.4f} "
            f"| {temporary / 1e6:,.1f} MB | {state / 1e6:,.0f} MB |"
        )


if __name__ == "__main__":
    main()
