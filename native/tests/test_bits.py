"""The kernel's numbers are those of XLA's form, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from both_ways import HYPER, assert_same_bits, calls, jitted, stepped, trees

import functional_adam as fa

CODES = fa.Int8(min_size=0)
SHAPES = {"a": (33, 200), "b": (3, 1001), "c": (4097,), "d": (5, 3, 3, 130), "e": (), "f": (0, 3)}
FORMATS = {
    "full": "full",
    "mu in bfloat16": fa.Full(mu_dtype="bfloat16"),
    "bfloat16": "bfloat16",
    "int8": CODES,
    "int8, some leaves small": fa.Int8(min_size=5000),
    "int8, short blocks": fa.Int8(block_size=48, min_size=0),
    "int8, long blocks": fa.Int8(block_size=1024, min_size=0),
}
WAYS = {
    "adam": {"weight_decay": 0.0},
    "adamw": {},
    "nesterov": {"nesterov": True},
    "l2": {"l2": 0.1},
    "eps_root": {"eps_root": 1e-9},
    "independent decay": {"independent_weight_decay": True},
    "eps before the correction": {"eps": 1e-4, "eps_placement": "before_correction"},
    "short averages": {"b1": 0.4, "b2": 0.45},
}
ALL = [
    *(("full", "nearest", way) for way in WAYS),
    *((moments, "nearest", "adamw") for moments in FORMATS if moments != "full"),
    *(
        (moments, rounding, way)
        for moments, rounding, way in [
            ("full", "stochastic", "adamw"),
            ("full", "compensated", "l2"),
            ("bfloat16", "split", "nesterov"),
            ("bfloat16", "compensated", "short averages"),
            ("int8", "stochastic", "l2"),
            ("int8", "compensated", "adamw"),
            ("int8", "compensated", "eps_root"),
            ("int8", "split", "adam"),
            ("int8, short blocks", "compensated", "nesterov"),
            ("int8, some leaves small", "split", "eps before the correction"),
        ]
    ),
]


def assert_alike(monkeypatch, tx, params, grads):
    found = stepped(monkeypatch, "on", tx, params, grads)
    assert_same_bits(found, stepped(monkeypatch, "off", tx, params, grads))


@pytest.mark.parametrize(("moments", "rounding", "way"), ALL)
def test_of_every_format_and_rounding(moments, rounding, way, monkeypatch):
    dtype = jnp.float32 if rounding == "nearest" else jnp.bfloat16
    arguments = HYPER | WAYS[way]
    if "l2" in arguments:
        del arguments["weight_decay"]
    make = fa.adam if "l2" in arguments else fa.adamw
    tx = make(**arguments, moments=FORMATS[moments], rounding=rounding)
    assert_alike(monkeypatch, tx, *trees(SHAPES, dtype, 6))


@pytest.mark.parametrize("moments", ["full", "int8"])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16",) * 2]
)
def test_of_mixed_dtypes(moments, dtype, grad_dtype, monkeypatch):
    tx = fa.adamw(**HYPER, moments=FORMATS[moments])
    assert_alike(monkeypatch, tx, *trees(SHAPES, dtype, 4, grad_dtype))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
@pytest.mark.parametrize("needs", [True, False])
def test_of_updates(rounding, needs, monkeypatch):
    """`tx.update` without `apply_updates`; without decay it needs no parameters."""
    dtype = jnp.float32 if rounding == "nearest" else jnp.bfloat16
    tx = fa.adamw(**HYPER | {"weight_decay": 0.03 * needs}, moments=CODES, rounding=rounding)
    params, grads = trees(SHAPES, dtype, 3)
    found = []
    for way in ("on", "off"):

        def update(state, g):
            return tx.update(g, state, params if needs or rounding != "nearest" else None)

        step, state = jitted(monkeypatch, way, update), tx.init(params)
        for g in grads:
            updates, state = step(state, g)
        found.append((updates, state))
    assert_same_bits(*found)


@pytest.mark.parametrize("make", [fa.nadamw, fa.adamw])
def test_of_other_scalars(make, monkeypatch):
    tx = make(optax.linear_schedule(0.01, 0.002, 5), 0.85, 0.97, weight_decay=0.1)
    assert_alike(monkeypatch, tx, *trees(SHAPES, jnp.float32, 4))


def test_of_leaves_with_rates_of_their_own(monkeypatch):
    shapes = SHAPES | {f"small/{n}": (37,) for n in range(6)}
    rules = [("small/[12]", {"learning_rate": 0.1, "b2": 0.9}), ("^[ab]$", {"weight_decay": 0.5})]
    tx = fa.adamw(**HYPER, moments="bfloat16", overrides=rules)
    assert_alike(monkeypatch, tx, *trees(shapes, jnp.float32, 3))


def test_to_a_rounding_where_hyperparameters_are_not_known(monkeypatch):
    """XLA's compiler knows of a number that is 1, and rounds once where it else rounds twice."""
    tx = optax.inject_hyperparams(fa.adam)(0.004, 0.87, 0.993)
    params, grads = trees({"w": (33, 200)}, jnp.float32, 1)
    (_, on), (_, off) = (stepped(monkeypatch, way, tx, params, grads) for way in ("on", "off"))
    for a, b in zip(*(jax.tree.leaves(x.inner_state) for x in (on, off)), strict=True):
        np.testing.assert_array_max_ulp(np.asarray(a), np.asarray(b), 2)


def test_of_a_run(monkeypatch):
    """100 steps of every fifth coordinate, whose others decay into subnormals and to 0."""
    tx = fa.adamw(**HYPER | {"b1": 0.3, "b2": 0.4}, moments=CODES, rounding="compensated")
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(17, 300)), jnp.bfloat16)}
    first = jnp.asarray(np.random.default_rng(1).normal(size=(17, 300)), jnp.bfloat16)
    some = first * (jnp.arange(300) % 5 == 0).astype(jnp.bfloat16)
    assert_alike(monkeypatch, tx, params, [{"w": first}, *[{"w": some}] * 99])


def test_a_nan_stays_and_an_infinity_stops_its_coordinate(monkeypatch):
    tx = fa.adam(0.1, 0.8, 0.9)
    g = {"w": jnp.array([jnp.nan, 1e30, -jnp.inf, 0.5])}
    step = jitted(monkeypatch, "on", lambda p, s, g: fa.step(tx, g, s, p))
    assert calls(step.lower(g, tx.init(g), g).compile()) == 1
    params, state = step({"w": jnp.ones(4)}, tx.init(g), g)
    params, state = step(params, state, {"w": jnp.full(4, 0.5)})
    w = params["w"]
    assert jnp.isnan(w[0])
    assert state.nu["w"][1] == jnp.inf
    # -inf / inf in the first step; 0.5 twice: a step of 0.1 each.
    assert jnp.isnan(w[2])
    np.testing.assert_allclose(w[3], 0.8, rtol=1e-6)
