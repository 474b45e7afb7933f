"""Moments in the host's memory: the bits of a run without, and the order of the trips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import format_named
from jax.extend.core import Var
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sharded import HYPER, differing

import functional_adam as fa
from functional_adam import _host

pytestmark = pytest.mark.skipif(not _host.HAS_SPACES, reason="older JAX: no jax.memory")


@functools.cache
def whole():
    return NamedSharding(Mesh(jax.devices()[:1], "data"), PartitionSpec())


def numbers(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"body": {"0": (12, 130), "1": (5, 260)}, "head": (7,)}
    draw = lambda shape: rng.normal(size=shape) * np.exp(rng.normal(size=shape))  # noqa: E731
    tree = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
    return jax.device_put(jax.tree.map(lambda x: jnp.asarray(x, dtype), tree), whole())


def assert_same_bits(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert differing(found, wanted) == {}


def kinds(tree):
    return jax.tree.map(lambda x: getattr(x, "sharding", x).memory_kind, tree)


def lies_as(tree, shardings):
    assert kinds(tree) == kinds(shardings)


def by_step(tx):
    return lambda params, state, grads: fa.step(tx, grads, state, params)


def by_update(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return fa.apply_updates(params, updates), state

    return step


def run(step, params, state, steps=3, dtype=jnp.float32):
    """The end of a run that donates parameters and state; compiled once."""
    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, params)
    for n in range(1, 1 + steps):
        params, state = step(params, state, numbers(n, dtype))
    assert step._cache_size() == 1
    return params, state


# ---- The bits of a run without ----

# Every format meets every rounding; in the short ones each meets both forms of the step.
SHORT = """
    full     stochastic  update
    full     split       step
    bfloat16 nearest     update
    bfloat16 compensated step
    int8     compensated update
    int8     nearest     step
"""
LONG = """
    full     nearest     step
    full     compensated update
    bfloat16 stochastic  step
    bfloat16 split       update
    int8     stochastic  update
    int8     split       step
"""
ROWS = [
    pytest.param(*line.split(), marks=marks)
    for lines, marks in ((SHORT, ()), (LONG, pytest.mark.slow))
    for line in lines.split("\n")
    if line.strip()
]
FORMS = {"step": by_step, "update": by_update}


@pytest.mark.parametrize(("moments", "rounding", "form"), ROWS)
def test_a_run_has_the_bits_of_one_without(moments, rounding, form, unoptimized):
    tx = fa.adamw(**HYPER, moments=format_named(moments), rounding=rounding)
    dtype = jnp.float32 if rounding == "nearest" else jnp.bfloat16
    params = numbers(0, dtype)
    offloaded = fa.offload(tx, params, leaves=["body", 1000])
    state = jax.jit(offloaded.tx.init, out_shardings=offloaded.shardings)(params)
    assert_same_bits(state, tx.init(params))
    found = run(FORMS[form](offloaded.tx), params, state, dtype=dtype)
    lies_as(found[1], offloaded.shardings)
    assert found[1].mu["body"]["0"].sharding.memory_kind == "pinned_host"
    assert_same_bits(found, run(FORMS[form](tx), params, tx.init(params), dtype=dtype))


MEMBERS = {
    "extra trees": fa.ademamix(0.03, b1=0.85, b2=0.97, moments="bfloat16"),
    "a maximum": fa.amsgrad(0.03, b1=0.85, b2=0.97),
    "sums over a leaf": fa.cautious(fa.lamb(0.03, b1=0.85, b2=0.97, weight_decay=0.2)),
    "overrides": fa.adamw(
        **HYPER, overrides=[("head", dict(b1=0.7)), ("0", dict(weight_decay=0.1))]
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_other_members_too(name, unoptimized):
    tx, params = MEMBERS[name], numbers(0)
    offloaded = fa.offload(tx, params, leaves=0)
    found = run(by_step(offloaded.tx), params, offloaded.tx.init(params))
    lies_as(found[1], offloaded.shardings)
    assert_same_bits(found, run(by_step(tx), params, tx.init(params)))
    moments = found[1]._replace(count=None)
    assert {*jax.tree.leaves(kinds(moments))} == {"pinned_host"}


def test_without_jit_scanned_and_mapped():
    tx, params = fa.adamw(**HYPER), numbers(0)
    offloaded = fa.offload(tx, params, leaves="body")
    state = offloaded.tx.init(params)
    wanted = by_step(tx)(params, tx.init(params), numbers(1))
    found = by_step(offloaded.tx)(params, state, numbers(1))
    assert_same_bits(found, wanted)
    lies_as(found[1], offloaded.shardings)

    def body(carry, grads):
        return by_step(offloaded.tx)(*carry, grads), None

    several = jax.tree.map(lambda x: x[None], numbers(1))
    (_, after), _ = jax.jit(lambda *carry: jax.lax.scan(body, carry, several))(params, state)
    assert_same_bits(after, wanted[1])
    assert kinds(after.nu["body"]) == kinds(offloaded.shardings.nu["body"])
    stacked = jax.tree.map(lambda x: jax.device_put(jnp.asarray(x)[None], x.sharding), state)
    mapped = jax.jit(jax.vmap(by_step(offloaded.tx), in_axes=(None, 0, 0)))
    _, after = mapped(params, stacked, several)
    assert_same_bits(jax.tree.map(lambda x: np.asarray(x)[0], after), wanted[1])
    assert kinds(after.nu["body"]) == kinds(offloaded.shardings.nu["body"])


def test_a_leaf_without_a_gradient_stays_on_the_host():
    params, grads = numbers(0), {**numbers(1), "head": None}
    offloaded = fa.offload(fa.adamw(**HYPER), params, leaves=0)
    state = offloaded.tx.init(params)
    updates, after = offloaded.tx.update(grads, state, params)
    assert np.all(updates["head"] == 0)
    assert kinds(updates["head"]) == "device"
    lies_as(after, offloaded.shardings)
    assert_same_bits(after.mu["head"], state.mu["head"])


# ---- The trips ----


def equations(jaxpr):
    """All equations, those of jitted functions in place of their calls."""
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        yield equation, inner
        if inner is not None and equation.primitive.name in ("jit", "pjit"):
            yield from equations(inner.jaxpr)


def test_each_array_that_waits_goes_over_and_back_once():
    params = numbers(0, jnp.bfloat16)
    tx = fa.ademamix(0.03, moments="bfloat16", rounding="compensated")
    offloaded = fa.offload(tx, params, leaves=["body", 1000])
    jaxpr = jax.make_jaxpr(by_step(offloaded.tx))(params, offloaded.tx.init(params), params)
    trips = [
        (str(out.aval.memory_space), out.aval.shape, out.aval.dtype)
        for equation, _ in equations(jaxpr.jaxpr)
        if equation.primitive.name == "device_put"
        for out in equation.outvars
    ]
    moments = [((12, 130), "bfloat16")] * 3 + [((5, 260), "bfloat16")] * 3  # mu, nu, mu_slow
    for side in ("Host", "Device"):
        there = [(shape, dtype) for space, shape, dtype in trips if space.endswith(side)]
        assert sorted(there, key=str) == sorted(moments, key=str)


def ancestors(jaxpr, wanted):
    """The inputs of a jaxpr on which the variables depend, by number."""
    depends = {var: {n} for n, var in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        given = [depends.get(x, set()) for x in equation.invars if isinstance(x, Var)]
        for out in equation.outvars:
            depends[out] = set().union(*given)
    return [depends[var] for var in wanted]


def test_a_leaf_is_fetched_after_the_arithmetic_of_the_one_before():
    params = {name: jnp.ones(9) for name in "abc"}
    offloaded = fa.offload(fa.adam(0.1), jax.device_put(params, whole()), leaves=0)
    state = offloaded.tx.init(params)
    jaxpr = jax.make_jaxpr(by_step(offloaded.tx))(params, state, params).jaxpr
    puts = [x for x in jaxpr.eqns if x.primitive.name == "device_put"]
    over = [x for x in puts if str(x.outvars[0].aval.memory_space).endswith("Device")]
    back = [x for x in puts if x not in over]
    grads = {name: len(jaxpr.invars) - 3 + n for n, name in enumerate("abc")}
    of_fetches = [ancestors(jaxpr, x.invars) for x in over]
    of_stores = [ancestors(jaxpr, x.outvars) for x in back]
    # The last leaf is the first, as in a backward pass.
    for n, name in enumerate("cba"):
        before = {grads[other] for other in "cba"[:n]}
        every = set(grads.values())
        # What is fetched waits for the arithmetic of the leaves before it, not for its own.
        assert all(found & every == before for found in of_fetches[n])
        assert all(found & every == before | {grads[name]} for found in of_stores[n])
    # And nothing is computed before the moments of the leaf before are back.
    barriers = [x for x in jaxpr.eqns if x.primitive.name == "optimization_barrier"]
    stored = [set(map(id, x.outvars)) for x in back]
    waits = [[n for n, xs in enumerate(stored) if xs & set(map(id, b.invars))] for b in barriers]
    assert [n for found in waits for n in found] == [0, 1]


def test_what_stays_has_no_barrier_and_no_copy():
    params = numbers(0)
    offloaded = fa.offload(fa.adam(0.1), params, leaves=10**9)
    assert offloaded.shardings == offloaded.device_shardings
    jaxpr = str(jax.make_jaxpr(by_step(offloaded.tx))(params, offloaded.tx.init(params), params))
    assert "device_put" not in jaxpr
    assert "optimization_barrier" not in jaxpr
