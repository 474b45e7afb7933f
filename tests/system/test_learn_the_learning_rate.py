"""The example `learn_the_learning_rate.py`: derivatives through training, and what they lead to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import adam, assert_png, example, rows_of, run, run_here


@pytest.mark.parametrize(
    ("way", "args"),
    [
        (run_here, ["--steps", 8, "--meta-steps", 40]),
        pytest.param(run, [], marks=pytest.mark.slow),
    ],
)
def test_the_learned_rate_is_the_best_rate_from_both_sides(way, args, tmp_path):
    rows = rows_of(way("learn_the_learning_rate.py", *args, cwd=tmp_path))
    derivatives, (low, high, sweep) = rows[:6], rows[6:]
    for rate, name, exact, difference, _ in derivatives:
        far = (rate, name) == ("10", "logit_b1")  # where the loss bends most
        assert float(exact) == pytest.approx(float(difference), rel=1e-3 if far else 1e-6, abs=2e-9)
        assert float(exact) != 0
    best_rate, best_loss = float(sweep[2]), float(sweep[3])
    assert 1e-3 < best_rate < 1
    assert float(low[0]) < best_rate / 100
    assert float(high[0]) > best_rate * 10
    for _, start_loss, rate, loss, _ in (low, high):
        assert float(start_loss) > 5 * best_loss
        assert float(loss) < 1.01 * best_loss
        assert float(rate) == pytest.approx(best_rate, rel=0.1)
    assert_png(tmp_path / "learning_rate.png")


@pytest.mark.usefixtures("x64")
def test_the_derivative_through_training_is_that_of_adam_in_numpy():
    module = example("learn_the_learning_rate")
    train, held_out = module.load()
    x = np.c_[train.images, np.ones(len(train.labels))].astype(float)  # the last for the bias
    x_held_out = np.c_[held_out.images, np.ones(len(held_out.labels))].astype(float)

    def probabilities(x, w):
        scores = np.exp(x @ w)
        return scores / scores.sum(axis=1, keepdims=True)

    def gradient(w, _):
        return x.T @ (probabilities(x, w) - np.eye(10)[train.labels]) / len(x)

    def plain(log_rate, logit_b1):
        b1 = 1 / (1 + np.exp(-logit_b1))
        w = adam(gradient, np.zeros((65, 10)), 9, np.exp(log_rate), b1)[-1]
        right = np.take_along_axis(probabilities(x_held_out, w), held_out.labels[:, None], axis=1)
        return -np.log(right).mean()

    point, h = np.array([np.log(0.03), 0.8]), 1e-4
    loss = functools.partial(module.held_out_loss, train, held_out, 9)
    found, slopes = jax.jit(jax.value_and_grad(loss))(module.Hyper(*jnp.array(point)))
    np.testing.assert_allclose(found, plain(*point), rtol=1e-9)
    for slope, way in zip(slopes, h * np.eye(2), strict=True):
        difference = (plain(*(point + way)) - plain(*(point - way))) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)
