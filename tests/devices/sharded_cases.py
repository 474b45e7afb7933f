"""The tests of `test_sharding.py`, which need 8 devices: it runs them in a process that has them.

By hand: XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest tests/devices/sharded_cases.py
"""

import functools
import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functional_adam as fa

HYPER = dict(learning_rate=0.03, b1=0.85, b2=0.97, eps=1e-6, weight_decay=0.2)
HALF = jnp.bfloat16
MESHES = {
    "8": ((8,), ("data",)),
    "2x4": ((2, 4), ("data", "model")),
    "4x2": ((4, 2), ("data", "model")),
}
# Explicit axes need what came with jax 0.7.2.
EXPLICIT = hasattr(jax, "set_mesh")
FORMATS, ROUNDINGS = ("full", "bfloat16", "int8"), ("nearest", "stochastic", "compensated")
MODES = {
    f"{moments} {rounding}": fa.adamw(**HYPER, moments=moments, rounding=rounding)
    for moments in FORMATS
    for rounding in ROUNDINGS
}
# Every device has 8192 elements or more of each leaf, and of float32 rows more than a block. Of
# what is smaller XLA for the CPU may make another loop, and round an operation once instead of
# twice: see `test_of_small_parts_the_state_has_the_same_bits`.
SHAPES = {
    "half": ((64, 1024), jnp.bfloat16),  # divided by columns: one block of 128 on each of 8
    "matrix": ((64, 1024), jnp.float32),  # by all axes
    "vector": ((65536,), jnp.float32),  # by none, so that ZeRO-1 has something to divide
}


def mesh_of(name, kind="Auto"):
    shape, axes = MESHES[name]
    return jax.make_mesh(shape, axes, axis_types=(getattr(AxisType, kind),) * len(axes))


def places_on(mesh):
    # JAX compiles anew for P("x") after P("x", None). XLA returns the first, explicit axes the
    # second.
    pad = [None] if AxisType.Explicit in mesh.axis_types else []
    specs = {
        "half": P(None, mesh.axis_names[-1]),
        "matrix": P(*mesh.axis_names, *pad[len(mesh.axis_names) - 1 :]),
        "vector": P(*pad),
    }
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


@functools.cache
def numbers(seed):
    """A tree of numbers, over some ten orders of magnitude."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape))).astype(dtype)
        for name, (shape, dtype) in SHAPES.items()
    }


def one_step(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return fa.apply_updates(params, updates), state


def zero_step(tx, places, shardings, params, state, grads):
    """ZeRO-1 with explicit axes, where nothing is moved unasked."""
    theta, grads = jax.sharding.reshard((params, grads), (shardings.mu, shardings.mu))
    updates, state = tx.update(grads, state, theta)
    return fa.apply_updates(params, jax.sharding.reshard(updates, places)), state


def prepared(mode, mesh, zero=None, **options):
    """(params, state, jitted step, their places) on a mesh."""
    tx, places = MODES[mode], places_on(mesh)
    params = jax.device_put(numbers(0), places)
    shardings = fa.state_shardings(tx, params, zero_axis=zero)
    step = functools.partial(one_step, tx)
    if zero is None:  # nothing but the eager init says where the state lies
        return params, tx.init(params), jax.jit(step, **options), (places, shardings)
    if AxisType.Explicit in mesh.axis_types:
        step = functools.partial(zero_step, tx, places, shardings)
    step = jax.jit(step, out_shardings=(places, shardings), **options)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    return params, state, step, (places, shardings)


def run(step, params, state, places=None, steps=10):
    for i in range(1, 1 + steps):
        params, state = step(params, state, jax.device_put(numbers(i), places))
    return params, state


@functools.cache
def step_alone(mode):
    return jax.jit(functools.partial(one_step, MODES[mode]))


@functools.cache
def on_one_device(mode, steps=10):
    params = jax.device_put(numbers(0), jax.devices()[0])
    return run(step_alone(mode), params, MODES[mode].init(params), None, steps)


def differing(found, wanted):
    """How many elements have other bits, by leaf."""
    counts = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, a), b in pairs:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        bits = [np.asarray(x).reshape(-1).view(f"u{x.dtype.itemsize}") for x in (a, b)]
        counts[jax.tree_util.keystr(path)] = int(np.sum(bits[0] != bits[1]))
    return {path: n for path, n in counts.items() if n}


def lies_as(tree, places):
    return jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, tree, places))


SETTINGS = [
    *((name, "Auto", zero) for name in MESHES for zero in (None, "data")),
    *(("2x4", "Explicit", zero) for zero in (None, "data") if EXPLICIT),
]
# Three modes for each setting, in turn, so that it meets every format and every rounding.
CASES = [
    (*setting, f"{moments} {ROUNDINGS[(i + j) % 3]}")
    for i, setting in enumerate(SETTINGS)
    for j, moments in enumerate(FORMATS)
]
# ZeRO-1 on Auto axes: see the next test.
ROUNDED_OTHERWISE = [("Auto", "data", f"{moments} compensated") for moments in FORMATS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)).replace(" ", "-"))
def test_ten_updates_are_those_of_one_device_in_every_bit(case):
    name, kind, zero, mode = case
    params, state, step, (places, shardings) = prepared(mode, mesh_of(name, kind), zero)
    assert lies_as(state, shardings)
    found = run(step, params, state, places)
    assert lies_as(found, (places, shardings))
    assert step._cache_size() == 1  # what init places is placed as updates are
    if case[1:] not in ROUNDED_OTHERWISE:
        assert differing(found, on_one_device(mode)) == {}


@pytest.mark.parametrize("mode", [mode for *_, mode in ROUNDED_OTHERWISE])
def test_zero_with_compensated_rounding_may_differ_by_a_rounding_of_float32(mode):
    # XLA gathers the update within the loop that makes the residual, and multiplies and adds with
    # one rounding there where it takes two on one device. That may make another code of it.
    params, state, step, (places, _) = prepared(mode, mesh_of("2x4"), "data")
    found, wanted = run(step, params, state, places, 1), on_one_device(mode, 1)
    assert set(differing(found, wanted)) <= {"[0]['half']", "[1].residual['half']"}
    a, b = (np.float64(fa.master_params(*x)["half"].astype(np.float32)) for x in (found, wanted))
    before = np.abs(np.float64(params["half"].astype(np.float32))) + 0.3  # beyond any step
    code = 2.0**-15 * np.abs(b)  # what 1/256 of a unit of bfloat16 is at most
    assert np.all(np.abs(a - b) <= code + 2.0**-22 * before)
    assert np.mean(a != b) < 0.01


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


COLLECTIVE = re.compile(
    r"= (\w+)\[.* (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def collectives(step, *args):
    return Counter(COLLECTIVE.findall(step.lower(*args).compile().as_text()))


@pytest.mark.parametrize("mode", ["full nearest", "bfloat16 stochastic", "int8 compensated"])
def test_an_update_needs_no_collective_and_zero_only_gathers_updates(mode):
    mesh = mesh_of("2x4")
    params, state, step, (places, _) = prepared(mode, mesh)
    assert collectives(step, params, state, jax.device_put(numbers(1), places)) == Counter()
    params, state, step, (places, shardings) = prepared(mode, mesh, "data")
    grads = jax.device_put(numbers(1), places)
    found = collectives(step, params, state, grads)
    assert {kind for _, kind in found} == {"all-gather"}
    # `matrix` is divided by all axes already; an update of each other leaf is gathered, no moment.
    assert found.total() == 2
    assert {dtype for dtype, _ in found} <= {"f32", "bf16"}
    assert shardings.mu["matrix"] == places["matrix"]
    assert shardings.mu["half"].spec == P("data", "model")
    assert shardings.mu["vector"].spec == P("data")


def on_device_0(tree):
    return sum(
        shard.data.nbytes
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
        if shard.device.id == 0
    )


# Elements on one device of 2 x 4: a quarter of `half`, an eighth of `matrix`, `vector` in full;
# with ZeRO-1 an eighth, an eighth and a half. Bytes an element, and 2 for each block of 128.
HELD = {
    "full nearest": (8, 8, 0),
    "bfloat16 compensated": (4 + 1, 4, 0),
    "int8 compensated": (2 + 1, 2, 2),
}


@pytest.mark.parametrize("mode", HELD)
@pytest.mark.parametrize("zero", [None, "data"], ids=["plain", "zero"])
def test_a_device_holds_just_the_bytes_of_its_share(mode, zero):
    params, state, _, (_, shardings) = prepared(mode, mesh_of("2x4"), zero)
    half, matrix, vector = (8192, 8192, 32768) if zero else (16384, 8192, 65536)
    short, wide, scale = HELD[mode]
    wanted = short * half + wide * (matrix + vector) + scale * (half + matrix + vector) // 128 + 4
    assert on_device_0(state) == wanted
    report = fa.memory_report(MODES[mode], params, shardings)
    assert report.state_bytes_per_device == wanted
    assert report.leaves[0].per_device == short * half + scale * half // 128
    assert report.other == report.other_per_device == 4
    lines = str(report).splitlines()
    assert lines[0].split()[-2:] == ["per", "device"]
    of_leaf = report.leaves[0].per_device
    assert lines[2].split()[-1] in (f"{of_leaf:,}", f"{of_leaf / 1024:.3g}K")
    assert f"; {wanted:,} on each device" in " ".join(lines)


@pytest.mark.parametrize("zero", [None, "data"], ids=["plain", "zero"])
def test_a_donated_state_is_used_up_whole(zero):
    mode = "int8 compensated"
    params, state, step, (places, _) = prepared(mode, mesh_of("4x2"), zero, donate_argnums=(0, 1))
    kept, grads = jax.tree.leaves((params, state)), jax.device_put(numbers(1), places)
    compiled = step.lower(params, state, grads).compile()
    held = on_device_0((params, state))
    assert compiled.memory_analysis().alias_size_in_bytes == held
    step(params, state, grads)
    assert all(x.is_deleted() for x in kept if x.size)


# ---- init ----

LEAVES = {  # shape, where it lies, where its scales are to lie
    "rows": ((64, 1024), P("model"), P("model")),
    "columns": ((64, 1024), P(None, "model"), P(None, "model")),
    "in full": ((64, 1024), P("model", None), P("model", None)),
    "everywhere": ((64, 1024), P(), P()),
    "8 blocks of 128 over 1000": ((64, 1000), P("data", "model"), P("data", "model")),
    "a kernel": ((8, 64, 3, 3), P("model"), P("model")),
    "a column": ((4096, 1), P("model"), P("model")),
    "two axes in one": ((4096, 3), P(("data", "model")), P(("data", "model"))),
    "three axes": ((64, 64, 16), P("data", "model"), P("data", "model")),
    "a block in pieces": ((64,), P("model"), P()),
    "a number": ((), P(), P()),
}


ON_EXPLICIT = ["in full", "8 blocks of 128 over 1000", "a kernel", "a number"] if EXPLICIT else []


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "Auto") for name in LEAVES), *((name, "Explicit") for name in ON_EXPLICIT)],
)
def test_an_eager_init_is_placed_as_an_update_is(name, kind):
    shape, spec, wanted = LEAVES[name]
    mesh, tx = mesh_of("2x4", kind), fa.adamw(moments="int8", rounding="compensated")
    if kind == "Explicit":
        spec = P(*spec, *[None] * (len(shape) - len(spec)))
    params = jax.device_put({"w": jnp.ones(shape)}, NamedSharding(mesh, spec))
    state = tx.init(params)
    rank = state.nu_scale["w"].ndim
    assert tuple(state.nu_scale["w"].sharding.spec)[: len(wanted)] == tuple(wanted)
    assert state.nu_scale["w"].sharding.is_equivalent_to(NamedSharding(mesh, wanted), rank)
    assert state.residual == {"w": None}
    assert lies_as(state, fa.state_shardings(tx, params))
    step = jax.jit(functools.partial(one_step, tx))
    after = step(*step(params, state, params), params)
    assert lies_as(after[1], jax.tree.map(lambda x: x.sharding, state))
    assert step._cache_size() == 1


def test_jitting_init_needs_to_be_told_where():
    mesh, tx = mesh_of("8"), MODES["int8 nearest"]
    params = jax.device_put(numbers(0), places_on(mesh))
    lost = jax.jit(tx.init)(params)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(lost))
    shardings = fa.state_shardings(tx, params)
    kept = jax.jit(tx.init, out_shardings=shardings)(params)
    assert lies_as(kept, shardings)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(kept))


@pytest.mark.skipif(not EXPLICIT, reason="explicit axes came with jax 0.7.2")
def test_with_explicit_axes_a_jitted_init_knows_where():
    mesh, tx = mesh_of("2x4", "Explicit"), MODES["int8 compensated"]
    params = jax.device_put(numbers(0), places_on(mesh))
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        assert lies_as(state, fa.state_shardings(tx, params))
        body = lambda kept, g: (one_step(tx, *kept, g), None)  # noqa: E731
        grads = jax.tree.map(lambda x: x[None], params)
        jax.jit(lambda p, g: jax.lax.scan(body, (p, tx.init(p)), g))(params, grads)


def test_where_blocks_do_not_fit_out_shardings_keep_the_state_in_its_place():
    mesh, tx = mesh_of("2x4"), fa.adam(0.03, moments="int8")
    place = NamedSharding(mesh, P(None, ("data", "model")))
    numbers = np.random.default_rng(3).normal(size=(2, 64, 520)).astype(np.float32)
    params = jax.device_put(numbers[0], place)  # 5 blocks on 8 devices
    shardings = fa.state_shardings(tx, params)
    assert shardings.nu_scale.spec == P()
    step = jax.jit(functools.partial(one_step, tx), out_shardings=(place, shardings))
    state, alone = tx.init(params), (jnp.asarray(numbers[0]), tx.init(numbers[0]))
    for _ in range(3):
        params, state = step(params, state, jax.device_put(numbers[1], place))
        alone = jax.jit(functools.partial(one_step, tx))(*alone, numbers[1])
    assert step._cache_size() == 1
    assert lies_as(state, shardings)
    assert differing((params, state), alone) == {}


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


# ---- Inside Optax's ----

SMALL = {"a": np.ones((16, 256), np.float32), "b": np.ones(8, np.float32)}
AB = {"a": P("data", None), "b": P(None)}
INT8 = fa.adam(moments="int8")
WITHIN = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), INT8),
    "named_chain": optax.named_chain(("clip", optax.clip(1.0)), ("adam", INT8)),
    "masked": optax.masked(INT8, {"a": True, "b": False}),
    "partition": optax.partition({"x": INT8, "y": fa.amsgrad()}, {"a": "x", "b": "y"}),
    "inject_hyperparams": optax.inject_hyperparams(fa.adam, static_args=("moments",))(
        moments="int8"
    ),
    "MultiSteps": optax.MultiSteps(INT8, 2).gradient_transformation(),
    "flatten": optax.flatten(fa.adam()),  # its one leaf is no parameter: it lies everywhere
    "ademamix": fa.ademamix(moments="bfloat16"),
    "not ours": optax.adam(1e-3),
    "trace": optax.chain(optax.trace(0.9), INT8),
    "ema": optax.chain(INT8, optax.ema(0.9)),
    "schedule_free": optax.contrib.schedule_free(fa.adam(b1=0.0, moments="int8"), 0.1),
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


@pytest.mark.parametrize("name", ["MultiSteps", "trace", "ema", "schedule_free"])
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
    alone = SMALL, tx.init(SMALL)
    for _ in range(3):
        params, state = step(params, state, jax.device_put(grads, places))
        alone = one_step(tx, *alone, grads)
    assert lies_as(state, shardings)
    assert step._cache_size() == 1
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), params, alone[0])


# Blocks that several devices share, or parts from which XLA makes other loops. Rows of 12 are
# merged with the divided axis before them; four devices share the two blocks of a row of 200, and
# the eight of one of 1000.
ODD = {
    "middle": ((80, 130, 12), P(None, "model")),
    "kernel": ((3, 3, 128, 200), P(None, None, None, "data")),
}
ODD["rows"] = ((512, 1000), P(None, "data"))


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("full nearest", np.float32),
        ("int8 nearest", np.float32),
        ("int8 compensated", HALF),
        ("full compensated", HALF),
    ],
)
def test_any_parts_keep_the_moments_bits_and_weights_to_a_rounding(mode, dtype):
    mesh, tx, steps = mesh_of("4x2"), MODES[mode], 5
    places = {name: NamedSharding(mesh, spec) for name, (_, spec) in ODD.items()}
    rng = np.random.default_rng(19)
    trees = [
        {
            n: (rng.normal(size=s) * np.exp(3 * rng.normal(size=s))).astype(dtype)
            for n, (s, _) in ODD.items()
        }
        for _ in range(1 + steps)
    ]
    params = jax.device_put(trees[0], places)
    step = jax.jit(
        functools.partial(one_step, tx), out_shardings=(places, fa.state_shardings(tx, params))
    )
    found, wanted = (params, tx.init(params)), (trees[0], tx.init(trees[0]))
    for grads in trees[1:]:
        found = step(*found, jax.device_put(grads, places))
        wanted = step_alone(mode)(*wanted, grads)
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


# ---- In Flax's boxes ----

# No number of blocks here is a multiple of 4: scales cannot be divided as the names say.
BOXED = {"w": (64, 256), "head": (64, 8), "kernel": (64, 3, 8)}


def start_of(name):
    rng = np.random.default_rng(len(name))
    return jnp.asarray(rng.normal(size=BOXED[name]), jnp.float32 if name == "head" else HALF)


def spec_of(name):
    return (None,) * (len(BOXED[name]) - 1) + ("model",)


def boxed_loss(weights):
    return sum((x.astype(jnp.float32) ** 2).mean() for x in weights)


def without_boxes(tx, steps=3):
    """The same run on one device, and the loss before its last step."""
    params = {name: start_of(name) for name in BOXED}
    state = tx.init(params)
    for _ in range(steps):
        loss, grads = jax.value_and_grad(lambda p: boxed_loss(p.values()))(params)
        params, state = one_step(tx, params, state, grads)
    return params, loss


class Boxed(nnx.Module):
    def __init__(self):
        for name in BOXED:
            setattr(self, name, nnx.Param(start_of(name), out_sharding=spec_of(name)))

    def __call__(self):
        return boxed_loss(getattr(self, name)[...] for name in BOXED)


# All formats and roundings; each of the other choices meets every format.
KINDS = [(mode, "Auto") for mode in MODES] + [
    (mode, "Explicit")
    for mode in ("full compensated", "bfloat16 stochastic", "int8 compensated", "int8 nearest")
    if EXPLICIT
]
WAYS = ("get_sharding", "get_partition_spec", "state_shardings")
LINEN = [(mode, WAYS[(i + i // 3) % 3]) for i, mode in enumerate(MODES)]


@pytest.mark.parametrize(("mode", "kind"), KINDS)
def test_nnx_recipe(mode, kind):
    tx = MODES[mode]
    wanted, _ = without_boxes(tx)
    with jax.set_mesh(mesh_of("2x4", kind)):
        model = Boxed()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: model())(model))

        step(model, optimizer)
        jitted = nnx.jit(step)
        for _ in range(2):
            jitted(model, optimizer)
        state = nnx.as_pure(optimizer.opt_state)
        assert state.count == 3
        for name, want in wanted.items():
            leaf = getattr(model, name)[...]
            assert tuple(leaf.sharding.spec) == tuple(state.mu[name].sharding.spec) == spec_of(name)
            np.testing.assert_allclose(
                np.float32(leaf), np.float32(want), atol=2e-6 if name == "head" else 0.04
            )


class LinenBoxed(nn.Module):
    @nn.compact
    def __call__(self):
        return boxed_loss(
            self.param(name, nn.with_partitioning(lambda _, n=name: start_of(n), spec_of(name)))
            for name in BOXED
        )


@pytest.mark.parametrize(("mode", "shardings_by"), LINEN)
def test_linen_recipe(mode, shardings_by):
    tx, mesh, model = MODES[mode], mesh_of("2x4"), LinenBoxed()
    wanted, loss = without_boxes(tx)

    def create():
        params = model.init(jax.random.key(0))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    shapes = jax.eval_shape(create)
    shardings = nn.get_sharding(shapes, mesh)
    if shardings_by == "get_partition_spec":
        specs = nn.get_partition_spec(shapes)
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    if shardings_by == "state_shardings":
        places = fa.state_shardings(tx, shapes.params, shardings.params)
        shardings = shardings.replace(opt_state=places)
    state = jax.jit(create, out_shardings=shardings)()

    @functools.partial(jax.jit, out_shardings=(shardings, None))
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: model.apply({"params": p}))(state.params)
        return state.apply_gradients(grads=grads), loss

    for _ in range(3):
        state, found = step(state)
    assert step._cache_size() == 1
    # A leaf's path, and so its random bits, has the box's `.value` in it: a rounding or two apart.
    assert float(found) == pytest.approx(float(loss), rel=1e-3)
    for name, want in wanted.items():
        leaf, mu = state.params[name].value, state.opt_state.mu[name].value
        assert tuple(leaf.sharding.spec) == tuple(mu.sharding.spec) == spec_of(name)
        moments, rounding = mode.split()
        far = {"full": 2e-6}.get(moments, 2e-3) if name == "head" else 0.04
        far = 0.1 if rounding == "stochastic" and name != "head" else far  # units of 1/64 at most
        np.testing.assert_allclose(np.float32(leaf), np.float32(want), atol=far)


@pytest.mark.skipif(not EXPLICIT, reason="explicit axes came with jax 0.7.2")
def test_moments_are_converted_on_explicit_axes():
    mesh, tx = mesh_of("2x4", "Explicit"), MODES["full nearest"]
    params = {name: start_of(name) for name in BOXED}
    _, state = tx.update(params, tx.init(params), params)
    wanted = fa.convert_moments(state, params, moments="int8")
    places = {name: NamedSharding(mesh, P(*spec_of(name))) for name in BOXED}
    there = jax.device_put(params, places)
    on_mesh = state._replace(
        mu=jax.device_put(state.mu, places), nu=jax.device_put(state.nu, places)
    )
    found = fa.convert_moments(on_mesh, there, moments="int8")
    assert differing(found, wanted) == {}
    assert lies_as(found.mu, places)
    back = fa.convert_moments(found, there, moments="full")
    assert lies_as(back.nu, places)
    updates = jax.tree.map(jnp.ones_like, params)
    seen = fa.diagnostics(jax.device_put(updates, places), found, there)
    for name, want in fa.diagnostics(updates, wanted, params).items():
        np.testing.assert_allclose(seen[name], want, rtol=1e-5)


# ---- Arguments ----


def test_shardings_are_taken_from_arrays_shapes_a_tree_or_one_for_all():
    place = NamedSharding(mesh_of("2x4"), P("model", None))
    array = {"w": jax.device_put(jnp.ones((8, 256)), place)}
    shape = {"w": jax.ShapeDtypeStruct((8, 256), jnp.float32, sharding=place)}
    bare = {"w": jax.ShapeDtypeStruct((8, 256), jnp.float32)}
    wanted = fa.state_shardings(INT8, array)
    assert wanted.mu == wanted.nu == {"w": place}
    assert wanted.nu_scale["w"].spec == P("model", None)
    for params, given in ((shape, None), (bare, {"w": place}), (bare, place)):
        assert fa.state_shardings(INT8, params, given) == wanted
    empty = fa.state_shardings(INT8, {"w": None}, place)
    assert (empty.count.spec, empty.mu) == (P(), {"w": None})


ZERO = [  # shape, where it lies, where a moment is to lie: in full, and in int8
    ((64, 1024), P(), P("data"), P("data")),
    ((64, 1024), P("model"), P(("model", "data")), P(("model", "data"))),
    ((64, 1024), P(None, "model"), P("data", "model"), P("data", "model")),
    ((64, 1024), P("data"), P("data"), P("data")),
    ((4, 512), P("model"), P("model", "data"), P("model", "data")),  # 4 are divided already
    ((3, 256), P(), P(None, "data"), P(None, "data")),
    ((3, 250), P(), P(None, "data"), P()),  # would cut a block
    ((3, 5), P(), P(), P()),
    ((), P(), P(), P()),
    ((0, 8), P(), P(), P()),
]


@pytest.mark.parametrize(("shape", "spec", "full", "int8"), ZERO)
def test_zero_divides_the_first_dimension_that_it_can(shape, spec, full, int8):
    place = NamedSharding(mesh_of("2x4"), spec)
    params = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    for moments, wanted in (("full", full), ("int8", int8)):
        tx = fa.adam(moments=moments, rounding="compensated")
        found = fa.state_shardings(tx, params, zero_axis="data")
        assert found.mu.spec == found.nu.spec == found.residual.spec == wanted
        if found.nu_scale is not None and wanted != spec:
            assert found.nu_scale.spec == wanted  # whole blocks


def refused(error, match, *args, **options):
    with pytest.raises(error, match=match):
        fa.state_shardings(*args, **options)


def test_mistakes_say_what_would_be_right():
    place = NamedSharding(mesh_of("2x4"), P("model"))
    params = jax.device_put({"a": jnp.ones((8, 256)), "b": jnp.ones(8)}, place)
    refused(TypeError, "tx must be a gradient transformation with an init; got", fa.adam, params)
    wrong = r"zero_axis must be None or an axis of the mesh, 'data' or 'model'; got 'batch'"
    refused(ValueError, wrong, INT8, params, zero_axis="batch")
    refused(TypeError, "zero_axis must be None or an axis .*; got 0 ", INT8, params, zero_axis=0)
    wrong = r"params\['a'\] must lie on a mesh.*jax.device_put\(params, NamedSharding.*or pass"
    refused(ValueError, wrong, INT8, {"a": jnp.ones(3)})
    refused(ValueError, wrong, INT8, {"a": np.ones(3)})
    refused(ValueError, wrong, INT8, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})
    other = NamedSharding(mesh_of("4x2"), P("model"))
    wrong = r"one mesh; params\['b'\] is on .*'data'.*, but params\['a'\] on .*'data'"
    refused(ValueError, wrong, INT8, params, {"a": place, "b": other})
    wrong = r"params_shardings must have the structure of params: .*\['b'\] is missing"
    refused(ValueError, wrong, INT8, params, {"a": place})
    wrong = r"params_shardings\['b'\] must be a NamedSharding; got .*Write"
    refused(TypeError, wrong, INT8, params, {"a": place, "b": P("model")})
    for whole in (P("model"), place.mesh, jax.sharding.SingleDeviceSharding(jax.devices()[0])):
        refused(TypeError, "params_shardings must be a NamedSharding; got", INT8, params, whole)
    wrong = r"params_shardings\['b'\] is .* on a mesh of .*which does not divide .*\(6,\) evenly"
    refused(ValueError, wrong, INT8, {"a": np.ones(8), "b": np.ones(6)}, place)
    refused(ValueError, r"\['b'\] is .*shape \(\) evenly", INT8, {"b": np.ones(())}, place)
    free = NamedSharding(mesh_of("2x4"), P(P.UNCONSTRAINED))
    refused(ValueError, r"\['b'\] is .*Use None for a dimension", INT8, {"b": np.ones(8)}, free)
    refused(ValueError, "params has no leaf that says on which mesh", INT8, {"a": None})


# ---- Bad numbers ----


@pytest.mark.parametrize("zero", [None, "data"], ids=["plain", "zero"])
@pytest.mark.parametrize("mode", ["full stochastic", "bfloat16 compensated", "int8 nearest"])
def test_a_bad_step_leaves_no_trace_on_any_device(mode, zero):
    # One element is bad, so that one device alone holds it: all must skip the step.
    tx, places = optax.apply_if_finite(MODES[mode], 3), places_on(mesh_of("2x4"))
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
