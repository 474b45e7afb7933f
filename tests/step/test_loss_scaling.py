"""The recipe of docs/precision.md for float16: the loss is scaled, an overflow skips its step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES
from pages import ROOT, blocks
from same_bits import assert_same_bits

import functional_adam as fa

HYPER = dict(learning_rate=0.03, b1=0.85, b2=0.97, eps=1e-6, weight_decay=0.2)


@functools.cache
def recipe():
    """What the page's code defines: `scaled_step`, `loss` and their numbers.

    `test_docs` runs the page; the training at its end is left out here.
    """
    namespace = {}
    for code in blocks(ROOT / "docs" / "precision.md", "python"):
        definitions, _, _ = code.partition("\nwanted = ")
        exec(compile(definitions, "precision.md", "exec"), namespace)
    return namespace


@functools.cache
def magnified(loss, factor):
    """One function for one loss, so that it is compiled once."""
    return lambda *args: factor * loss(*args)


def in_float32(params, *batch):
    return recipe()["loss"](params, *batch, dtype=jnp.float32)


def trained(tx, loss, params, scale, steps, patience, magnify=1.0):
    """Parameters, state and scale after every step; `magnify` multiplies the loss."""
    page, state = recipe(), tx.init(params)
    total = magnified(loss, magnify)
    rows, good = [], jnp.int32(0)
    scale = jnp.float32(scale)
    for _ in range(steps):
        params, state, scale, good = page["scaled_step"](
            tx, total, params, state, scale, good, page["x"], page["y"], patience=patience
        )
        rows.append((params, state, float(scale)))
    return rows


@functools.cache
def of_float16(learning_rate=3e-4, **options):
    hyper = HYPER | {"learning_rate": learning_rate, "eps": 1e-10}
    return optax.apply_if_finite(fa.adamw(**hyper, **options), 40)


def test_an_overflow_halves_the_scale_and_leaves_everything_else_untouched():
    # At this rate the gradients stay: those of "v" are up to 5e-4, which times 2**6 and 2**22 is
    # beyond float16's 65,504.
    tx, start = of_float16(1e-7), recipe()["start"]
    rows = trained(tx, recipe()["loss"], start, 2.0**24, 40, 7, magnify=2.0**6)
    before, scale, good, halved, doubled = (start, tx.init(start)), 2.0**24, 0, 0, 0
    for params, state, now in rows:
        if state.last_finite:
            good += 1
            doubled += good % 7 == 0
            scale = min(2 * scale, 2.0**24) if good % 7 == 0 else scale
            assert state.inner_state.count == before[1].inner_state.count + 1
        else:
            scale, good, halved = scale / 2, 0, halved + 1
            assert_same_bits((params, state.inner_state), (before[0], before[1].inner_state))
        assert now == scale
        before = params, state
    assert halved > doubled > 2  # down from the top, then up and down about the largest that works
    assert rows[-1][1].inner_state.count == 40 - halved


def test_the_scale_grows_no_further_where_all_gradients_are_zero():
    tx, start = of_float16(), recipe()["start"]
    rows = trained(tx, lambda p, *_: 0.0 * p["w"].sum(), start, 2.0**21, 12, 2)
    assert [scale for *_, scale in rows[1::2]] == [2.0**22, 2.0**23, *[2.0**24] * 4]
    assert rows[-1][1].total_notfinite == 0


def test_a_bad_step_starts_the_count_of_good_ones_again():
    tx, page = of_float16(), recipe()
    kept = page["start"], tx.init(page["start"]), jnp.float32(2.0**15), jnp.int32(6)
    step = functools.partial(page["scaled_step"], tx, page["loss"], patience=7)
    *kept, scale, good = step(*kept, page["x"], page["y"].at[3].set(np.nan))
    assert (scale, good) == (2.0**14, 0)
    *_, scale, good = step(*kept, scale, good, page["x"], page["y"])
    assert (scale, good) == (2.0**14, 1)


def test_what_eps_and_clipping_see_are_gradients_without_the_scale():
    # Of the first layer gradients are far below this eps, and far above it when scaled; none is
    # clipped, and all would be.
    clipped = optax.chain(optax.clip_by_global_norm(0.3), fa.adamw(3e-4, b1=0.85, eps=1e-5))
    tx, page = optax.apply_if_finite(clipped, 40), recipe()
    wanted = trained(tx, in_float32, page["start"], 1.0, 3, 99)[-1][0]
    for scale in (2.0**16, 2.0**19):
        found = trained(tx, page["loss"], page["start"], scale, 3, 99)[-1][0]
        for name, start in page["start"].items():
            moved = np.linalg.norm(wanted[name] - start)
            assert np.linalg.norm(found[name] - wanted[name]) < 0.02 * moved


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"moments": CODES}),
        ("float16", {"rounding": "compensated"}),
    ],
)
def test_scaled_float16_follows_float32_where_unscaled_stands_still(dtype, options):
    start = jax.tree.map(lambda p: p.astype(dtype), recipe()["start"])
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), start)
    plain, tx, loss = of_float16(), of_float16(**options), recipe()["loss"]
    wanted = trained(plain, in_float32, wide, 1.0, 80, 999)[-1][0]
    rows = trained(tx, loss, start, 2.0**30, 100, 999)  # begins with overflows
    good = [(params, state.inner_state) for params, state, _ in rows if state.last_finite]
    assert 80 < len(good) < 100
    params, state = good[79]
    found = fa.master_params(params, state) if "rounding" in options else params
    unscaled = trained(tx, loss, start, 1.0, 80, 999)[-1][0]
    moved = {name: np.linalg.norm(wanted[name] - wide[name]) for name in wide}
    for name in wide:
        off = np.linalg.norm(np.float32(found[name]) - wanted[name])
        assert off < 0.1 * moved[name]
    # Decay alone moves it, by (1 - 0.2 * 3e-4)**80; what is left is its share of all movement.
    lost = np.linalg.norm(np.float32(unscaled["w"]) - wanted["w"])
    assert lost > 0.9 * moved["w"]
