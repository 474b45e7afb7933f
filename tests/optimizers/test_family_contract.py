"""The contract of DESIGN sections 2 and 3, kept by every factory of the family.

Expected numbers come from `reference.family` in float64, from the same transformation run on its
own with a wrapper's work done by hand, or, where hyperparameters change in mid-run, from a fresh
transformation for every step. No member runs on defaults.
"""

import functools
import inspect
import itertools
import pickle
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from names import OF_STATES

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

STEPS = 7
RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02}
ROOTED = {**RATES, "eps_root": 0.003}
SLOW = {**ROOTED, "b3": 0.9937, "alpha": 3.7}
ALPHA = {"learning_rate": 0.013}
DECAY = {"weight_decay": 0.07}
COUPLED = {"l2": 0.21}
BEFORE = {"eps_placement": "before_correction"}


def cautious_adamw(
    learning_rate, b1, b2, eps, eps_root, weight_decay, mu_dtype=None, nu_dtype=None
):
    tx = fa.adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, nu_dtype=nu_dtype)
    return fa.cautious(tx)


class Member(NamedTuple):
    """A factory with hyperparameters that are nobody's defaults."""

    key: str
    make: Callable
    rule: str  # of `reference.RULES`
    hyper: dict
    implied: Mapping = MappingProxyType({})  # what `reference.family` must be told besides

    def tx(self, **changes):
        return self.make(**self.hyper | changes)

    @property
    def floats(self):
        return {name: x for name, x in self.hyper.items() if isinstance(x, float)}

    @property
    def alpha(self):
        """What updates are measured in."""
        return self.hyper.get("learning_rate", 1.0)


NESTEROV, CAUTIOUS = {"nesterov": True}, {"cautious": True}
START = {"initial_accumulator_value": 0.07}
UNCORRECTED = {"bias_correction_mu": False, "bias_correction_nu": False}
MAXIMUM = {"maximum": "before_correction"}
UPWARDS = {"learning_rate": -1.0}  # a direction alone is neither scaled nor signed

MEMBERS = [  # first those that represent others: see `each_structure`, `each_number`, `each_rule`
    Member("amsgrad", fa.amsgrad, "amsgrad", ALPHA | ROOTED | COUPLED | DECAY),
    Member("yogi", fa.yogi, "yogi", ALPHA | ROOTED | START),
    Member("lamb", fa.lamb, "lamb", ALPHA | ROOTED | DECAY),
    Member("ademamix", fa.ademamix, "ademamix", ALPHA | SLOW | DECAY),
    Member(
        "scale_by_adopt",
        fa.scale_by_adopt,
        "adopt",
        RATES | NESTEROV | {"clip_value_fn": 0.83},
        UPWARDS,
    ),
    Member("nadam_dozat", fa.nadam, "nadam", ALPHA | ROOTED | BEFORE | {"momentum_decay": 0.37}),
    Member(
        "radam_nesterov", fa.radam, "radam", ALPHA | ROOTED | BEFORE | NESTEROV | {"threshold": 4.6}
    ),
    Member("adamw", fa.adamw, "adam", ALPHA | ROOTED | DECAY | {"independent_weight_decay": True}),
    Member("adamax", fa.adamax, "adamax", ALPHA | RATES | COUPLED),
    Member("adabelief", fa.adabelief, "adabelief", ALPHA | ROOTED),
    Member("cautious", cautious_adamw, "adam", ALPHA | ROOTED | DECAY, CAUTIOUS),
    Member("adam_l2", fa.adam, "adam", ALPHA | ROOTED | COUPLED),
    Member("adam_eps", fa.adam, "adam", ALPHA | ROOTED | BEFORE | NESTEROV),
    Member("nadam", fa.nadam, "nadam", ALPHA | ROOTED | COUPLED),
    Member("nadamw", fa.nadamw, "nadam", ALPHA | ROOTED | DECAY | {"momentum_decay": 0.19}),
    Member("amsgrad_maximum", fa.amsgrad, "amsgrad", ALPHA | ROOTED | COUPLED | MAXIMUM | BEFORE),
    Member("adamaxw", fa.adamaxw, "adamax", ALPHA | RATES | DECAY),
    Member("radam", fa.radam, "radam", ALPHA | ROOTED | COUPLED | {"threshold": 4.3}),
    Member("adopt", fa.adopt, "adopt", ALPHA | RATES),
    Member("adopt_unclipped", fa.adopt, "adopt", ALPHA | RATES | {"use_clipping": False}),
    Member("scale_by_adam", fa.scale_by_adam, "adam", ROOTED | BEFORE, UPWARDS),
    Member("scale_by_amsgrad", fa.scale_by_amsgrad, "amsgrad", ROOTED | UNCORRECTED, UPWARDS),
    Member("scale_by_adamax", fa.scale_by_adamax, "adamax", RATES, UPWARDS),
    Member("scale_by_radam", fa.scale_by_radam, "radam", ROOTED | {"threshold": 4.3}, UPWARDS),
    Member("scale_by_belief", fa.scale_by_belief, "adabelief", ROOTED | NESTEROV, UPWARDS),
    Member("scale_by_yogi", fa.scale_by_yogi, "yogi", ROOTED | START, UPWARDS),
    Member("scale_by_ademamix", fa.scale_by_ademamix, "ademamix", SLOW, UPWARDS),
]
MEMBERS = {member.key: member for member in MEMBERS}
EXTRA = {"amsgrad": ("nu_max", "v"), "ademamix": ("mu_slow", "m")}


# Scoped to the module, so that pytest runs all tests of a member in a row, and a worker finds what
# it has compiled.
def members(number):
    chosen = dict(itertools.islice(MEMBERS.items(), number))
    return pytest.mark.parametrize("member", chosen.values(), ids=chosen, scope="module")


every_member = members(len(MEMBERS))
each_rule = members(11)  # every rule of `reference`; a direction is its optimizer
each_number = members(7)  # every hyperparameter that is a number
each_structure = members(5)  # extra trees and none, with and without parameters: for wrappers


def test_the_first_members_represent_the_others():
    rules = list(itertools.islice(MEMBERS.values(), 11))
    numbers, structures = rules[:7], rules[:5]
    assert {member.rule for member in rules} == {member.rule for member in MEMBERS.values()}
    names = lambda members: set().union(*(member.floats for member in members))  # noqa: E731
    assert names(numbers) == names(MEMBERS.values())
    assert {"amsgrad", "ademamix", "lamb"} < {member.rule for member in structures}
    assert any("learning_rate" not in member.hyper for member in structures)


def normal_tree(seed, scale=1.0):
    """A tree of normal numbers of two shapes, since each shape is compiled for itself."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.float32(scale * rng.standard_normal(shape))  # noqa: E731
    return {"b": draw(), "layers": [draw(2, 3), {"w": draw(2, 3)}]}


PARAMS = normal_tree(0, scale=2.0)
GRADS = [normal_tree(t + 1, scale=(1.0, 0.2, 3.1, 0.07, 1.7, 0.4, 0.9)[t]) for t in range(STEPS)]
PART = {"b": True, "layers": [False, {"w": True}]}


def part(tree):
    """The leaves that `PART` names: two instead of three, where compiling takes long."""
    return {"b": tree["b"], "w": tree["layers"][1]["w"]}


def test_every_factory_is_a_member():
    made = {member.make for member in MEMBERS.values()}
    factories = {
        getattr(fa, name)
        for name in set(fa.__all__) - {"init", "update", "apply_updates", "cautious", *OF_STATES}
        if inspect.isfunction(getattr(fa, name))
    }
    assert factories <= made


# Running and comparing ------------------------------------------------------------------------


class Row(NamedTuple):
    """What stands after a step."""

    updates: dict
    params: dict
    state: fa.AdamState


def walk(tx, grads, params, state=None):
    """Step by step, not jitted: a Row for each of `grads`; `tx` may be a function of the count."""
    at = (lambda count: tx) if hasattr(tx, "update") else tx
    state, rows = at(0).init(params) if state is None else state, []
    for t, g in enumerate(grads):
        updates, state = at(t).update(g, state, params)
        params = fa.apply_updates(params, updates)
        rows.append(Row(updates, params, state))
    return rows


def scan(tx, grads, params):
    """A stacked Row; fails where the state is no valid carry."""

    def body(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        carry = fa.apply_updates(params, updates), state
        return carry, Row(updates, *carry)

    return jax.lax.scan(body, (params, tx.init(params)), grads)[1]


def stacked(trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def at_row(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


def expected(member, grads, params, **hyper):
    """`reference.family` leaf by leaf: a stacked Row, of which the state is mu, nu and extra."""
    leaves, treedef = jax.tree.flatten(params)
    columns = []
    for theta, g in zip(leaves, zip(*map(jax.tree.leaves, grads), strict=True), strict=True):
        told = {**member.hyper, **hyper, **member.implied}
        if "clip_value_fn" in told:  # there only as a function
            told["clip_value_fn"] = lambda _, clip=told["clip_value_fn"]: clip
        updates, thetas, kept = reference.family(member.rule, g, wide(theta), **told)
        extra = {EXTRA[member.rule][0]: kept[EXTRA[member.rule][0]]} if member.rule in EXTRA else {}
        columns.append((updates, thetas, (kept["m"], kept["v"], extra)))
    unzip = lambda rows: zip(*rows, strict=True)  # noqa: E731
    updates, thetas, kept = unzip(columns)
    mu, nu, extra = unzip(kept)
    extra = {key: treedef.unflatten(x[key] for x in extra) for key in extra[0]} or None
    return Row(
        treedef.unflatten(updates),
        treedef.unflatten(thetas),
        fa.AdamState(None, treedef.unflatten(mu), treedef.unflatten(nu), extra=extra),
    )


def wide(x):
    """In float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.promote_types(x.dtype, np.float64))


def error(actual, wanted, size):
    """The largest error, relative to `size` or to what is wanted, whichever is larger."""
    worst = 0.0
    for a, w in zip(*map(jax.tree.leaves, (actual, wanted)), strict=True):
        assert np.shape(a) == np.shape(w)
        relative = np.abs(wide(a) - wide(w)) / np.maximum(size, np.abs(wide(w)))
        worst = np.maximum(worst, relative.max(initial=0.0))  # a NaN stays
    return worst


def assert_row(row, wanted, alpha, tolerance):
    """Updates to `tolerance` in units of `alpha`; parameters, moments and extra trees in ones."""
    errors = {
        "updates": error(row.updates, wanted.updates, alpha),
        "params": error(row.params, wanted.params, 1.0),
        **{
            field: error(getattr(row.state, field), getattr(wanted.state, field), 1.0)
            for field in ("mu", "nu", "extra")
        },
    }
    bad = {key: f"{value:.1e}" for key, value in errors.items() if not value <= tolerance}
    assert not bad, f"relative errors above {tolerance:.1e}: {bad}"


A_FEW_UNITS = 8 * 2.0**-24


def assert_rows(rows, wanted, alpha, tolerance=A_FEW_UNITS):
    for row, want in zip(rows, wanted, strict=True):
        assert_row(row, want, alpha, tolerance)
        assert int(row.state.count) == int(want.state.count)


def assert_equal(actual, wanted):
    """Structures, dtypes and every bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    for a, w in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(w), strict=True)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def rounded(hyper):
    """The values that float32 arrays of them hold."""
    return {name: float(np.float32(x)) if isinstance(x, float) else x for name, x in hyper.items()}


def adam_state(state) -> fa.AdamState:
    """The one AdamState inside a wrapper's state."""
    is_adam = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    (found,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    return found


def unwrapped(rows):
    return [row._replace(state=adam_state(row.state)) for row in rows]


# JAX's transformations ------------------------------------------------------------------------


@every_member
def test_step_by_step_follows_the_reference(member):
    rows = walk(member.tx(), GRADS, PARAMS)
    truth = expected(member, GRADS, PARAMS)
    for t, row in enumerate(rows):
        assert int(row.state.count) == t + 1
        assert_row(row, at_row(truth, t), member.alpha, 1e-6)
    assert avals(rows[-1].state) == avals(member.tx().init(PARAMS))


@each_structure
def test_a_jitted_scan_agrees_with_step_by_step(member):
    grads, params = [part(g) for g in GRADS], part(PARAMS)
    rows = jax.jit(functools.partial(scan, member.tx()))(stacked(grads), params)
    plain = walk(member.tx(), grads, params)
    assert_rows([at_row(rows, t) for t in range(STEPS)], plain, member.alpha)


@each_rule
def test_while_loop_and_cond_carry_the_state(member):
    tx, grads = member.tx(), jax.tree.map(jnp.asarray, stacked(GRADS))

    def step(carry):
        params, state = carry
        updates, state = tx.update(at_row(grads, state.count), state, params)
        return fa.apply_updates(params, updates), state

    def unless_done(carry):
        return jax.lax.cond(carry[1].count < STEPS, step, lambda carry: carry, carry)

    def loop(params):
        before = params, tx.init(params)
        return jax.lax.while_loop(lambda carry: carry[1].count < STEPS, unless_done, before)

    # Tracing checks the carry; the numbers are those of the scan.
    params, state = jax.eval_shape(loop, PARAMS)
    assert avals(state) == avals(tx.init(PARAMS))
    assert avals(params) == avals(jax.tree.map(jnp.asarray, PARAMS))


@each_structure
def test_vmap_over_parameters_and_gradients(member):
    tx = member.tx()
    params = [part(normal_tree(seed, scale=2.0)) for seed in (11, 12, 13)]
    grads = [[part(normal_tree(10 * i + t)) for t in (2, 3)] for i in (1, 2, 3)]
    apart = [walk(tx, two, theta) for two, theta in zip(grads, params, strict=True)]
    before = stacked(first for first, _ in apart)
    g = stacked(second for _, second in grads)
    updates, state = jax.jit(jax.vmap(tx.update))(g, before.state, before.params)
    together = Row(updates, fa.apply_updates(before.params, updates), state)
    assert_rows(
        [at_row(together, i) for i in range(3)], [second for _, second in apart], member.alpha
    )
    fresh = jax.vmap(tx.init)(stacked(params))
    assert_equal(at_row(fresh, 1), tx.init(params[1]))


@each_number
def test_vmap_over_each_hyperparameter(member):
    """One batch: in every row one hyperparameter is another, or 0 where that is no special case."""
    start = rounded(member.floats)
    changes = [{}, *({name: 0.7 * value} for name, value in start.items() if name != "threshold")]
    changes += [{"threshold": 6.1}] if "threshold" in start else []
    changes += [{name: 0.0} for name in start if name not in ("learning_rate", "threshold")]
    rows = [rounded(start | change) for change in changes]
    batch = {name: jnp.array([row[name] for row in rows], jnp.float32) for name in start}
    params, *grads = (part(tree)["w"] for tree in (PARAMS, *GRADS))

    @jax.jit
    @jax.vmap
    def train(hyper):
        return at_row(scan(member.tx(**hyper), stacked(grads), params), -1)

    result = train(batch)
    for i, row in enumerate(rows):
        truth = at_row(expected(member, grads, params, **row), -1)
        assert_row(at_row(result, i), truth, row.get("learning_rate", 1.0), 2e-6)


@each_number
def test_vmap_over_one_hyperparameter_alone(member):
    params, g = (part(tree)["w"] for tree in (PARAMS, GRADS[0]))

    def train(name, value):
        tx = member.tx(**{name: value})
        return tx.update(g, tx.init(params), params)

    for name in member.floats:
        one = functools.partial(train, name)
        plain = jax.eval_shape(one, jax.ShapeDtypeStruct((), jnp.float32))
        batched = jax.eval_shape(jax.vmap(one), jax.ShapeDtypeStruct((3,), jnp.float32))
        leaves = zip(*map(jax.tree.leaves, (plain, batched)), strict=True)
        assert all((b.shape, b.dtype) == ((3, *p.shape), p.dtype) for p, b in leaves), name


@each_number
def test_each_hyperparameter_as_an_array_is_the_same_number(member):
    params, *grads = (part(tree) for tree in (PARAMS, *GRADS[:3]))
    for name, value in rounded(member.floats).items():
        plain = walk(member.tx(**{name: value}), grads, params)
        array = walk(member.tx(**{name: jnp.float32(value)}), grads, params)
        assert_rows(array, plain, member.alpha)
        scalar = walk(member.tx(**{name: np.float32(value)}), grads[:1], params)
        assert_equal(scalar, plain[:1])


@each_number
def test_all_hyperparameters_as_arrays_are_the_same_numbers(member):
    values = rounded(member.floats)
    arrays = {name: jnp.float32(value) for name, value in values.items()}
    plain = walk(member.tx(**values), GRADS, PARAMS)
    assert_rows(walk(member.tx(**arrays), GRADS, PARAMS), plain, member.alpha)


# Types and trees ------------------------------------------------------------------------------

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


# Schedules ------------------------------------------------------------------------------------


def schedulable(member):
    """Name and value of what the factory takes a schedule for."""
    names = ("learning_rate", "weight_decay", "l2", "b3", "alpha", "clip_value_fn")
    values = {name: member.hyper[name] for name in names if name in member.hyper}
    return values | ({"clip_value_fn": 0.83} if member.key == "adopt" else {})


@every_member
def test_schedules_see_the_count_before_the_step(member):
    for name, start in schedulable(member).items():
        seen = []

        def value(count, start=start):
            return start / (1 + 0.17 * int(count))

        def schedule(count, value=value, seen=seen):
            seen.append(count)
            return value(count)

        rows = walk(member.tx(**{name: schedule}), GRADS[:4], PARAMS)
        assert [int(count) for count in seen] == [0, 1, 2, 3]
        assert {count.dtype for count in seen} == {jnp.dtype("int32")}
        by_hand = walk(
            lambda t, value=value, name=name: member.tx(**{name: value(t)}), GRADS[:4], PARAMS
        )
        assert_equal(rows, by_hand)
        (constant,) = walk(member.tx(**{name: start}), GRADS[2:3], rows[1].params, rows[1].state)
        assert error(rows[2].updates, constant.updates, 1e-9) > 1e-4, name


@each_rule
def test_schedules_may_return_arrays(member):
    for name, start in schedulable(member).items():

        def schedule(count, start=start):
            return start / (1 + 0.17 * jnp.asarray(count, jnp.float32))

        by_hand = walk(
            lambda t, schedule=schedule, name=name: member.tx(**{name: float(schedule(t))}),
            GRADS[:4],
            PARAMS,
        )
        assert_rows(walk(member.tx(**{name: schedule}), GRADS[:4], PARAMS), by_hand, member.alpha)


@every_member
def test_schedules_leave_the_state_as_it_is(member):
    schedules = {name: optax.constant_schedule(0.031) for name in schedulable(member)}
    assert avals(member.tx(**schedules).init(PARAMS)) == avals(member.tx().init(PARAMS))


# Optax ----------------------------------------------------------------------------------------

SHARED = [
    (name, getattr(module, name))
    for module in (optax, optax.contrib)
    for name in fa.__all__
    if inspect.isfunction(getattr(fa, name)) and hasattr(module, name) and name != "apply_updates"
]


def parameters_of(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize(("name", "theirs"), SHARED, ids=[name for name, _ in SHARED])
def test_signature_is_optaxs_with_additions_keyword_only(name, theirs):
    ours, theirs = parameters_of(getattr(fa, name)), parameters_of(theirs)

    def positional(parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [(p.name, p.default) for p in parameters.values() if p.kind is kind]

    wanted = [(n, 1e-3 if n == "learning_rate" else d) for n, d in positional(theirs)]
    assert positional(ours) == wanted
    assert not {p.kind for p in ours.values()} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    absent = {"nesterov"} if name in ("nadam", "nadamw") else set()
    assert set(theirs) - set(ours) == absent
    for key in (p.name for p in theirs.values() if p.kind is p.KEYWORD_ONLY):
        if key == "clip_value_fn":
            for count in (0, 1, 2, 9, 1234):
                clips = (parameters[key].default(count) for parameters in (ours, theirs))
                np.testing.assert_allclose(*clips, rtol=1e-6)
        elif key not in absent:
            assert (ours[key].kind, ours[key].default) == (theirs[key].kind, theirs[key].default)


def test_optax_has_every_factory_but_cautious():
    assert {name for name, _ in SHARED} == set(fa.__all__) - {
        "AdamState",
        "GradientTransformation",
        "__version__",
        "apply_updates",
        "cautious",
        "init",
        "update",
        *("BFloat16", "Full", "Int8"),
        *OF_STATES,
    }


@every_member
def test_a_transformation_is_a_pair_that_ignores_extra_arguments(member):
    tx = member.tx()
    init, update = tx
    assert isinstance(tx, fa.GradientTransformation)
    assert list(parameters_of(update))[:3] == ["updates", "state", "params"]
    plain = update(updates=GRADS[0], state=init(PARAMS), params=PARAMS)
    assert_equal(update(GRADS[0], init(PARAMS), PARAMS, value=3.7, grad=GRADS[1]), plain)


@every_member
def test_params_are_needed_for_decay_and_lamb_only(member):
    tx = member.tx()
    reasons = {"weight_decay", "l2"} & member.hyper.keys()
    if reasons or member.rule == "lamb":
        with pytest.raises(ValueError, match=r"needs? the parameters"):
            tx.update(GRADS[0], tx.init(PARAMS))
    else:
        with_params = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
        assert_equal(tx.update(GRADS[0], tx.init(PARAMS)), with_params)


@each_structure
def test_chain_clips_what_a_member_sees(member):
    limit = 0.9
    rows = walk(optax.chain(optax.clip(limit), member.tx()), GRADS[:4], PARAMS)
    clipped = [jax.tree.map(lambda g: np.clip(g, -limit, limit), g) for g in GRADS[:4]]
    assert_equal(unwrapped(rows), walk(member.tx(), clipped, PARAMS))


DIRECTIONS = [
    (fa.scale_by_adam, fa.adamw, DECAY, ROOTED | NESTEROV | BEFORE),
    (fa.scale_by_amsgrad, fa.amsgrad, DECAY, ROOTED | MAXIMUM),
    (fa.scale_by_adamax, fa.adamaxw, DECAY, RATES),
    (fa.scale_by_radam, fa.radam, {}, ROOTED | {"threshold": 4.3}),
    (fa.scale_by_belief, fa.adabelief, {}, ROOTED | NESTEROV),
    (fa.scale_by_yogi, fa.yogi, {}, ROOTED | START),
    (fa.scale_by_adopt, fa.adopt, {}, RATES | NESTEROV),
    (fa.scale_by_ademamix, fa.ademamix, DECAY, SLOW),
]


@pytest.mark.parametrize(("direction", "make", "decay", "hyper"), DIRECTIONS)
def test_a_direction_decayed_and_scaled_is_its_optimizer(direction, make, decay, hyper):
    alpha = ALPHA["learning_rate"]
    decayed = optax.add_decayed_weights(decay["weight_decay"]) if decay else optax.identity()
    tx = optax.chain(direction(**hyper), decayed, optax.scale_by_learning_rate(alpha))
    whole = walk(make(alpha, **hyper, **decay), GRADS, PARAMS)
    assert_rows(unwrapped(walk(tx, GRADS, PARAMS)), whole, alpha)


@every_member
def test_inject_hyperparams_traces_every_number(member):
    tx = optax.inject_hyperparams(member.make)(**member.hyper)
    rows = walk(tx, GRADS, PARAMS)
    injected = rows[-1].state.hyperparams
    assert member.floats.keys() <= injected.keys()
    assert all(isinstance(x, jax.Array) for x in injected.values())
    assert_rows(
        unwrapped(rows), walk(member.make(**rounded(member.hyper)), GRADS, PARAMS), member.alpha
    )


@each_rule
def test_inject_hyperparams_with_a_schedule_for_every_number(member):
    factor = lambda count: 1 / (1 + 0.017 * count)  # noqa: E731
    varying = set(member.floats) - {"initial_accumulator_value"}  # used by init alone
    schedules = {
        name: lambda count, x=member.hyper[name]: jnp.float32(x) * factor(jnp.float32(count))
        for name in varying
    }
    tx = optax.inject_hyperparams(member.make)(**member.hyper | schedules)
    rows = walk(tx, GRADS[:4], PARAMS)

    def at(t):
        return member.tx(**{name: float(schedule(t)) for name, schedule in schedules.items()})

    assert_rows(unwrapped(rows), walk(at, GRADS[:4], PARAMS), member.alpha)
    assert rows[3].state.hyperparams["b1"] == schedules["b1"](3)


@pytest.mark.parametrize("key", ["adopt", "scale_by_adopt"])
def test_inject_hyperparams_takes_a_clip_value_fn_for_a_schedule(key):
    member = MEMBERS[key]
    clip = lambda count: 0.83 / (1 + 0.17 * jnp.float32(count))  # noqa: E731
    hyper = rounded(member.hyper) | {"clip_value_fn": clip}
    plain = walk(member.make(**hyper), GRADS, PARAMS)
    for static in (), ("clip_value_fn",):
        make = optax.inject_hyperparams(member.make, static_args=static)
        rows = walk(make(**hyper), GRADS, PARAMS)
        assert ("clip_value_fn" in rows[-1].state.hyperparams) == (not static)
        assert_rows(unwrapped(rows), plain, member.alpha)


@each_structure
def test_inject_hyperparams_of_float32_for_bfloat16_parameters(member):
    half = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.bfloat16))
    params, *grads = (half(part(tree)) for tree in (PARAMS, *GRADS[:3]))
    b2 = {"b2": 0.9993}
    assert float(jnp.bfloat16(b2["b2"])) == 1.0
    make = optax.inject_hyperparams(member.make, hyperparam_dtype=jnp.float32)
    rows = walk(make(**member.hyper | b2), grads, params)
    plain = walk(member.tx(**rounded(member.hyper | b2)), grads, params)
    for row, want in zip(unwrapped(rows), plain, strict=True):
        assert error(row.updates, want.updates, member.alpha) <= 2.0**-8
        assert avals(row.state) == avals(want.state)


@each_structure
def test_masked_leaves_pass_through_and_keep_no_state(member):
    rows = walk(optax.masked(member.tx(), PART), GRADS[:3], PARAMS)
    plain = walk(member.tx(), map(part, GRADS[:3]), part(PARAMS))
    for t, (row, want) in enumerate(zip(unwrapped(rows), plain, strict=True)):
        assert_equal(row.updates["layers"][0], GRADS[t]["layers"][0])
        assert_equal(part(row.updates), want.updates)
        assert_equal(jax.tree.leaves(row.state), jax.tree.leaves(want.state))


@each_structure
def test_partition_with_two_of_a_kind(member):
    other = {"b1": 0.61, "b2": 0.913}
    labels = {"b": "this", "layers": ["other", {"w": "this"}]}
    tx = optax.partition({"this": member.tx(), "other": member.tx(**other)}, labels)
    rows = walk(tx, GRADS[:3], PARAMS)
    these = walk(member.tx(), map(part, GRADS[:3]), part(PARAMS))
    matrix = lambda tree: tree["layers"][0]  # noqa: E731
    others = walk(member.tx(**other), map(matrix, GRADS[:3]), matrix(PARAMS))
    for row, this, that in zip(rows, these, others, strict=True):
        assert_equal(part(row.updates), this.updates)
        assert_equal(matrix(row.updates), that.updates)
        for label, want in (("this", this), ("other", that)):
            state = adam_state(row.state.inner_states[label])
            assert_equal(jax.tree.leaves(state), jax.tree.leaves(want.state))


def jitted_walk(tx, grads, params):
    """As `walk`, each step jitted, in one trace."""
    traces = []

    @jax.jit
    def update(updates, state, params):
        traces.append(None)
        return tx.update(updates, state, params)

    rows = walk(fa.GradientTransformation(tx.init, update), grads, params)
    assert len(traces) == 1
    return rows


def strictly(tx):
    """`tx` under strict promotion inside a wrapper that needs another."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("strict"):
            return tx.update(updates, state, params)

    return fa.GradientTransformation(tx.init, update)


@each_structure
def test_multi_steps_is_one_step_on_the_mean_gradient(member):
    params, *grads = (part(tree)["w"] for tree in (PARAMS, *GRADS[:6]))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.MultiSteps(strictly(member.tx()), every_k_schedule=2)
        rows = jitted_walk(tx, grads, params)
    means = [(grads[i] + grads[i + 1]) / np.float32(2) for i in (0, 2, 4)]
    assert_rows(unwrapped(rows[1::2]), walk(member.tx(), means, params), member.alpha)
    assert not any(np.any(row.updates) for row in rows[::2])


@each_structure
def test_apply_if_finite_leaves_the_state_untouched(member):
    params, *grads = (part(tree)["w"] for tree in (PARAMS, *GRADS[:3]))
    bad = np.float32([[0.3, np.nan, 1.0], [-0.2, 0.7, -1.1]])
    tx = optax.apply_if_finite(member.tx(), max_consecutive_errors=3)
    first, *skipped, second, third = jitted_walk(tx, [grads[0], bad, bad, *grads[1:]], params)
    for row in skipped:
        assert_equal(adam_state(row.state), adam_state(first.state))
        assert not np.any(row.updates)
    assert_rows(unwrapped([first, second, third]), walk(member.tx(), grads, params), member.alpha)


@pytest.mark.parametrize("wrap", ["plain", "chain", "multi_steps", "inject"])
@each_structure
def test_tree_map_params_reaches_every_tree_and_not_the_count(member, wrap):
    tx = member.tx()
    if wrap == "chain":
        tx = optax.chain(optax.clip_by_global_norm(2.0), tx)
    elif wrap == "multi_steps":
        tx = optax.MultiSteps(tx, every_k_schedule=2)
    elif wrap == "inject":
        tx = optax.inject_hyperparams(member.make, hyperparam_dtype=jnp.float32)(**member.hyper)
    leaves, treedef = jax.tree.flatten(tx.init(PARAMS))
    state = treedef.unflatten(leaf + i for i, leaf in enumerate(leaves, start=3))
    pair = lambda moment, param: (moment, param)  # noqa: E731
    mapped = optax.tree.map_params(tx, pair, state, PARAMS, transform_non_params=lambda x: x + 100)
    before, after = adam_state(state), adam_state(mapped)
    assert int(after.count) == int(before.count) + 100
    assert_equal(after.mu, jax.tree.map(pair, before.mu, PARAMS))
    assert_equal(after.nu, jax.tree.map(pair, before.nu, PARAMS))
    names = [EXTRA[member.rule][0]] if member.rule in EXTRA else []
    assert sorted(after.extra or {}) == names
    for name in names:
        assert_equal(after.extra[name], jax.tree.map(pair, before.extra[name], PARAMS))


@each_rule
def test_tree_get_finds_every_tree(member):
    rows = walk(optax.chain(optax.clip(1.2), member.tx()), GRADS[:2], PARAMS)
    state = rows[-1].state
    inner = adam_state(state)
    assert optax.tree.get(state, "mu") is inner.mu
    assert optax.tree.get(state, "nu") is inner.nu
    assert int(optax.tree.get(state, "count")) == 2
    for name in ("nu_max", "mu_slow"):
        assert optax.tree.get(state, name) is (inner.extra or {}).get(name)
    if member.rule in EXTRA:
        name = EXTRA[member.rule][0]
        ones = jax.tree.map(jnp.ones_like, PARAMS)
        changed = optax.tree.set(state, **{name: ones})
        assert_equal(adam_state(changed), inner._replace(extra={name: ones}))


@each_structure
def test_split_real_and_imaginary_is_the_run_on_the_pair(member):
    def complex_tree(seed, scale):
        real, imaginary = (normal_tree(100 * seed + i, scale=scale)["layers"][0] for i in (0, 1))
        return {"z": real + np.complex64(1j) * imaginary, "r": normal_tree(seed)["b"]}

    def pair(tree):
        return {"z": (tree["z"].real, tree["z"].imag), "r": tree["r"]}

    params, *grads = (complex_tree(seed, 1.0 + 0.3 * seed) for seed in range(4))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.contrib.split_real_and_imaginary(strictly(member.tx()))
        rows = walk(tx, grads, params)
    plain = walk(member.tx(), map(pair, grads), pair(params))
    for row, want in zip(unwrapped(rows), plain, strict=True):
        assert_equal(pair(jax.tree.map(np.asarray, row.updates)), want.updates)
        assert_equal(jax.tree.leaves(row.state), jax.tree.leaves(want.state))


@each_rule
def test_complex_parameters_follow_the_reference(member):
    draw = lambda seed: normal_tree(seed)["layers"][0]  # noqa: E731
    params, *grads = (draw(60 + i) + np.complex64(1j) * draw(80 + i) for i in range(5))
    rows = walk(member.tx(), grads, params)
    truth = expected(member, grads, np.asarray(params, np.complex128))
    for t, row in enumerate(rows):
        assert_row(row, at_row(truth, t), member.alpha, 1e-6)


# A framework's checkpoint ---------------------------------------------------------------------


@each_structure
def test_a_train_state_survives_msgpack(member):
    serialization = pytest.importorskip("flax.serialization")
    train_state = pytest.importorskip("flax.training.train_state")
    make = functools.partial(train_state.TrainState.create, apply_fn=None, tx=member.tx())
    start = make(params=PARAMS)
    trained = functools.reduce(lambda state, g: state.apply_gradients(grads=g), GRADS[:3], start)
    stored = serialization.to_bytes(trained)
    restored = serialization.from_bytes(make(params=jax.tree.map(jnp.zeros_like, PARAMS)), stored)
    assert isinstance(restored.opt_state, fa.AdamState)
    assert_equal(restored.opt_state, trained.opt_state)
    assert int(restored.opt_state.count) == 3
    later, wanted = (state.apply_gradients(grads=GRADS[3]) for state in (restored, trained))
    assert_equal((later.params, later.opt_state), (wanted.params, wanted.opt_state))
