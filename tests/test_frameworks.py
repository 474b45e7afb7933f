"""The frameworks that hold a transformation for the user: Flax Linen, Flax NNX, Equinox.

Each trains a small regression through the framework's own API. Every step must be the one that
`reference.adam` takes, in float64, on the gradients that the framework computed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import functional_adam as fa

STEPS = 60
ADAMW = {
    "learning_rate": 0.02,
    "b1": 0.85,
    "b2": 0.97,
    "eps": 1e-3,
    "eps_root": 1e-5,
    "weight_decay": 0.03,
}


def regression():
    """Inputs (48, 3) and targets (48, 1) of a smooth function."""
    x = np.random.default_rng(3).standard_normal((48, 3)).astype(np.float32)
    return x, (np.sin(1.3 * x[:, :1]) - 0.4 * x[:, 1:2] * x[:, 2:]).astype(np.float32)


def squared_error(prediction, y):
    return jnp.mean((prediction - y) ** 2)


def stacked(trees):
    """The leaves in float64, each with one row a tree."""
    leaves = zip(*map(jax.tree.leaves, trees), strict=True)
    return [np.stack([np.asarray(x, np.float64) for x in rows]) for rows in leaves]


def assert_trained_like_reference(losses, params, grads, states, goal=0.1):
    """`params` has one tree more than the others: that before the first step."""
    assert losses[-1] < goal * losses[0]
    assert [int(state.count) for state in states] == [*range(1, STEPS + 1)]
    moments = [state.mu for state in states], [state.nu for state in states]
    for theta, g, mu, nu in zip(*map(stacked, (params, grads, *moments)), strict=True):
        truth = reference.adam(g, theta[0], **ADAMW)
        step = np.maximum(ADAMW["learning_rate"], np.abs(truth.updates))
        assert np.max(np.abs(np.diff(theta, axis=0) - truth.updates) / step) < 1e-5
        assert np.max(np.abs(mu - truth.mu)) < 1e-6 * np.abs(g).max()
        assert np.max(np.abs(nu - truth.nu)) < 1e-6 * np.abs(g).max() ** 2


# Flax Linen -----------------------------------------------------------------------------------


def _linen_train_state(tx):
    linen = pytest.importorskip("flax.linen")
    train_state = pytest.importorskip("flax.training.train_state")
    model = linen.Sequential([linen.Dense(16), linen.tanh, linen.Dense(1)])
    params = model.init(jax.random.key(5), regression()[0])["params"]
    return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def _linen_step(state, x, y):
    def loss_fn(params):
        return squared_error(state.apply_fn({"params": params}, x), y)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss, grads


def test_linen_train_state():
    state = _linen_train_state(fa.adamw(**ADAMW))
    params, rows = [state.params], []
    for _ in range(STEPS):
        state, loss, grads = _linen_step(state, *regression())
        params.append(state.params)
        rows.append((loss, grads, state.opt_state))
    assert int(state.step) == STEPS
    losses, grads, states = zip(*rows, strict=True)
    assert_trained_like_reference(losses, params, grads, states)


def test_linen_state_survives_flax_serialization():
    serialization = pytest.importorskip("flax.serialization")
    state = _linen_train_state(fa.adamw(**ADAMW))
    for _ in range(3):
        state, *_ = _linen_step(state, *regression())
    restored = serialization.from_bytes(
        _linen_train_state(fa.adamw(**ADAMW)), serialization.to_bytes(state)
    )
    assert isinstance(restored.opt_state, fa.AdamState)
    assert int(restored.opt_state.count) == 3
    after, after_restored = (_linen_step(s, *regression())[0] for s in (state, restored))
    for a, b in zip(*(jax.tree.leaves(s) for s in (after, after_restored)), strict=True):
        np.testing.assert_array_equal(a, b)


# Flax NNX -------------------------------------------------------------------------------------


def test_nnx_optimizer():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 16, rngs=rngs)
            self.out = nnx.Linear(16, 1, rngs=rngs)
            self.calls = nnx.BatchStat(jnp.array(0))  # not a Param: must not reach Adam

        def __call__(self, x):
            self.calls[...] += 1
            return self.out(nnx.tanh(self.hidden(x)))

    model = Model(nnx.Rngs(5))
    optimizer = nnx.Optimizer(model, fa.adamw(**ADAMW), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, grads = nnx.value_and_grad(lambda model: squared_error(model(x), y))(model)
        optimizer.update(model, grads)
        return loss, grads

    def arrays(tree):
        return nnx.to_pure_dict(nnx.state(tree, nnx.Param))

    params, rows = [arrays(model)], []
    for _ in range(STEPS):
        loss, grads = step(model, optimizer, *regression())
        params.append(arrays(model))
        rows.append((loss, nnx.to_pure_dict(grads), nnx.as_pure(optimizer.opt_state)))
    assert int(model.calls[...]) == STEPS
    losses, grads, states = zip(*rows, strict=True)
    assert_trained_like_reference(losses, params, grads, states)


# Equinox --------------------------------------------------------------------------------------


def _equinox_model(eqx):
    return eqx.nn.MLP(3, 1, 16, 1, activation=jnp.tanh, key=jax.random.key(5))


def _train_equinox(eqx, model, trainable):
    """Losses, and trees of the trainable parameters, their gradients, and states."""
    tx = fa.adamw(**ADAMW)
    state = tx.init(eqx.filter(model, trainable))

    @eqx.filter_jit
    def step(model, state, x, y):
        @eqx.filter_value_and_grad
        def loss_fn(moving, still):
            return squared_error(jax.vmap(eqx.combine(moving, still))(x), y)

        moving, still = eqx.partition(model, trainable)
        loss, grads = loss_fn(moving, still)
        updates, state = tx.update(grads, state, moving)
        return eqx.apply_updates(model, updates), state, loss, grads

    params, rows = [eqx.filter(model, trainable)], []
    for _ in range(STEPS):
        model, state, loss, grads = step(model, state, *regression())
        params.append(eqx.filter(model, trainable))
        rows.append((loss, grads, state))
    losses, grads, states = zip(*rows, strict=True)
    return model, losses, params, grads, states


def test_equinox_module():
    eqx = pytest.importorskip("equinox")
    model = _equinox_model(eqx)
    assert None in jax.tree.leaves(
        eqx.filter(model, eqx.is_inexact_array), is_leaf=lambda x: x is None
    )
    _, *history = _train_equinox(eqx, model, eqx.is_inexact_array)
    assert_trained_like_reference(*history)


def test_equinox_module_with_a_frozen_layer():
    eqx = pytest.importorskip("equinox")
    model = _equinox_model(eqx)
    trainable = jax.tree.map(eqx.is_inexact_array, model)
    trainable = eqx.tree_at(
        lambda m: (m.layers[1].weight, m.layers[1].bias), trainable, (False, False)
    )
    trained, *history = _train_equinox(eqx, model, trainable)
    assert_trained_like_reference(*history, goal=0.4)
    np.testing.assert_array_equal(trained.layers[1].weight, model.layers[1].weight)
    assert history[-1][-1].mu.layers[1].weight is None


def test_equinox_gradient_of_none_skips_its_parameter():
    eqx = pytest.importorskip("equinox")
    params = eqx.filter(_equinox_model(eqx), eqx.is_inexact_array)
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
    eqx = pytest.importorskip("equinox")
    with pytest.raises(TypeError, match=r"equinox\.filter"):
        fa.adamw(**ADAMW).init(_equinox_model(eqx))
