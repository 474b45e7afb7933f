"""Updates on 8 devices: those of one device, in every bit or to a rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import (
    EXPLICIT,
    FORMATS,
    HALF,
    HYPER,
    MESHES,
    MODES,
    ROUNDINGS,
    differing,
    lies_as,
    mesh_of,
    on_one_device,
    one_step,
    prepared,
    run,
    step_alone,
)

import functional_adam as fa

# A Latin square, where every two of mesh, format and rounding meet and ZeRO-1 meets each of them;
# and some rows more.
SQUARE = """
    8   Auto     None full       compensated
    8   Auto     data bfloat16   nearest
    8   Auto     None int8       stochastic
    2x4 Auto     data full       stochastic
    2x4 Auto     None bfloat16   compensated
    2x4 Auto     data int8       nearest
    2x4 Explicit None full       nearest
    2x4 Explicit data bfloat16   stochastic
    2x4 Explicit data int8       compensated
    2x4 Auto     data bfloat16   compensated
    2x4 Auto     data full       split
    2x4 Explicit None int8       split
"""
ROWS = [line.split() for line in SQUARE.split("\n") if line]
CASES = [
    (mesh, kind, None if zero == "None" else zero, f"{moments} {rounding}")
    for mesh, kind, zero, moments, rounding in ROWS
    if kind == "Auto" or EXPLICIT
]
# Each mesh with and without ZeRO-1 meets every format and every rounding.
ON = [*((name, "Auto") for name in MESHES), *([("2x4", "Explicit")] if EXPLICIT else [])]
SETTINGS = [(*on, zero) for on in ON for zero in (None, "data")]
MORE = [
    (*setting, f"{moments} {ROUNDINGS[(i + j) % 3]}")
    for i, setting in enumerate(SETTINGS)
    for j, moments in enumerate(FORMATS)
]


def name_of(case):
    return "-".join(map(str, case)).replace(" ", "-")


def assert_updates_are_those_of_one_device(case, steps):
    name, kind, zero, mode = case
    params, state, step, shardings = prepared(mode, mesh_of(name, kind), zero)
    assert lies_as(state, shardings[1])
    before = step._cache_size()
    found = run(step, params, state, shardings[0], steps)
    assert lies_as(found, shardings)
    assert step._cache_size() == max(before, 1)  # a fresh state lies just as updates leave it
    assert differing(found, on_one_device(mode, steps)) == {}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_updates_are_those_of_one_device_in_every_bit(case):
    assert_updates_are_those_of_one_device(case, steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=name_of)
def test_ten_updates_are_those_of_one_device_in_every_bit(case):
    assert_updates_are_those_of_one_device(case, steps=10)


@pytest.mark.parametrize(
    ("mode", "shape", "spec"),
    [
        ("bfloat16 nearest", (16384,), P("data")),  # 2048 elements
        ("int8 nearest", (64, 1024), P(None, "data")),  # a block of each row
    ],
)
def test_of_small_parts_the_state_has_the_same_bits(mode, shape, spec):
    # Found: float32 updates that differ in their last place or two, on jax 0.10.2.
    place, rng = NamedSharding(mesh_of("8"), spec), np.random.default_rng(3)
    theta, grads = (
        (rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape))).astype(np.float32)
        for _ in range(2)
    )
    tx, step, results = MODES[mode], jax.jit(functools.partial(one_step, MODES[mode])), []
    for put in (jnp.asarray, functools.partial(jax.device_put, device=place)):
        params = put(theta)
        results.append(step(params, tx.init(params), put(grads)))
    (a, state), (b, wanted) = results
    assert differing(state, wanted) == {}
    a, b = np.float64(a), np.float64(b)
    # u and theta + u have some four roundings; a first step is below 0.03 (1 + 0.2 |theta|).
    assert np.all(np.abs(a - b) <= 4 * 2.0**-24 * (1.01 * np.abs(theta) + 0.03))


# Blocks that several devices share, or parts from which XLA makes other loops. Rows of 12 are
# merged with the divided axis before them; four devices share the two blocks of a row of 200, whose
# scales therefore lie everywhere, and the eight of one of 1000.
ODD = {
    "middle": ((16, 130, 12), P(None, "model")),
    "kernel": ((3, 3, 32, 200), P(None, None, None, "data")),
    "rows": ((64, 1000), P(None, "data")),
}


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("full nearest", np.float32),
        ("int8 compensated", HALF),
        pytest.param("int8 nearest", np.float32, marks=pytest.mark.slow),
        pytest.param("full compensated", HALF, marks=pytest.mark.slow),
    ],
)
def test_any_parts_keep_the_moments_bits_and_weights_to_a_rounding(mode, dtype):
    mesh, tx, steps = mesh_of("4x2"), MODES[mode], 3
    shardings = {name: NamedSharding(mesh, spec) for name, (_, spec) in ODD.items()}
    rng = np.random.default_rng(19)
    trees = [
        {
            n: (rng.normal(size=s) * np.exp(3 * rng.normal(size=s))).astype(dtype)
            for n, (s, _) in ODD.items()
        }
        for _ in range(1 + steps)
    ]
    params = jax.device_put(trees[0], shardings)
    of_state = fa.state_shardings(tx, params)
    step = jax.jit(functools.partial(one_step, tx), out_shardings=(shardings, of_state))
    found, wanted = (params, tx.init(params)), (trees[0], tx.init(trees[0]))
    for grads in trees[1:]:
        found = step(*found, jax.device_put(grads, shardings))
        wanted = step_alone(mode)(*wanted, grads)
    assert lies_as(found, (shardings, of_state))
    assert step._cache_size() == 1
    if of_state.nu_scale is not None:
        assert of_state.nu_scale["kernel"].spec == P()
        assert of_state.nu_scale["rows"].spec == P(None, "data")
    differ = differing(found, wanted)
    assert not [path for path in differ if "mu" in path or "nu" in path]  # nor nu_scale
    masters = [p if s.residual is None else fa.master_params(p, s) for p, s in (found, wanted)]
    for name in ODD:
        a, b, start = (np.float64(jax.device_get(x[name])) for x in (*masters, trees[0]))
        largest = np.abs(b) + np.abs(b - start) + steps * HYPER["learning_rate"]  # on the way
        # A step's product and sum are rounded once or twice; a code is 1/256 of a unit, 2**-7.
        bound = steps * largest * (2.0**-22 if dtype == np.float32 else 2.0**-15)
        assert np.max(np.abs(a - b) / bound) <= 1
        if dtype == HALF:
            assert np.mean(a != b) < 0.01


def whole(moments):
    tx = fa.adamw(**HYPER, moments=moments)
    tx = fa.clip_update_rms(fa.cautious(fa.cautious_weight_decay(tx)), 0.71, stacked=1)
    return fa.hyperball(tx, mask={"a": True, "b": False}, stacked=1)


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("Auto", "full"),
        *([("Explicit", "int8")] if EXPLICIT else []),
        pytest.param("Auto", "int8", marks=pytest.mark.slow),
        *([pytest.param("Explicit", "full", marks=pytest.mark.slow)] if EXPLICIT else []),
    ],
)
def test_sums_over_a_divided_leaf_are_those_of_one_device_to_rounding(kind, moments):
    mesh, tx = mesh_of("2x4", kind), whole(fa.Int8(min_size=0) if moments == "int8" else moments)
    shape, spec = (4, 16, 512), P("data", None, "model")
    rng = np.random.default_rng(23)
    params, grads = (
        {name: rng.normal(size=shape).astype(np.float32) for name in ("a", "b")} for _ in range(2)
    )
    lies = NamedSharding(mesh, spec)
    step = jax.jit(functools.partial(one_step, tx))
    alone = step(params, tx.init(params), grads)
    there = jax.device_put(params, lies)
    found = step(there, tx.init(there), jax.device_put(grads, lies))
    assert differing(found[1], alone[1]) == {}
    assert found[0]["a"].sharding.is_equivalent_to(lies, 3)
    for name in params:
        moved = np.abs(alone[0][name] - params[name]).max()
        np.testing.assert_allclose(found[0][name], alone[0][name], rtol=1e-6, atol=1e-5 * moved)
