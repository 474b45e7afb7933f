"""`skip_spikes`: which steps are off, against the rule in float64; what a mistake is told."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick_jit
from spike_runs import NAMES, Judge, rows_of, through

import functional_adam as fa
from functional_adam._equations.spikes import euclidean_norm

ADAM = fa.adam(0.03, b1=0.8, b2=0.97)


def noise(seed, n, mean=2.3, sd=0.2):
    return mean + sd * np.random.default_rng(seed).normal(size=n)


# ---- Which steps are off ----


def streams():
    """Losses and norms of 300 steps each, by what they are like."""
    x, norms = noise(0, 300), noise(1, 300, 0.7, 0.05)
    spikes = x.copy()
    spikes[[3, 40, 77, 150, 151, 290]] += [50, 9, 2, 4, 400, 1.1]
    high = norms.copy()
    high[[9, 41, 160, 161, 162]] *= [20, 3, 1e6, 4, 1.8]
    missing = spikes.copy()
    missing[[0, 1, 30, 100, 101, 102, 103, 104, 105, 106]] = np.nan
    missing[[2, 107, 299]] = np.inf, -np.inf, np.inf
    falling = 9.0 * np.exp(-np.arange(300) / 50) + 0.02 * x
    return {
        "quiet": (x, norms),
        "spikes": (spikes, high),
        "nan": (missing, np.where(np.arange(300) % 37 == 5, np.nan, norms)),
        "negative": (-spikes, high),
        "falling": (falling, norms),
        "rising": (0.01 * np.arange(300) + 0.1 * x, norms),
        "another level": (x + 7 * (np.arange(300) > 120), norms),
        "tiny": (1e-36 * spikes, 1e-30 * high),
        "huge": (1e35 * spikes, 1e30 * high),
    }


STREAMS = streams()
SETTINGS = [
    ("both", 6.0, 128, None, 10),
    ("loss", 3.3, 20, 5, 3),
    ("grad_norm", 4.0, 31, 40, 1),
    ("both", 2.5, 7, 2, 2),
]
JUDGES = {"both": NAMES, "loss": NAMES[:1], "grad_norm": NAMES[1:]}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s[0]}-{s[2]}")
def test_the_rule_is_that_of_float64(setting):
    judge, factor, window, warmup, most = setting
    tx = fa.skip_spikes(
        ADAM, judge=judge, factor=factor, window=window, warmup=warmup, max_consecutive=most
    )
    seen = {"skipped": 0, "forced": 0}
    for name, (losses, norms) in STREAMS.items():
        state, params = through(tx, losses, norms)
        least = warmup or window // 2
        wanted = Judge(JUDGES[judge], factor, window, least, most)
        numbers = {"losses": np.float32(losses), "grad_norms": np.float32(norms)}
        numbers = {field: numbers[field] for field in JUDGES[judge]}
        rows = [wanted.step(**{k: x[i] for k, x in numbers.items()}) for i in range(300)]
        assert wanted.margin > 1e-6, name  # what float32 could decide otherwise is not in there
        assert rows_of(state) == rows, name
        for field in NAMES:
            if field not in JUDGES[judge]:
                assert getattr(state, field) is None
                continue
            found = getattr(state, field)[-1]
            np.testing.assert_allclose(found, wanted.history(field), rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(state.inner_state.count, state.accepted)
        # Adam has no float32 for squares of tiny and huge ones; a loss says nothing of NaN in them.
        if name not in ("tiny", "huge") and (name, judge) != ("nan", "loss"):
            moves = np.any(np.diff(params, axis=0) != 0, axis=1)
            np.testing.assert_array_equal(moves, [row.last_accepted for row in rows[1:]])
        seen = {field: n + getattr(rows[-1], field) for field, n in seen.items()}
    assert min(seen.values()) >= 2


def test_a_level_that_has_moved_for_good_is_taken_after_a_few_forced_steps():
    # With a share p of the window at the new level x - mean = (1 - p) D and sd = sqrt(p (1 - p)) D:
    # x is within 6 sd from p = 1 / 37 on, and of 128 numbers that is the fourth.
    losses = np.where(np.arange(400) < 200, noise(2, 400, 1.0, 1e-3), noise(3, 400, 30.0, 1e-3))
    state, _ = through(fa.skip_spikes(ADAM, judge="loss"), losses, np.ones(400))
    assert state.skipped[-1] == 10
    assert state.forced[-1] == 4
    np.testing.assert_array_equal(np.flatnonzero(~state.last_accepted), range(200, 210))
    assert state.off_in_a_row[213] == 14
    assert state.off_in_a_row[-1] == 0


def test_nan_is_never_taken():
    losses = np.where(np.arange(60) < 40, 2.0, np.nan)
    tx = fa.skip_spikes(ADAM, judge="loss", window=8, max_consecutive=3)
    state, _ = through(tx, losses, np.ones(60))
    assert (state.accepted[-1], state.skipped[-1], state.forced[-1]) == (40, 20, 0)
    assert state.off_in_a_row[-1] == 20
    np.testing.assert_array_equal(state.losses[-1], np.full(8, 2.0))


def test_what_hardly_moves_is_not_skipped_for_its_rounding():
    losses = np.full(200, 2.5, np.float32)
    losses[100::7] = np.nextafter(np.float32(2.5), np.float32(9))
    losses[150] = 2.5 * (1 + 6 * 2**-10) - 1e-4
    losses[160] = 2.5 * (1 + 6.5 * 2**-10)
    state, _ = through(fa.skip_spikes(ADAM, judge="loss"), losses, np.ones(200))
    np.testing.assert_array_equal(np.flatnonzero(~state.last_accepted), [160])


@pytest.mark.parametrize(("dtype", "spread"), [(jnp.bfloat16, 2.0**-7), (jnp.float16, 2.0**-10)])
def test_a_coarse_loss_may_move_by_its_spacing(dtype, spread):
    tx = fa.skip_spikes(ADAM, judge="loss", window=4, warmup=3, factor=5.0)
    params = jnp.ones(2)
    step = quick_jit(lambda state, x: fa.step(tx, jnp.ones(2), state, params, value=x)[1])
    state = tx.init(params)
    for _ in range(4):
        state = step(state, dtype(1.5))
    for units, accepted in ((4.5, True), (5.5, False)):
        x = dtype(1.5 + 1.5 * units * spread)  # on the grid, or next to it
        assert bool(step(state, x).last_accepted) is accepted


def test_where_all_was_zero_nothing_is_far_above():
    norms = np.where(np.arange(20) < 12, 0.0, 3.0)
    tx = fa.skip_spikes(ADAM, judge="grad_norm", window=6, warmup=4)
    state, _ = through(tx, np.ones(20), norms)
    assert state.skipped[-1] == 0


def test_a_norm_that_is_given_is_taken_for_the_gradients():
    tx = fa.skip_spikes(ADAM, judge="grad_norm", window=5, warmup=2)
    state = tx.init(jnp.ones(2))
    step = quick_jit(lambda state, norm: tx.update(jnp.ones(2), state, grad_norm=norm)[1])
    for norm in (3.0, 3.1, 2.9, 400.0):
        state = step(state, norm)
    np.testing.assert_allclose(state.grad_norms, [0, 0, 3.0, 3.1, 2.9], rtol=1e-6)
    assert not state.last_accepted


# ---- The norm ----


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-9, 0.7, 1e9, 1e19, 1e30, 1e35])
def test_a_norm_is_right_wherever_float32_has_it(scale):
    rng = np.random.default_rng(5)
    parts = [scale * rng.normal(size=(30, 7)), 1e-3 * scale * rng.normal(size=11)]
    parts = [x.astype(np.float32) for x in parts]
    wanted = np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in parts))
    found = quick_jit(lambda *x: euclidean_norm(x))(*parts)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    found = euclidean_norm([jnp.asarray(x) for x in parts])  # without a trace
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_norm_is_over_whatever_is_differentiated():
    tx = fa.skip_spikes(optax.identity(), judge="grad_norm", window=2)
    grads = {
        "half": jnp.full(4, 6e4, jnp.float16),
        "complex": jnp.array([3e4 - 4e4j]),
        "none": None,
        "hole": optax.MaskedNode(),
        "frozen": np.zeros(3, jax.dtypes.float0),
    }
    grads["float"] = 7.0
    step = quick_jit(lambda g, state: tx.update({**grads, **g}, state)[1])
    state = step({}, tx.init(grads))
    wanted = np.sqrt(4 * float(np.float16(6e4)) ** 2 + 5e4**2 + 49)
    np.testing.assert_allclose(state.grad_norms[-1], wanted, rtol=1e-6)
    for bad in (np.nan, np.inf):
        state = step({"half": grads["half"].at[2].set(bad)}, state)
        assert not state.last_accepted


def test_float64_numbers_beyond_float32_are_finite(x64):
    tx = fa.skip_spikes(fa.adam(0.1), window=3, warmup=2)
    state, grads = tx.init(jnp.ones(2, jnp.float64)), jnp.array([1e200, 0.0])
    step = quick_jit(lambda state, loss: tx.update(grads, state, value=loss)[1])
    for _ in range(4):
        state = step(state, jnp.float64(-1e300))
    assert (int(state.accepted), state.losses.dtype) == (4, np.float32)
    assert np.all(np.isfinite(state.losses))


# ---- A transformation like others ----


def test_it_is_a_transformation_like_others():
    tx = fa.skip_spikes(fa.adamw(0.02), factor=4.5)
    again = fa.skip_spikes(fa.adamw(learning_rate=0.02), factor=4.5, warmup=64)
    assert tx == again
    assert hash(tx) == hash(again)
    assert tx != fa.skip_spikes(fa.adamw(0.02), factor=4.5, max_consecutive=9)
    assert tx != fa.skip_spikes(fa.adamw(0.03), factor=4.5)
    assert tx.init != tx.update
    assert repr(tx) == "skip_spikes(adamw(learning_rate=0.02), factor=4.5)"
    assert repr(tx.update) == f"{tx}.update"
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    copy = pickle.loads(pickle.dumps(tx))
    assert copy == tx
    assert repr(copy) == repr(tx)
    step = jax.jit(lambda tx, state: fa.step(tx, 1.0, state, 1.0, value=2.0), static_argnums=0)
    for one in (tx, again, copy):
        step(one, one.init(1.0))
    assert step._cache_size() == 1
    inner = optax.adam(0.1)
    assert fa.skip_spikes(inner) == fa.skip_spikes(inner)


def test_arguments_are_handed_on_to_what_takes_them():
    seen = []

    def update(grads, state, params=None, **extra):
        seen.append(extra)
        return grads, state

    init = lambda params: ()  # noqa: E731
    plain = optax.GradientTransformation(init, lambda g, s, p=None: (g, s))
    for inner in (optax.GradientTransformationExtraArgs(init, update), plain):
        tx = fa.skip_spikes(inner, judge="loss", window=2)
        for call in (tx.update, functools.partial(fa.step, tx)):
            call(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=3.0, other=4)
    assert len(seen) >= 2
    assert all(extra == {"value": 3.0, "other": 4} for extra in seen)
    ours = fa.skip_spikes(fa.adam(0.1))
    with pytest.raises(TypeError, match="b1 has no effect on the update of adam"):
        ours.update(jnp.ones(2), ours.init(jnp.ones(2)), jnp.ones(2), value=1.0, b1=0.3)


def test_a_step_is_differentiated_as_that_within():
    def end(rate, wrap):
        tx = wrap(fa.adam(rate, b1=0.7))
        theta = jnp.array([1.0, 0.0])
        state = tx.init(theta)
        for g in (jnp.zeros(2), jnp.array([0.3, -2.0])):  # a norm of 0 has no slope
            theta, state = fa.step(tx, g * theta[0], state, theta, value=theta[0])
        return jnp.sum(theta**2)

    slope = quick_jit(jax.grad(end), static_argnums=1)
    found = slope(0.1, fa.skip_spikes)
    np.testing.assert_allclose(found, slope(0.1, lambda tx: tx), rtol=1e-6)
    assert found != 0


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"factor": 0}, ValueError, r"factor must be a finite number > 0 or a JAX scalar; got 0"),
        ({"factor": -2.0}, ValueError, r"factor must be .* > 0"),
        ({"factor": np.nan}, ValueError, r"factor must be .* > 0"),
        ({"window": 0}, ValueError, r"window must be an integer >= 2; got 0\. A deviation needs"),
        ({"window": 1}, ValueError, r"window must be an integer >= 2; got 1"),
        ({"window": 64.0}, TypeError, r"window must be an integer >= 2; got 64\.0"),
        ({"warmup": 1}, ValueError, r"warmup must be an integer >= 2; got 1\. A deviation needs"),
        ({"max_consecutive": 0}, ValueError, r"max_consecutive must be an integer >= 1; got 0"),
        ({"judge": "norm"}, ValueError, r"judge must be 'both' or 'loss' or 'grad_norm'; "),
        (
            {"tx": fa.adam},
            TypeError,
            r"tx must be a transformation, such as adamw",
        ),
        ({"sigma_factor": 6}, TypeError, r"Did you mean factor=6\?"),
    ],
)
def test_a_bad_argument_is_named(arguments, error, said):
    with pytest.raises(error, match=said):
        fa.skip_spikes(**{"tx": ADAM, **arguments})


TX = fa.skip_spikes(ADAM, window=6)
STATE = TX.init(jnp.ones(2))


@pytest.mark.parametrize(
    ("state", "extra", "error", "said"),
    [
        (
            STATE,
            {},
            TypeError,
            r"judges steps by their loss: call tx.update\(grads",
        ),
        (
            STATE,
            {"value": jnp.ones(3)},
            ValueError,
            r"value must be one number; got .* \(3,\)",
        ),
        (STATE, {"value": "2.0"}, TypeError, r"value must be a real number; got '2.0'"),
        (STATE, {"value": 1j}, TypeError, r"value must be a real number; got 1j"),
        (
            STATE,
            {"value": 1.0, "grad_norm": jnp.ones(1)},
            ValueError,
            r"grad_norm must be one",
        ),
        (STATE.inner_state, {"value": 1.0}, TypeError, r"must be the SkipSpikesState that init"),
        (
            fa.skip_spikes(ADAM, window=7).init(jnp.ones(2)),
            {"value": 1.0},
            ValueError,
            r"state\.losses has shape \(7,\), but skip_spikes was called with window=6: keep the",
        ),
        (
            fa.skip_spikes(ADAM, window=6, judge="grad_norm").init(jnp.ones(2)),
            {"value": 1.0},
            ValueError,
            r"state\.losses is None, but skip_spikes was called with judge='both'",
        ),
    ],
)
def test_a_mistake_in_a_step_says_what_to_write(state, extra, error, said):
    for call in (TX.update, lambda *args, **extra: fa.step(TX, *args, **extra)):
        with pytest.raises(error, match=said):
            call(jnp.ones(2), state, jnp.ones(2), **extra)


def test_a_state_from_before_goes_on_as_messages_say():
    inner = ADAM.update(jnp.ones(2), ADAM.init(jnp.ones(2)))[1]
    state = TX.init(jnp.ones(2))._replace(inner_state=inner)
    _, state = TX.update(jnp.ones(2), state, jnp.ones(2), value=1.0)
    assert (int(state.inner_state.count), int(state.accepted)) == (2, 1)
