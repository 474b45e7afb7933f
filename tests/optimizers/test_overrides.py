"""Hyperparameters of some leaves: each leaf steps by its own, in every member and every format.

The truth is the reference with the arguments that a leaf should have. Where bits count, a leaf must
have those of a run in which all leaves have its arguments.
"""

import inspect
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_members import (
    ALPHA,
    DECAY,
    GRADS,
    PARAMS,
    ROOTED,
    START,
    assert_equal,
    assert_rows,
    at_row,
    each_rule,
    expected,
    walk,
)

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

# Paths are b, layers/0 and layers/1/w.
OTHER = {
    "learning_rate": 0.029,
    "b1": 0.71,
    "b2": 0.957,
    "b3": 0.981,
    "eps": 0.05,
    "eps_root": 0.007,
    "a": 0.77,
    "alpha": 2.9,
    "b": 1.41,
    "clip_value_fn": 0.55,
    "initial_accumulator_value": 0.13,
    "l2": 0.11,
    "momentum_decay": 0.21,
    "threshold": 4.9,
    "weight_decay": 0.19,
}
HYPER = ALPHA | ROOTED | DECAY
W = {"learning_rate": 0.031, "b1": 0.62, "weight_decay": 0.0}
MATRIX = {"eps": 0.11, "b2": 0.91}


def split(tree):
    """The leaf layers/1/w, and the others."""
    return tree["layers"][1]["w"], [tree["b"], tree["layers"][0]]


def pick(tree, *others):
    """Each leaf from a tree of its own."""
    b, first, second = (jax.tree.leaves(x) for x in (tree, *others))
    return jax.tree.structure(tree).unflatten([b[0], first[1], second[2]])


@each_rule
def test_each_leaf_follows_the_reference_with_its_own_arguments(member):
    other = {name: OTHER.get(name, 0.9 * x) for name, x in member.floats.items()}
    rows = walk(member.tx(overrides=[(r"1/w$", other)]), GRADS[:3], PARAMS)
    grads = [split(g) for g in GRADS[:3]]
    for number, hyper in enumerate((other, {})):
        truth = expected(member, [g[number] for g in grads], split(PARAMS)[number], **hyper)
        for t, row in enumerate(rows):
            for field in ("updates", "params"):
                found = split(getattr(row, field))[number]
                wanted = at_row(getattr(truth, field), t)
                for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
                    np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7)


def test_the_first_rule_that_is_found_wins():
    rules = [(r"^layers/1/", W), (r"layers", MATRIX), (r"^b$", {})]
    rows = walk(fa.adamw(**HYPER, overrides=rules), GRADS[:3], PARAMS)
    runs = [walk(fa.adamw(**HYPER | hyper), GRADS[:3], PARAMS) for hyper in ({}, MATRIX, W)]
    for row, *each in zip(rows, *runs, strict=True):
        assert_equal(row.updates, pick(*(x.updates for x in each)))
        assert_equal(row.state.mu, pick(*(x.state.mu for x in each)))
        assert_equal(row.state.nu, pick(*(x.state.nu for x in each)))
        assert int(row.state.count) == int(each[0].state.count)


def test_a_function_is_told_path_shape_and_dtype():
    told = {}

    def by_leaf(path, leaf):
        told[path] = (leaf.shape, str(leaf.dtype), isinstance(leaf, jax.ShapeDtypeStruct))
        return {"layers/1/w": W, "layers/0": MATRIX}.get(path, {})

    rules = [(r"w", W), (r"layers", MATRIX)]
    params = {**PARAMS, "b": PARAMS["b"].astype(jnp.bfloat16)}
    runs = [walk(fa.adamw(**HYPER, overrides=x), GRADS[:2], params) for x in (by_leaf, rules)]
    assert_rows(*runs, ALPHA["learning_rate"], 0.0)
    assert told == {
        "b": ((), "bfloat16", True),
        "layers/0": ((2, 3), "float32", True),
        "layers/1/w": ((2, 3), "float32", True),
    }


def test_without_parameters_a_function_is_told_of_the_gradients():
    by_shape = lambda path, leaf: {"learning_rate": 0.5 / leaf.shape[0]} if leaf.ndim else {}  # noqa: E731
    tx = fa.adam(0.1, overrides=by_shape)
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS))
    wanted, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    assert_equal(updates, wanted)
    sizes = [float(np.abs(u).max()) for u in jax.tree.leaves(updates)]
    np.testing.assert_allclose(sizes, [0.1, 0.25, 0.25], rtol=1e-5)


# Schedules, traced values, scalars that are shared ---------------------------------------------


def test_schedules_and_traced_values():
    other = lambda count: 0.04 / (1.0 + jnp.asarray(count, float))  # noqa: E731
    decay = lambda count: 0.3 * jnp.asarray(count, float)  # noqa: E731
    rules = [(r"0$", dict(learning_rate=other)), (r"w", dict(weight_decay=decay, b1=0.5))]
    rows = walk(fa.adamw(**HYPER, overrides=rules), GRADS[:3], PARAMS)
    changes = {"learning_rate": other}, {"weight_decay": decay, "b1": 0.5}
    runs = [walk(fa.adamw(**HYPER | hyper), GRADS[:3], PARAMS) for hyper in ({}, *changes)]
    for row, *each in zip(rows, *runs, strict=True):
        assert_equal(row.updates, pick(*(x.updates for x in each)))

    @jax.jit
    def first(rate):
        tx = fa.adamw(**HYPER, overrides=[(r"w", dict(learning_rate=rate))])
        return tx.update(GRADS[0], tx.init(PARAMS), PARAMS)[0]

    slope = jax.jacfwd(lambda rate: split(first(rate))[0])(jnp.float32(0.3))
    wanted = walk(fa.adamw(**HYPER | {"learning_rate": 1.0}), GRADS[:1], PARAMS)[0]
    np.testing.assert_allclose(slope, split(wanted.updates)[0], rtol=1e-5)
    assert not np.any(jax.jacfwd(lambda rate: split(first(rate))[1][1])(jnp.float32(0.3)))


def test_leaves_with_equal_arguments_share_scalars_and_one_trace():
    called = []

    def schedule(count):
        called.append(count)
        return 0.1 / (1.0 + jnp.asarray(count, float))

    params = {f"{kind}{n}": np.ones((3, 2), np.float32) for kind in "abc" for n in range(5)}

    def traced(**changes):
        called.clear()
        tx = fa.adamw(schedule, **changes)
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
        bodies = {id(e.params["jaxpr"]) for e in jaxpr.eqns if e.params.get("name") == "_leaf_step"}
        return len(called), len(bodies)

    rules = [("a", dict(b1=0.8)), ("b", dict(b1=0.7, eps=1e-6)), ("c1", dict(eps=1e-8))]
    by_path = lambda path, _: {"a": dict(b1=0.8), "b": dict(b1=0.7)}.get(path[0], {})  # noqa: E731
    assert traced() == (1, 1)
    assert traced(overrides=rules) == (3, 1)  # c1 has what the others have
    assert traced(overrides=by_path) == (3, 1)


def test_no_kernel_is_added_for_a_leaf():
    params = {f"{kind}{n}": np.ones((5 + n, 3), np.float32) for kind in "ab" for n in range(2)}

    def kernels(**changes):
        tx = fa.adamw(1e-3, weight_decay=0.1, **changes)
        step = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
        results = re.findall(r" = (\S.*?) fusion\(", step[step.index("ENTRY") :])
        return sum(re.search(r"\[\d", result) is not None for result in results)  # no scalars

    plain = kernels()
    assert plain >= len(params)
    assert kernels(overrides=[("a", dict(learning_rate=0.02)), ("b0", dict(b2=0.9))]) == plain


# Formats, and the step in one call ------------------------------------------------------------


def big(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal((3, 128)), dtype) for name in "aw"}


FORMATS = {
    "stochastic": dict(moments="bfloat16", rounding="stochastic"),
    "compensated": dict(moments=fa.Int8(min_size=0), rounding="compensated"),
}


@pytest.mark.parametrize("format", FORMATS)
def test_formats_have_the_bits_of_a_run_with_these_arguments(format):
    hyper = HYPER | FORMATS[format]
    params, grads = big(3, jnp.bfloat16), [big(t, jnp.bfloat16) for t in range(2)]

    def run(tx):
        p, state = params, tx.init(params)
        for g in grads:
            p, state = fa.step(tx, g, state, p)
        return {"params": p, "state": state}

    other = {"learning_rate": 0.031, "b1": 0.62, "b2": 0.8, "weight_decay": 0.23}
    found = run(fa.adamw(**hyper, overrides=[("^w", other)]))
    base, changed = run(fa.adamw(**hyper)), run(fa.adamw(**hyper | other))
    is_w = lambda path, x, y: y if jax.tree_util.keystr(path).endswith("['w']") else x  # noqa: E731
    assert_equal(found, jax.tree_util.tree_map_with_path(is_w, base, changed))
    assert not np.array_equal(base["params"]["w"], changed["params"]["w"])


def test_int8_is_bounded_leaf_by_leaf():
    rules = [("a", dict(b1=0.5)), ("w", dict(b1=0.95, b2=0.9))]
    with pytest.raises(
        ValueError, match=r"^overrides\[1\] \('w'\): moments=\"int8\" stores .*0.95"
    ):
        fa.adamw(moments="int8", overrides=rules)
    tx = fa.adamw(moments="int8", overrides=lambda path, _: dict(rules)[path])
    with pytest.raises(
        ValueError, match=r"^overrides\('w', leaf\): moments=\"int8\" stores .*0.95"
    ):
        tx.init(big(0))
    with pytest.raises(
        ValueError, match=r"^overrides\[0\] \('a'\): moments=\"int8\" stores .*0.99"
    ):
        fa.cautious(fa.adamw(b2=0.97, moments="int8", overrides=[("a", dict(b1=0.99))]))


# One state ------------------------------------------------------------------------------------


def test_the_state_is_that_without():
    tx, plain = fa.yogi(0.1, overrides=[("w", {"eps": 0.2})]), fa.yogi(0.1)
    assert_equal(tx.init(PARAMS), plain.init(PARAMS))
    first = walk(plain, GRADS[:2], PARAMS)[-1]
    later, wanted = (walk(x, GRADS[2:4], first.params, first.state) for x in (tx, plain))
    for row, want in zip(later, wanted, strict=True):
        assert_equal(row.state, want.state)  # eps is in no moment
        assert_equal(split(row.updates)[1], split(want.updates)[1])
        assert not np.array_equal(split(row.updates)[0], split(want.updates)[0])


def test_moments_begin_where_their_leaf_says():
    state = fa.yogi(overrides=[("w", START)]).init(PARAMS)
    w, others = split(state.nu)
    assert np.all(w == np.float32(0.07))
    assert all(np.all(x == np.float32(1e-6)) for x in others)


def test_leaves_without_gradient_stay_and_are_not_asked_for():
    asked = []

    def by_leaf(path, leaf):
        asked.append(path)
        return W

    tx, state = fa.adamw(**HYPER, overrides=by_leaf), fa.init(PARAMS)
    grads = {**GRADS[0], "b": None}
    updates, new = tx.update(grads, state, PARAMS)
    assert asked == ["layers/0", "layers/1/w"]
    assert not np.any(updates["b"])
    assert_equal(new.mu["b"], state.mu["b"])
    frozen = {**PARAMS, "b": None}
    assert fa.adamw(overrides=[("b", W)]).init(frozen).mu["b"] is None  # its rule is no mistake


# What a transformation is ---------------------------------------------------------------------


def test_equal_calls_are_equal_and_pickle():
    make = lambda b1=0.8, name="w": fa.adamw(0.1, overrides=[(name, dict(b1=b1))])  # noqa: E731
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(b1=0.7)
    assert make() != make(name="v")
    assert make() != fa.adamw(0.1)
    assert fa.cautious(make()) == fa.cautious(make())
    assert fa.cautious(make()) != fa.cautious(make(b1=0.7))
    function = lambda path, leaf: {}  # noqa: E731
    assert fa.adam(overrides=function) == fa.adam(overrides=function)
    assert fa.adam(overrides=function) != fa.adam(overrides=lambda path, leaf: {})
    assert repr(make()) == "adamw(learning_rate=0.1, overrides=[('w', {'b1': 0.8})])"
    again = pickle.loads(pickle.dumps(fa.cautious(make())))
    assert again == fa.cautious(make())
    assert_equal(walk(again, GRADS[:1], PARAMS), walk(fa.cautious(make()), GRADS[:1], PARAMS))


def test_a_modifier_keeps_what_its_transformation_overrides():
    rules = [("w", W)]
    for overrides in (rules, lambda path, _: W if path.endswith("w") else {}):
        found = walk(fa.cautious(fa.adamw(**HYPER, overrides=overrides)), GRADS[:3], PARAMS)
        runs = [walk(fa.cautious(fa.adamw(**HYPER | x)), GRADS[:3], PARAMS) for x in ({}, {}, W)]
        for row, *each in zip(found, *runs, strict=True):
            assert_equal(row.updates, pick(*(x.updates for x in each)))


def test_directions_take_them_too():
    tx = fa.scale_by_adam(overrides=[("w", dict(eps=0.3))])
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS))
    plain, other = (fa.scale_by_adam(eps=eps) for eps in (1e-8, 0.3))
    runs = [x.update(GRADS[0], x.init(PARAMS))[0] for x in (plain, plain, other)]
    assert_equal(updates, pick(*runs))
    with pytest.raises(TypeError, match=r"^overrides\[0\] \('w'\): scale_by_adam\(\) "):
        fa.scale_by_adam(overrides=[("w", dict(learning_rate=0.3))])


def test_every_factory_takes_them():
    one_table = "update_rows", "flush_rows"  # which have no leaves to choose from
    names = [
        name
        for name in fa.__all__
        if inspect.isfunction(getattr(fa, name))
        and "learning_rate" in inspect.signature(getattr(fa, name)).parameters
        and name not in ("diagnostics", *one_table)
    ]
    assert len(names) > 12
    for name in names:
        assert "overrides" in inspect.signature(getattr(fa, name)).parameters, name
