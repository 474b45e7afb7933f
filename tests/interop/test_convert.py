"""A live state carried over to another format: what its numbers become."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from codes import CODES, format_named
from converted import B1, B2, PARAMS, converted, gradients
from int8_tables import ratio_table, root_table
from quick import quick_jit

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


@functools.cache
def after(steps, rounding="nearest"):
    """A float32 state in the middle of a run."""
    tx = fa.adam(b1=B1, b2=B2, rounding=rounding)

    def body(state, g):
        return tx.update(g, state, PARAMS)[1], None

    run = quick_jit(lambda s, g: jax.lax.scan(body, s, g)[0])
    return run(tx.init(PARAMS), jax.tree.map(jnp.asarray, gradients(steps)))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def octaves_below(v):
    """Of each element, how far below the largest of its row of 128 it is."""
    rows = v.reshape(-1, 128)
    return np.log2(rows.max(axis=1, keepdims=True) / rows).reshape(v.shape)


def units(scales):
    """That of the ratios of each block."""
    return 2.0 ** ((np.asarray(scales).astype(int) >> 8) - 127)


def test_full_to_8_bits_and_back_is_within_a_code():
    full = after(50)
    small = converted(full, "int8")
    back = converted(small, "full")
    for name in PARAMS:
        v, m = (np.float64(x[name]) for x in (full.nu, full.mu))
        v_back, m_back = (np.float64(x[name]) for x in (back.nu, back.mu))
        near = octaves_below(v) < 8 - 1  # the block's scale is up to an octave above its largest
        error = v_back / v - 1
        # A code is 1/32 octave of w linear in it: at most 1/32 of w, 1/16 of v and its square.
        assert near.mean() > 0.5
        assert np.abs(error[near]).max() <= (1 + 1 / 32) ** 2 - 1
        assert np.abs(error[near].mean()) < 0.005
        assert np.abs(error[near]).mean() > 0.005
        # What is kept of m is its ratio to the root, in codes 1/64 of the block's unit apart at
        # most, and 1/256 up to 3/16 of it.
        ratio, kept = m / np.sqrt(v), m_back / np.sqrt(v_back)
        unit = np.repeat(units(small.nu_scale[name]), 128, axis=-1).reshape(m.shape)
        steps = np.where(np.abs(ratio) < 0.18 * unit, 1 / 256, 1 / 64) * unit
        assert (np.abs(kept - ratio) <= steps * 1.0001).all()
        assert (np.abs(ratio) < unit).all()
        assert back.mu[name].dtype == back.nu[name].dtype == jnp.float32
    assert back.nu_scale is None


def test_a_mean_far_below_its_block_is_kept_on_average_and_not_blown_up():
    # 36 octaves of v below the largest, v is clamped up; m is relative to what v became.
    params = {"w": jnp.ones((64, 128))}
    m, large = np.full((64, 128), 3e-6, np.float32), [3, 12, 21, 30]  # in every quarter
    m[:, large] = 0.7
    full = fa.init(params)._replace(
        count=jnp.int32(9), mu={"w": jnp.asarray(m)}, nu={"w": jnp.asarray((1.3 * m) ** 2)}
    )
    back = converted(converted(full, "int8", params), "full", params)
    far, root = (np.delete(np.float64(x["w"]), large, axis=1) for x in (back.mu, back.nu))
    root = np.sqrt(root)
    assert root.min() > 10 * 1.3 * 3e-6
    assert far.max() <= 4e-6
    assert far.mean() == pytest.approx(3e-6, rel=0.1)


def test_8_bits_to_full_is_what_the_codes_stand_for():
    small = converted(after(50), fa.Int8(block_size=64, min_size=0))
    full = converted(small, "full")
    ratios = np.concatenate([-ratio_table()[::-1], ratio_table()[1:]])  # of -127 to 127
    for name, x in PARAMS.items():
        scales = np.asarray(small.nu_scale[name])
        assert scales.shape == (*x.shape[:-1], x.shape[-1] // 64)
        tables = np.stack([root_table(int(e)) for e in scales.ravel() & 255])
        codes = np.asarray(small.nu[name]).reshape(-1, 64)
        w = np.take_along_axis(tables, codes.astype(int), axis=1).reshape(x.shape)
        r = ratios[np.asarray(small.mu[name]).astype(int) + 127]
        r *= np.repeat(units(scales), 64, axis=-1)
        np.testing.assert_allclose(full.nu[name], w * w, rtol=1e-6)
        np.testing.assert_allclose(full.mu[name], r * w, rtol=1e-6)
    assert small.mu["w"].dtype == np.int8


def test_8_bits_with_another_block_size():
    full = after(50)
    one = converted(full, "int8")
    two = converted(one, fa.Int8(block_size=32, min_size=0))
    assert two.nu_scale["w"].shape == (3, 8)
    want = np.float64(full.nu["w"])
    got = np.float64(converted(two, "full").nu["w"])
    near = octaves_below(want) < 7
    assert np.abs(got / want - 1)[near].max() <= (1 + 1 / 32) ** 4 - 1
    with pytest.raises(ValueError, match="Make the state with the same block_size"):
        fa.update(PARAMS, two, moments=CODES)


def test_to_bfloat16_is_to_a_neighbour_and_back_is_exact():
    full = after(50)
    short = converted(full, "bfloat16")
    back = converted(short, "full")
    for name in PARAMS:
        for moment in ("mu", "nu"):
            leaves = [getattr(state, moment)[name] for state in (full, short, back)]
            assert [x.dtype for x in leaves] == [jnp.float32, jnp.bfloat16, jnp.float32]
            a, b, c = map(np.float64, leaves)
            np.testing.assert_array_equal(b, c)
            error = (b - a) / 2.0 ** np.floor(np.log2(np.abs(a)))
            assert np.abs(error).max() < 2.0**-7
            assert np.abs(error).max() > 2.0**-8  # further than to nearest
            assert abs(error.mean()) < 2.0**-7 * 6 * 0.4 / np.sqrt(a.size)


def test_it_rounds_by_other_bits_than_the_step_before():
    grads = {"w": jnp.asarray(gradients(1)["w"][0])}
    _, full = fa.update(grads, fa.init(grads), b1=B1, b2=B2)
    fresh = fa.init(grads, moments="bfloat16")
    _, stepped = fa.update(grads, fresh, b1=B1, b2=B2, moments="bfloat16")
    found = converted(full, "bfloat16", grads)
    # Of two independent roundings, up with a chance p, 2 p (1 - p) differ: a third, on average.
    for a, b in ((found.mu, stepped.mu), (found.nu, stepped.nu)):
        assert 0.25 < np.mean(np.float32(a["w"]) != np.float32(b["w"])) < 0.42


def test_full_with_dtypes_of_its_own():
    short = converted(after(50), fa.Full(mu_dtype="bfloat16"))
    assert (short.mu["w"].dtype, short.nu["w"].dtype) == (jnp.bfloat16, jnp.float32)
    assert_same(short.nu, after(50).nu)
    assert_same(short.mu["w"], after(50).mu["w"].astype(jnp.bfloat16))


@pytest.mark.parametrize("moments", ["int8", "bfloat16", "full"])
def test_a_converted_state_is_as_init_makes_it_but_for_its_numbers(moments):
    full = after(50, "compensated")
    new = converted(full, moments)
    fresh = fa.init(PARAMS, moments=format_named(moments), rounding="compensated")
    assert jax.tree.structure(new) == jax.tree.structure(fresh)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), state) for state in (new, fresh)]
    assert shapes[0] == shapes[1]
    assert int(new.count) == 50
    assert_same(new.residual, full.residual)
    assert np.asarray(full.residual["short"]).any()


def test_full_to_full_changes_nothing():
    assert_same(converted(after(50), "full"), after(50))


@pytest.mark.parametrize(("moments", "most"), [("int8", 0.08), ("bfloat16", 0.015)])
def test_a_run_goes_on_close_to_the_one_in_float32(moments, most):
    grads = gradients(150)["w"]
    truth = reference.adam(grads, b1=B1, b2=B2).updates[50:]
    tx, params = fa.adam(b1=B1, b2=B2, moments=format_named(moments)), {"w": PARAMS["w"]}
    full = after(50)
    full = full._replace(mu={"w": full.mu["w"]}, nu={"w": full.nu["w"]})
    state = converted(full, moments, params)

    def body(state, g):
        u, state = tx.update({"w": g}, state)
        return state, u["w"]

    rest = jnp.asarray(grads[50:])  # `after` saw the others
    _, updates = quick_jit(lambda s, g: jax.lax.scan(body, s, g))(state, rest)
    error = np.float64(updates) - truth
    for part in (error[:5], error):
        assert np.sqrt(np.mean(part**2)) <= most * np.sqrt(np.mean(truth**2))


COLUMNS = {(512,): 1e-2, (128, 4): 1e-3, (3, 3, 16, 4): 1e-2, (4,): 1e-2, (8,): 1e-3}


@functools.cache
def columns():
    """(float32 state after 300 steps, the next 30 gradients, their updates): small 4th columns."""
    rng, grads = np.random.default_rng(60), {}
    for shape, small in COLUMNS.items():
        size = np.where(np.arange(shape[-1]) % 4 == 3, small, 1)
        grads[str(shape)] = np.float32(rng.standard_normal((330, *shape)) * size)
    size = np.exp(1.5 * rng.standard_normal(8))
    grads["any"] = np.float32(rng.standard_normal((330, 8)) * size)
    truth = {name: reference.adam(g, b1=B1, b2=B2) for name, g in grads.items()}
    full = fa.init({name: jnp.asarray(g[0]) for name, g in grads.items()})._replace(
        count=jnp.int32(300),
        mu={name: jnp.float32(x.mu[299]) for name, x in truth.items()},
        nu={name: jnp.float32(x.nu[299]) for name, x in truth.items()},
    )
    rest = {name: g[300:] for name, g in grads.items()}
    return full, rest, {name: x.updates[300:] for name, x in truth.items()}


def test_small_columns_leave_the_large_ones_their_moments():
    # Saturated at four octaves above the small ones, v came out at 0.002 of itself.
    full, grads, truth = columns()
    tx = fa.adam(b1=B1, b2=B2, moments=CODES)
    state = converted(full, "int8", full.mu)
    run = quick_jit(lambda s, g: jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], s, g)[1])
    updates = run(state, jax.tree.map(jnp.asarray, grads))
    v = converted(state, "full", full.mu).nu
    for name, u in truth.items():
        kept = np.float64(v[name]) / np.float64(full.nu[name])
        # 20 octaves of v below the scale, codes of its root are 1/8 octave apart.
        assert (7 / 8) ** 2 <= kept.min() <= kept.max() <= (9 / 8) ** 2, name
        error = np.sqrt(np.mean((updates[name] - u) ** 2) / np.mean(u**2))
        assert error <= 0.05, name


def test_what_cannot_be_in_8_bits_is_refused_or_nan_and_never_set_going_again():
    params = {"w": jnp.ones(128)}
    v = np.full(128, 0.31, np.float32)
    v[[3, 40]], v[7] = np.inf, np.nan
    m = np.full(128, 0.02, np.float32)
    m[[3, 7, 40]], m[90] = 0, np.nan
    state = fa.init(params)._replace(
        count=jnp.int32(5), mu={"w": jnp.asarray(m)}, nu={"w": jnp.asarray(v)}
    )
    for held in (state, fa.convert_moments(state, params, moments="bfloat16")):
        message = (
            r"state.nu\['w'\] has 2 infinite elements of 128, which moments=\"int8\" cannot store"
        )
        with pytest.raises(ValueError, match=message):
            fa.convert_moments(held, params, moments=CODES)
    infinite = state._replace(nu=state.mu, mu=state.nu)
    with pytest.raises(ValueError, match=r"state.mu\['w'\] has 2 infinite elements of 128"):
        fa.convert_moments(infinite, params, moments=CODES)

    def stopped(state):
        updates = []
        for _ in range(2):
            u, state = fa.update({"w": jnp.ones(128)}, state, moments=CODES)
            updates.append(u["w"])
        return np.isnan(np.float32(updates)).all(axis=0), np.isfinite(updates).all(axis=0)

    nan, finite = stopped(converted(state, "int8", params))  # under jit, where nothing can raise
    assert np.flatnonzero(nan).tolist() == [3, 7, 40, 90]
    assert (nan ^ finite).all()
    # NaN alone raises nothing and stays.
    only = state._replace(nu={"w": jnp.where(jnp.isinf(v), 0.2, v)})
    nan, finite = stopped(fa.convert_moments(only, params, moments=CODES))
    assert np.flatnonzero(nan).tolist() == [7, 90]
    assert (nan ^ finite).all()
