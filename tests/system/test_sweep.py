"""The example `sweep.py`: every member trains as it would alone."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from running import adam, assert_png, example, rows_of, run, run_here, status_of

pytestmark = pytest.mark.usefixtures("unoptimized")


def regression(module):
    """Softmax regression on two epochs of digits: start, chunks, and the gradient in NumPy."""
    train, _ = module.load()
    chunks = module.epochs_of(train, 2, seed=1)
    images, labels = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    assert images.shape == (44, 64, 64)
    start = np.random.default_rng(2).normal(scale=0.3, size=(65, 10)).astype(np.float32)

    def gradient(w, step):
        x = np.c_[images[step], np.ones(64)].astype(float)  # the last for the bias
        scores = np.exp(x @ w)
        errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(10)[labels[step]]
        return x.T @ errors / 64

    return [{"w": jnp.array(start[:-1]), "b": jnp.array(start[-1])}], chunks, gradient, start


def weights(params):
    """Of all members, as in `regression`."""
    return np.concatenate([params[0]["w"], params[0]["b"][:, None]], axis=1)


def test_each_hyperparameter_reaches_its_own_member():
    module = example("sweep")
    start, chunks, gradient, theta = regression(module)
    usual = module.Hyper(0.01, 0.8, 0.98, 1e-4, 0.3)
    members = [module.Hyper(*map(float, np.float32(usual)))] * 6
    others = np.float32(module.Hyper(0.02, 0.3, 0.8, 0.1, 0.9))
    for i, (name, value) in enumerate(zip(module.Hyper._fields, others, strict=True)):
        members[i] = members[i]._replace(**{name: float(value)})
    hyper = module.Hyper(*np.float32(members).T)
    params, curves = module.sweep(hyper, start, chunks)
    assert curves.shape == (6, 44)
    found = weights(params)
    for i, (rate, b1, b2, eps, decay) in enumerate(members):
        decays = np.where(np.arange(65) < 64, decay, 0)[:, None]  # not of the bias
        expected = adam(gradient, theta, 44, rate, b1, b2, eps, decays)[-1]
        np.testing.assert_allclose(found[i], expected, atol=1e-5)
        assert i == 5 or np.abs(found[i] - found[5]).max() > 1e-3
        assert module.member(hyper, i) == members[i]
    for i, name in enumerate(hyper._fields):
        values = np.array(hyper[i])
        values[i] = values[5]
        changed, _ = module.sweep(hyper._replace(**{name: values}), start, chunks)
        same = (weights(changed) == found).all(axis=(1, 2))
        assert same.tolist() == [j != i for j in range(6)]
    assert module.train_all._cache_size() == 1


def test_the_grid_is_spaced_by_equal_factors():
    module = example("sweep")
    axes = [
        module.Axis(name, module.spaced(name, *limits))
        for name, *limits in (("b2", 0.5, 0.995, 3), ("weight_decay", 0.1, 0.9, 3))
    ]
    hyper = module.grid(*axes, module.Hyper(b1=0.7))
    np.testing.assert_allclose(hyper.b2, [0.5, 0.95, 0.995] * 3, rtol=1e-6)
    np.testing.assert_allclose(hyper.weight_decay, np.repeat([0.1, 0.3, 0.9], 3), rtol=1e-6)
    for values, usual in ((hyper.b1, 0.7), (hyper.learning_rate, 0.003), (hyper.eps, 1e-8)):
        assert values.tolist() == [np.float32(usual)] * 9
    assert {values.dtype for values in hyper} == {np.dtype(np.float32)}
    assert [module.text("b2", b) for b in (0.5, 0.95, 0.9999, 0.0)] == [
        *("0.50", "0.950", "0.99990", "0.0")
    ]


@pytest.mark.parametrize("way", [run_here, pytest.param(run, marks=pytest.mark.slow)])
def test_a_short_sweep_draws_and_prints(way, tmp_path):
    args = ["--epochs", 1, "--x", "eps", 1e-8, 1e-2, 2, "--y", "b1", 0.5, 0.95, 3]
    output = way("sweep.py", *args, "--output", "s.png", cwd=tmp_path)
    rows = rows_of(output)
    assert len(rows) == 5  # of 6 members
    assert [float(row[3]) for row in rows] == sorted(float(row[3]) for row in rows)
    b1s = "0.50", "0.84", "0.950"
    for index, eps, b1, loss, accuracy in rows:
        assert (eps, b1) == (("1e-08", "0.01")[int(index) % 2], b1s[int(index) // 2])
        assert 0.05 < float(loss) < 2
        assert 50 < float(accuracy.rstrip("%")) < 100
    losses, parameters = map(float, re.findall(r"within ([\d.e-]+) ", output))
    assert f"Member {rows[0][0]} against its run alone, 22 steps" in output
    assert 0 <= losses < 1e-5
    assert 0 < parameters < 0.05
    assert_png(tmp_path / "s.png")
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_a_member_that_goes_another_way_alone_fails(monkeypatch, tmp_path):
    # At such rates losses are in the thousands, and a rounding of them is more than the bound.
    args = ["--epochs", 1, "--x", "learning_rate", 3, 9, 2, "--y", "b2", 0.5, 0.6, 2]
    monkeypatch.setattr(example("sweep"), "draw", lambda *_: None)
    message, _ = status_of("sweep", *args, "--check", 3, cwd=tmp_path)
    assert message.startswith("That is more than 1e-05 or 0.05.")
