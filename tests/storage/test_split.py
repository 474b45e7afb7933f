"""rounding="split": float32 weights in two halves of 16 bits, and training that is float32's."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from codes import format_named
from format_runs import assert_same_bits, normal
from modes import switched
from short_floats import SHORT, every, pairs, unit

import functional_adam as fa
from functional_adam._storage.residual import master
from functional_adam._storage.rounding import ROUNDINGS, round_update

pytestmark = pytest.mark.usefixtures("strict")


@jax.jit
def landed(x, theta):
    """Parameter and residual, from the parameter theta on, as `apply_updates` has the first."""
    u, code = round_update(ROUNDINGS["split"], x, theta, None)
    return fa.apply_updates(theta, u), code


def halves(x, dtype, theta=None):
    """The same as NumPy arrays; from the nearest number on, unless `theta` says from which."""
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):
        theta = x.astype(dtype) if theta is None else theta
    new, code = landed(jnp.asarray(x), jnp.asarray(theta))
    assert (new.dtype, code.dtype, code.shape) == (dtype, np.int16, x.shape)
    return np.asarray(new), np.asarray(code), np.asarray(master(new, code))


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


# The halves --------------------------------------------------------------------------------------

LOWER = [0, 1, 0x1234, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xBEEF, 0xFFFE, 0xFFFF]


def every_upper():
    """float32 weights with each upper half, down to 2**-118, and some lower ones.

    Where XLA flushes subnormal numbers, updates of smaller weights are lost.
    """
    upper = np.arange(0x0480, 0x7F7F, dtype=np.uint32)[:, None] << 16
    size = np.concatenate([(upper | np.array(LOWER, np.uint32)).ravel(), [0]]).astype(np.uint32)
    return np.concatenate([size, size | np.uint32(2**31)]).view(np.float32)


def test_two_halves_of_bfloat16_are_the_weight_to_its_last_bit():
    x = every_upper()
    theta, code, weight = halves(x, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bits(weight), bits(x))
    half_way = bits(x) & 0xFFFF == 0x8000
    nearest = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(theta[~half_way], nearest[~half_way])
    # Half-way the larger of both, where the even one is the smaller in half of all cases.
    rise = np.abs(np.float64(theta[half_way])) - np.abs(np.float64(x[half_way]))
    np.testing.assert_array_equal(rise, unit(x[half_way], "bfloat16") / 2)
    assert np.mean(theta[half_way] != nearest[half_way]) == pytest.approx(0.5, abs=1e-3)
    assert (code.min(), code.max()) == (-(2**15), 2**15 - 1)


def test_halves_of_float16_are_the_weight_where_its_numbers_are_normal():
    random = np.random.default_rng(5)
    x = np.concatenate([
        np.float32(random.normal(size=20_000) * np.exp2(random.uniform(-16, 14, 20_000))),
        np.float32(every("float16")).clip(-65504, 65504),
    ])  # fmt: skip
    theta, _, weight = halves(x, np.float16)
    np.testing.assert_array_equal(theta, x.astype(np.float16))
    large = np.abs(x) >= 2.0**-16
    np.testing.assert_array_equal(weight[large], x[large])
    assert 0.5 < large.mean() < 1
    assert np.abs(np.float64(weight) - np.float64(x)).max() <= 2.0**-40
    x = np.float32([1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 - 2.0**-12, 2 - 2.0**-23])
    theta, code, weight = halves(x, np.float16)
    np.testing.assert_array_equal(theta, np.float32([1, 1 + 2.0**-9, 1, 2]))
    np.testing.assert_array_equal(code, [2**14, -(2**14), -(2**13), -2])
    np.testing.assert_array_equal(weight, x)


@pytest.mark.parametrize("name", SHORT)
def test_what_is_no_number_or_too_large_has_no_residual(name):
    dtype = SHORT[name]
    largest = np.float64(ml_dtypes.finfo(dtype).max)
    inside, outside = np.float32(largest + unit(largest, name) * np.array([0.49, 0.5]))
    x = np.float32([np.nan, np.nan, np.inf, -np.inf, outside, -outside])
    x[:2] = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)  # one more would be -0
    theta, code, weight = halves(x, dtype, np.full(6, 1.5, dtype))
    wanted = np.float32([np.nan, np.nan, *[np.inf, -np.inf] * 2])
    np.testing.assert_array_equal(np.float32(theta), wanted)
    np.testing.assert_array_equal(weight, wanted)
    assert not code.any()
    again, code, _ = halves(x, dtype, theta)  # and so it stays
    np.testing.assert_array_equal(np.float32(again), wanted)
    assert not code.any()
    theta, _, weight = halves([inside, -inside, -0.0, 0.0], dtype)
    np.testing.assert_array_equal(np.float32(theta), np.float32([largest, -largest, 0, 0]))
    np.testing.assert_array_equal(weight, np.float32([inside, -inside, 0, 0]))


@pytest.mark.parametrize("name", SHORT)
def test_an_update_lands_on_the_nearest_number_from_anywhere(name):
    """From weights of all sizes to others, to near 0 and to just beside themselves."""
    random, n = np.random.default_rng(11), 30_000
    low = -14 if name == "float16" else -100
    theta = (random.normal(size=n) * np.exp2(random.uniform(low, 12, n))).astype(SHORT[name])
    wide = np.float32(theta)
    x = np.concatenate([
        np.float32(random.normal(size=n) * np.exp2(random.uniform(low, 12, n))),
        wide * np.float32(1 + random.normal(size=n) * 2.0**-8),
        wide + -wide * np.float32(1 + random.normal(size=n) * np.exp2(random.uniform(-24, -5, n))),
    ])  # fmt: skip
    theta = np.resize(theta, x.shape)
    within = (np.abs(x) < 60_000) & (np.abs(x) > 1e-35)
    x, theta = x[within], theta[within]
    new, code, weight = halves(x, SHORT[name], theta)
    alone, own_code, own = halves(x, SHORT[name])
    # An update of float32 reaches no nearer to 0 than its own spacing.
    near = np.abs(x) < np.abs(np.float32(theta)) * 2.0**-12
    assert 0.1 < near.mean() < 0.7
    for a, b in ((new, alone), (code, own_code), (weight, own)):
        np.testing.assert_array_equal(a[~near], b[~near])
    off = np.abs(np.float64(weight) - np.float64(x))
    least = 2.0**-40 if name == "float16" else 0.0
    assert (off <= np.abs(np.float64(theta)) * 2.0**-24 + least).all()


# Training ----------------------------------------------------------------------------------------

HYPER = dict(learning_rate=2e-3, b1=0.83, b2=0.97)
STREAMS = {
    "constant": lambda t, noise: np.ones_like(noise),
    "to and fro": lambda t, noise: np.full_like(noise, (-1) ** t),
    "growing": lambda t, noise: noise * np.float32(1.02**t),
    "every 55": lambda t, noise: noise * (t % 55 == 3),
}
SETTINGS = [("full", 0.0), ("bfloat16", 0.1), ("int8", 0.0), ("full", 0.1)]


def nearest_half(w):
    """float32 weights in bfloat16 as the loss reads them: half-way away from 0."""
    upper = (bits(w).astype(np.uint64) + 0x8000).astype(np.uint32) & np.uint32(0xFFFF0000)
    return upper.view(np.float32).astype(ml_dtypes.bfloat16)


def cast_for_the_loss(w):
    """`nearest_half` of a traced weight."""
    upper = (jax.lax.bitcast_convert_type(w, jnp.uint32) + 0x8000) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(upper, jnp.float32).astype(jnp.bfloat16)


@pairs(("stream", "setting"), list(STREAMS), SETTINGS)
def test_weights_are_those_of_float32_in_every_bit(stream, setting):
    """By `update` and by `step`; float32's by `update`, from the same gradients."""
    moments, weight_decay = setting
    make = functools.partial(
        fa.adamw, **HYPER, weight_decay=weight_decay, moments=format_named(moments)
    )
    split, wide = make(rounding="split"), make()
    params = jnp.asarray(normal(8, 250, seed=3), jnp.bfloat16)
    ours, by_step = ((params, split.init(params)) for _ in range(2))
    theirs = params.astype(jnp.float32), wide.init(params.astype(jnp.float32))
    update, update_wide = jax.jit(split.update), jax.jit(wide.update)
    step = jax.jit(lambda p, s, g: fa.step(split, g, s, p))
    for t in range(120):
        g = STREAMS[stream](t, normal(8, 250, seed=100 + t)).astype(ml_dtypes.bfloat16)
        u, state = update(g, ours[1], ours[0])
        assert u.dtype == jnp.float32
        ours = fa.apply_updates(ours[0], u), state
        by_step = step(*by_step, g)
        u, state = update_wide(np.float32(g), theirs[1], theirs[0])
        theirs = fa.apply_updates(theirs[0], u), state
    for found, state in (ours, by_step):
        np.testing.assert_array_equal(fa.master_params(found, state), theirs[0])
        np.testing.assert_array_equal(found, nearest_half(theirs[0]))
        np.testing.assert_array_equal(state.nu, theirs[1].nu)
    assert np.mean(np.float32(found) != np.asarray(theirs[0])) > 0.9


def stepped(tx, params, state, grads):
    return fa.step(tx, grads, state, params)


def transformer():
    """The byte transformer that benchmarks/low_memory.py trains."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        return pytest.importorskip("baselines").TASKS["transformer"]
    finally:
        sys.path.pop(0)


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["full", "int8"])
def test_a_transformer_trains_as_with_float32_weights_cast_in_the_loss(moments):
    with switched("jax_numpy_dtype_promotion", "standard"):  # the benchmark's own arithmetic
        task = transformer()
        rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 50, 1000)
        make = functools.partial(fa.adamw, rate, b1=0.88, b2=0.99, moments=moments)
        txs = make(rounding="split", weight_decay=0.1), make(weight_decay=0.1)
        half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), task.init(jax.random.key(3)))
        starts = half, jax.tree.map(lambda p: p.astype(jnp.float32), half)
        (ours, state), (theirs, other) = (
            (p, tx.init(p)) for p, tx in zip(starts, txs, strict=True)
        )
        step, wide_step = (jax.jit(functools.partial(stepped, tx)) for tx in txs)
        gradient = jax.jit(jax.value_and_grad(task.loss))
        in_the_loss = jax.jit(functools.partial(jax.tree.map, cast_for_the_loss))
        data, losses = task.load()[0], []
        for t in range(1000):
            batch = task.batch(data, jax.random.key(t))
            loss, grads = gradient(ours, batch)
            ours, state = step(ours, state, grads)
            wanted, grads = gradient(in_the_loss(theirs), batch)
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            theirs, other = wide_step(theirs, other, grads)
            assert loss == wanted, t
            losses.append(float(loss))
        assert np.mean(losses[-50:]) < 0.6 * losses[0]
        assert_same_bits(fa.master_params(ours, state), theirs)
        assert_same_bits(state.nu, other.nu)


def test_steps_of_a_billionth_of_a_weight_are_lost_as_in_float32_and_larger_ones_are_not():
    params = jnp.asarray([1.5, -1.5], jnp.bfloat16)
    for rate, moved in ((2.0**-22, 400 * 2.0**-22), (2.0**-26, 0.0)):
        tx = fa.adam(rate, b1=0.7, b2=0.9, rounding="split")
        body = lambda kept, _, tx=tx: (fa.step(tx, jnp.ones(2), kept[1], kept[0]), None)  # noqa: E731
        end, _ = jax.jit(lambda kept, f=body: jax.lax.scan(f, kept, length=400))(
            (params, tx.init(params))
        )
        weights = np.float64(fa.master_params(*end))
        np.testing.assert_allclose(weights, np.float64(params) - moved, rtol=0, atol=moved / 50)


# In a state --------------------------------------------------------------------------------------


def test_a_state_of_another_rounding_is_refused_and_begins_anew():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}
    txs = {name: fa.adam(0.1, rounding=name) for name in ROUNDINGS}
    states = {name: tx.init(params) for name, tx in txs.items()}
    assert (states["split"].residual["w"].dtype, states["split"].residual["b"]) == (np.int16, None)
    for held, asked, message in [
        ("compensated", "split", r"residual\['w'\] must be int16 codes; got int8 codes: the state"),
        ("split", "compensated", r"residual\['w'\] must be int8 codes; got int16 codes"),
        ("stochastic", "split", r"residual\['w'\] must be codes; got a zero"),
        ("split", "stochastic", r"residual\['w'\] must be a zero; got codes"),
        ("nearest", "split", r"residual\['w'\] is None"),
        ("split", "nearest", r'is a tree, but rounding="nearest" was given.*and "split"'),
    ]:
        with pytest.raises(ValueError, match=message):
            txs[asked].update(params, states[held], params)
    anew = states["compensated"]._replace(residual=states["split"].residual)
    txs["split"].update(params, anew, params)
    cut = states["split"]._replace(residual={"w": jnp.zeros(6, jnp.int16), "b": None})
    with pytest.raises(ValueError, match=r"residual\['w'\] must be int16 of shape \(2, 3\)"):
        txs["split"].update(params, cut, params)
    with pytest.raises(ValueError, match=r"residual\['w'\] must be int16 of shape \(2, 3\)"):
        fa.master_params(params, cut)
    with pytest.raises(ValueError, match=r'Write rounding="split"'):
        fa.adam(rounding="master weights")
    with pytest.raises(ValueError, match=r'rounding="split" needs the parameters'):
        txs["split"].update(params, states["split"])


def test_nothing_random_is_made_for_full_moments():
    params = jnp.ones((4, 8), jnp.bfloat16)
    texts = {}
    for name in ROUNDINGS:
        tx = fa.adam(0.1, rounding=name)
        texts[name] = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    random = {name: "u32" in text for name, text in texts.items()}
    assert random == {"nearest": False, "stochastic": True, "compensated": True, "split": False}


def test_members_of_a_vmap_are_those_alone():
    tx = fa.adamw(**HYPER, weight_decay=0.1, rounding="split")
    params = jnp.asarray(normal(3, 4, 50, seed=7), jnp.bfloat16)
    grads = jnp.asarray(normal(5, 3, 4, 50, seed=8), jnp.bfloat16)

    def run(params, grads):
        body = lambda kept, g: (fa.step(tx, g, kept[1], kept[0]), None)  # noqa: E731
        return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

    found, state = jax.jit(jax.vmap(run, in_axes=(0, 1)))(params, grads)
    for n in range(3):
        alone, own = jax.jit(run)(params[n], grads[:, n])
        np.testing.assert_array_equal(found[n], alone)
        np.testing.assert_array_equal(state.residual[n], own.residual)
