"""The recipes for NumPyro and Optimistix, and what these ask of a transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from recipes import ADAMW, STEPS, assert_trained_like_reference, recipe, recording
from sklearn.linear_model import LogisticRegression

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("quickly_compiled")


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
