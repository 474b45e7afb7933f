"""What all example scripts share: `--help`, errors, Ctrl-C; and the quickstart."""

import ast
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from modes import switched
from running import EXAMPLES, example, exit_of, run

from functional_adam import _transform, _update

SCRIPTS = [
    "quickstart.py",
    "train_digits.py",
    "adam_and_sgd.py",
    "compare_variants.py",
    "learn_the_learning_rate.py",
    "train_small_memory.py",
    "skip_spikes.py",
    "sweep.py",
    "widths.py",
    "word_vectors.py",
    "train_sharded.py",
    "train_distributed.py",
    "train_large.py",
]
PARTS = ["checkpoints.py", "interrupts.py"]
RECIPES = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("frameworks/*.py"))


@pytest.mark.parametrize("script", SCRIPTS + PARTS + RECIPES)
def test_help_describes_the_script(script, tmp_path, capsys):
    assert exit_of(EXAMPLES / script, "--help", cwd=tmp_path) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"usage: {Path(script).name} [-h]")
    first = ast.get_docstring(ast.parse((EXAMPLES / script).read_text("utf-8"))).split("\n")[0]
    assert " ".join(first.split()) in " ".join(output.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_stands_alone(script, tmp_path):
    assert run(script, "--help", cwd=tmp_path).startswith(f"usage: {script}")
    assert not list(tmp_path.iterdir())


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
def test_a_recipe_says_what_to_install(name, monkeypatch, tmp_path):
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
def test_ctrl_c_ends_a_script_without_a_traceback(script, tmp_path):
    assert exit_of(EXAMPLES / script, cwd=tmp_path) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS + [r for r in RECIPES if "command" not in r])
def test_every_script_answers_ctrl_c(script):
    text = (EXAMPLES / script).read_text("utf-8")
    begins = "begin(__doc__)" if "frameworks" in script else "answer_interrupts()"
    assert ("signal.signal(signal.SIGINT" if script == "quickstart.py" else begins) in text


@pytest.mark.parametrize(
    "script",
    [
        *("adam_and_sgd", "compare_variants", "learn_the_learning_rate", "skip_spikes", "sweep"),
        *("train_small_memory", "widths", "word_vectors"),
    ],
)
def test_a_picture_goes_where_the_script_was_called(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script])
    assert example(script).parse_args().output.parent == Path()


@pytest.mark.parametrize("script", SCRIPTS[2:10])  # those that draw
def test_a_picture_needs_an_existing_directory(script, tmp_path, capsys):
    assert exit_of(EXAMPLES / script, "--output", "missing/a.png", cwd=tmp_path) == 2
    assert "is not a file in an existing directory" in capsys.readouterr().err


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


def test_quickstart_fails_when_a_loss_is_missed(tmp_path):
    data = json.loads((EXAMPLES / "single_sample_regression.json").read_text(encoding="utf-8"))
    data["reference_loss"]["25"] += 2e-6
    (tmp_path / "single_sample_regression.json").write_text(json.dumps(data), encoding="utf-8")
    script = shutil.copy(EXAMPLES / "quickstart.py", tmp_path)
    message = exit_of(script, cwd=tmp_path)  # a string: printed, and exit status 1
    assert message == "These epochs' losses are not the reference's: 25."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "--batch-size: must be a finite number from 1 to 1437, not 0"),
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--output", "missing/digits.png"], "is not a file in an existing directory"),
    ],
)
def test_bad_values_get_clear_errors(args, message, tmp_path, capsys):
    assert exit_of(EXAMPLES / "train_digits.py", *args, cwd=tmp_path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("adam_and_sgd.py", ["--steps", "25"], "--steps: must be a multiple of 10, not 25"),
        ("train_small_memory.py", ["--steps", "30"], "--steps: must be a multiple of 20, not 30"),
        ("train_small_memory.py", ["--width", "130"], "--width: must be a multiple of 4, not 130"),
        ("skip_spikes.py", ["--steps", "30"], "--steps: must be a multiple of 20, not 30"),
        ("skip_spikes.py", ["--window", "1"], "--window: must be a finite number from 2 up, not 1"),
        ("train_small_memory.py", ["--settings", "int4"], "invalid choice: 'int4'"),
        ("word_vectors.py", ["--steps", "150"], "--steps: must be a multiple of 100, not 150"),
        ("word_vectors.py", ["--ways", "eager"], "invalid choice: 'eager'"),
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
        (
            "train_large.py",
            ["--batch-size", "20"],
            "--batch-size: must be a multiple of 16, not 20",
        ),
    ],
)
def test_bad_values_are_named(script, args, message, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    assert exit_of(EXAMPLES / script, *args, cwd=tmp_path) == 2
    assert message in capsys.readouterr().err
