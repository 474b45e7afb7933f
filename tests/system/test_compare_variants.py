"""The example `compare_variants.py`: its tasks, its sweeps, its picture."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from names import OF_STATES
from running import adam, assert_png, example, rows_of, run, run_here

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_every_variant_is_compared():
    others = {"init", "update", "apply_updates", "adamaxw", "nadamw"}  # the last two: see adamw
    others |= OF_STATES | {"skip_spikes"}  # a guard, no variant
    public = {name for name in fa.__all__ if name.islower()} - others
    factories = {name for name in public if not name.startswith(("_", "scale_by_"))}
    compared = [re.match(r"\w+", name)[0] for name in example("compare_variants").VARIANTS]
    assert set(compared) == factories
    assert len(compared) == len(factories) + 1  # nadam twice


def test_the_quadratic_is_as_described():
    task = example("compare_variants").quadratic_task(steps=20, seeds=3, noise=0.3)
    assert task.starts.shape == (3, 50)
    assert task.given.shape == (3, 2, 10, 50)
    x, draw = task.starts[1], task.given[1, 1, 4]
    hessian = jax.hessian(task.loss)(x, draw)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), np.geomspace(1e-4, 1, 50), atol=1e-6)
    assert np.abs(np.linalg.eigh(hessian)[1]).max() < 0.8  # no eigenvector along an axis
    expected = (x - 1) @ hessian @ (x - 1) / 2
    loss, grads = jax.value_and_grad(task.loss)(x, draw)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)  # the noise is in the gradient alone
    np.testing.assert_allclose(grads, hessian @ (x - 1) + 0.3 * draw, atol=1e-5)


def test_a_sweep_is_many_single_runs():
    module = example("compare_variants")
    task = module.quadratic_task(steps=30, seeds=2, noise=0.3)
    hessian = np.float64(jax.hessian(task.loss)(task.starts[0], task.given[0, 0, 0]))

    def gradient(draws, x, step):
        return hessian @ (x - 1) + 0.3 * draws[step]

    rates = jnp.array([0.03, 0.7])
    curves, params = module.sweep(task.loss, fa.adam, rates, *task[1:])
    assert curves.shape == (2, 2, 3)
    for i, rate in enumerate(rates):
        for seed, start in enumerate(task.starts):
            draws = np.float64(task.given[seed]).reshape(30, 50)
            xs = adam(functools.partial(gradient, draws), start, 30, float(rate))
            losses = [(x - 1) @ hessian @ (x - 1) / 2 for x in xs[:-1]]
            expected = np.reshape(losses, (3, 10)).mean(axis=1)
            np.testing.assert_allclose(curves[i, seed], expected, rtol=2e-5)
            np.testing.assert_allclose(params[i, seed], xs[-1], atol=2e-5)


def test_the_best_rate_ends_lowest():
    module = example("compare_variants")
    task = module.quadratic_task(steps=60, seeds=3, noise=0.1)
    rates = np.array([1e-3, 0.3, 1e3, np.inf])  # no progress, good, too far, NaN
    found = module.best(task, fa.adam, rates)
    assert found.rate == 0.3
    curves, params = module.sweep(task.loss, fa.adam, jnp.array([0.3]), *task[1:])
    np.testing.assert_allclose(found.curve, np.median(curves[0], axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.loss, np.median(curves[0, :, -1]), rtol=1e-5)
    np.testing.assert_allclose(found.params, params[0], rtol=1e-4, atol=1e-5)


def test_names_beside_the_curves_keep_their_distance_and_order():
    spread = example("compare_variants").spread
    heights = np.array([0.99, 0.1, 0.5, 0.98, 0.97, 0.1])
    found = spread(heights, 0.05)
    ordered = np.argsort(heights, kind="stable")
    assert np.diff(found[ordered]).min() > 0.05 - 1e-12
    assert 0 <= found.min() <= found.max() <= 1
    assert found[2] == 0.5  # had room
    np.testing.assert_allclose(found[ordered[:2]], [0.075, 0.125])  # makes way both ways


@pytest.mark.parametrize(
    ("way", "sizes"),
    [
        (run_here, {"amsgrad": "12.0"}),
        pytest.param(run, {"adamax": "8.0", "amsgrad": "12.0"}, marks=pytest.mark.slow),
    ],
)
def test_a_short_comparison_draws_and_prints(way, sizes, tmp_path):
    args = ["--epochs", 2, "--steps", 40, "--seeds", 2, "--noise", 0.01, "--output", "v.png"]
    args += ["--only", *sizes]
    rows = rows_of(way("compare_variants.py", *args, cwd=tmp_path))
    assert {row[0]: row[-1] for row in rows} == sizes
    rates = [f"{rate:.2g}" for rate in np.geomspace(1e-3, 10, 17)]
    for _, rate, loss, held_out, quadratic_rate, quadratic_loss, _ in rows:
        assert {rate, quadratic_rate} <= set(rates[1:-1])  # the ends are out of the question
        assert 0.01 < float(loss) < 0.5  # of log 10 = 2.3
        assert 85 < float(held_out.rstrip("%")) < 100
        assert 0.001 < float(quadratic_loss) < 1  # of about 5
    assert_png(tmp_path / "v.png")
    assert [path.name for path in tmp_path.iterdir()] == ["v.png"]
