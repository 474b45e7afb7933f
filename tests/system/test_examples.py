"""The example scripts, run as a reader would run them: in a process of their own."""

import argparse
import ast
import functools
import importlib
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from modes import switched
from names import OF_STATES

import functional_adam as fa
from functional_adam import _transform, _update

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = [
    "quickstart.py",
    "train_digits.py",
    "compare_variants.py",
    "learn_the_learning_rate.py",
    "train_small_memory.py",
    "sweep.py",
    "train_sharded.py",
    "train_distributed.py",
]
PARTS = ["checkpoints.py", "interrupts.py"]
RECIPES = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("frameworks/*.py"))
# 30 steps: an epoch of 22 and a part. Neither stop nor checkpoint falls on the epoch's end.
SETTINGS = {"steps": 30, "batch_size": 64, "learning_rate": 0.003, "weight_decay": 0.2, "seed": 3}
SHORT = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
SHORT += ["--save-every", "7", "--checkpoint", "run"]


def run(script, *args, cwd):
    """Run a script in a process of its own; return what it printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
    environment.pop("FORCE_COLOR", None)  # Rich would take the pipe for a terminal
    command = [sys.executable, EXAMPLES / script, *map(str, args)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def exit_of(monkeypatch):
    """A function that runs a script in this process, for speed, and returns what it exits with."""

    def run_here(script, *args, cwd):
        monkeypatch.syspath_prepend(Path(script).parent)  # as Python does for a script
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
        return stopped.value.code

    return run_here


def accuracies(output):
    """`{run: (training, held out)}` in percent, from the printed table."""
    rows = re.findall(r"(AdamW|SGD)\b.*?([\d.]+)%.*?([\d.]+)%", output)
    return {name: (float(training), float(held_out)) for name, training, held_out in rows}


def assert_png(path):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_describes_the_script(script, tmp_path):
    output = run(script, "--help", cwd=tmp_path)
    assert output.startswith(f"usage: {script}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", PARTS + RECIPES)
def test_help_describes_parts_and_recipes_too(script, exit_of, tmp_path, capsys):
    assert exit_of(EXAMPLES / script, "--help", cwd=tmp_path) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: {Path(script).name} [-h]")
    first = ast.get_docstring(ast.parse((EXAMPLES / script).read_text("utf-8"))).split("\n")[0]
    assert first in output


LIBRARIES = {
    "equinox_module": ("equinox", "equinox scikit-learn"),
    "flax_linen": ("flax", "flax scikit-learn"),
    "flax_nnx": ("flax", "flax scikit-learn"),
    "haiku_transform": ("haiku", "dm-haiku scikit-learn"),
    "numpyro_svi": ("numpyro", "numpyro optax scikit-learn"),
    "optax_wrappers": ("optax", "optax scikit-learn"),
    "optimistix_minimise": ("optimistix", "optimistix scikit-learn"),
    "plain_jax": ("sklearn.datasets", "scikit-learn"),
}


@pytest.mark.parametrize(
    "name", [Path(recipe).stem for recipe in RECIPES if "command" not in recipe]
)
def test_a_recipe_says_what_to_install(name, exit_of, monkeypatch, tmp_path):
    library, packages = LIBRARIES[name]
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    said = exit_of(EXAMPLES / "frameworks" / f"{name}.py", cwd=tmp_path)
    assert library in said
    assert said.endswith(f"Install what this example needs: pip install {packages}")


@pytest.fixture
def interrupted(monkeypatch):
    """From now on, the first step of any optimizer is hit by Ctrl-C, and a process's end raises."""

    def ended(status):
        raise SystemExit(status)

    def step(*_, **__):
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "_exit", ended)
    for module in (_transform, _update):
        monkeypatch.setattr(module, "step", step)
    with switched("jax_enable_x64", False):  # which a script may turn on
        yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupted")
@pytest.mark.parametrize(
    "script",
    ["quickstart.py", "train_digits.py", "learn_the_learning_rate.py", "frameworks/plain_jax.py"],
)
def test_ctrl_c_ends_a_script_without_a_traceback(script, exit_of, tmp_path):
    assert exit_of(EXAMPLES / script, cwd=tmp_path) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS + [r for r in RECIPES if "command" not in r])
def test_every_script_answers_ctrl_c(script):
    text = (EXAMPLES / script).read_text("utf-8")
    begins = "begin(__doc__)" if "frameworks" in script else "answer_interrupts()"
    assert ("signal.signal(signal.SIGINT" if script == "quickstart.py" else begins) in text


@pytest.mark.parametrize(
    "script", ["compare_variants", "learn_the_learning_rate", "sweep", "train_small_memory"]
)
def test_a_picture_goes_where_the_script_was_called(script, example, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    assert example(script).parse_args().output.parent == Path()


def test_quickstart_prints_the_reference_losses(tmp_path):
    data = json.loads((EXAMPLES / "single_sample_regression.json").read_text(encoding="utf-8"))
    output = run("quickstart.py", cwd=tmp_path)
    rows = [line.split() for line in output.splitlines()[1:]]
    assert [epoch for epoch, _, _ in rows] == list(data["reference_loss"])
    assert len(rows) == 10
    for epoch, loss, reference in rows:
        assert re.fullmatch(r"\d\.\d{6}", loss)
        assert float(reference) == data["reference_loss"][epoch]
        assert round(1e6 * float(loss)) == pytest.approx(round(1e6 * float(reference)), abs=1)
        assert float(loss) == pytest.approx(data["float64_loss"][epoch], abs=1.5e-6)


def test_quickstart_fails_when_a_loss_is_missed(exit_of, tmp_path):
    data = json.loads((EXAMPLES / "single_sample_regression.json").read_text(encoding="utf-8"))
    data["reference_loss"]["25"] += 2e-6
    (tmp_path / "single_sample_regression.json").write_text(json.dumps(data), encoding="utf-8")
    script = shutil.copy(EXAMPLES / "quickstart.py", tmp_path)
    message = exit_of(script, cwd=tmp_path)  # a string: printed, and exit status 1
    assert message == "These epochs' losses are not the reference's: 25."


def test_a_full_run_reaches_its_goal(tmp_path):
    found = accuracies(run("train_digits.py", cwd=tmp_path))
    assert found.keys() == {"AdamW", "SGD"}
    assert found["AdamW"][0] > 99.5
    assert found["AdamW"][1] >= 97
    assert found["SGD"][1] > 94  # plain SGD is tuned, not a straw man
    assert_png(tmp_path / "digits.png")


def test_a_full_run_that_misses_its_goal_fails(exit_of, tmp_path):
    args = ["--batch-size", 1437, "--learning-rate", 1e-4]  # 40 epochs of one step
    message = exit_of(EXAMPLES / "train_digits.py", *args, cwd=tmp_path)
    assert re.fullmatch(r"AdamW's held-out accuracy is [\d.]+%, below 97%\.", message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "--batch-size: must be a finite number from 1 to 1437, not 0"),
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--output", "missing/digits.png"], "is not a file in an existing directory"),
    ],
)
def test_bad_values_get_clear_errors(args, message, exit_of, tmp_path, capsys):
    assert exit_of(EXAMPLES / "train_digits.py", *args, cwd=tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A short run without interruption: its directory and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    output = run("train_digits.py", *SHORT, cwd=folder)
    return folder, output


@pytest.fixture(scope="module")
def newest(example):
    """A function from a checkpoint directory to its newest (step, params, state, history)."""
    train_digits = example("train_digits")

    def restore(directory):
        params = jax.tree.map(lambda p: p.astype(np.float32), train_digits.init_params(0))
        checkpoints = train_digits.Checkpoints(directory, SETTINGS)
        step, arrays, notes = checkpoints.restore((params, fa.init(params)))
        return step, *arrays, [train_digits.Measure(*row) for row in notes["history"]]

    return restore


def test_a_resumed_run_ends_on_the_same_bits(straight, newest, tmp_path):
    folder, output = straight
    stopped = run("train_digits.py", *SHORT, "--stop-after", 17, cwd=tmp_path)
    assert "Stopped early" in stopped
    assert not (tmp_path / "digits.png").exists()
    step, *_ = newest(tmp_path / "run")
    assert step == 14  # the last multiple of 7 before 17
    resumed = run("train_digits.py", *SHORT, cwd=tmp_path)
    assert "Resuming from step 14" in resumed
    assert accuracies(resumed) == accuracies(output)

    expected, found = newest(folder / "run"), newest(tmp_path / "run")
    assert found[0] == expected[0] == 30
    assert found[3] == expected[3]
    assert [row.step for row in found[3]] == [0, 22]  # the first is from before the stop
    assert isinstance(found[2], fa.AdamState)
    assert found[2].count == 30
    expected_leaves, expected_tree = jax.tree.flatten(expected[1:3])
    found_leaves, found_tree = jax.tree.flatten(found[1:3])
    assert found_tree == expected_tree
    assert len(found_leaves) == 3 * 6 + 1  # parameters, mu and nu of three layers; count
    for a, b in zip(found_leaves, expected_leaves, strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert np.any(a)


def test_another_setting_does_not_resume(straight, exit_of):
    folder, _ = straight
    message = exit_of(EXAMPLES / "train_digits.py", *SHORT, "--seed", 4, cwd=folder)
    assert "'seed': 3" in message


def test_a_short_run_draws_and_prints(straight):
    folder, output = straight
    assert accuracies(output).keys() == {"AdamW", "SGD"}
    assert_png(folder / "digits.png")


@pytest.fixture(scope="module")
def example():
    """A function from a script's name to the script as a module, its folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module


def adam(gradient, theta, steps, rate, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    """Algorithm 1 in NumPy: the parameters before each step and after the last.

    `decay` is AdamW's, and may be an array.
    """
    thetas, m, v = [np.float64(theta)], 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradient(thetas[-1], t - 1)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = rate * m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        thetas.append(thetas[-1] - step - rate * decay * thetas[-1])
    return thetas


def rows_of(output):
    """The cells of every row of the printed tables, headings left out."""
    lines = (line.strip("│").split("│") for line in output.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line] for line in lines]


def test_every_variant_is_compared(example):
    others = {"init", "update", "apply_updates", "adamaxw", "nadamw"}  # the last two: see adamw
    others |= OF_STATES
    public = {name for name in fa.__all__ if name.islower()} - others
    factories = {name for name in public if not name.startswith(("_", "scale_by_"))}
    compared = [re.match(r"\w+", name)[0] for name in example("compare_variants").VARIANTS]
    assert set(compared) == factories
    assert len(compared) == len(factories) + 1  # nadam twice


def test_the_quadratic_is_as_described(example):
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


def test_a_sweep_is_many_single_runs(example):
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


def test_the_best_rate_ends_lowest(example):
    module = example("compare_variants")
    task = module.quadratic_task(steps=60, seeds=3, noise=0.1)
    rates = np.array([1e-3, 0.3, 1e3, np.inf])  # no progress, good, too far, NaN
    found = module.best(task, fa.adam, rates)
    assert found.rate == 0.3
    curves, params = module.sweep(task.loss, fa.adam, jnp.array([0.3]), *task[1:])
    np.testing.assert_allclose(found.curve, np.median(curves[0], axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.loss, np.median(curves[0, :, -1]), rtol=1e-5)
    np.testing.assert_allclose(found.params, params[0], rtol=1e-4, atol=1e-5)


def test_names_beside_the_curves_keep_their_distance_and_order(example):
    spread = example("compare_variants").spread
    heights = np.array([0.99, 0.1, 0.5, 0.98, 0.97, 0.1])
    found = spread(heights, 0.05)
    ordered = np.argsort(heights, kind="stable")
    assert np.diff(found[ordered]).min() > 0.05 - 1e-12
    assert 0 <= found.min() <= found.max() <= 1
    assert found[2] == 0.5  # had room
    np.testing.assert_allclose(found[ordered[:2]], [0.075, 0.125])  # makes way both ways


def test_a_short_comparison_draws_and_prints(tmp_path):
    args = ["--epochs", 2, "--steps", 40, "--seeds", 2, "--noise", 0.01, "--output", "v.png"]
    args += ["--only", "adamax", "amsgrad"]
    rows = rows_of(run("compare_variants.py", *args, cwd=tmp_path))
    assert [row[0] for row in rows] == args[-2:]
    assert [row[-1] for row in rows] == ["8.0", "12.0"]
    rates = [f"{rate:.2g}" for rate in np.geomspace(1e-3, 10, 17)]
    for _, rate, loss, held_out, quadratic_rate, quadratic_loss, _ in rows:
        assert {rate, quadratic_rate} <= set(rates[1:-1])  # the ends are out of the question
        assert 0.01 < float(loss) < 0.5  # of log 10 = 2.3
        assert 85 < float(held_out.rstrip("%")) < 100
        assert 0.001 < float(quadratic_loss) < 1  # of about 5
    assert_png(tmp_path / "v.png")
    assert [path.name for path in tmp_path.iterdir()] == ["v.png"]


@pytest.mark.parametrize("script", SCRIPTS[2:6])  # those that draw
def test_a_picture_needs_an_existing_directory(script, exit_of, tmp_path, capsys):
    assert exit_of(EXAMPLES / script, "--output", "missing/a.png", cwd=tmp_path) == 2
    assert "is not a file in an existing directory" in capsys.readouterr().err


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


def test_each_hyperparameter_reaches_its_own_member(example):
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


def test_the_grid_is_spaced_by_equal_factors(example):
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


def test_a_short_sweep_draws_and_prints(tmp_path):
    args = ["--epochs", 1, "--x", "eps", 1e-8, 1e-2, 2, "--y", "b1", 0.5, 0.95, 3]
    output = run("sweep.py", *args, "--output", "s.png", cwd=tmp_path)
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


def test_a_member_that_goes_another_way_alone_fails(exit_of, tmp_path):
    # At such rates losses are in the thousands, and a rounding of them is more than the bound.
    args = ["--epochs", 1, "--x", "learning_rate", 3, 9, 2, "--y", "b2", 0.5, 0.6, 2]
    message = exit_of(EXAMPLES / "sweep.py", *args, "--check", 3, cwd=tmp_path)
    assert message.startswith("That is more than 1e-05 or 0.05.")


def test_the_learned_rate_is_the_best_rate_from_both_sides(tmp_path):
    rows = rows_of(run("learn_the_learning_rate.py", cwd=tmp_path))
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
        assert float(start_loss) > 10 * best_loss
        assert float(loss) < 1.01 * best_loss
        assert float(rate) == pytest.approx(best_rate, rel=0.1)
    assert_png(tmp_path / "learning_rate.png")


@pytest.mark.usefixtures("x64")
def test_the_derivative_through_training_is_that_of_adam_in_numpy(example):
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
    found, slopes = jax.value_and_grad(loss)(module.Hyper(*jnp.array(point)))
    np.testing.assert_allclose(found, plain(*point), rtol=1e-9)
    for slope, way in zip(slopes, h * np.eye(2), strict=True):
        difference = (plain(*(point + way)) - plain(*(point - way))) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


def bytes_by_hand(weights, moments, residual):
    """What weights, gradients and state are for a model 32 wide; `moments` in bytes a number."""
    shapes = [(256, 32), (64, 32), (32, 256), (32,), (3, 32), (3, 32)]
    shapes += [(3, 32, 96), (3, 32, 32), (3, 32, 128), (3, 128, 32)]
    count = sum(math.prod(shape) for shape in shapes)
    assert count == 55_520
    # With 8 bits two bytes for each row: no last axis is longer than a block but that of 256.
    blocks = 256 + 64 + 2 * 32 + 1 + 3 + 3 + 3 * (32 + 32 + 32 + 128) if moments == 2 else 0
    state = (moments + residual) * count + 2 * blocks + 4  # 4: the counter
    return [weights * count, weights * count, state], count


def test_bytes_are_those_of_the_shapes(example):
    module = example("train_small_memory")
    args = argparse.Namespace(seed=0, width=32, steps=20, learning_rate=0.1)
    windows = np.zeros((2, module.CONTEXT + 1), np.uint8)
    by_hand = {
        "float32": bytes_by_hand(4, 8, 0),
        "bf16-moments": bytes_by_hand(4, 4, 0),
        "int8-moments": bytes_by_hand(4, 2, 0),
        "nearest": bytes_by_hand(2, 8, 0),
        "everything": bytes_by_hand(2, 2, 1),
    }
    assert by_hand.keys() == module.SETTINGS.keys()
    for name, (sizes, count) in by_hand.items():
        found = module.cost(module.SETTINGS[name], windows, args)
        np.testing.assert_allclose(found * count, sizes, rtol=1e-12)


def test_small_memory_trains_like_float32(tmp_path):
    args = ["--steps", 20, "--width", 32, "--settings", "float32", "everything"]
    rows = rows_of(run("train_small_memory.py", *args, "--output", "m.png", cwd=tmp_path))
    assert [row[0] for row in rows] == args[-2:]
    for row, (sizes, count) in zip(
        rows, (bytes_by_hand(4, 8, 0), bytes_by_hand(2, 2, 1)), strict=True
    ):
        assert row[1:5] == [f"{size / count:.3f}" for size in (*sizes, sum(sizes))]
        first, last = map(float, row[5:])
        assert 5.5 < first < 7  # log 256 = 5.55
        assert 3 < last < 4.5
    assert float(rows[1][-1]) == pytest.approx(float(rows[0][-1]), abs=0.01)
    assert_png(tmp_path / "m.png")
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("train_small_memory.py", ["--steps", "30"], "--steps: must be a multiple of 20, not 30"),
        ("train_small_memory.py", ["--width", "130"], "--width: must be a multiple of 4, not 130"),
        ("train_small_memory.py", ["--settings", "int4"], "invalid choice: 'int4'"),
        ("sweep.py", ["--x", "b3", "0", "0.9", "3"], "--x: NAME must be one of learning_rate, b1,"),
        ("sweep.py", ["--x", "eps", "0", "1", "3"], "--x: eps needs 0 < LOW < HIGH, finite, and"),
        ("sweep.py", ["--y", "b1", "0", "1", "3"], "--y: b1 needs 0 <= LOW < HIGH < 1 and COUNT"),
        ("sweep.py", ["--y", "b1", "0", "0.9", "1"], "and COUNT at least 2"),
        (
            "sweep.py",
            ["--y", "b2", "0.5", "0.999999999", "2"],
            "--y: b2 must be a number in [0, 1)",
        ),
        ("sweep.py", ["--x", "b2", "0.5", "0.9", "2"], "--y: b2 is swept by --x"),
        ("sweep.py", ["--b2", "0.9"], "--b2: b2 is swept"),
        ("sweep.py", ["--b1", "1"], "--b1: b1 must be a number in [0, 1)"),
        ("sweep.py", ["--check", "64"], "--check: there are 64 members, from 0 to 63"),
        ("train_sharded.py", ["--devices", "3"], "--batch-size: must be a multiple of 3, not 16"),
        ("train_sharded.py", ["--width", "130"], "--width: must be a multiple of 4, not 130"),
        ("train_sharded.py", ["--moments", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_bad_values_are_named(script, args, message, exit_of, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    assert exit_of(EXAMPLES / script, *args, cwd=tmp_path) == 2
    assert message in capsys.readouterr().err


def values_of(output):
    """{what: value} of the table that train_sharded.py prints."""
    rows = re.findall(r"│ (.+?) +│ +([\d.,]+) │", output)
    return {name: float(value.replace(",", "")) for name, value in rows}


def test_devices_hold_their_part_and_train_alike(tmp_path):
    args = ["--devices", 4, "--steps", 20, "--width", 32]
    runs = {
        name: values_of(run("train_sharded.py", *args, *more, cwd=tmp_path))
        for name, more in {
            "whole": [],
            "divided": ["--zero"],
            "int8": ["--zero", "--moments", "int8"],
        }.items()
    }
    (_, _, state), count = bytes_by_hand(4, 8, 0)
    # The first axis of every leaf is a multiple of 4, or the next one is.
    assert runs["whole"]["on a device, found"] == state
    assert runs["divided"]["on a device, found"] == 8 * count / 4 + 4
    for values in runs.values():
        assert values["on a device, computed"] == values["on a device, found"]
        assert values["parameters"] == count
        assert values["loss of the last steps"] < values["loss of the first steps"] - 0.5
    last = [values["loss of the last steps"] for values in runs.values()]
    assert last[1] == pytest.approx(last[0], abs=2e-4)
    assert last[2] == pytest.approx(last[0], abs=0.01)
    # Two bytes a number and two for each block of a row, 32 wide but in three leaves.
    assert 2 * count / 4 < runs["int8"]["on a device, found"] < 2.1 * count / 4
