"""The random bits that rounding goes by: even over the steps, unrelated otherwise, one use each."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_floats import SHORT, enclosing, every, step, stochastic

import functional_adam as fa
from functional_adam._storage import noise as N

pytestmark = pytest.mark.usefixtures("strict")


@pytest.mark.parametrize(("bits", "salt"), [(6, 1), (3, 2), (6, 3), (6, 0x9C3E5A11)])
def test_every_window_of_counts_takes_each_part_of_the_interval_once(bits, salt):
    windows = 500
    counts = jnp.arange(windows << bits, dtype=jnp.uint32)
    drawn = np.asarray(jax.jit(lambda t: N._shuffled(t, bits, salt))(counts))
    parts = (drawn >> np.uint32(32 - bits)).reshape(windows, -1)
    np.testing.assert_array_equal(np.sort(parts, axis=1), np.tile(np.arange(2**bits), (windows, 1)))
    orders = {tuple(row) for row in parts}
    assert len(orders) > 0.4 * windows  # shuffled anew
    # And what follows the part is the window's own, anywhere.
    offsets = (drawn & np.uint32(2 ** (32 - bits) - 1)).reshape(windows, -1)
    assert (offsets == offsets[:, :1]).all()
    assert abs(offsets[:, 0].mean() / 2 ** (32 - bits) - 0.5) < 0.05


MORE = "mu_slow", "mu_slower"


def flat(streams):
    """{name: bits} of a StepNoise or of RandomBits, those in `extra` included."""
    found = streams._asdict()
    return {name: np.asarray(x) for name, x in (found | found.pop("extra")).items()}


def correlation(a, b):
    """In standard errors of that of unrelated numbers."""
    return np.corrcoef(np.float64(a).ravel(), np.float64(b).ravel())[0, 1] * np.sqrt(a.size)


def test_the_draws_differ():
    drawn = flat(jax.jit(jax.vmap(lambda t: N.step_noise(t, MORE)))(jnp.arange(1, 1000)))
    assert list(drawn) == ["nu", "mu", "code", "theta", *MORE]
    for a, b in itertools.combinations(drawn.values(), 2):
        assert a.dtype == b.dtype == np.uint32
        assert abs(correlation(a, b)) < 4
        assert (a == b).mean() < 0.01


@pytest.mark.parametrize(
    "key", [pytest.param(k, marks=pytest.mark.slow) for k in (0, 1)] + [0xDEADBEEF]
)
def test_all_streams_of_a_step_are_uniform_and_unrelated(key):
    shape = 64, 1024
    phases = flat(
        jax.jit(lambda key: N.random_bits(N.step_noise(jnp.int32(9), MORE), key, shape))(
            jnp.uint32(key)
        )
    )
    phases = {name: x / 2.0**32 for name, x in phases.items()}
    for x in phases.values():
        expected = x.size / 256
        seen = np.bincount((x * 256).astype(int).ravel(), minlength=256)
        assert ((seen - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
        for lag in (1, 2, 3, 16, 128, 1024):
            flattened = x.ravel()
            assert abs(correlation(flattened[:-lag], flattened[lag:])) < 6
        assert len(np.unique(x)) > 0.999 * x.size
    for a, b in itertools.combinations(phases.values(), 2):
        assert abs(correlation(a, b)) < 6


def test_a_parameters_bits_of_one_step_tell_nothing_of_the_next():
    steps, n = 1024, 1024
    of_step = jax.jit(jax.vmap(lambda t: N.random_bits(N.step_noise(t), 5, (n,)).theta))
    drawn = np.asarray(of_step(jnp.arange(1, steps + 1)))
    x = drawn / 2.0**32
    z = (x - x.mean()) / x.std()
    for table in (z, z.T):  # any two steps over the elements, any two elements over the steps
        off = (table @ table.T / n**0.5)[np.triu_indices(n, 1)]
        assert abs(off.std() - 1) < 0.02
        assert np.abs(off).max() < 6.5
    for lag in (1, 2, 3, 8, 64, 128):  # windows would give -1/64 of a variance, 16 errors
        assert abs(correlation(z[:-lag], z[lag:])) < 5


def directions(tx, g, theta, b3=None):
    """Of all that the first step rounds, where it was rounded away from 0."""
    u, state = step(tx, np.float32(g), theta)
    params, g = fa.apply_updates(theta, u), np.float64(np.float32(g))
    if state.residual.dtype == jnp.int8:
        params = fa.master_params(params, state)
    mix = 0 if b3 is None else 3 * (1 - b3)
    goal = np.float64(theta) - 3e-3 * (1 + mix) * g / (np.abs(g) + 1e-3)
    rounded = {"mu": (state.mu, 0.17 * g), "nu": (state.nu, 0.03 * g * g), "theta": (params, goal)}
    if b3 is not None:
        rounded["mu_slow"] = state.extra["mu_slow"], (1 - b3) * g
    return {name: np.abs(np.float64(x)) > np.abs(exact) for name, (x, exact) in rounded.items()}


def test_no_two_things_that_one_step_rounds_share_their_bits():
    # Where two share theirs, both are rounded up together more often than not: 0.3 of a variance,
    # 40 standard errors.
    n, hyper = 2**14, dict(b1=0.83, b2=0.97, eps=1e-3, moments="bfloat16")
    g, short = np.random.default_rng(38).standard_normal(n), SHORT["bfloat16"]
    theta = np.random.default_rng(39).uniform(1, 1.9, n).astype(short)
    adam = functools.partial(fa.adam, 3e-3, **hyper)
    for found in (
        directions(
            fa.ademamix(3e-3, b3=0.97, alpha=3.0, **hyper, rounding="stochastic"), g, theta, 0.97
        ),
        directions(adam(rounding="compensated"), g, theta),
        directions(adam(rounding="compensated"), np.abs(g) * 1e-4, np.ones(n, short)),
    ):
        for (a, x), (b, y) in itertools.combinations(found.items(), 2):
            assert 0.2 < x.mean() < 0.8, a
            assert abs(correlation(x, y)) < 5, (a, b)


def test_both_codes_of_an_8_bit_step_are_rounded_by_bits_of_their_own():
    first, second = np.random.default_rng(43).standard_normal((2, 128, 128)).astype(np.float32)
    params, tx = jnp.zeros((128, 128)), fa.adam(3e-3, b1=0.83, b2=0.97, moments="int8")

    def decoded(state):  # m and sqrt(v)
        full = fa.convert_moments(state, params, moments="full")
        return np.float64(full.mu), np.sqrt(np.float64(full.nu))

    # The second step: after the first all ratios are the largest that there can be.
    _, state = tx.update(first, tx.init(params))
    m, w = decoded(state)
    m, w = 0.83 * m + 0.17 * second, np.sqrt(0.97 * w**2 + 0.03 * np.float64(second) ** 2)
    m_found, w_found = decoded(tx.update(second, state)[1])
    ratio_is_up, root_is_up = m_found / w_found > m / w, w_found > w
    assert 0.2 < ratio_is_up.mean() < 0.8
    assert 0.2 < root_is_up.mean() < 0.8
    assert abs(correlation(ratio_is_up, root_is_up)) < 5


def test_a_conversion_rounds_by_other_bits_than_the_step_before_it():
    # By the same, what the step rounded up would be rounded up again. All are half-way points.
    n, path = 2**14, "['w']"
    x = np.full(n, 1 + 2.0**-8, np.float32)
    state = fa.init({"w": jnp.zeros(n)})._replace(
        count=jnp.int32(7), mu={"w": jnp.asarray(x)}, nu={"w": jnp.asarray(x)}
    )
    random = N.random_bits(N.step_noise(jnp.int32(7)), N.leaf_key(path), (n,))
    found = fa.convert_moments(state, {"w": jnp.zeros(n)}, moments="bfloat16")
    for stored, own in ((found.mu, random.mu), (found.nu, random.nu)):
        of_step = np.float32(stochastic(x, "bfloat16", own)) > x
        assert abs(correlation(np.float32(stored["w"]) > x, of_step)) < 5


def test_the_bits_of_an_element_are_those_of_its_place_in_the_leaf():
    drawn, key = N.step_noise(jnp.int32(7), MORE), jnp.uint32(99)
    line, folded = (flat(N.random_bits(drawn, key, shape)) for shape in ((60,), (3, 4, 5)))
    for name, x in line.items():
        np.testing.assert_array_equal(x, np.ravel(folded[name]))


def test_a_fraction_is_strictly_inside_the_unit_interval():
    x = np.concatenate([[0, 2**32 - 1], np.arange(0, 2**32, 65_537)]).astype(np.uint32)
    got = np.float64(jax.jit(N.fraction)(jnp.asarray(x)))
    assert got.min() >= 2.0**-15
    assert got.max() <= 1 - 2.0**-15
    assert np.abs(got - x / 2.0**32).max() <= 2.0**-14


@pytest.mark.parametrize("maximum", ["after_correction", "before_correction"])
def test_a_maximum_is_rounded_down_and_therefore_never_above_what_it_is_of(maximum):
    # Rounded up now and then, it would keep that for good, step after step.
    rng, grid = np.random.default_rng(42), every("bfloat16").astype(np.float64)
    g, v, v_max = (rng.uniform(1, 2, 2000) for _ in "gvm")
    v, v_max = v.astype(SHORT["bfloat16"]), v_max.astype(SHORT["bfloat16"])
    tx = fa.amsgrad(b2=0.83, moments="bfloat16", maximum=maximum)
    state = tx.init(jnp.zeros(2000))._replace(
        count=jnp.int32(2), nu=jnp.asarray(v), extra={"nu_max": jnp.asarray(v_max)}
    )
    _, state = jax.jit(tx.update)(jnp.asarray(g, jnp.float32), state)
    new = 0.83 * v.astype(np.float64) + 0.17 * np.float64(np.float32(g)) ** 2
    new /= 1 - 0.83**3 if maximum == "after_correction" else 1
    wanted, _ = enclosing(grid, np.maximum(new, v_max.astype(np.float64)))
    np.testing.assert_array_equal(np.float64(state.extra["nu_max"]), wanted)
