"""A newcomer's first hour: the loop of the README in four frameworks, and the usual mistakes.

`mistakes_*.py` list the mistakes. What pure functions of these arguments cannot see is `UNSEEN`, so
that nobody takes silence for a promise.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from mistakes_from_torch import FROM_TORCH
from mistakes_in_arguments import IN_ARGUMENTS
from mistakes_in_calls import IN_CALLS
from mistakes_in_states import IN_STATES
from newcomer import (
    DEEPER,
    GRADS,
    INT8,
    NEXT,
    PARAMS,
    STATE,
    TX,
    UPDATES,
    WIDER,
    X,
    Y,
    loss_of,
    scheduled,
)
from quick import quick_jit

import functional_adam as fa

# Ten lines in each framework ------------------------------------------------------------------


def plain_jax():
    loss = lambda p: jnp.mean((jnp.tanh(X @ p["w"]) @ p["v"] - Y) ** 2)  # noqa: E731
    params = {"w": jax.random.normal(jax.random.key(0), (1, 32)), "v": jnp.zeros((32, 1))}
    tx = fa.adamw(learning_rate=1e-2)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return fa.apply_updates(params, updates), state

    first = loss(params)
    for _ in range(100):
        params, state = step(params, state)
    return first, loss(params)


def flax_linen():
    model = linen.Sequential([linen.Dense(32), linen.tanh, linen.Dense(1)])
    loss = lambda p: jnp.mean((model.apply({"params": p}, X) - Y) ** 2)  # noqa: E731
    params = model.init(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=fa.adamw(1e-2))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params)))
    for _ in range(100):
        state = step(state)
    return loss(params), loss(state.params)


def flax_nnx():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(1, 32, rngs=rngs), nnx.tanh, nnx.Linear(32, 1, rngs=rngs))
    loss = lambda model: jnp.mean((model(X) - Y) ** 2)  # noqa: E731
    optimizer = nnx.Optimizer(model, fa.adamw(1e-2), wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model)))
    first = loss(model)
    for _ in range(100):
        step(model, optimizer)
    return first, loss(model)


def equinox():
    model = eqx.nn.MLP(1, 1, 32, 1, key=jax.random.key(0))
    loss = lambda model: jnp.mean((jax.vmap(model)(X) - Y) ** 2)  # noqa: E731
    tx, first = fa.adamw(1e-2), loss(model)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(eqx.filter_grad(loss)(model), state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(100):
        model, state = step(model, state)
    return first, loss(model)


@pytest.mark.parametrize("loop", [plain_jax, flax_linen, flax_nnx, equinox])
def test_ten_lines_train(loop, monkeypatch):
    monkeypatch.setattr(jax, "jit", quick_jit)
    first, last = loop()
    assert last < first / 2


# Mistakes -------------------------------------------------------------------------------------

MISTAKES = IN_CALLS | IN_ARGUMENTS | IN_STATES | FROM_TORCH


@pytest.mark.parametrize(("code", "error", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_says_what_was_given_and_what_to_do(code, error, parts):
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))):
        code()


TRACED = {
    "state first": (STATE, GRADS, PARAMS),
    "layer added": (DEEPER, STATE, DEEPER),
    "gradients of another shape": (WIDER, STATE, PARAMS),
    "updates = update(...) as gradients": ((UPDATES, NEXT), STATE, PARAMS),
}


@pytest.mark.parametrize("under", [jax.jit, lambda f: jax.vmap(f, axis_size=2, in_axes=None)])
@pytest.mark.parametrize("name", TRACED)
def test_a_mistake_says_the_same_in_a_trace(name, under):
    _, error, parts = MISTAKES[name]
    with pytest.raises(error, match=".*".join(map(re.escape, parts))):
        under(TX.update)(*TRACED[name])


def test_what_the_messages_advise_for_a_restored_dict_gives_the_state_back():
    for state in (NEXT, INT8.init(PARAMS)):
        restored = serialization.to_state_dict(state)
        found = [
            serialization.from_state_dict(jax.tree.map(jnp.zeros_like, state), restored),
            fa.from_state_dict(fa.to_state_dict(state), target=jax.tree.map(jnp.zeros_like, state)),
        ]
        for one in found:
            jax.tree.map(np.testing.assert_array_equal, one, state)


# No mistakes, or none that can be seen --------------------------------------------------------


class Rate(float):
    """A number from some library of configurations."""


def test_a_schedule_may_return_any_number():
    wanted = jax.tree.leaves(scheduled(0.125))
    for value in (Rate(0.125), np.float32(0.125), np.array(0.125), jnp.array(0.125)):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(scheduled(value)), wanted)


def test_the_gradient_of_a_model_with_none_is_one_with_none():
    params = PARAMS | {"frozen": None}
    grads = jax.grad(loss_of)(params)
    updates, state = TX.update(grads, TX.init(params), params)
    assert updates["frozen"] is state.mu["frozen"] is None
    new = fa.apply_updates(params, updates)
    assert new["frozen"] is None
    np.testing.assert_allclose(new["b"], PARAMS["b"] - 1e-2 * (1 + 1e-4 * PARAMS["b"]), rtol=1e-5)


UNSEEN = {
    "params and gradients swapped": lambda: TX.update(PARAMS, STATE, GRADS),
    "params and updates swapped": lambda: fa.apply_updates(UPDATES, PARAMS),
    "updates applied twice": lambda: fa.apply_updates(fa.apply_updates(PARAMS, UPDATES), UPDATES),
    "gradients in place of updates": lambda: fa.apply_updates(PARAMS, GRADS),
    "state not kept": lambda: [TX.update(GRADS, STATE, PARAMS)[0] for _ in range(2)],
    "a rate of 1000, which is as far as that in the parameter's unit": lambda: fa.adamw(1000),
}


@pytest.mark.parametrize("code", UNSEEN.values(), ids=UNSEEN)
def test_what_has_the_right_types_is_taken_as_meant(code):
    code()
