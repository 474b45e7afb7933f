"""Would AdEMAMix's slow average keep its worth in 8 bits? A study, run by hand; the answer is no.

    python benchmarks/ademamix_int8.py               # the streams: two minutes
    python benchmarks/ademamix_int8.py --train 3     # the byte transformer, three seeds

`moments="int8"` keeps m as a ratio to sqrt(v), which Cauchy and Schwarz bound for b1**2 < b2. For
m_slow with the paper's b3 = 0.9999 there is no bound: (b3**2 / b2)**t grows. Here each moment is
replaced after every step by what its codes would give back: m and v as `Int8` has them, m_slow as a
ratio to sqrt(v) too, or relative to the largest of its block of 128. Both round stochastically.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from baselines import TASKS, data_of, relative_to_largest, streams

import functional_adam as fa
from functional_adam._storage import int8

ALPHA = 5.0
BITS = Callable[[jax.Array], jax.Array]  # from a leaf to 32 random bits for each element


def ratios(m: jax.Array, v: jax.Array, scales: jax.Array, w: jax.Array, bits: BITS) -> jax.Array:
    """m as codes of m / sqrt(v) would give it back, v being the new one and w its decoded root."""
    units = int8.unit(m, v, scales)
    r = m / int8.divisor(jnp.sqrt(v), scales)
    r = jnp.where(v == 0, 0.0, r)
    return int8.ratio(int8.ratio_code(r, units, jnp.inf, bits(m)), units) * w


def of_largest(m: jax.Array, bits: BITS) -> jax.Array:
    """m in 127 steps of the largest of its block."""

    def coded(x: jax.Array) -> jax.Array:
        return jnp.floor(127 * x + bits(x).astype(jnp.float32) * 2.0**-32) / 127

    return relative_to_largest(m, 128, coded)


def kept(slow: str, state: fa.AdamState, scales: Any, key: jax.Array) -> tuple[Any, Any]:
    """The state after its moments have been codes, and the scales."""

    def leaf(key: jax.Array, m: Any, v: Any, m_slow: Any, old: Any) -> tuple[Any, ...]:
        shape, blocks = v.shape, int8.blocks(v.shape, 128)
        keys = iter(jax.random.split(key, 3))
        bits: BITS = lambda x: jax.random.bits(next(keys), x.shape)  # noqa: E731
        m, v, s = (int8.split(x, blocks) for x in (m, v, m_slow))
        new = int8.scale(v, old)
        w = int8.root(int8.root_code(jnp.sqrt(v), new, bits(v)), new)
        m = ratios(m, v, new, w, bits)
        if slow == "ratio":
            s = ratios(s, v, new, w, bits)
        elif slow == "largest":
            s = of_largest(s, bits)
        return *(int8.join(x, blocks, shape) for x in (m, w * w, s)), new

    leaves, tree = jax.tree.flatten(state.mu)
    others = [jax.tree.leaves(x) for x in (state.nu, state.extra["mu_slow"], scales)]
    rows = [leaf(*x) for x in zip(jax.random.split(key, len(leaves)), leaves, *others, strict=True)]
    mu, nu, m_slow, scales = (tree.unflatten(x) for x in zip(*rows, strict=True))
    return state._replace(mu=mu, nu=nu, extra={"mu_slow": m_slow}), scales


def fresh_scales(params: Any) -> Any:
    def zeros(p: jax.Array) -> jax.Array:
        blocks = int8.blocks(p.shape, 128)
        return jnp.zeros((*blocks[:-1], *([blocks[-1]] if blocks[-1] != 1 else []), 1), jnp.int32)

    return jax.tree.map(zeros, params)


WAYS = ("float32", "bfloat16", "m and v alone", "ratio", "largest")


def step(way: str, b3: float, rate: Any, grads: Any, carry: Any, seed: int) -> tuple[Any, Any]:
    """(updates, the next state and scales)."""
    state, scales = carry
    moments = "bfloat16" if way == "bfloat16" else "full"
    updates, state = tx_of(moments, b3, rate).update(grads, state)
    if way not in ("float32", "bfloat16"):
        key = jax.random.fold_in(jax.random.key(seed), state.count)
        state, scales = kept(way, state, scales, key)
    return updates, (state, scales)


def tx_of(moments: str, b3: float, rate: Any) -> fa.GradientTransformation:
    """The paper's: both rise over 2,000 steps, b3 so that its half-life does."""
    rising = lambda n: jnp.minimum(n / 2000, 1)  # noqa: E731
    memory = lambda n: 10 + (1 / (1 - b3) - 10) * rising(n)  # noqa: E731
    return fa.ademamix(
        rate, b3=lambda n: 1 - 1 / memory(n), alpha=lambda n: ALPHA * rising(n), moments=moments
    )


# ---- Streams ----


def stream_errors(b3: float) -> None:
    """For each stream and way: error of all updates over their size, and the largest update."""
    found = streams(4000)
    for name, grads in found.items():

        @functools.partial(jax.jit, static_argnums=0)
        def run(way: str, grads: jax.Array) -> jax.Array:
            def body(carry: Any, g: jax.Array) -> tuple[Any, Any]:
                updates, carry = step(way, b3, 1.0, g, carry, 0)
                return carry, updates

            moments = "bfloat16" if way == "bfloat16" else "full"
            start = tx_of(moments, b3, 1.0).init(grads[0]), fresh_scales(grads[0])
            return jax.lax.scan(body, start, grads)[1]

        updates = {way: np.asarray(run(way, jnp.asarray(grads))) for way in WAYS}
        truth = updates["float32"]
        size = np.sqrt((truth**2).mean())
        errors = [np.sqrt(((updates[way] - truth) ** 2).mean()) / size for way in WAYS[1:]]
        worst = [np.abs(updates[way]).max() for way in WAYS]
        print(f"| {name} | {' | '.join(f'{x:.3f}' for x in errors)} |", end="")
        print(f" {' | '.join(f'{x:.3g}' for x in worst)} |", flush=True)


# ---- Training ----


def held_out(way: str, b3: float, seed: int, steps: int, peak: float) -> float:
    task = TASKS["transformer"]
    data, given = data_of("transformer")
    params = task.init(jax.random.key(seed))
    moments = "bfloat16" if way == "bfloat16" else "full"
    rate = lambda t: peak * jnp.minimum(t / 200, 1) * (1 + jnp.cos(jnp.pi * t / steps)) / 2  # noqa: E731

    @jax.jit
    def run(carry: Any) -> Any:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            params, state, scales = carry
            batch = task.batch(data, jax.random.fold_in(jax.random.key(1000 + seed), state.count))
            grads = jax.grad(task.loss)(params, batch)
            updates, (state, scales) = step(way, b3, rate, grads, (state, scales), seed)
            return (fa.apply_updates(params, updates), state, scales), None

        return jax.lax.scan(body, carry, length=200)[0]

    carry = params, tx_of(moments, b3, rate).init(params), fresh_scales(params)
    for _ in range(steps // 200):
        carry = run(carry)
    return float(jax.jit(task.loss)(carry[0], given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--b3", type=float, nargs="+", default=[0.999, 0.9999])
    parser.add_argument("--train", type=int, metavar="SEEDS", help="train the byte transformer")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    for b3 in options.b3:
        if options.train is None:
            print(f"b3 = {b3}: errors of {WAYS[1:]}; largest update of {WAYS}")
            stream_errors(b3)
            continue
        for seed in range(options.train):
            losses = [held_out(way, b3, seed, options.steps, options.rate) for way in WAYS]
            gaps = ", ".join(
                f"{way} {loss - losses[0]:+.4f}" for way, loss in zip(WAYS, losses, strict=True)
            )
            print(f"b3 = {b3}, seed {seed}: float32 {losses[0]:.4f}; {gaps}", flush=True)


if __name__ == "__main__":
    main()
