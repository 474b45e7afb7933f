"""Stores that a flat dict goes through, and the comparison of trees bit by bit."""

import functools
import io

import jax
import numpy as np
import safetensors.flax
import safetensors.numpy

import functional_adam as fa

HEADER, DIGEST = "functional_adam.header", "functional_adam.sha256"
RATES = {"b1": 0.83, "b2": 0.971, "eps": 0.02}


def npz(flat, save=np.savez):
    file = io.BytesIO()
    save(file, **flat)
    return file.getvalue()


def read_npz(data):
    return np.load(io.BytesIO(data), allow_pickle=False)


STORES = {
    "dict": (dict, dict),
    "npz": (npz, read_npz),
    "npz_compressed": (functools.partial(npz, save=np.savez_compressed), read_npz),
    "safetensors": (safetensors.numpy.save, safetensors.numpy.load),
    "safetensors_flax": (safetensors.flax.save, safetensors.flax.load),
}


def through(store, tree, target=None):
    save, load = STORES[store]
    return fa.from_state_dict(
        load(save(fa.to_state_dict(tree))), tree if target is None else target
    )


def bits(x):
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert bits(x) == bits(y)
