"""The example `adam_and_sgd.py`: sparse gradients, a fair choice of rates, and who is faster."""

import re

import jax
import numpy as np
import pytest
from quick import quick_jit
from running import assert_png, example, rows_of, run, run_here

SHORT = ["--steps", 40, "--rates", 2, "--batch-size", 16, "--seed", 3]


def run_of(losses, rate=0.3):
    module = example("adam_and_sgd")
    return module.Run(rate, np.array(losses), np.array([0.5, 0.6]))


def test_every_pixel_looks_up_the_row_of_its_place_and_level():
    module = example("adam_and_sgd")
    images = np.float32([[0] * 63 + [1], [3 / 16] + [0] * 63])
    rows = module.as_rows(module.Digits(images, np.int32([4, 7]))).images
    assert rows.shape == (2, 8, 8)
    assert rows[0, 0, 0] == 0
    assert rows[0, 7, 7] == 63 * 17 + 16
    assert rows[1, 0, 0] == 3
    assert rows[1, 2, 5] == (2 * 8 + 5) * 17


def test_rows_that_no_pixel_looks_up_have_no_gradient():
    module = example("adam_and_sgd")
    data = module.as_rows(module.load()[0])
    batch = module.Digits(data.images[:5], data.labels[:5])
    params = module.init_params(3)
    gradient = quick_jit(jax.grad(lambda p: module.loss_and_accuracy(p, batch)[0]))
    table = np.asarray(gradient(params)["embedding"])
    used = np.unique(batch.images)
    assert 64 < len(used) < 5 * 64
    assert not np.delete(table, used, axis=0).any()
    assert np.abs(table[used]).max(axis=1).all()


def test_steps_are_counted_to_the_first_loss_at_the_goal():
    assert run_of([2.3, 0.4, 0.1, 0.2]).steps_to(0.1) == 20
    assert run_of([2.3, np.nan, np.nan]).steps_to(0.1) == np.inf


def test_the_best_run_is_the_fastest_then_the_one_of_lowest_loss():
    best_of = example("adam_and_sgd").best_of
    slow, fast, lower = (run_of([2, a, b]) for a, b in ((1, 0.01), (0.09, 0.5), (0.08, 0.4)))
    assert best_of([slow, fast]) is fast
    assert best_of([fast, lower, slow]) is lower
    never = [run_of([2, 1, end]) for end in (np.nan, 0.9, 1.1)]
    assert best_of(never) is never[1]


def test_a_run_of_sgd_is_that_of_the_formula():
    # One step of momentum SGD from rest is the rate times the gradient, whatever the momentum.
    module = example("adam_and_sgd")
    grads = {"w": np.float32([3.0, -0.5])}
    tx = module.MAKE["SGD with momentum"](0.7)
    updates, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(updates["w"], [-2.1, 0.35], rtol=1e-6)
    updates, _ = tx.update(grads, state)
    np.testing.assert_allclose(updates["w"], [-2.1 * 1.9, 0.35 * 1.9], rtol=1e-6)


def test_both_have_as_many_rates_in_equal_steps_of_three():
    rates = example("adam_and_sgd").RATES
    assert {len(tried) for tried in rates.values()} == {6}
    for tried in rates.values():
        ratios = np.divide(tried[1:], tried[:-1])
        assert ((ratios > 2.9) & (ratios < 3.4)).all()


def test_a_short_run_prints_every_rate_and_draws(tmp_path):
    module = example("adam_and_sgd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GOAL", 2.2)
        output = run_here("adam_and_sgd.py", *SHORT, cwd=tmp_path)
    names = [row[0] for row in rows_of(output)]
    assert names == ["Adam"] * 2 + ["SGD with momentum"] * 2
    assert "of 2.2, final held-out accuracy: Adam " in output.splitlines()[-1]
    assert_png(tmp_path / "adam_and_sgd.png")


@pytest.mark.slow
def test_adam_is_faster_than_sgd_at_the_best_of_six_rates(tmp_path):
    last = run("adam_and_sgd.py", cwd=tmp_path).splitlines()[-1]
    found = re.findall(r"(Adam|SGD with momentum) (\d+), ([\d.]+)%", last)
    (_, adam, adam_accuracy), (_, sgd, sgd_accuracy) = found
    assert 1.5 * int(adam) <= int(sgd)
    assert float(adam_accuracy) > float(sgd_accuracy) + 2
