"""The recipes of examples/frameworks, and what else the frameworks ask of a transformation.

A recipe takes the transformation to train with. Here it gets one that also records what every
update was given and what it returned: each must be the step that `reference.adam` takes, in
float64, on the gradients that the framework computed.
"""

import importlib.util
import re
import runpy
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import reference
from flax import nnx, serialization
from flax.training.train_state import TrainState
from modes import switched
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from quick import quick_jit
from sklearn.linear_model import LogisticRegression

import functional_adam as fa

RECIPES = Path(__file__).parents[2] / "examples" / "frameworks"
STEPS = 60
ADAMW = {
    "learning_rate": 0.02,
    "b1": 0.85,
    "b2": 0.97,
    "eps": 1e-3,
    "eps_root": 1e-5,
    "weight_decay": 0.03,
}
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


@pytest.fixture(autouse=True)
def quickly_compiled(request, monkeypatch):
    """Compiling is most of the time, in the recipes and in the frameworks; slow tests take it."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(jax, "jit", quick_jit)


def recipe(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Record(NamedTuple):
    """A state, and trees with one row a step."""

    adam: fa.AdamState
    params: Any
    grads: Any
    updates: Any


def recording(tx):
    """`tx`, whose state also keeps what every update was given and what it returned."""

    def init(params):
        rows = jax.tree.map(lambda p: jnp.zeros((STEPS, *p.shape), p.dtype), params)
        return Record(tx.init(params), rows, rows, rows)

    def update(grads, state, params, **extra):
        t = state.adam.count
        updates, adam = tx.update(grads, state.adam, params, **extra)
        rows = (
            jax.tree.map(lambda row, x: row.at[t].set(x), *trees)
            for trees in zip(state[1:], (params, grads, updates), strict=True)
        )
        return updates, Record(adam, *rows)

    return optax.GradientTransformationExtraArgs(init, update)


def in_float64(*trees):
    """The leaves of all trees, side by side."""
    leaves = zip(*map(jax.tree.leaves, trees), strict=True)
    return [[np.asarray(x, np.float64) for x in row] for row in leaves]


def assert_trained_like_reference(record, end, decays=lambda path: True):
    """Updates, moments and count are Adam's; each update was added, `end` being the last sum."""
    assert type(record.adam) is fa.AdamState
    assert int(record.adam.count) == STEPS
    paths = [path for path, _ in jax.tree.leaves_with_path(record.params)]
    leaves = in_float64(*record[1:], record.adam.mu, record.adam.nu, end)
    for path, (theta, g, updates, mu, nu, last) in zip(paths, leaves, strict=True):
        hyperparameters = ADAMW if decays(path) else {**ADAMW, "weight_decay": 0.0}
        truth = reference.adam(g, theta[0], **hyperparameters)
        step = np.maximum(ADAMW["learning_rate"], np.abs(truth.updates))
        assert np.max(np.abs(updates - truth.updates) / step) < 1e-5
        assert np.max(np.abs(mu - truth.mu[-1])) < 1e-6 * np.abs(g).max()
        assert np.max(np.abs(nu - truth.nu[-1])) < 1e-6 * np.abs(g).max() ** 2
        sums = np.concatenate([theta[1:], last[None]])
        np.testing.assert_allclose(sums, theta + updates, rtol=2e-7, atol=2e-8)


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


# Plain JAX, Flax, Equinox, Haiku --------------------------------------------------------------


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


# NumPyro, Optimistix --------------------------------------------------------------------------


def test_numpyro_svi():
    result = recipe("numpyro_svi").train(recording(fa.adamw(**ADAMW)), STEPS)
    assert result.losses[-1] < result.losses[0] / 2
    steps, (params, state) = result.state.optim_state
    assert steps == STEPS
    assert_trained_like_reference(state, params)


@pytest.mark.slow
def test_numpyro_finds_the_exact_posterior():
    module = recipe("numpyro_svi")
    result = module.train(fa.adam(optax.cosine_decay_schedule(0.05, 1500)), 1500)
    x, y = map(np.float64, module.load())
    precision = np.eye(5) + x.T @ x / module.NOISE**2
    mean = np.linalg.solve(precision, x.T @ y) / module.NOISE**2
    # The best guide without correlations has the exact mean, and the precision's diagonal.
    scale = 1 / np.sqrt(np.diag(precision))
    np.testing.assert_allclose(result.params["w_auto_loc"], mean, atol=0.1 * scale.min())
    np.testing.assert_allclose(result.params["w_auto_scale"], scale, rtol=0.1)


def test_numpyro_wraps_it_as_one_of_optaxs():
    model = recipe("numpyro_svi").model
    svi = SVI(model, AutoNormal(model), fa.adamw(**ADAMW), Trace_ELBO())
    _, (_, state) = svi.init(jax.random.key(0), *recipe("numpyro_svi").load()).optim_state
    assert isinstance(state, fa.AdamState)
    with pytest.raises(TypeError, match="Expected either an instance of"):
        SVI(model, AutoNormal(model), tuple(fa.adamw(**ADAMW)), Trace_ELBO())


def test_optimistix_minimise():
    module = recipe("optimistix_minimise")
    first, last, solution = module.train(recording(fa.adamw(**ADAMW)), STEPS)
    assert last < first / 4
    assert int(solution.stats["num_steps"]) == STEPS
    assert_trained_like_reference(solution.state.opt_state, solution.value)


@pytest.mark.slow
def test_optimistix_finds_the_minimum():
    module = recipe("optimistix_minimise")
    _, last, solution = module.train(fa.adam(0.1), 2000, rtol=1e-7, atol=1e-7)
    assert solution.result == optx.RESULTS.successful
    assert int(solution.stats["num_steps"]) == int(solution.state.opt_state.count) < 2000
    x, y = map(np.float64, module.load())
    newton = LogisticRegression(C=1 / (module.L2 * len(x)), solver="newton-cholesky", tol=1e-10)
    newton.fit(x[:, :-1], y)
    expected = np.r_[newton.coef_[0], newton.intercept_]
    np.testing.assert_allclose(solution.value, expected, atol=1e-3)
    best = module.loss_of(jnp.float32(expected), tuple(map(jnp.float32, (x, y))))
    assert last < best + 1e-6


def test_optimistix_passes_arguments_that_adam_ignores_and_others_need():
    def check(updates, state, params, **extra):
        assert extra.keys() == {"value", "grad", "value_fn"}
        return updates, state + 1

    tx = optax.chain(
        fa.adamw(**ADAMW),
        optax.GradientTransformationExtraArgs(lambda params: jnp.array(0), check),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5),
    )
    _, _, solution = recipe("optimistix_minimise").train(tx, 10)
    assert int(solution.state.opt_state[0].count) == solution.state.opt_state[1] == 10
    assert float(solution.state.opt_state[2].scale) < 1


# Optax's wrappers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrapped():
    """{recipe: (losses, parameters, state)}, over fewer steps than the script's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        module = recipe("optax_wrappers")
        patch.setattr(module, "STEPS", STEPS)
        return module.train()


@pytest.fixture(scope="module")
def in_full():
    """The same three times in full: float32, float64, and float64 with Optax's Adam."""
    ours, theirs = recipe("optax_wrappers"), recipe("optax_wrappers")
    theirs.fa = optax
    narrow = ours.train()
    with switched("jax_enable_x64", True):
        return narrow, ours.train(), theirs.train()


WRAPPERS = {  # the counts of each AdamState inside, of 60 calls and of 200
    "chain": [(60, 200)],
    "partition": [(60, 200), (60, 200)],
    "masked": [(60, 200)],
    "multi_steps": [(15, 50)],
    "apply_if_finite": [(59, 199)],
    "inject_hyperparams": [(60, 200)],
    "schedule_free": [(60, 200)],
    "reduce_on_plateau": [(60, 200)],
    "sam": [(60, 200)],
    "sam_transparent": [(30, 100)],
}


def adams_in(state):
    is_adam = lambda x: isinstance(x, fa.AdamState)  # noqa: E731
    return list(filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam)))


def test_every_wrapper_is_tested(wrapped):
    assert wrapped.keys() == WRAPPERS.keys()


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_adam_trains(name, wrapped):
    losses, _, state = wrapped[name]
    assert losses[-1] < losses[0] / 1.4
    assert [int(x.count) for x in adams_in(state)] == [short for short, _ in WRAPPERS[name]]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_adam_trains_like_optaxs(name, in_full):
    (losses, params, state), (wide_losses, wide, _), (their_losses, theirs, their_state) = (
        runs[name] for runs in in_full
    )
    assert losses[-1] < losses[0] / 3
    assert [int(x.count) for x in adams_in(state)] == [long for _, long in WRAPPERS[name]]
    assert not adams_in(their_state)

    np.testing.assert_allclose(wide_losses, their_losses, rtol=0, atol=1e-10)
    np.testing.assert_allclose(losses, their_losses, rtol=0, atol=1e-4)
    for narrow, a, b in in_float64(params, wide, theirs):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
        np.testing.assert_allclose(narrow, b, rtol=0, atol=1e-3)


def assert_each_wrapper_did_its_work(runs, steps):
    start = recipe("optax_wrappers").init_params()
    for name in start["hidden"]:
        np.testing.assert_array_equal(
            runs["masked"][1]["hidden"][name], np.float32(start["hidden"][name])
        )
    losses, _, state = runs["apply_if_finite"]
    assert np.flatnonzero(np.isnan(losses)).tolist() == [50]
    assert int(state.total_notfinite) == 1
    schedule = optax.cosine_decay_schedule(1e-2, steps)
    rate = runs["inject_hyperparams"][2].hyperparams["learning_rate"]
    np.testing.assert_allclose(rate, schedule(steps - 1), rtol=1e-6)
    return runs["reduce_on_plateau"][2][1].scale


def test_each_wrapper_did_its_work(wrapped):
    # Plateaus halve the rate, until a tenth is left.
    scale = assert_each_wrapper_did_its_work(wrapped, STEPS)
    assert scale in (0.5, 0.25, 0.125, np.float32(0.1))


@pytest.mark.slow
def test_each_wrapper_did_its_work_in_full(in_full):
    scale = assert_each_wrapper_did_its_work(in_full[0], 200)
    np.testing.assert_allclose(scale, 0.1, rtol=1e-6)
