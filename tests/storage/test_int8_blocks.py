"""The blocks of the 8-bit codes: their layout, their scales and their units."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from int8_functions import divisor, scale, unit
from int8_tables import root_table

from functional_adam._storage import int8

# Blocks -------------------------------------------------------------------------------------------

SHAPES = [
    (),
    (0,),
    (0, 5),
    (5, 0),
    (3,),
    (130,),
    (5, 128),
    (4, 300),
    (64, 3, 3, 3),
    (7, 1),
    (1000, 1),
    (50257,),
    (64, 512),
    (2, 3, 100, 31),
]


@pytest.mark.parametrize("block_size", [16, 48, 128, 1024])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_hold_every_element_once_and_no_more_than_their_size(shape, block_size):
    scales = int8.blocks(shape, block_size)
    x = np.arange(1, math.prod(shape) + 1).reshape(shape)
    pieces = np.asarray(int8.split(jnp.asarray(x), scales))
    assert pieces.shape[:-1] == (scales if scales[-1] != 1 else scales[:-1])
    assert pieces.shape[-1] <= block_size
    np.testing.assert_array_equal(int8.join(jnp.asarray(pieces), scales, shape), x)
    # Elements stay in order, each once, and what is added is 0.
    np.testing.assert_array_equal(pieces[pieces > 0], x.ravel())
    assert pieces.shape[: len(scales) - 1] == shape[: len(scales) - 1]


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((), (1,)),
        ((130,), (2,)),
        ((64, 512), (64, 4)),
        ((3, 64, 512), (3, 64, 4)),
        ((4, 300), (4, 3)),
        ((64, 8, 3, 3), (64, 1)),  # 9 elements are too few, 72 are not
        ((64, 3, 3, 3), (14,)),  # and neither are 27
        ((1000, 1), (8,)),
        ((5, 32), (5, 1)),
        ((5, 31), (2,)),
    ],
    ids=str,
)
def test_leading_axes_are_kept_and_short_ones_merged(shape, scales):
    assert int8.blocks(shape, 128) == scales


@pytest.mark.parametrize("shape", [(128,), (5, 256), (3, 7, 128), (2, 384)], ids=str)
def test_every_128_elements_share_two_bytes(shape):
    assert math.prod(int8.blocks(shape, 128)) * 128 == math.prod(shape)


# Scales -------------------------------------------------------------------------------------------


def exponent(v):
    """The biased exponent of float32."""
    return math.frexp(float(np.float32(v)))[1] + 126


def test_a_scale_is_the_octave_of_the_largest_of_a_fresh_block():
    rng = np.random.default_rng(1)
    v = np.exp(4 * rng.standard_normal((60, 128)) * rng.uniform(0, 2, (60, 1))).astype(np.float32)
    # Four of the largest's size, or it would be a spike.
    spot = v.argmax(axis=1)
    for shift in (1, 2, 3):
        v[np.arange(60), (spot + shift) % 128] = v.max(axis=1)
    want = [exponent(row.max()) for row in v]
    np.testing.assert_array_equal(scale(v, jnp.zeros(60, jnp.uint8)), want)


def test_the_largest_code_is_above_the_largest_of_the_block():
    # Rounding up must find a code to go to. An octave ends at 2 v, or at 9/4 v with 1.5 for sqrt 2.
    v = np.float32(2.0 ** np.random.default_rng(2).uniform(-20, 20, (50, 1))) * np.ones((1, 128))
    top = np.array([root_table(int(e))[255] for e in scale(v, jnp.zeros(50, jnp.uint8))])
    assert (top**2 >= v[:, 0]).all()
    assert (top**2 <= 2.25 * v[:, 0]).all()


def test_a_scale_falls_at_once_and_rises_by_four_octaves():
    v = np.full((3, 128), 3.3, np.float32)
    v[:, 77] = 3.3e4
    old = jnp.uint8([250, exponent(3.3e4) - 2, exponent(3.3)])
    want = [exponent(3.3e4), exponent(3.3e4), exponent(3.3) + 4]
    np.testing.assert_array_equal(scale(v, old), want)


SPIKES = [1e10, 1e37, np.inf, np.nan]


@pytest.mark.parametrize("spot", [0, 15, 16, 127])
@pytest.mark.parametrize("spike", SPIKES)
def test_one_spike_raises_a_scale_by_four_octaves_or_twelve_at_first(spike, spot):
    rng = np.random.default_rng(3)
    v = rng.uniform(0.3, 0.9, (2, 128)).astype(np.float32)
    v[:, spot] = spike
    others = exponent(np.delete(v[0], spot).max())
    rises = np.array([12, 4]) if np.isfinite(spike) else 0
    np.testing.assert_array_equal(scale(v, jnp.uint8([0, others])), others + rises)


@pytest.mark.parametrize("size", [3e9, 7e30])
@pytest.mark.parametrize(("number", "rise"), [(1, 4), (3, 4), (4, 12), (8, 12), (9, None)])
def test_the_number_of_groups_that_rose_says_how_far_a_scale_may(number, rise, size):
    # A group is every 32nd element. Nine of 32 are more than a quarter: no spikes, but a new block.
    v = np.random.default_rng(4).uniform(0.51, 0.9, (5, 128)).astype(np.float32)
    for i, row in enumerate(v):
        row[np.random.default_rng(i).permutation(32)[:number] + 32 * (i % 4)] = size
    want = exponent(size) if rise is None else exponent(0.7) + rise
    np.testing.assert_array_equal(scale(v, jnp.full(5, exponent(0.7), jnp.uint8)), want)


def plain_scale(v, old, lasting):
    """The rule of docs/memory.md for one block, by sorting."""
    groups = math.gcd(len(v), 32)
    finite = np.where(np.isfinite(v), v, 0).reshape(-1, groups).max(axis=0)
    sizes = sorted((exponent(x) for x in finite if x), reverse=True)
    if not sizes:
        return 0
    few, rose = len(sizes) < 16, sum(e > old + 4 for e in sizes)
    bound = old + (4 if few or rose < len(sizes) / 8 else 12)
    if rose >= len(sizes) / 8 if few else rose > len(sizes) / 4:
        usual = sizes[min(1, len(sizes) - 1)] if few else sizes[3]
        bound = max(bound, usual + (20 if few or lasting else 12))
    return min(sizes[0], bound, 253)


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("length", [16, 48, 96, 128, 400])
def test_scales_are_those_of_the_plain_rule(length, lasting):
    rng = np.random.default_rng(length)
    v = np.exp2(rng.normal(rng.uniform(-30, 30, (200, 1)), rng.choice([0.5, 3, 12], (200, 1))))
    v = np.repeat(v, length, 1) * np.exp2(
        rng.normal(0, rng.choice([1, 5], (200, 1)), (200, length))
    )
    v = np.where(rng.random(v.shape) < rng.choice([0, 0.02, 0.3], (200, 1)), v * 2.0**25, v)
    v = np.where(rng.random(v.shape) < rng.choice([0, 0.5, 0.97], (200, 1)), 0, v)
    v = np.where(rng.random(v.shape) < rng.choice([0, 0.02], (200, 1)), np.inf, v)
    v = np.float32(v)
    old = np.clip(np.vectorize(exponent)(v.mean(axis=1)) % 253 + rng.integers(-25, 9, 200), 0, 253)
    old = np.where(rng.random(200) < 0.2, 0, old).astype(np.uint8)
    want = [plain_scale(*pair, lasting) for pair in zip(v, old.tolist(), strict=True)]
    np.testing.assert_array_equal(scale(v, old, lasting=lasting), want)


def test_three_spikes_of_many_sizes_are_spikes_in_a_new_block_too():
    v = np.random.default_rng(4).uniform(0.3, 0.9, (2, 128)).astype(np.float32)
    v[:, [7, 26, 121]] = [3e9, 1e12, 7e20]
    others = exponent(np.delete(v[0], [7, 26, 121]).max())
    np.testing.assert_array_equal(scale(v, jnp.uint8([0, others])), [others + 12, others + 4])


def arrangements(length):
    """Where the large ones of a block are, an eighth of it or more: every n-th, runs, anywhere."""
    place, rng = np.arange(length), np.random.default_rng(length)
    found = [place % n == k for n in (2, 4, 8) for k in (0, n - 1)]
    found += [place % n != n - 1 for n in (2, 4, 8, 16)]
    found += [place < length // n for n in (2, 4, 8)] + [place >= length - length // 8]
    found += [place // 16 % 2 == 1, place // 4 % 8 == 3]
    return np.array(found + [rng.permutation(place) < length // n for n in (2, 4, 8, 8, 8)])


@pytest.mark.parametrize("length", [128, 256, 1024])
@pytest.mark.parametrize("lasting", [False, True])
def test_no_arrangement_of_columns_hides_the_largest_of_a_new_block(length, lasting):
    large = arrangements(length)
    sizes = [10.0**-k for k in (2, 4, 6, 8, 12)]
    v = np.float32([np.where(large, 0.41, 0.41 * s) for s in sizes])
    got = scale(v, jnp.zeros(v.shape[:-1], jnp.uint8), lasting=lasting)
    np.testing.assert_array_equal(got, exponent(0.41))
    # A block that was all small, 1e-2 of it, follows as well: four groups or more rose.
    old = jnp.full(v.shape[1:-1], exponent(0.41e-2), jnp.uint8)
    np.testing.assert_array_equal(scale(v[0], old), exponent(0.41))


@pytest.mark.parametrize("number", [1, 2, 4, 8, 15])
def test_few_elements_are_followed_to_twenty_octaves_above_the_second_largest(number):
    v = np.zeros((4, 16), np.float32)
    v[:, :number] = 0.3
    v[:, 0] = 0.3 * 2.0 ** np.array([0, 9, 20, 33])
    want = exponent(0.3) + np.array([0, 9, 20, 33 if number == 1 else 20])
    np.testing.assert_array_equal(scale(v, jnp.zeros(4, jnp.uint8)), want)


def test_lasting_values_are_followed_to_twenty_octaves_above_the_fourth_largest():
    v = np.full((3, 128), 0.3, np.float32)
    v[:, [5, 38, 90]] = 0.3 * 2.0 ** np.array([[11], [20], [33]])
    old = jnp.zeros(3, jnp.uint8)
    np.testing.assert_array_equal(scale(v, old, lasting=True) - exponent(0.3), [11, 20, 20])
    np.testing.assert_array_equal(scale(v, old) - exponent(0.3), [11, 12, 12])


def test_a_spike_is_told_from_one_that_stays():
    # Step by step the scale comes after it, 4 octaves at a time.
    v = np.full((1, 128), 1.7e-3, np.float32)
    v[0, 5] = 1.1e3
    old, seen = jnp.uint8([exponent(1.7e-3)]), []
    for _ in range(6):
        old = scale(v, old)
        seen.append(int(old[0]) - exponent(1.7e-3))
    assert seen == [4, 8, 12, 16, 20, 20]  # 1.1e3 is 2**10.1, 1.7e-3 is 2**-9.2


def test_blocks_of_zeros_have_scale_0_and_a_lone_number_sets_it():
    v = np.zeros((3, 128), np.float32)
    v[1, 3] = 0.37
    v[2] = 0.37
    want = [0, exponent(0.37), exponent(0.37)]
    np.testing.assert_array_equal(scale(v, jnp.zeros(3, jnp.uint8)), want)
    assert scale(v[:1], jnp.uint8([200])).tolist() == [0]


def test_scales_end_below_float32s():
    v = np.full((2, 128), 3e38, np.float32)
    assert scale(v, jnp.uint8([0, 253])).tolist() == [253, 253]


# Units --------------------------------------------------------------------------------------------


def test_a_unit_is_just_above_the_largest_ratio_of_its_block():
    rng = np.random.default_rng(7)
    for size in (16, 48, 128, 400):
        octaves = rng.uniform(-30, 30, (300, 1))
        v = np.float32(2.0 ** (octaves + rng.uniform(-2, 2, (300, size))))
        m = rng.standard_normal((300, size)) * np.sqrt(v) * 2.0 ** rng.uniform(-20, 4, (300, 1))
        m = m.astype(np.float32)
        largest = (np.abs(m) / np.sqrt(v.astype(np.float64))).max(axis=1)
        found = 2.0 ** (np.asarray(unit(m, v, jnp.zeros(300, jnp.uint8))).astype(int) - 127)
        assert (found > largest).all()
        assert (found <= 2.5 * largest).all()


def test_every_mantissa_fits_into_its_unit():
    # The logarithm in the bits is linear within an octave: all pairs of what it makes of them.
    part = np.arange(256) / 256
    v = np.float32(np.concatenate([1 + part, 2 + 2 * part]))[:, None]
    m = np.float32(np.concatenate([1 + part, [2 - 2.0**-22]]))[None]
    m, v = (np.repeat(np.broadcast_to(x, (512, 257)).reshape(-1, 1), 16, 1) for x in (m, v))
    r = (m / np.sqrt(v.astype(np.float64)))[:, 0]
    found = 2.0 ** (np.asarray(unit(m, v, jnp.zeros(len(v), jnp.uint8))).astype(int) - 127)
    assert (found > r).all()
    assert (found <= 2.5 * r).all()


def test_only_numbers_have_a_unit():
    v, m = np.full((6, 128), 0.31, np.float32), np.full((6, 128), 0.1, np.float32)
    m[0], v[1], m[2, 5], v[3, 5], v[4, 5], v[5, 5] = 0, 0, np.nan, np.inf, np.nan, 0
    m[3, 5], m[4, 5], m[5, 5] = 1e30, 1e30, 1e30
    got = np.asarray(unit(m, v, jnp.zeros(6, jnp.uint8)))
    assert got.tolist() == [0, 0, 125, 125, 125, 125]  # 0.18 is below 2**-2


def test_a_unit_counts_what_is_below_the_smallest_code_as_that():
    e = 133
    smallest = root_table(e)[1]
    w = smallest * np.array([1e-4, 0.03, 0.9, 1.0, 1.7, 40.0])
    got = np.asarray(divisor(np.float32(w)[None], jnp.uint8([e])))[0]
    np.testing.assert_array_equal(got, np.maximum(np.float32(w), np.float32(smallest)))
    v = np.float32(np.repeat(w[:, None] ** 2, 16, axis=1))
    m = np.float32(0.83 * np.repeat(w[:, None], 16, axis=1))
    r = m[:, 0] / np.maximum(w, smallest)
    found = 2.0 ** (np.asarray(unit(m, v, jnp.full(6, e, jnp.uint8))).astype(int) - 127)
    assert (found > r).all()
    assert (found <= 2.5 * r).all()
