"""Moments in 8 bits and in bfloat16: their forms, their random bits, their types and bytes."""

import functools
import itertools
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from codes import format_named
from format_runs import SMALL, assert_same_bits, normal, rms, scanned, slow

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


# Modes --------------------------------------------------------------------------------------------

PARAMS = {"w": jnp.asarray(normal(5, 160, seed=8))}


def tree_grads(steps, seed=10):
    return {"w": normal(steps, 5, 160, seed=seed)}


def at(tree, i):
    return jax.tree.map(lambda x: jnp.asarray(x[i]), tree)


@functools.cache
def jitted(moments):
    tx = fa.adam(2e-3, b1=0.83, b2=0.98, moments=format_named(moments))
    return tx, jax.jit(tx.update)


def stepped(moments, grads, state=None, update=None):
    """[(updates, state)] of every step."""
    tx, compiled = jitted(moments)
    state, rows = tx.init(PARAMS) if state is None else state, []
    for i in range(len(grads["w"])):
        u, state = (update or compiled)(at(grads, i), state)
        rows.append((u, state))
    return rows


@pytest.mark.parametrize("moments", SMALL)
def test_compiled_forms_agree_in_every_bit(moments):
    grads, (tx, _) = tree_grads(7), jitted(moments)
    rows = stepped(moments, grads)
    (updates, states), last = scanned(tx, grads, PARAMS, see=lambda state: state)
    for i, row in enumerate(rows):
        assert_same_bits(row, at((updates, states), i))
    assert_same_bits(rows[-1][1], last)


@pytest.mark.parametrize("moments", SMALL)
def test_a_member_of_a_vmapped_ensemble_is_as_if_alone(moments):
    tx, _ = jitted(moments)
    members = [tree_grads(3, seed=s) for s in (10, 20, 30)]
    together = jax.tree.map(lambda *x: np.stack(x, axis=1), *members)
    state = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(3))
    update = jax.jit(jax.vmap(tx.update))
    rows = [stepped(moments, grads) for grads in members]
    for i in range(3):
        u, state = update(at(together, i), state)
        for k in range(3):
            assert_same_bits(at((u, state), k), rows[k][i])


def place_of(codes):
    """Codes and bfloat16 as whole numbers of which neighbours differ by 1."""
    return np.int32(codes.view(np.int16) if codes.dtype == jnp.bfloat16 else codes)


@pytest.mark.parametrize("moments", SMALL)
def test_eager_steps_are_within_a_code_of_compiled_ones(moments):
    grads, (tx, _) = tree_grads(4), jitted(moments)
    compiled = stepped(moments, grads)
    before = tx.init(PARAMS)
    for i, (u, after) in enumerate(compiled):
        mine, state = tx.update(at(grads, i), before)
        error = np.abs(np.float64(mine["w"]) - np.float64(u["w"]))
        assert error.max() <= 4 * 2.0**-24 * 2e-3
        for name in ("mu", "nu"):
            a, b = (place_of(np.asarray(getattr(x, name)["w"])) for x in (state, after))
            assert np.abs(a - b).max() <= 1
        before = after


CHUNKED = [(2**18,), (2**18 + 77,), (3000, 130), (300_000, 1)]


@pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=() if shape in CHUNKED[1:3] else slow) for shape in CHUNKED],
    ids=str,
)
def test_chunks_change_no_bit(shape):
    grads = np.exp(normal(2, *shape, seed=12)) * normal(2, *shape, seed=13)
    theta = jnp.asarray(normal(*shape, seed=15))
    settings = dict(b2=0.97, rounding="compensated")
    if shape == CHUNKED[1]:  # with all that can be: in float32 a decay may be fused otherwise
        theta, settings = theta.astype(jnp.bfloat16), settings | {"weight_decay": 0.1}
    results = []
    for chunked in (False, True):
        tx = fa.adamw(
            3e-3, moments=fa.Int8(min_size=0, chunked=chunked), **({"weight_decay": 0.0} | settings)
        )
        state, update = tx.init(theta), jax.jit(tx.update)
        for g in grads:
            u, state = update(g, state, theta)
        results.append((u, state))
    assert_same_bits(*results)


# Random bits --------------------------------------------------------------------------------------


def inner(state):
    """The state of this package's transformation in one of Optax's."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, fa.AdamState))
    return next(x for x in found if isinstance(x, fa.AdamState))


def codes_of_w(tx, grads):
    """mu and nu of the leaf "w" after three steps; run eagerly, leaves share a compiled step."""
    state = tx.init(grads)
    for _ in range(3):
        _, state = tx.update(grads, state)
    return inner(state).mu["w"], inner(state).nu["w"]


@pytest.mark.parametrize("moments", SMALL)
def test_a_leafs_bits_are_the_same_in_any_company(moments):
    tx, w = fa.adam(moments=format_named(moments)), at(tree_grads(1), 0)["w"]
    two = {"w": w, "b": 2 * w}
    masked = optax.masked(tx, {"w": True, "b": False})
    parts = optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"w": "x", "b": "y"})
    wanted = codes_of_w(tx, {"w": w})
    assert_same_bits(codes_of_w(tx, {"a": 3 * w, "w": w, "z": [w]}), wanted)
    for one in (masked, parts, optax.chain(optax.identity(), tx)):
        assert_same_bits(codes_of_w(one, two), wanted)


@pytest.mark.parametrize("moments", SMALL)
def test_equal_leaves_at_different_paths_are_rounded_differently(moments):
    tx, state = fa.adam(moments=format_named(moments)), None
    for i in range(2):  # after one step all ratios are the largest there can be
        w = at(tree_grads(2), i)["w"]
        _, state = tx.update({"a": w, "b": w}, state or tx.init({"a": w, "b": w}))
    for tree in (state.mu, state.nu):
        differ = np.asarray(tree["a"] != tree["b"]).mean()
        assert 0.1 < differ < 0.9


@pytest.mark.parametrize("moments", SMALL)
def test_the_same_step_at_another_count_is_rounded_differently(moments):
    _, update = jitted(moments)
    grads = at(tree_grads(1), 0)
    before = stepped(moments, tree_grads(1, seed=40))[0][1]
    states = [update(grads, before._replace(count=jnp.int32(c)))[1] for c in (500, 501)]
    assert int(states[1].count) == 502
    a, b = (jax.tree.leaves((s.mu, s.nu)) for s in states)
    for x, y in zip(a, b, strict=True):
        assert 0.1 < np.asarray(x != y).mean() < 0.9


@pytest.mark.parametrize("moments", SMALL)
def test_a_copied_state_goes_on_as_the_original(moments):
    rows = stepped(moments, tree_grads(6))
    copied = jax.tree.map(lambda x: jnp.asarray(np.array(x)), rows[2][1])
    rest = jax.tree.map(lambda g: g[3:], tree_grads(6))
    assert_same_bits(stepped(moments, rest, copied), rows[3:])


# Types --------------------------------------------------------------------------------------------


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize("moments", SMALL)
def test_many_steps_are_one_compilation_and_keep_all_types(moments):
    tx, traces = fa.adam(b1=0.83, moments=format_named(moments)), []

    @jax.jit
    def update(g, state):
        traces.append(1)
        return tx.update(g, state)

    params = {"h": jnp.ones((3, 4), jnp.bfloat16), "e": jnp.zeros((0, 3)), "s": 1.5}
    first = state = tx.init(params)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.7), params)
    for _ in range(5):
        u, state = update(grads, state)
    assert len(traces) == 1
    assert avals(state) == avals(first)
    assert u["h"].dtype == jnp.bfloat16
    assert int(state.count) == 5


@pytest.mark.parametrize("moments", SMALL)
def test_64_bit_mode_changes_no_type_and_no_code(moments, x64):
    grads = normal(5, 3, 128, seed=19)
    tx = fa.adam(3e-3, b2=0.98, moments=format_named(moments))
    (updates, _), state = scanned(tx, grads)
    assert avals(state) == avals(tx.init(grads[0]))
    assert updates.dtype == np.float32
    truth = reference.adam(grads, learning_rate=3e-3, b2=0.98).updates
    assert rms(updates - truth) <= 0.06 * rms(truth)


# Memory -------------------------------------------------------------------------------------------


def bytes_each(shapes, **kwargs):
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    state = jax.eval_shape(fa.adam(**kwargs).init, params)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    return size / sum(math.prod(s) for s in shapes.values())


def conv_net():
    widths = (3, 64, 128, 256, 512)
    shapes = {"head": (512, 1), "head.b": (1,), "out": (512, 10), "out.b": (10,)}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"{i}.w": (b, a, 3, 3), f"{i}.b": (b,), f"{i}.flax": (3, 3, a, b)}
    return shapes


def test_bytes_a_parameter():
    whole = {"a": (128,) * 3, "b": (4096, 1024), "c": (12_800,)}
    assert 2 < bytes_each(whole, moments="int8") <= 2.02
    assert bytes_each(whole, moments="bfloat16") == pytest.approx(4, abs=1e-4)
    assert 2 < bytes_each(conv_net(), moments="int8") <= 2.1
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        gpt2 = pytest.importorskip("entrants").gpt2()
    finally:
        sys.path.pop(0)
    assert 2 < bytes_each(gpt2, moments="int8") <= 2.1
