"""Every factory's arguments of decay do what they say: beside gradients of 0 the decay is alone."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

RATE, DECAY = 0.013, 0.07
PARAMS = {"a": jnp.array([1.5, -0.3]), "b": jnp.array([[2.7]])}
FACTORIES = [
    name
    for name in fa.__all__
    if inspect.isfunction(getattr(fa, name))
    and {"learning_rate", "independent_weight_decay"}
    <= inspect.signature(getattr(fa, name)).parameters.keys()
    and name != "update"
]


def test_these_decay():
    assert set(FACTORIES) >= {"adamw", "nadamw", "adamaxw", "amsgrad", "ademamix"}
    assert set(FACTORIES) >= {"adabelief", "adopt", "radam", "yogi"}


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_decay_is_times_the_rate_unless_independent_and_where_the_mask_says(name, independent):
    still = {"initial_accumulator_value": 0.0} if name == "yogi" else {}
    tx = getattr(fa, name)(
        RATE,
        **still,
        weight_decay=lambda count: DECAY / (1 + count),
        mask={"a": True, "b": False},
        independent_weight_decay=independent,
    )
    state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for count in range(3):
        updates, state = tx.update(zeros, state, PARAMS)
        part = DECAY / (1 + count) * (1 if independent else RATE)
        np.testing.assert_allclose(updates["a"], -part * PARAMS["a"], rtol=1e-6)
        assert (updates["b"] == 0).all()
