"""Every factory over trees of any kind: dtypes, missing leaves, compilation, buffers, pickles."""

import functools
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_members import (
    EXTRA,
    GRADS,
    PARAMS,
    Row,
    assert_equal,
    assert_rows,
    avals,
    each_rule,
    each_structure,
    error,
    every_member,
    part,
    walk,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


SCALARS = [np.float64, np.float16, jnp.float32, jnp.bfloat16]
DTYPES = [  # of a parameter and its gradient
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
    ("complex64", "complex64"),
]
WIDE_DTYPES = [
    *DTYPES,
    ("float64", "float64"),
    ("float64", "bfloat16"),
    ("float32", "float64"),
    ("bfloat16", "float64"),
    ("complex128", "complex128"),
    ("complex64", "complex128"),
]


@every_member
def test_types_are_those_of_init(member):
    check_types(member, float, DTYPES)


@every_member
def test_types_are_those_of_init_in_64_bit_mode(x64, member):
    check_types(member, float, WIDE_DTYPES)


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda kind: kind.__name__)
@each_rule
def test_types_are_those_of_init_with_scalars_of_any_kind(member, scalar):
    check_types(member, scalar, DTYPES[1::2])


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda kind: kind.__name__)
@each_structure
def test_types_are_those_of_init_with_scalars_of_any_kind_in_64_bit_mode(x64, member, scalar):
    check_types(member, scalar, WIDE_DTYPES[6::2])


NEAR_ONE = ("b1", "b2", "b3")  # of arrays these must have 32 bits


def check_types(member, scalar, dtypes):
    kinds = dict.fromkeys(NEAR_ONE, jnp.float32) if scalar is jnp.bfloat16 else {}
    values = {name: kinds.get(name, scalar)(value) for name, value in member.floats.items()}
    tx = member.tx(**values)
    shapes = itertools.cycle([(2, 3), ()])
    params = [jnp.ones(shape, p) for (p, _), shape in zip(dtypes, shapes, strict=False)]
    grads = [jnp.full(p.shape, 0.7, g) for (_, g), p in zip(dtypes, params, strict=True)]
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, grads, state, params)
    assert avals(after) == avals(state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    with jax.numpy_dtype_promotion("standard"):
        wider = [jnp.promote_types(g.dtype, p.dtype) for g, p in zip(grads, params, strict=True)]
    assert [(u.shape, u.dtype) for u in updates] == [
        (g.shape, dtype) for g, dtype in zip(grads, wider, strict=True)
    ]
    assert not any(u.weak_type for u in updates)
    for theta, mu, nu in zip(params, state.mu, state.nu, strict=True):
        assert mu.dtype == (theta.dtype if theta.dtype.itemsize > 2 else jnp.float32)
        assert nu.dtype == jnp.finfo(mu.dtype).dtype
    for kept in (state.extra or {}).values():
        like = state.mu if kept[-1].dtype == state.mu[-1].dtype else state.nu
        assert avals(kept) == avals(like)


@pytest.mark.parametrize(("mu_dtype", "nu_dtype"), [("bfloat16", "float16"), ("float16", None)])
@each_rule
def test_moment_dtypes_are_kept_and_so_are_those_of_extra_trees(member, mu_dtype, nu_dtype):
    tx = member.tx(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    state = tx.init(PARAMS)
    _, after = jax.eval_shape(tx.update, GRADS[0], state, PARAMS)
    assert avals(after) == avals(state)
    dtypes = lambda tree: {x.dtype for x in jax.tree.leaves(tree)}  # noqa: E731
    assert dtypes(state.mu) == {jnp.dtype(mu_dtype)}
    assert dtypes(state.nu) == {jnp.dtype(nu_dtype or jnp.float32)}
    for name, tree in (state.extra or {}).items():
        assert dtypes(tree) == dtypes({"nu_max": state.nu, "mu_slow": state.mu}[name])


@each_structure
def test_in_bfloat16_updates_are_rounded_and_nothing_else(member):
    half = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.bfloat16))
    single = functools.partial(jax.tree.map, np.float32)
    params, *grads = (half(part(tree)) for tree in (PARAMS, *GRADS[:3]))
    tx = member.tx()
    state, wide_state = tx.init(params), tx.init(part(PARAMS))
    for g in grads:
        updates, state = tx.update(g, state, params)
        exact, wide_state = tx.update(single(g), wide_state, single(params))
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
        assert error(updates, exact, 1e-6) <= 2.0**-8
        assert_rows([Row(None, None, state)], [Row(None, None, wide_state)], 1.0)
        params = fa.apply_updates(params, updates)


@each_rule
def test_a_missing_gradient_skips_its_leaf(member):
    tx = member.tx()
    first, second = walk(tx, GRADS[:2], PARAMS)
    holed = {"b": GRADS[1]["b"], "layers": [None, GRADS[1]["layers"][1]]}
    updates, state = tx.update(holed, first.state, first.params)
    skipped = lambda tree: tree["layers"][0]  # noqa: E731
    others = lambda tree: [tree["b"], tree["layers"][1]]  # noqa: E731
    assert int(state.count) == 2
    assert not np.any(skipped(updates))
    assert_equal(others(updates), others(second.updates))
    trees = ((s.mu, s.nu, *(s.extra or {}).values()) for s in (state, first.state, second.state))
    for after, before, unholed in zip(*trees, strict=True):
        assert_equal(skipped(after), skipped(before))
        assert_equal(others(after), others(unholed))


@each_rule
def test_a_tree_without_any_gradient_needs_no_parameters(member):
    tx = member.tx()
    (first,) = walk(tx, GRADS[:1], PARAMS)
    updates, state = tx.update(jax.tree.map(lambda _: None, PARAMS), first.state)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert_equal(state, first.state)  # nor is it a step


@each_structure
def test_a_parameter_that_is_none_passes_through(member):
    tx = member.tx()
    add = lambda tree: {**tree, "frozen": None}  # noqa: E731
    rows = walk(tx, map(add, GRADS[:3]), add(PARAMS))
    for row, plain in zip(rows, walk(tx, GRADS[:3], PARAMS), strict=True):
        state = row.state
        trees = [row.updates, row.params, state.mu, state.nu, *(state.extra or {}).values()]
        assert all(tree["frozen"] is None for tree in trees)
        assert_equal(row.updates, add(plain.updates))
        assert_equal(jax.tree.leaves(state), jax.tree.leaves(plain.state))


@pytest.mark.parametrize("params", [{}, (), [], {"a": [], "b": ({},)}], ids=str)
@each_structure
def test_trees_may_be_empty(member, params):
    tx = member.tx()
    updates, state = tx.update(params, tx.init(params), params)
    assert updates == params
    assert avals(state) == avals(tx.init(params))
    assert int(state.count) == 1


@each_rule
def test_leaves_may_have_no_elements(member):
    tx = member.tx()
    params = {"none": np.zeros((0, 3), np.float32), "nor": np.zeros(0, np.float32), **PARAMS}
    grads = {"none": np.zeros((0, 3), np.float32), "nor": np.zeros(0, np.float32), **GRADS[0]}
    (row,) = walk(tx, [grads], params)
    (plain,) = walk(tx, GRADS[:1], PARAMS)
    assert (row.updates.pop("none").shape, row.updates.pop("nor").shape) == ((0, 3), (0,))
    assert_equal(row.updates, plain.updates)
    assert avals(row.state) == avals(tx.init(params))


@each_structure
def test_python_floats_are_parameters_and_gradients(member):
    tx = member.tx()
    grads = [float(g["b"]) for g in GRADS[:3]]
    plain = walk(tx, map(np.float32, grads), np.float32(1.25))
    rows = walk(tx, grads, 1.25)
    for row, want in zip(rows, plain, strict=True):
        assert_equal(row.updates, want.updates)
        assert_equal(row.state, want.state)


@each_structure
def test_one_compilation_and_complete_donation(member):
    schedule = {"learning_rate": lambda count: 0.013 / (1 + 0.3 * jnp.float32(count))}
    tx = member.tx(**schedule if "learning_rate" in member.hyper else {})
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, g):
        traces.append(None)
        updates, state = tx.update(g, state, params)
        return fa.apply_updates(params, updates), state

    params, *grads = (jax.tree.map(jnp.array, part(tree)) for tree in (PARAMS, *GRADS[:4]))
    state = tx.init(params)
    for t, g in enumerate(grads):
        before = jax.tree.leaves((params, state))
        with jax.transfer_guard("disallow" if t else "allow"):
            params, state = step(params, state, g)  # warns, and fails, if a buffer is not taken
        assert all(x.is_deleted() for x in before)
    assert len(traces) == step._cache_size() == 1
    assert int(state.count) == 4


@every_member
def test_every_leaf_of_a_fresh_state_is_its_own_buffer(member):
    params = [jnp.zeros((2, 3))] * 3
    leaves = jax.tree.leaves((params[0], member.tx().init(params)))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    assert len(leaves) == 1 + (10 if member.rule in EXTRA else 7)


@each_rule
def test_eval_shape_needs_no_arrays(member):
    shape = 2**16, 2**17  # beyond what an int32 counts
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}
    tx = member.tx()
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert {x.shape for x in jax.tree.leaves(state._replace(count=()))} == {shape}
    assert {x.dtype for x in jax.tree.leaves(state._replace(count=()))} == {jnp.dtype("float32")}
    assert updates["w"].dtype == jnp.bfloat16
    assert avals(after) == avals(state)


@each_rule
def test_the_state_lies_where_its_parameter_lies(member):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    state = member.tx().init({"w": jax.device_put(jnp.ones((4, 3)), split)})
    assert state.count.sharding == whole
    assert {x.sharding for x in jax.tree.leaves(state._replace(count=()))} == {split}


@every_member
def test_transformations_and_states_pickle(member):
    tx = member.tx()
    hyper = {name: jnp.float32(value) for name, value in member.floats.items()}
    for original in (tx, member.tx(**hyper)):
        copy = pickle.loads(pickle.dumps(original))
        rows = walk(original, GRADS[:2], PARAMS)
        assert_equal(walk(copy, GRADS[:2], PARAMS), rows)
        state = pickle.loads(pickle.dumps(rows[-1].state))
        assert avals(state) == avals(rows[-1].state)
        later = walk(copy, GRADS[2:3], rows[-1].params, state)
        assert_equal(later, walk(original, GRADS[2:3], rows[-1].params, rows[-1].state))
