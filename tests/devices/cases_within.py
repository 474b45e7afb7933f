"""A state inside of Optax's, under `shard_map`, in training, and over steps with bad numbers."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import (
    HYPER,
    MODES,
    differing,
    lies_as,
    mesh_of,
    numbers,
    on_one_device,
    one_step,
    prepared,
    run,
    shardings_on,
)

import functional_adam as fa

# ---- shard_map and training ----


def mapped(mode, mesh):
    """The jitted step under shard_map, its parameters and state."""
    params, state, _, places = prepared(mode, mesh)
    theta, rest = jax.tree.map(lambda sharding: sharding.spec, places)
    step = functools.partial(one_step, MODES[mode])
    options = dict(mesh=mesh, in_specs=(theta, rest, theta), out_specs=(theta, rest))
    return params, state, jax.jit(jax.shard_map(step, **options, check_vma=False)), places[0]


def test_under_shard_map_full_moments_are_those_of_one_device():
    params, state, step, places = mapped("full nearest", mesh_of("4x2"))
    assert differing(run(step, params, state, places), on_one_device("full nearest")) == {}


def test_under_shard_map_devices_round_alike_and_right_on_average():
    mesh, tx = mesh_of("8"), fa.adam(0.03, b1=0.85, b2=0.97, moments="bfloat16")
    spec = P("data")
    place = NamedSharding(mesh, spec)
    theta = jax.device_put(jnp.zeros(32768), place)
    grads = jax.device_put(jnp.full(32768, 0.7), place)
    specs = jax.tree.map(lambda sharding: sharding.spec, fa.state_shardings(tx, theta))
    step = functools.partial(one_step, tx)
    options = dict(mesh=mesh, in_specs=(spec, specs, spec), out_specs=(spec, specs))
    local = jax.jit(jax.shard_map(step, **options, check_vma=False))(theta, tx.init(theta), grads)
    whole = jax.jit(step)(theta, tx.init(theta), grads)
    mine, all_of_it = (
        np.float64(x[1].mu.astype(np.float32)).reshape(8, -1) for x in (local, whole)
    )
    assert np.all(mine == mine[0])  # a device knows its own indices alone
    assert not np.all(all_of_it == all_of_it[0])
    # (1 - b1) g = 0.105 lies in [2**-4, 2**-3), where bfloat16's numbers are 2**-11 apart: of n
    # roundings up or down the mean has a standard deviation of at most 2**-12 / sqrt(n).
    for moment, n in ((mine[0], 4096), (all_of_it, 32768)):
        assert set(np.unique(moment) * 2**11) == {215.0, 216.0}
        assert abs(moment.mean() - 0.15 * 0.7) < 5 * 2**-12 / n**0.5


def test_training_agrees_with_one_device():
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=(64, n)).astype(np.float32) / 3 for n in (32, 8))
    start = {  # of losses below 1, where 1e-6 is some 16 units in the last place
        "v": 0.03 * rng.normal(size=(256, 8)).astype(np.float32),
        "w": 0.3 * rng.normal(size=(32, 256)).astype(np.float32),
    }
    tx = fa.adamw(0.01, b1=0.85, b2=0.97, eps=1e-3, weight_decay=0.2)

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)

    def train(params, state, x, y, axis=None):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        if axis is not None:
            grads = jax.tree.map(lambda g: jax.lax.psum(g, axis) / 8, grads)
            value = jax.lax.pmean(value, axis)
        return *one_step(tx, params, state, grads), value

    def fitted(step, params, x, y):
        state, losses = tx.init(params), []
        for _ in range(5):
            params, state, value = step(params, state, x, y)
            losses.append(value)
        return params, losses

    wanted = fitted(jax.jit(train), jax.tree.map(jnp.asarray, start), x, y)
    assert wanted[1][-1] < 0.8 * wanted[1][0]  # it trains
    mesh = mesh_of("2x4")
    specs = {"v": P("model"), "w": P(None, "model")}
    places = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    batch = jax.device_put((x, y), NamedSharding(mesh, P("data")))
    found = fitted(jax.jit(train), jax.device_put(start, places), *batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), found, wanted)
    mesh = mesh_of("8")
    options = dict(mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P())
    step = functools.partial(train, axis="data")
    params, *batch = jax.device_put(
        (start, x, y), (NamedSharding(mesh, P()), *[NamedSharding(mesh, P("data"))] * 2)
    )
    found = fitted(jax.jit(jax.shard_map(step, **options, check_vma=False)), params, *batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), found, wanted)


def test_under_shard_map_leaves_keep_the_format_that_they_have():
    """Codes whose parts are below `min_size`, and a float32 leaf that is."""
    mesh, tx = mesh_of("8"), fa.adamw(**HYPER, moments="int8")
    specs = {"large": P("data", None), "small": P(None, "data"), "bias": P()}
    shapes = {"large": (64, 256), "small": (2, 1024), "bias": (7,)}
    rng = np.random.default_rng(6)
    theta, *grads = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    places = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put(theta, places)
    state = tx.init(params)
    shardings = fa.state_shardings(tx, params)
    assert lies_as(state, shardings)
    assert [x is None for x in state.nu_scale.values()] == [True, False, True]
    rest = jax.tree.map(lambda sharding: sharding.spec, shardings)
    options = dict(mesh=mesh, in_specs=(specs, rest, specs), out_specs=(specs, rest))
    step = jax.jit(jax.shard_map(functools.partial(one_step, tx), **options, check_vma=False))
    of_codes = jax.jit(functools.partial(one_step, fa.adamw(**HYPER, moments=CODES)))
    of_full = jax.jit(functools.partial(one_step, fa.adamw(**HYPER)))
    full = theta, fa.init(theta)
    rows = slice(8, 16)  # of the second device, whose numbers are those of a leaf of its own
    part = {"large": theta["large"][rows]}
    codes = part, fa.init(part, moments=CODES)
    for g in grads:
        params, state = step(params, state, jax.device_put(g, places))
        codes, full = of_codes(*codes, {"large": g["large"][rows]}), of_full(*full, g)
    np.testing.assert_array_equal(state.mu["large"][rows], codes[1].mu["large"])
    np.testing.assert_array_equal(state.nu["large"][rows], codes[1].nu["large"])
    for name in ("small", "bias"):
        np.testing.assert_array_equal(state.nu[name], full[1].nu[name])
        np.testing.assert_allclose(params[name], full[0][name], rtol=1e-6)


# ---- Inside Optax's ----

SMALL = {"a": np.ones((16, 256), np.float32), "b": np.ones(8, np.float32)}
AB = {"a": P("data", None), "b": P(None)}
INT8 = fa.adam(moments=CODES)
WITHIN = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), INT8),
    "named_chain": optax.named_chain(("clip", optax.clip(1.0)), ("adam", INT8)),
    "masked": optax.masked(INT8, {"a": True, "b": False}),
    "partition": optax.partition({"x": INT8, "y": fa.amsgrad()}, {"a": "x", "b": "y"}),
    "inject_hyperparams": optax.inject_hyperparams(fa.adam, static_args=("moments",))(
        moments=CODES
    ),
    "MultiSteps": optax.MultiSteps(INT8, 2).gradient_transformation(),
    "flatten": optax.flatten(fa.adam()),  # its one leaf is no parameter: it lies everywhere
    "ademamix": fa.ademamix(moments="bfloat16"),
    "not ours": optax.adam(1e-3),
    "trace": optax.chain(optax.trace(0.9), INT8),
    "ema": optax.chain(INT8, optax.ema(0.9)),
    # Of "a" it keeps a row and a column, which have its path and not its shape.
    "factored": optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=8), INT8),
    "schedule_free": optax.contrib.schedule_free(fa.adam(b1=0.0, moments=CODES), 0.1),
}
# Of "a": mu, nu and scales; a third moment of ademamix; what else has its path and its shape.
DIVIDED = dict.fromkeys(WITHIN, 3) | {"flatten": 0, "not ours": 2}
DIVIDED |= dict.fromkeys(("MultiSteps", "trace", "ema", "schedule_free"), 4)


def ours(state):
    is_adam_state = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    return [x for x in jax.tree.leaves(state, is_leaf=is_adam_state) if is_adam_state(x)]


@pytest.mark.parametrize("name", WITHIN)
def test_states_inside_others_are_placed_like_their_parameters(name):
    mesh, tx = mesh_of("8"), WITHIN[name]
    places = {k: NamedSharding(mesh, spec) for k, spec in AB.items()}
    shardings = fa.state_shardings(tx, SMALL, places)
    shapes = jax.eval_shape(tx.init, SMALL)
    assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    state = jax.jit(tx.init, out_shardings=shardings)(SMALL)
    assert lies_as(state, shardings)
    divided = sum("data" in s.spec for s in jax.tree.leaves(shardings))
    assert divided == DIVIDED[name]
    for one in ours(shardings):
        assert one.count.spec == P()
        if hasattr(one.mu, "get") and isinstance(one.mu.get("a"), NamedSharding):
            assert one.mu["a"] == one.nu["a"] == places["a"]
    if name == "ademamix":
        assert shardings.extra["mu_slow"] == places


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("trace", "ema")]


@pytest.mark.parametrize("name", ["MultiSteps", "schedule_free", *SLOW])
def test_zero_divides_what_others_keep_of_a_parameter(name):
    mesh, tx = mesh_of("2x4"), WITHIN[name]
    specs = {"a": P("model"), "b": P()}
    places = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    shardings = fa.state_shardings(tx, SMALL, places, zero_axis="data")
    found = Counter(s.spec[0] for s in jax.tree.leaves(shardings) if len(s.spec))
    assert found == {("model", "data"): DIVIDED[name]}  # all of "a"; "b" is one block, left whole
    params = jax.device_put(SMALL, places)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    step = jax.jit(functools.partial(one_step, tx), out_shardings=(places, shardings))
    grads = {"a": np.linspace(-2, 3, 4096).reshape(16, 256), "b": np.arange(8) - 3.5}
    grads = jax.tree.map(np.float32, grads)
    alone, step_alone = (SMALL, tx.init(SMALL)), jax.jit(functools.partial(one_step, tx))
    for _ in range(3):
        params, state = step(params, state, jax.device_put(grads, places))
        alone = step_alone(*alone, grads)
    assert lies_as(state, shardings)
    assert step._cache_size() == 1
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), params, alone[0])


# ---- Bad numbers ----


BAD = [("bfloat16 compensated", None), ("full stochastic", "data")]
MORE_BAD = [
    ("bfloat16 compensated", "data"),
    ("full stochastic", None),
    ("int8 nearest", None),
    ("int8 nearest", "data"),
]
BAD += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_BAD]


@pytest.mark.parametrize(("mode", "zero"), BAD)
def test_a_bad_step_leaves_no_trace_on_any_device(mode, zero):
    # One element is bad, so that one device alone holds it: all must skip the step.
    tx, places = optax.apply_if_finite(MODES[mode], 3), shardings_on(mesh_of("2x4"))
    start = jax.device_put(numbers(0), places)
    shardings = fa.state_shardings(tx, start, zero_axis=zero)
    step = jax.jit(functools.partial(one_step, tx), out_shardings=(places, shardings))
    params, state = start, jax.jit(tx.init, out_shardings=shardings)(start)
    theta, clean = params, state  # the run without bad steps
    plan = {0: ("matrix", np.nan), 3: ("vector", np.inf), 4: ("half", -np.inf), 6: ("half", np.nan)}
    for i in range(7):
        # In float32, as updates of rounded parameters are.
        grads = {name: g.astype(np.float32) for name, g in numbers(1 + i).items()}
        if i in plan:
            name, value = plan[i]
            grads[name].flat[-777] = value
        before = params, state.inner_state
        params, state = step(params, state, jax.device_put(grads, places))
        assert lies_as((params, state), (places, shardings))
        if i in plan:
            assert differing((params, state.inner_state), before) == {}
        else:
            assert state.inner_state.count == before[1].count + 1
            theta, clean = step(theta, clean, jax.device_put(grads, places))
    assert (state.total_notfinite, clean.total_notfinite) == (len(plan), 0)
    assert differing((params, state.inner_state), (theta, clean.inner_state)) == {}
    assert step._cache_size() == 1
