"""`Int8(min_size=...)`: small leaves keep float32 moments, in whatever a state goes through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES
from format_runs import assert_same_bits, normal

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

HYPER = dict(learning_rate=0.02, b1=0.83, b2=0.97, weight_decay=0.1)
SHAPES = {"large": (72, 128), "small": (33, 64), "bias": (7,), "scalar": (), "frozen": None}
SMALL = ("small", "bias", "scalar")
TX = fa.adamw(**HYPER, moments="int8")


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        name: shape if shape is None else jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


@functools.cache
def run(tx, steps=6):
    """(parameters, state), donated from step to step."""
    params = tree(0)
    state = tx.init(params)
    step = jax.jit(lambda p, s, g: fa.step(tx, g, s, p), donate_argnums=(0, 1))
    for t in range(steps):
        params, state = step(params, state, tree(1 + t))
    assert step._cache_size() == 1
    return params, state


def dtypes(state):
    return {name: (state.mu[name].dtype, state.nu[name].dtype) for name in (*SMALL, "large")}


BYTES, FLOATS = (np.int8, np.uint8), (np.float32, np.float32)


# Which leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 255, 256, 257])
def test_leaves_of_fewer_elements_are_float32(size):
    """The size is that of all elements, whatever the shape and the parameter's dtype."""
    moments = fa.Int8(min_size=256)
    for shape in [(size,), (1, size, 1)]:
        state = fa.init({"w": jnp.ones(shape, jnp.bfloat16)}, moments=moments)
        wanted = BYTES if size >= 256 else FLOATS
        assert (state.mu["w"].dtype, state.nu["w"].dtype) == wanted
        assert state.mu["w"].shape == state.nu["w"].shape == shape
        assert (state.nu_scale["w"] is None) == (size < 256)


def test_0_has_codes_everywhere_and_the_default_begins_at_4096():
    state = fa.init(tree(0), moments=CODES)
    assert all(found == BYTES for found in dtypes(state).values())
    params = [jnp.ones(4095), jnp.ones((64, 64))]
    for moments in ("int8", fa.Int8()):
        state = fa.init(params, moments=moments)
        assert [m.dtype for m in state.mu] == [np.float32, np.int8]
        assert [x is None for x in state.nu_scale] == [True, False]


def test_small_leaves_step_as_in_full_and_large_ones_as_codes():
    params, state = run(TX)
    assert dtypes(state) == dict.fromkeys(SMALL, FLOATS) | {"large": BYTES}
    assert jax.tree.structure(state) == jax.tree.structure(TX.init(tree(0)))
    for names, moments in ((SMALL, "full"), (["large"], CODES)):
        other_params, other = run(fa.adamw(**HYPER, moments=moments))
        for name in names:
            mine = params[name], state.mu[name], state.nu[name]
            assert_same_bits(mine, (other_params[name], other.mu[name], other.nu[name]))
    assert_same_bits(state.nu_scale["large"], other.nu_scale["large"])
    assert np.any(params["large"] != run(fa.adamw(**HYPER))[0]["large"])


def test_all_of_a_vmap_is_seen_without_its_members():
    """5 members of 1,000 elements are small leaves, as each of them is alone."""
    tx = fa.adamw(**HYPER, moments=fa.Int8(min_size=2000))
    params, grads = ({"w": jnp.asarray(normal(5, 10, 100, seed=n))} for n in (3, 4))
    state = jax.vmap(tx.init)(params)
    assert state.mu["w"].dtype == np.float32
    assert state.nu_scale == {"w": None}
    updates, state = jax.jit(jax.vmap(tx.update))(grads, state, params)
    alone = jax.jit(tx.update)
    for n in range(5):
        p, g = jax.tree.map(lambda x, n=n: x[n], (params, grads))
        u, kept = alone(g, tx.init(p), p)
        assert_same_bits((updates["w"][n], state.nu["w"][n]), (u["w"], kept.nu["w"]))


# States of another size --------------------------------------------------------------------------


def test_codes_of_any_size_are_followed():
    """So go on a state from before, and one whose leaves `jax.shard_map` cuts into small parts."""
    other = fa.adamw(**HYPER, moments=CODES)
    params, state = run(other)
    grads, update = tree(99), jax.jit(TX.update)
    found, wanted = update(grads, state, params), jax.jit(other.update)(grads, state, params)
    assert_same_bits(found, wanted)
    assert all(kept == BYTES for kept in dtypes(found[1]).values())


def test_a_state_with_a_larger_min_size_is_refused_by_leaf():
    params, state = tree(0), fa.init(tree(0), moments=fa.Int8(min_size=10**6))
    message = r"state\.mu\['large'\] is float32 .*this leaf has 9216 elements and min_size is "
    with pytest.raises(ValueError, match=message):
        TX.update(tree(1), state, params)
    state = fa.convert_moments(state, params, moments="int8")
    assert jax.tree.structure(state) == jax.tree.structure(TX.init(params))
    TX.update(tree(1), state, params)


@pytest.mark.parametrize("moments", ["full", "bfloat16"])
def test_a_state_of_another_format_is_refused_by_its_large_leaf_and_by_small_ones(moments):
    params = tree(0)
    state = fa.init(params, moments=moments)
    with pytest.raises(
        ValueError, match=rf'the format moments="{moments}", but moments="int8" was'
    ):
        TX.update(tree(1), state, params)
    with pytest.raises(ValueError, match=rf'moments="{moments}"'):
        fa.update(tree(1), TX.init(params), moments=moments)
    few = {"b": params["bias"]}
    with pytest.raises(ValueError, match=r"nu_scale is a tree, which does not fit moments="):
        fa.update(few, fa.init(few, moments="int8"), moments="full")
    # Floats of other kinds than float32 are no small leaf of codes.
    message = r"state.mu\['b'\] is .*float16.* moments=.int8. was given"
    for odd in (fa.init(few, moments="bfloat16"), fa.init(few, mu_dtype="float16")):
        with pytest.raises(ValueError, match=message):
            fa.update(few, odd._replace(nu_scale={"b": None}), moments="int8")


def test_small_leaves_alone_are_the_same_in_full():
    for params in (jnp.arange(3.0) + 1, {"b": jnp.arange(3.0) + 1}):
        full = fa.init(params)
        found = fa.update(params, full, moments="int8", b1=0.7)
        assert_same_bits(found, fa.update(params, full, b1=0.7))
    with pytest.raises(ValueError, match=r"state\.nu_scale is None, which does not fit"):
        fa.update(params, fa.init(params, moments=CODES)._replace(nu_scale=None), moments="int8")
    scaled = fa.init(params, moments=CODES)._replace(mu=full.mu, nu=full.nu)
    with pytest.raises(ValueError, match=r"float32, but state\.nu_scale needs codes there"):
        fa.update(params, scaled, moments="int8")


def test_conversion_goes_by_the_size_of_the_leaf():
    params, state = run(fa.adamw(**HYPER, moments=CODES))
    mixed = fa.convert_moments(state, params, moments="int8")
    assert dtypes(mixed) == dict.fromkeys(SMALL, FLOATS) | {"large": BYTES}
    full = fa.convert_moments(state, params, moments="full")
    for name in SMALL:  # what codes stand for, with no further rounding
        assert_same_bits((mixed.mu[name], mixed.nu[name]), (full.mu[name], full.nu[name]))
        assert mixed.nu_scale[name] is None
    back = fa.convert_moments(mixed, params, moments=CODES)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    infinite = fa.init(params)._replace(mu=params | {"bias": params["bias"] * jnp.inf})
    fa.convert_moments(infinite, params, moments="int8")  # float32 holds it


# In other hands ----------------------------------------------------------------------------------


def small_only(state):
    return [name for name, x in state.nu_scale.items() if x is None]


def test_optax_finds_its_way():
    params, state = run(TX)
    doubled = optax.tree.map_params(TX, lambda x: x + x, state)
    assert_same_bits(doubled.mu["bias"], 2 * state.mu["bias"])
    assert small_only(doubled) == small_only(state)
    assert_same_bits(doubled.nu_scale["large"], state.nu_scale["large"])
    labels = dict.fromkeys(SHAPES, "ours") | {"scalar": "theirs"}
    for tx in (
        optax.masked(TX, {name: name != "scalar" for name in SHAPES}),
        optax.partition({"ours": TX, "theirs": optax.sgd(0.1)}, labels),
        optax.inject_hyperparams(fa.adamw)(**HYPER, moments="int8"),
        optax.apply_if_finite(TX, 3),
    ):
        first = tx.init(params)
        _, after = jax.jit(tx.update)(tree(1), first, params)
        assert jax.tree.structure(after) == jax.tree.structure(first)
        assert [x.dtype for x in jax.tree.leaves(after)] == [
            x.dtype for x in jax.tree.leaves(first)
        ]


def test_crossings_take_small_leaves_and_refuse_codes():
    few = {"b": jnp.arange(3.0) + 1}
    tx, other = fa.adam(0.1, moments="int8"), optax.adam(0.1)
    _, state = tx.update(few, tx.init(few))
    theirs = fa.to_optax(state, other.init(few))
    assert_same_bits(theirs[0].mu, state.mu)
    back = fa.from_optax(theirs, tx.init(few))
    assert_same_bits(back, state)
    with pytest.raises(ValueError, match="8-bit moments"):
        fa.to_optax(TX.init(tree(0)), other.init(tree(0)))


def test_a_checkpoint_of_codes_alone_has_a_way_in():
    params, state = run(fa.adamw(**HYPER, moments=CODES))
    flat = fa.to_state_dict(state)
    with pytest.raises(ValueError, match=r"nu_scale\['bias'\].*min_size=0.*convert_moments"):
        fa.from_state_dict(flat, TX.init(params))
    found = fa.from_state_dict(flat, fa.init(params, moments=fa.Int8(min_size=0)))
    mixed = fa.convert_moments(found, params, moments="int8")
    flat = fa.to_state_dict(mixed)
    assert_same_bits(fa.from_state_dict(flat, jax.eval_shape(TX.init, params)), mixed)
    with pytest.raises(ValueError, match=r"nu_scale\['bias'\].*min_size"):
        fa.from_state_dict(flat, state)


def test_the_report_and_diagnostics_tell_which_leaf_is_which():
    params, state = run(TX)
    report = fa.memory_report(TX, params)
    found = {leaf.path: (leaf.moments, leaf.state) for leaf in report.leaves}
    count = {name: np.size(params[name]) for name in SMALL}
    assert found.pop("['large']") == ("int8", 2 * 9216 + 2 * 72)
    assert found == {f"['{name}']": ("full", 8 * n) for name, n in count.items()}
    rows = str(report).splitlines()
    assert rows[0].split()[:4] == ["leaf", "shape", "dtype", "moments"]
    assert [row.split()[-6 - 1] for row in rows if row.startswith("['large")] == ["int8"]
    assert "moments" not in str(fa.memory_report(fa.adamw(moments=CODES), params))
    grads = tree(9)
    grads["large"] = grads["large"].at[3, 5].set(1e9)  # its code saturates
    updates, state = TX.update(grads, state, params)
    ends = np.sum(np.abs(np.int32(state.mu["large"])) >= 127) + np.sum(state.nu["large"] == 255)
    watched = fa.diagnostics(updates, state, params, b1=0.83, b2=0.97)
    assert ends > 0
    np.testing.assert_allclose(watched["clipped"], ends / (2 * 9216), rtol=1e-6)
