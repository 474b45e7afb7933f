"""The recipes of examples/frameworks for plain JAX, Flax, Equinox and Haiku, and each script's run.

A recipe takes the transformation to train with. Here it gets one that also records what every
update was given and what it returned: each must be the step that `reference.adam` takes, in
float64, on the gradients that the framework computed.
"""

import re
import runpy
import signal
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx, serialization
from flax.training.train_state import TrainState
from recipes import ADAMW, RECIPES, STEPS, assert_trained_like_reference, recipe, recording

import functional_adam as fa

# How many times smaller, at least, the second loss that a script prints is than the first.
FALLS = {
    "plain_jax": 100,
    "flax_linen": 100,
    "flax_nnx": 100,
    "equinox_module": 100,
    "haiku_transform": 100,
    "numpyro_svi": 4,
    "optimistix_minimise": 6,
    "optax_wrappers": 3,
}


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_every_recipe_is_tested():
    assert {path.stem for path in RECIPES.glob("*.py")} == {*FALLS, "command"}


def slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", ["flax_nnx", *slow(name for name in FALLS if name != "flax_nnx")])
def test_a_script_prints_its_losses(name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    pairs = re.findall(r"([\d.]+) -> ([\d.]+)", capsys.readouterr().out)
    assert len(pairs) == {"flax_nnx": 2, "optax_wrappers": 10}.get(name, 1)
    for first, last in pairs:
        assert 0 < float(last) < float(first) / FALLS[name]


def test_plain_jax():
    losses, params, state = recipe("plain_jax").train(recording(fa.adamw(**ADAMW)), STEPS)
    assert losses[-1] < losses[0] / 20
    assert_trained_like_reference(state, params)


def test_linen_train_state():
    losses, state = recipe("flax_linen").train(recording(fa.adamw(**ADAMW)), STEPS)
    assert losses[-1] < losses[0] / 20
    assert int(state.step) == STEPS
    assert_trained_like_reference(state.opt_state, state.params)


def test_linen_state_survives_flax_serialization():
    module = recipe("flax_linen")
    _, state = module.train(fa.adamw(**ADAMW), 3)
    target = module.create(fa.adamw(**ADAMW))
    restored = serialization.from_bytes(target, serialization.to_bytes(state))
    assert type(restored.opt_state) is fa.AdamState
    assert int(restored.opt_state.count) == 3
    after, after_restored = (module.step(s, *module.load())[0] for s in (state, restored))
    for a, b in zip(*(jax.tree.leaves(s) for s in (after, after_restored)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("both", [False, True], ids=["Optimizer", "ModelAndOptimizer"])
def test_nnx_optimizer(both):
    module = recipe("flax_nnx")
    losses, model, optimizer = module.train(recording(fa.adamw(**ADAMW)), STEPS, both)
    assert type(optimizer) is (nnx.ModelAndOptimizer if both else nnx.Optimizer)
    assert losses[-1] < losses[0] / 20
    assert int(model.calls[...]) == int(optimizer.step[...]) == STEPS
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_trained_like_reference(nnx.as_pure(optimizer.opt_state), params)


def test_equal_transformations_within_flaxs_states_compile_once():
    traced = []

    @nnx.jit
    def nnx_step(model, optimizer):
        traced.append("nnx")
        optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((1, 2))) ** 2).mean())(model))

    @jax.jit
    def step(state, grads):
        traced.append("linen")
        return state.apply_gradients(grads=grads)

    params, apply = {"w": jnp.ones(2)}, lambda params: params
    for rate in (0.02, 0.02, 0.03):
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        nnx_step(model, nnx.Optimizer(model, fa.adamw(rate, b1=0.8), wrt=nnx.Param))
        tx = fa.adamw(rate, b1=0.8)
        step(TrainState.create(apply_fn=apply, params=params, tx=tx), params)
    assert sorted(traced) == ["linen", "linen", "nnx", "nnx"]


def test_nnx_without_wrt_meets_the_integer():
    model = recipe("flax_nnx").Model(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"params.*calls.*int32"):
        nnx.Optimizer(model, fa.adamw(**ADAMW), wrt=nnx.Variable)


def test_equinox_module():
    losses, model, state = recipe("equinox_module").train(recording(fa.adamw(**ADAMW)), STEPS)
    assert losses[-1] < losses[0] / 20
    moments = jax.tree.leaves(state.adam.mu, is_leaf=lambda x: x is None)
    assert None in moments  # where the model has its activation function
    assert callable(model.activation)
    assert_trained_like_reference(state, eqx.filter(model, eqx.is_inexact_array))


def _equinox_model():
    return eqx.nn.MLP(64, 10, 16, 1, activation=jnp.tanh, key=jax.random.key(5))


def test_equinox_module_with_a_frozen_layer():
    images, labels = recipe("equinox_module").load()
    start = _equinox_model()
    trainable = jax.tree.map(eqx.is_inexact_array, start)
    layer = lambda m: (m.layers[1].weight, m.layers[1].bias)  # noqa: E731
    trainable = eqx.tree_at(layer, trainable, (False, False))
    tx = recording(fa.adamw(**ADAMW))

    @eqx.filter_value_and_grad
    def loss_of(moving, still):
        log_p = jax.nn.log_softmax(jax.vmap(eqx.combine(moving, still))(images))
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

    @eqx.filter_jit
    def step(model, state):
        moving, still = eqx.partition(model, trainable)
        loss, grads = loss_of(moving, still)
        updates, state = tx.update(grads, state, moving)
        return eqx.apply_updates(model, updates), state, loss

    model, state, losses = start, tx.init(eqx.filter(start, trainable)), []
    for _ in range(STEPS):
        model, state, loss = step(model, state)
        losses.append(loss)
    assert losses[-1] < losses[0] / 1.5
    assert_trained_like_reference(state, eqx.filter(model, trainable))
    for a, b in zip(layer(model), layer(start), strict=True):
        np.testing.assert_array_equal(a, b)
    assert layer(state.adam.mu) == (None, None)


def test_equinox_gradient_of_none_skips_its_parameter():
    params = eqx.filter(_equinox_model(), eqx.is_inexact_array)
    tx, first = fa.adamw(**ADAMW), jax.tree.map(jnp.sin, params)
    updates, state = tx.update(first, tx.init(params), params)
    params = eqx.apply_updates(params, updates)
    second = eqx.tree_at(lambda m: m.layers[0].weight, jax.tree.map(jnp.cos, params), None)
    updates, after = tx.update(second, state, params)

    assert int(after.count) == 2
    for name in "mu", "nu":
        before_and_after = (getattr(s, name).layers[0].weight for s in (state, after))
        np.testing.assert_array_equal(*before_and_after)
    moved = eqx.apply_updates(params, updates)
    np.testing.assert_array_equal(moved.layers[0].weight, params.layers[0].weight)
    grads = [np.asarray(g.layers[1].weight, np.float64) for g in (first, second)]
    start = np.asarray(params.layers[1].weight, np.float64)
    truth = reference.adam(grads, start, **{**ADAMW, "weight_decay": 0.0})
    expected = truth.updates[1] - ADAMW["learning_rate"] * ADAMW["weight_decay"] * start
    np.testing.assert_allclose(updates.layers[1].weight, expected, rtol=0, atol=1e-5 * 0.02)


def test_whole_equinox_module_is_refused_with_the_fix():
    with pytest.raises(TypeError, match=r"equinox\.filter"):
        fa.adamw(**ADAMW).init(_equinox_model())


def test_haiku_transform():
    module = recipe("haiku_transform")
    tx = fa.adamw(**ADAMW, mask=module.weights_only)
    losses, params, state = module.train(recording(tx), STEPS)
    assert losses[-1] < losses[0] / 20
    assert set(params) == {"linear", "linear_1"}
    assert_trained_like_reference(state, params, decays=lambda path: path[-1].key == "w")
