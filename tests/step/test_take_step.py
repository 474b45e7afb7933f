"""`step` is `update` and `apply_updates`: the same numbers, the same errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from codes import CODES

import functional_adam as fa

HYPER = {"b1": 0.87, "b2": 0.993, "eps": 1e-7}
LOSS = np.float32(0.7)


def tree(seed, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    like = {"a": np.zeros(5), "b": {"c": np.zeros((3, 32)), "d": np.zeros((2, 3, 4))}}
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), dtype), like)


MAKERS = {
    "adam": lambda: fa.adam(0.01, **HYPER),
    "adamw, masked": lambda: fa.adamw(
        0.01, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p), **HYPER
    ),
    "bfloat16": lambda: fa.adam(0.01, moments="bfloat16", **HYPER),
    "lamb, int8": lambda: fa.lamb(0.01, moments=CODES, **HYPER),
    "amsgrad, l2": lambda: fa.amsgrad(0.01, l2=0.1, **HYPER),
    "cautious": lambda: fa.cautious(fa.adam(0.01, **HYPER)),
    "a chain": lambda: optax.chain(optax.clip(0.3), fa.adam(0.01, **HYPER)),
    "optax": lambda: optax.adam(0.01, **HYPER),
    "multi": lambda: optax.MultiSteps(fa.adam(0.01, **HYPER), 2),
}
DTYPES = {
    "nearest": jnp.float32,
    "stochastic": jnp.bfloat16,
    "compensated": jnp.float16,
    "split": jnp.bfloat16,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_is_an_update_that_is_applied(name):
    tx = MAKERS[name]()
    params = kept = tree(0)
    state = other = tx.init(params)
    for t in range(3):
        grads = tree(t + 1)
        params, state = fa.step(tx, grads, state, params)
        updates, other = tx.update(grads, other, kept)
        kept = fa.apply_updates(kept, updates)
        chex.assert_trees_all_equal(params, kept)
        chex.assert_trees_all_equal(state, other)


@pytest.mark.parametrize("rounding", DTYPES)
def test_weights_of_16_bits_land_on_their_grid(rounding):
    tx = fa.adam(0.01, moments=CODES, rounding=rounding, **HYPER)
    params = tree(0, DTYPES[rounding])
    state = tx.init(params)
    updates, wanted = tx.update(tree(1), state, params)
    found, kept = fa.step(tx, tree(1), state, params)
    chex.assert_trees_all_equal(kept, wanted)
    chex.assert_trees_all_equal(found, fa.apply_updates(params, updates))
    chex.assert_trees_all_equal_dtypes(found, params)


def test_a_leaf_without_a_gradient_stays_as_it_is():
    tx, params = fa.adamw(0.1, weight_decay=0.5), {"a": jnp.float32([-0.0, 2]), "b": jnp.ones(2)}
    grads = {"a": None, "b": jnp.ones(2)}
    found, state = fa.step(tx, grads, tx.init(params), params)
    assert np.asarray(found["a"]).tobytes() == np.asarray(params["a"]).tobytes()
    assert state.count == 1
    assert (found["b"] < 1).all()
    _, state = fa.step(tx, {"a": None, "b": None}, state, params)
    assert state.count == 1


def test_a_weak_type_is_kept():
    tx, params = fa.adam(0.1), jnp.asarray(3.0)
    assert params.weak_type
    found, _ = fa.step(tx, jnp.float32(2), tx.init(params), params)
    assert found.weak_type
    np.testing.assert_allclose(found, 2.9, rtol=1e-6)


def test_one_compilation_serves_every_step_and_nothing_is_copied():
    tx, params = fa.adamw(0.01, weight_decay=0.1, **HYPER), tree(0)
    step = jax.jit(lambda params, state, g: fa.step(tx, g, state, params), donate_argnums=(0, 1))
    state = tx.init(params)
    compiled = step.lower(params, state, tree(1)).compile()
    memory, results = compiled.memory_analysis(), 1 + 3 * 3  # count; parameters and moments
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes == 8 * results  # pointers
    for t in range(3):
        params, state = step(params, state, tree(t))
    assert step._cache_size() == 1


def test_a_step_hands_on_extra_arguments():
    seen = []

    def update(grads, state, params=None, *, value, **extra):
        seen.append((value, extra))
        return grads, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params, _ = fa.step(tx, jnp.ones(2), (), jnp.ones(2), value=LOSS, grad=1)
    assert seen == [(LOSS, {"grad": 1})]
    np.testing.assert_array_equal(params, [2, 2])
    with pytest.raises(TypeError, match="b1 has no effect on the update of adam"):
        fa.step(fa.adam(0.1), jnp.ones(2), fa.init(jnp.ones(2)), jnp.ones(2), b1=0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((fa.adam, 1.0, None, 2.0), r"tx must be a transformation, such as adam\(1e-3\); got"),
        ((fa.adam(0.1), jnp.ones(2), fa.init(jnp.ones(2)), None), "step needs params: call step"),
    ],
)
def test_a_mistake_says_what_to_write(given, said):
    with pytest.raises(TypeError, match=said):
        fa.step(*given)


def test_parameters_that_do_not_fit_are_named():
    tx = fa.adam(0.1)
    state = tx.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"params\['w'\] has shape \(3,\)"):
        fa.step(tx, {"w": jnp.ones(2)}, state, {"w": jnp.ones(3)})
