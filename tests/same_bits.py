"""The comparison of trees bit by bit."""

import jax
import numpy as np


def bits(tree):
    return [np.asarray(x).reshape(-1).view(f"u{x.dtype.itemsize}") for x in jax.tree.leaves(tree)]


def assert_same_bits(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for path_and_x, y in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        path, x = path_and_x
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_array_equal(*bits((x, y)), err_msg=jax.tree_util.keystr(path))
