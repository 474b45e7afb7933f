"""Any tree, shape, dtype and hyperparameters: the update is the reference's, and types stay."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = st.sampled_from([np.float32, np.complex64, jnp.bfloat16, np.float16])


class Spec(NamedTuple):
    """A leaf to be drawn."""

    shape: tuple
    dtype: np.dtype


LEAVES = st.none() | st.builds(Spec, SHAPES, DTYPES)
TREES = st.recursive(
    LEAVES,
    lambda children: (
        st.lists(children, max_size=3)
        | st.tuples(children, children)
        | st.dictionaries(st.sampled_from("abc"), children, max_size=3)
    ),
    max_leaves=5,
)
HYPER = st.fixed_dictionaries(
    {
        "learning_rate": st.floats(1e-4, 2),
        "b1": st.floats(0, 0.99),
        "b2": st.floats(0, 0.9999),
        "eps": st.floats(1e-6, 1),
        "eps_root": st.floats(0, 1),
        "weight_decay": st.floats(0.001, 2),
    }
)


def is_leaf(x):
    return x is None or isinstance(x, Spec)


def draw(rng, tree):
    def leaf(spec):
        if spec is None:
            return None
        shape, dtype = spec
        value = rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4)
        if dtype == np.complex64:
            value = value + 1j * rng.standard_normal(shape)
        return jnp.asarray(value, dtype)

    return jax.tree.map(leaf, tree, is_leaf=is_leaf)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def wide(x):
    return np.asarray(x).astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(tree=TREES, hyper=HYPER, nesterov=st.booleans(), seed=st.integers(0, 2**31))
def test_the_update_is_the_references_in_any_tree(tree, hyper, nesterov, seed):
    rng = np.random.default_rng(seed)
    params = draw(rng, tree)
    tx = fa.adamw(**hyper, nesterov=nesterov)
    state = tx.init(params)
    kept, structure = avals(state), jax.tree.structure(state)
    history = []
    for _ in range(3):
        grads = draw(rng, tree)
        history.append(grads)
        updates, state = tx.update(grads, state, params)
        assert avals(state) == kept
        assert jax.tree.structure(state) == structure
        assert jax.tree.structure(updates) == jax.tree.structure(grads)
    assert avals(fa.apply_updates(params, updates)) == avals(params)

    columns = zip(
        *(jax.tree.leaves(x) for x in (params, updates, state.mu, state.nu, *history)), strict=True
    )
    alpha, decay = hyper["learning_rate"], hyper["weight_decay"]
    no_decay = hyper | {"weight_decay": 0.0, "nesterov": nesterov}
    for p, u, mu, nu, *grads in columns:
        truth = reference.adam(np.stack([wide(g) for g in grads]), **no_decay)
        want = truth.updates[-1] - alpha * decay * wide(p)
        assert u.dtype == grads[0].dtype
        # 1e-5 of the terms that are added, and the rounding to the update's dtype.
        size = np.abs(truth.updates[-1]) + alpha * decay * np.abs(wide(p))
        unit = float(jnp.finfo(u.dtype).eps)
        tiny = float(jnp.finfo(u.dtype).tiny)
        assert (np.abs(wide(u) - want) <= 1e-5 * size + unit * np.abs(want) + tiny).all()
        m_size = max((np.abs(wide(g)).max(initial=0) for g in grads), default=0)
        np.testing.assert_allclose(mu, truth.mu[-1], rtol=1e-5, atol=1e-6 * m_size + 1e-30)
        np.testing.assert_allclose(nu, truth.nu[-1], rtol=1e-5, atol=1e-30)
