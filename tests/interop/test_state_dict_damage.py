"""Damaged files: no flipped bit and no truncated file is taken for the state."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from state_dict_stores import HEADER, STORES, assert_same_bits

import functional_adam as fa


class Outcome(NamedTuple):
    refused: int
    identical: int


def outcome(store, damaged, tree):
    """How many of these files are refused, and how many give every bit back."""
    load = STORES[store][1]
    refused = identical = 0
    for data in damaged:
        try:
            restored = fa.from_state_dict(load(data), tree)
        except Exception:
            refused += 1
        else:
            assert_same_bits(restored, tree)
            identical += 1
    return Outcome(refused, identical)


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


SMALL = fa.AdamState(
    np.int32(3), {"w": np.float32([0.1, -2])}, {"w": np.array([3, 0.5], jnp.bfloat16)}
)
FILES = {store: STORES[store][0](fa.to_state_dict(SMALL)) for store in ("npz", "safetensors")}


@pytest.mark.parametrize("store", FILES)
def test_no_flipped_bit_is_taken_for_the_state(store):
    data = FILES[store]
    some = np.random.default_rng(5).choice(8 * len(data), 700, replace=False)
    found = outcome(store, (flipped(data, int(bit)) for bit in some), SMALL)
    assert sum(found) == 700
    # A zip file has time stamps and the like, which no one reads.
    assert found.refused >= (700 if store == "safetensors" else 500)


@pytest.mark.parametrize("store", FILES)
def test_no_truncated_file_is_taken_for_the_state(store):
    data = FILES[store]
    lengths = np.linspace(0, len(data) - 1, 150).astype(int)
    found = outcome(store, (data[:length] for length in lengths), SMALL)
    assert found == Outcome(refused=150, identical=0)


def test_the_digests_alone_refuse_every_flipped_bit_of_every_array():
    flat = fa.to_state_dict(SMALL)
    tried = 0
    for name, array in flat.items():
        for bit in range(8 * array.nbytes):
            raw = np.frombuffer(flipped(array.tobytes(), bit), array.dtype).reshape(array.shape)
            with pytest.raises(ValueError, match="was changed after to_state_dict"):
                fa.from_state_dict({**flat, name: raw}, SMALL)
            tried += 1
    assert tried == 8 * (4 + 8 + 4 + flat[HEADER].nbytes + 32)
