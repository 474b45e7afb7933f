"""A step with some gradients or none at all: what moves, and what counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from codes import CODES

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")

ABSENT = {
    "adamw": fa.adamw(lambda n: 0.02 / (1 + jnp.float32(n)), b1=0.83, b2=0.97, weight_decay=0.3),
    "adopt": fa.adopt(0.02, b1=0.83, b2=0.97),
    "amsgrad": fa.amsgrad(0.02, b1=0.83, b2=0.97, moments="bfloat16"),
    "int8": fa.adamw(0.02, b1=0.83, b2=0.97, moments=CODES, rounding="compensated"),
    "stochastic": fa.nadam(0.02, b1=0.83, b2=0.97, rounding="stochastic"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_step_without_any_gradient_is_none_at_all(name):
    tx = ABSENT[name]
    params = {"a": jnp.float32([1.0, -2.0]), "b": [jnp.ones((3, 2), jnp.bfloat16)], "c": None}
    grads = {"a": jnp.float32([0.3, -0.2]), "b": [jnp.full((3, 2), 0.7, jnp.bfloat16)], "c": None}
    state = tx.init(params)
    for i in range(3):
        if i == 1:
            none = {"a": None, "b": [None], "c": None}
            updates, after = jax.jit(tx.update)(none, state, params)
            jax.tree.map(np.testing.assert_array_equal, after, state)
            assert jax.tree.structure(after) == jax.tree.structure(state)
            stepped, _ = tx.update(grads, state, params)
            dtypes = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (updates, stepped)]
            assert dtypes[0] == dtypes[1]
            assert not any(map(np.any, jax.tree.leaves(updates)))
        _, state = tx.update(grads, state, params)
    assert state.count == 3


def test_a_partition_without_gradients_goes_on_as_if_it_had_waited():
    # Group "x" has a gradient in steps 0, 3 and 4 of five; torch's Adam corrects as of three steps.
    hyper = dict(learning_rate=0.02, b1=0.83, b2=0.97)
    tx = optax.partition({"x": fa.adam(**hyper), "y": fa.adam(**hyper)}, {"w": "x", "v": "y"})
    params = {"w": jnp.float32([1.0, -2.0]), "v": jnp.float32([0.5])}
    grads = np.float32([[0.3, -0.8], [1.1, 0.4], [-0.2, 0.9], [0.7, 0.1], [0.05, -1.3]])
    state, moved = tx.init(params), []
    for t, g in enumerate(grads):
        given = jnp.asarray(g) if t in (0, 3, 4) else None
        updates, state = tx.update({"w": given, "v": jnp.float32([0.1])}, state, params)
        moved.append(np.zeros(2) if updates["w"] is None else np.asarray(updates["w"]))
    truth = reference.adam(grads[[0, 3, 4]], **hyper).updates
    np.testing.assert_allclose(np.array(moved)[[0, 3, 4]], truth, rtol=1e-5)
    assert not np.any(np.array(moved)[[1, 2]])


def test_one_gradient_is_enough_to_count():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = fa.adam()
    _, state = tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)
    assert state.count == 1
    for update in (tx.update, fa.update):
        with pytest.raises(
            ValueError, match=r"grads must have the structure of .*\['b'\] is missing"
        ):
            update({"a": None}, state, params)
