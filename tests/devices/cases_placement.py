"""Where a state lies: as an eager `init` places it, and as `state_shardings` says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES, format_named
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import EXPLICIT, MODES, differing, lies_as, mesh_of, numbers, one_step, shardings_on

import functional_adam as fa

INT8 = fa.adam(moments=CODES)

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


# Of equal shardings in one program JAX returns one spelling for all, hence "in full" for itself.
GROUPS = {"Auto": [name for name in LEAVES if name != "in full"], "Auto, in full": ["in full"]}
if EXPLICIT:
    GROUPS["Explicit"] = ["in full", "8 blocks of 128 over 1000", "a kernel", "a number"]


@pytest.mark.parametrize("group", GROUPS)
def test_an_eager_init_is_placed_as_an_update_is(group):
    kind = group.partition(",")[0]
    mesh, tx = mesh_of("2x4", kind), fa.adamw(moments=CODES, rounding="compensated")
    leaves = {name: LEAVES[name] for name in GROUPS[group]}
    params = {}
    for name, (shape, spec, _) in leaves.items():
        pad = [None] * (len(shape) - len(spec)) if kind == "Explicit" else []
        params[name] = jax.device_put(jnp.ones(shape), NamedSharding(mesh, P(*spec, *pad)))
    state = tx.init(params)
    for name, (_, _, wanted) in leaves.items():
        found = state.nu_scale[name]
        assert tuple(found.sharding.spec)[: len(wanted)] == tuple(wanted)
        assert found.sharding.is_equivalent_to(NamedSharding(mesh, wanted), found.ndim)
    assert state.residual == dict.fromkeys(leaves)
    assert lies_as(state, fa.state_shardings(tx, params))
    step = jax.jit(functools.partial(one_step, tx))
    after = step(*step(params, state, params), params)
    assert lies_as(after[1], jax.tree.map(lambda x: x.sharding, state))
    assert step._cache_size() == 1


def test_scales_lie_everywhere_where_an_inner_one_of_merged_axes_is_divided():
    place = NamedSharding(mesh_of("2x4"), P(None, "data", "model"))
    params = jax.device_put(jnp.ones((8, 64, 16)), place)  # 8 blocks of 64 x 16
    assert INT8.init(params).nu_scale.sharding.spec == P()
    assert fa.state_shardings(INT8, params).nu_scale.spec == P()


def test_jitting_init_needs_to_be_told_where():
    mesh, tx = mesh_of("8"), MODES["int8 nearest"]
    params = jax.device_put(numbers(0), shardings_on(mesh))
    lost = jax.jit(tx.init)(params)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(lost))
    shardings = fa.state_shardings(tx, params)
    kept = jax.jit(tx.init, out_shardings=shardings)(params)
    assert lies_as(kept, shardings)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(kept))


@pytest.mark.skipif(not EXPLICIT, reason="explicit axes came with jax 0.7.2")
def test_with_explicit_axes_a_jitted_init_knows_where():
    mesh, tx = mesh_of("2x4", "Explicit"), MODES["int8 compensated"]
    params = jax.device_put(numbers(0), shardings_on(mesh))
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        assert lies_as(state, fa.state_shardings(tx, params))
        body = lambda kept, g: (one_step(tx, *kept, g), None)  # noqa: E731
        grads = jax.tree.map(lambda x: x[None], params)
        jax.jit(lambda p, g: jax.lax.scan(body, (p, tx.init(p)), g))(params, grads)


@pytest.mark.slow
def test_where_blocks_do_not_fit_out_shardings_keep_the_state_in_its_place():
    mesh, tx = mesh_of("2x4"), fa.adam(0.03, moments=CODES)
    place = NamedSharding(mesh, P(None, ("data", "model")))
    numbers = np.random.default_rng(3).normal(size=(2, 64, 520)).astype(np.float32)
    params = jax.device_put(numbers[0], place)  # 5 blocks on 8 devices
    shardings = fa.state_shardings(tx, params)
    assert shardings.nu_scale.spec == P()
    step = jax.jit(functools.partial(one_step, tx), out_shardings=(place, shardings))
    state, alone = tx.init(params), (jnp.asarray(numbers[0]), tx.init(numbers[0]))
    step_alone = jax.jit(functools.partial(one_step, tx))
    for _ in range(3):
        params, state = step(params, state, jax.device_put(numbers[1], place))
        alone = step_alone(*alone, numbers[1])
    assert step._cache_size() == 1
    assert lies_as(state, shardings)
    assert differing((params, state), alone) == {}


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
    ((3, 4, 16), P(), P(None, "data"), P()),  # a block is of both last axes, each half of it none
    ((3, 5), P(), P(), P()),
    ((), P(), P(), P()),
    ((0, 8), P(), P(), P()),
]


@pytest.mark.parametrize(("shape", "spec", "full", "int8"), ZERO)
def test_zero_divides_the_first_dimension_that_it_can(shape, spec, full, int8):
    place = NamedSharding(mesh_of("2x4"), spec)
    params = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    for moments, wanted in (("full", full), ("int8", int8)):
        tx = fa.adam(moments=format_named(moments), rounding="compensated")
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
    refused(
        TypeError,
        r"tx must be a gradient transformation, such as adam\(1e-3\); got",
        fa.adam,
        params,
    )
    wrong = r"zero_axis must be None or an axis of the mesh, 'data' or 'model'; got 'batch'"
    refused(ValueError, wrong, INT8, params, zero_axis="batch")
    refused(TypeError, "zero_axis must be None or an axis .*; got 0 ", INT8, params, zero_axis=0)
    wrong = r"params\['a'\] must be on a mesh.*jax.device_put\(params, NamedSharding.*or pass"
    refused(ValueError, wrong, INT8, {"a": jnp.ones(3)})
    refused(ValueError, wrong, INT8, {"a": np.ones(3)})
    refused(ValueError, wrong, INT8, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})
    other = NamedSharding(mesh_of("4x2"), P("model"))
    wrong = r"one mesh; params\['b'\] is on .*'data'.*, but params\['a'\] is on .*'data'"
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
    refused(ValueError, "params has no leaves, so the mesh", INT8, {"a": None})


@pytest.mark.parametrize("shape", [(64, 24), (5, 3, 8)], ids=str)
def test_codes_stay_divided_like_their_parameter_where_blocks_do_not(shape):
    # The divided axis is short and merged with those before it: a block has parts on every device.
    place = NamedSharding(mesh_of("2x4"), P(*[None] * (len(shape) - 1), "model"))
    drawn = np.random.default_rng(7).normal(size=(2, *shape)).astype(np.float32)
    params, grads = (jax.device_put(x, place) for x in drawn)
    tx = fa.adam(0.03, b1=0.8, moments=CODES)
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert lies_as((state.mu, state.nu), (place, place))
