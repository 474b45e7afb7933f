"""The 8-bit codes against tables made here in float64 from their documented picture."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from int8_functions import ratio, ratio_code, root, root_code
from int8_tables import ratio_table, root_table

from functional_adam._storage import noise

RANDOM = np.random.default_rng(20).integers(0, 2**32, 4, dtype=np.uint32)
BITS = [0, 2**32 - 1, *map(int, RANDOM)]
SCALES = [1, 2, 90, 119, 126, 127, 200, 253]
UNITS = [1, 2, 101, 126, 127, 130, 200, 252]


def encoded(w, e, bits):
    """Codes of a vector w in one block of scale e."""
    w = jnp.asarray(w, jnp.float32)[None]
    random = jnp.broadcast_to(jnp.asarray(bits, jnp.uint32), w.shape)
    return np.asarray(root_code(w, jnp.uint8([e]), random))[0]


def ratio_encoded(r, bits, e=127, bound=np.inf):
    """Codes of a vector r in one block of unit e."""
    r = jnp.asarray(r, jnp.float32)[None]
    random = jnp.broadcast_to(jnp.asarray(bits, jnp.uint32), r.shape)
    return np.asarray(ratio_code(r, jnp.uint8([e]), jnp.float32(bound), random))[0]


# Values -------------------------------------------------------------------------------------------


def test_a_root_that_is_nan_has_the_largest_code_whatever_its_sign():
    w = np.array([0x7FC00000, 0xFFC00000, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert encoded(w, 127, 0).tolist() == [255] * 3


@pytest.mark.parametrize("e", SCALES)
def test_root_codes_stand_for_the_documented_values(e):
    codes = jnp.arange(256, dtype=jnp.uint8)[None]
    got = np.asarray(root(codes, jnp.uint8([e])))[0]
    np.testing.assert_array_equal(got, root_table(e).astype(np.float32))
    assert (np.diff(got) > 0).all()


def test_the_table_ends_where_the_documentation_says():
    # The octave's end at 2**((e + 1 - 127) / 2), 1.5 for sqrt(2), and 13.75 octaves of w below.
    assert root_table(132)[255] == 8
    assert root_table(133)[255] == 12
    assert root_table(126)[[127, 31]].tolist() == [2.0**-4, 2.0**-10]
    assert math.log2(root_table(126)[1]) == pytest.approx(-13.75, abs=0.09)  # linear in an octave


@pytest.mark.parametrize("e", UNITS)
def test_ratio_codes_stand_for_the_documented_values(e):
    codes = np.arange(-128, 128).astype(np.int8)
    got = np.asarray(ratio(codes[None], jnp.uint8([e])))[0]
    want = ratio_table()
    want = np.concatenate([-want[:0:-1], want]) * 2.0 ** (e - 127)
    want[np.abs(want) < 2.0**-126] = 0  # flushed, as everywhere
    assert np.isnan(got[0])
    np.testing.assert_array_equal(got[1:], want)
    assert want[-1] == 2.0 ** (e - 127)
    assert (np.diff(got[1:]) > 0).all() or e < 10


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("e", SCALES)
def test_what_a_root_code_stands_for_becomes_that_code(e, bits):
    np.testing.assert_array_equal(encoded(root_table(e), e, bits), np.arange(256))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("e", UNITS[2:])
def test_what_a_ratio_code_stands_for_becomes_that_code(e, bits):
    codes = np.arange(-128, 128).astype(np.int8)
    table = ratio_table() * 2.0 ** (e - 127)
    values = np.concatenate([[np.nan], -table[:0:-1], table])
    np.testing.assert_array_equal(ratio_encoded(values, bits, e), codes)


# Rounding -----------------------------------------------------------------------------------------


def neighbours(table, x):
    """The codes at or below and at or above each x, by search through a table that rises."""
    above = np.argmax(table[None] >= x[:, None], axis=1)
    return above - (table[above] > x), above


@pytest.mark.parametrize("e", SCALES)
def test_a_root_is_rounded_to_one_of_its_two_neighbours(e):
    rng = np.random.default_rng(e)
    table = root_table(e)
    w = (table[255] * 2.0 ** -rng.uniform(0, 13.6, 4000)).astype(np.float32).astype(np.float64)
    low, high = neighbours(table, w)
    found = np.stack([encoded(w, e, rng.integers(0, 2**32, w.size)) for _ in range(8)])
    assert ((found == low) | (found == high)).all()
    np.testing.assert_array_equal(encoded(w, e, 0), high)
    down = (table[high] - w) / np.where(high > low, table[high] - table[low], 1) > 1e-4
    np.testing.assert_array_equal(encoded(w, e, 2**32 - 1)[down], low[down])


@pytest.mark.parametrize("e", UNITS[2:])
def test_a_ratio_is_rounded_to_one_of_its_two_neighbours(e):
    rng = np.random.default_rng(e)
    table = np.concatenate([-ratio_table()[:0:-1], ratio_table()]) * 2.0 ** (e - 127)
    r = np.concatenate([rng.uniform(-1, 1, 2000), 0.2 * rng.standard_normal(2000)])
    r = (np.clip(r, -1, 1) * 2.0 ** (e - 127)).astype(np.float32)
    low, high = (codes - 127 for codes in neighbours(table, r))
    found = np.stack([ratio_encoded(r, rng.integers(0, 2**32, r.size), e) for _ in range(8)])
    assert ((found == low) | (found == high)).all()
    assert (found != low).any(axis=0).mean() > 0.8  # both, not always the same one
    assert (found != high).any(axis=0).mean() > 0.8


@pytest.mark.parametrize("bits", BITS)
def test_no_code_stands_for_more_than_the_bound(bits):
    rng = np.random.default_rng(6)
    for e, bound in [(127, 0.77), (128, 1.165), (130, 7.273), (129, 3.1), (126, 0.0021)]:
        table = ratio_table() * 2.0 ** (e - 127)
        last = table[table <= np.float32(bound)].max()
        r = bound * rng.uniform(0.9, 1.0, 300)
        r[0] = bound
        sizes = table[np.abs(ratio_encoded(np.concatenate([r, -r]), bits, e, bound))]
        assert sizes.max() == last
        # What is below the last one is rounded as without a bound.
        free = r < last
        want = ratio_encoded(r, bits, e)[free]
        np.testing.assert_array_equal(ratio_encoded(r, bits, e, bound)[free], want)


COUNTS, ELEMENTS = 100_000, 256


@functools.cache
def mean_codes():
    """Mean decoded w and r of each value over all counts, each at places of its own."""
    w = root_table(133)[[250, 200, 128, 100, 25]]
    above = root_table(133)[[251, 201, 129, 101, 26]]
    r = np.array([0.0033, 0.05, -0.0577, 0.15, -0.31, 0.777]) * 8
    w = w + np.array([0.37, 0.02, 0.71, 0.5, 0.9]) * (above - w)
    w32 = jnp.broadcast_to(jnp.float32(w)[:, None], (len(w), ELEMENTS))
    r32 = jnp.broadcast_to(jnp.float32(r)[:, None], (len(r), ELEMENTS))
    scales = jnp.full(len(w), 133, jnp.uint8)
    units = jnp.full(len(r), 130, jnp.uint8)

    def body(sums, count):
        drawn = noise.step_noise(count)
        key = jnp.uint32(12345)
        nu = noise.random_bits(drawn, key, w32.shape).nu
        mu = noise.random_bits(drawn, key, r32.shape).mu
        # Sums of codes are whole numbers, exact; a value's codes are two, one step apart.
        codes = root_code(w32, scales, nu), ratio_code(r32, units, jnp.inf, mu)
        return jax.tree.map(lambda a, c: a + c.astype(jnp.int32), sums, codes), None

    start = jnp.zeros(w32.shape, jnp.int32), jnp.zeros(r32.shape, jnp.int32)
    sums, _ = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(1, COUNTS + 1)))(start)
    return w, r, *(np.asarray(s) / COUNTS for s in sums)


def place(table, x):
    """The code, with its fraction, at which a table read linearly is x."""
    return np.interp(x, table, np.arange(len(table)))


def test_roots_are_rounded_without_bias():
    w, _, codes, _ = mean_codes()
    error = codes - place(root_table(133), np.float32(w).astype(np.float64))[:, None]
    # A window of 64 counts leaves at most half a code's standard deviation: 2e-4 in all, and a
    # sixteenth of that over places.
    assert np.abs(error).max() < 1e-3
    assert np.abs(error.mean(axis=1)).max() < 1e-4


def test_ratios_are_rounded_without_bias():
    _, r, _, codes = mean_codes()
    table = np.concatenate([-ratio_table()[:0:-1], ratio_table()]) * 8
    error = codes - (place(table, np.float32(r).astype(np.float64)) - 127)[:, None]
    assert np.abs(error).max() < 2.5e-3  # windows of 8: 6e-4 is one standard deviation
    assert np.abs(error.mean(axis=1)).max() < 1.5e-4


# Ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_the_ends_of_the_roots(bits):
    table = root_table(101)
    below, above = table[1] * np.array([0.999, 1e-3, 1e-9]), table[255] * np.array([1.001, 3, 1e9])
    assert encoded([0.0], 101, bits).tolist() == [0]
    assert encoded(below, 101, bits).tolist() == [1, 1, 1]
    assert encoded(above, 101, bits).tolist() == [255, 255, 255]
    assert encoded([np.inf, np.nan], 101, bits).tolist() == [255, 255]


@pytest.mark.parametrize("bits", BITS)
def test_the_ends_of_the_ratios(bits):
    values = [0.0, -0.0, 4.0, 4.3, np.inf, -4.1, -np.inf, np.nan, -np.nan]
    want = [0, 0, 127, 127, 127, -127, -127, -128, -128]
    assert ratio_encoded(values, bits, 129).tolist() == want
    # A block of zeros has no unit, and NaN needs none.
    assert ratio_encoded([0.0, np.nan], bits, 0).tolist() == [0, -128]
    got = np.asarray(ratio(np.int8([[0, -128, 127]]), jnp.uint8([0])))
    np.testing.assert_array_equal(got, [[0, np.nan, 0]])
