"""The rows of a batch: each once, sums as of a dense gradient, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from same_bits import assert_same_bits
from tables import start

import functional_adam as fa
from functional_adam._rows.batch import distinct

HEIGHT = 6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_sums_have_the_bits_of_a_dense_gradient(dtype):
    rng = np.random.default_rng(3)
    rows = jnp.asarray(rng.integers(0, HEIGHT + 2, 40), jnp.int32)
    grads = jnp.asarray(rng.normal(size=(40, 3)) * np.exp(4 * rng.normal(size=(40, 3))), dtype)
    slots, sums = jax.jit(distinct, static_argnums=2)(grads, rows, HEIGHT)
    dense = jnp.zeros((HEIGHT, 3), dtype).at[rows].add(grads)
    found = jnp.zeros((HEIGHT, 3), dtype).at[slots].set(sums, mode="drop")
    assert_same_bits(found, dense)
    whole = np.zeros((HEIGHT + 2, 3))  # and in another order the bits are others
    np.add.at(whole, np.asarray(rows), np.asarray(grads, np.float64))
    if dtype == jnp.float32:
        assert np.any(np.asarray(dense) != whole[:HEIGHT].astype(np.float32))


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([4, 1, 4, 0], [0, 1, 4, 9]),
        ([6, 5, 99, 5], [5, 7, 8, 9]),
        ([6, 7, 8, 2**31 - 1], [6, 7, 8, 9]),
        ([-1, 3, -(2**31), 3], [3, 7, 8, 9]),
        ([2, 2, 2, 2], [2, 7, 8, 9]),
    ],
)
def test_slots_rise_and_are_all_different(rows, wanted):
    slots, sums = distinct(jnp.ones((4, 1)), jnp.asarray(rows, jnp.int32), HEIGHT)
    np.testing.assert_array_equal(slots, wanted)
    times = [rows.count(slot) for slot in wanted if slot < HEIGHT]
    np.testing.assert_array_equal(sums[: len(times), 0], times)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_integers_of_any_size(dtype, x64):
    rows = np.array([3, 200, 3, 299, 255], np.int64).astype(
        dtype
    )  # of 300, which uint8 ends before
    slots, _ = distinct(jnp.ones((5, 1)), jnp.asarray(rows), 300)
    assert slots.dtype == np.int32
    kept = sorted({int(row) for row in rows})
    np.testing.assert_array_equal(slots[: len(kept)], kept)


@pytest.mark.usefixtures("strict")
def test_batches_of_any_shape_are_one_batch():
    table = start((HEIGHT, 2))
    state = fa.init_rows(table)
    rows = np.array([[3, 1, 3], [0, 5, 6]])
    grads = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    flat = fa.update_rows(grads.reshape(6, 2), rows.ravel(), state, table, learning_rate=0.3)
    assert_same_bits(fa.update_rows(grads, rows, state, table, learning_rate=0.3), flat)
    lists = fa.update_rows(grads, rows.tolist(), state, table, learning_rate=0.3)
    assert_same_bits(lists, flat)
    changed = np.any(np.asarray(flat[0]) != table, axis=1)
    np.testing.assert_array_equal(changed, [True, True, False, True, False, True])


def test_no_rows_are_a_step():
    table = start((HEIGHT, 2))
    state = fa.init_rows(table)
    after, later = fa.update_rows(jnp.zeros((0, 2)), [], state, table, weight_decay=0.3)
    assert_same_bits(after, table)
    assert int(later.count) == 1
    assert_same_bits(later._replace(count=state.count), state)


def test_traced_negative_rows_are_dropped_not_wrapped():
    table = start((HEIGHT, 2))
    step = jax.jit(lambda rows: fa.update_rows(jnp.ones((2, 2)), rows, fa.init_rows(table), table))
    after, state = step(jnp.array([-1, 2]))
    changed = np.any(np.asarray(after != table), axis=1)
    np.testing.assert_array_equal(changed, np.arange(HEIGHT) == 2)
    np.testing.assert_array_equal(state.extra["last"], np.arange(HEIGHT) == 2)


GRADS, ROWS = np.ones((2, 3), np.float32), np.array([1, 4])
TABLE = np.ones((HEIGHT, 3), np.float32)
OTHER = fa.init_rows(np.ones((HEIGHT, 2), np.float32))
STATE = fa.init_rows(TABLE)
SHORT = STATE._replace(extra={"last": np.zeros(5, np.int32)})
WIDE = np.zeros((60, 100), np.float32)
MISTAKES = {
    "negative": (dict(rows=np.array([1, -2])), ValueError, r"got -2. Write jnp.where\(rows < 0, 6"),
    "negative-jax": (dict(rows=jnp.array([-3, 2])), ValueError, "rows must be .* got -3"),
    "float": (dict(rows=np.array([1.0, 2.0])), TypeError, "rows must be an array of integers.*flo"),
    "mask": (dict(rows=np.array([True, False])), TypeError, "rows must be .*; got bool"),
    "one-number": (dict(rows=1), TypeError, "rows must be an array of integers.*got 1 of type int"),
    "width": (dict(row_grads=GRADS[:, :2]), ValueError, r"row_grads has shape \(2, 2\), .* \(2, 3"),
    "length": (dict(row_grads=np.ones((3, 3))), ValueError, r"row_grads has shape \(3, 3\)"),
    "dense": (dict(row_grads=TABLE), ValueError, r"gradient of the whole table.*row_grads\[rows\]"),
    "integers": (dict(row_grads=np.ones((2, 3), int)), TypeError, "row_grads must be a float"),
    "complex": (dict(row_grads=GRADS * 1j), TypeError, "row_grads is complex64"),
    "plain-state": (dict(state=fa.init(TABLE)), TypeError, r"extra\['last'\].*init_rows\(table\)"),
    "no-state": (dict(state={"mu": 1}), TypeError, "state must count the steps of each row"),
    "swapped": (dict(state=TABLE, table=STATE), TypeError, "must be one array.* The order is"),
    "rows-first": (
        dict(row_grads=np.array([1, 2]), rows=GRADS),
        TypeError,
        "rows must be an array of integers.*got float32. The order is update_rows",
    ),
    "other-table": (dict(state=OTHER), ValueError, "state is of another table"),
    "height": (dict(table=TABLE[:-1]), ValueError, r"table has shape \(5, 3\).*\(6, 3\)"),
    "tree": (dict(table={"a": TABLE}), TypeError, "table must be one array.*for each table"),
    "scalar": (dict(table=np.float32(3)), ValueError, "table must have rows"),
    "counters": (
        dict(state=SHORT),
        ValueError,
        r"state.extra\['last'\] must be int32 of shape \(6",
    ),
    "catch-up": (dict(catch_up="exact"), ValueError, "catch_up must be 'lazy' or .*; got 'exact'"),
    "rates": (dict(catch_up="dense", b1=0.95, b2=0.9), ValueError, "b1\\*\\*2 < b2; got b1=0.95"),
    "moments": (dict(moments="bfloat16"), ValueError, 'moments="full", but moments="bfloat16"'),
    "rate": (dict(learning_rate=-1.0), ValueError, "learning_rate must be"),
    "argument": (dict(lr=0.1), TypeError, "Write learning_rate=0.1 instead of lr=0.1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    given, error, message = MISTAKES[name]
    arguments = dict(row_grads=GRADS, rows=ROWS, state=STATE, table=TABLE) | given
    with pytest.raises(error, match=message):
        fa.update_rows(**arguments)


def test_mistakes_in_init_and_flush():
    with pytest.raises(ValueError, match="at least 32 elements; got rows of 3"):
        fa.init_rows(np.ones((5000, 3), np.float32), moments="int8")
    with pytest.raises(ValueError, match=r"rows of 20\. .*Int8\(block_size=16\)"):
        fa.init_rows(np.ones((5000, 20), np.float32), moments="int8")
    assert fa.init_rows(np.ones((5000, 20)), moments=fa.Int8(block_size=16)).nu_scale is not None
    with pytest.raises(TypeError, match="table must be one array"):
        fa.init_rows([TABLE])
    with pytest.raises(TypeError, match="table must be a float"):
        fa.init_rows(np.ones((3, 2), int))
    with pytest.raises(ValueError, match='"lazy" rows miss nothing'):
        fa.flush_rows(STATE, TABLE, catch_up="lazy")
    with pytest.raises(TypeError, match="catch_up"):
        fa.flush_rows(STATE, TABLE)
    held = fa.init_rows(WIDE, moments="int8")
    with pytest.raises(ValueError, match=r'moments="int8", but moments="full"'):
        fa.flush_rows(held, WIDE, catch_up="dense")
    with pytest.raises(ValueError, match=r"extra holds the trees \['last'\]"):
        fa.update(TABLE, STATE)
