"""The benchmark `accelerator.py`, on small trees and the CPU: its tables say what is so."""

import contextlib
import importlib
import io
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from modes import switched
from running import called

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Gradient, parameter, both moments and the error in bytes; a scale of 2 bytes for 128 elements.
LEAST = {
    "optax.adamw": 4 + 2 * (4 + 8),
    "full": 4 + 2 * (4 + 8),
    "bfloat16": 4 + 2 * (4 + 4),
    "int8": 4 + 2 * (4 + 2 + 2 / 128),
    "int8 + compensated": 2 + 2 * (2 + 2 + 2 / 128 + 1),
}


@pytest.fixture(scope="module")
def accelerator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("accelerator")


@pytest.fixture
def kept_caches(monkeypatch):
    """Other tests in this process have theirs."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def printed_by(accelerator, *args, cwd):
    """What `main` prints: the line above the tables, and each table's rows by its columns."""
    output = io.StringIO()
    with (
        called(BENCHMARKS / "accelerator.py", *args, cwd=cwd),
        switched("jax_enable_compilation_cache", False),
        contextlib.redirect_stdout(output),
    ):
        accelerator.main()
    head, _, times, _, bits = output.getvalue().strip().split("\n\n")
    tables = []
    for table in (times, bits):
        columns, rule, *rows = table.splitlines()
        assert set(cells(rule)) == {"---"}
        assert len(cells(rule)) == len(cells(columns))
        tables.append([dict(zip(cells(columns), cells(row), strict=True)) for row in rows])
    return head, *tables


@pytest.mark.usefixtures("kept_caches")
@pytest.mark.parametrize(
    "kinds",
    [
        ("int8 + compensated",),
        pytest.param(("full", "int8 + compensated"), marks=pytest.mark.slow),
    ],
)
def test_the_tables_of_a_cpu(kinds, accelerator, monkeypatch, tmp_path):
    states = {kind: accelerator.STATES[kind] for kind in kinds}
    monkeypatch.setattr(accelerator, "STATES", states)
    monkeypatch.setattr(accelerator, "mlp", lambda: {"a": (3, 128), "b": (128,)})
    monkeypatch.setattr(accelerator, "ODD", {"w": (48, 256), "b": (130,)})
    head, times, bits = printed_by(accelerator, "--quick", "--size", 128, cwd=tmp_path)
    assert "these are times of a CPU" in head
    assert f"jax {jax.__version__}" in head
    assert "FUNCTIONAL_ADAM_KERNELS" in head
    assert "3 rounds of 2 steps" in head
    names = [(c.state, c.way) for c in accelerator.contestants()]
    assert [(row["state"], row["by"]) for row in times] == 2 * [*names, ("copy", "")]
    assert {row["parameters"] for row in times} == {"MLP", "one leaf"}
    for row in times:
        milliseconds, rate = float(row["ms"]), float(row["GB/s"])
        assert milliseconds > 0
        if row["parameters"] == "one leaf":
            least = LEAST.get(row["state"], 8)
            assert float(row["bytes"]) == pytest.approx(least, abs=0.006)
            # Medians of an odd number of rounds, both rounded as they are printed.
            low, high = (least * 128**2 / 1e6 / (milliseconds + d) for d in (5.1e-4, -5.1e-4))
            assert low - 0.051 <= rate <= high + 0.051
        if row["state"] == "copy":
            assert row["of copy"] == "100%"
        else:
            assert float(row["compile, s"]) >= 0
            assert float(row["/ optax"].split()[0]) > 0
        if (row["state"], row["by"]) == names[0]:
            assert row["/ optax"] == "1.000 [1.000, 1.000]"
    assert [(row["state"], row["by"]) for row in bits] == names[2:]
    for row in bits:
        kind, same = row["state"], "0 of 12,418"  # 48 * 256 + 130 elements
        assert (row["p"], row["mu"], row["nu"]) == (same, same, same)
        assert re.fullmatch(r"0 of \d+" if "int8" in kind else "", row["nu_scale"])
        assert row["residual"] == (same if "compensated" in kind else "")
        has_update = row["by"] == "update" and "compensated" not in kind
        assert row["update / learning rate"] == ("0" if has_update else "")


def test_the_least_bytes_of_a_step(accelerator):
    for c in accelerator.contestants():
        found = accelerator.least(c, {"a": (64, 384), "b": (37, 128)})
        count = 2 * 4  # the number of the step, read and written
        assert found == LEAST[c.state] * (64 * 384 + 37 * 128) + count


@pytest.mark.usefixtures("unoptimized", "kept_caches")
@pytest.mark.parametrize(
    ("kind", "error"), [("optax.adamw", 1e-4), ("full", 1e-4), ("bfloat16", 2e-3), ("int8", 1e-2)]
)
def test_a_program_takes_its_steps_in_place(accelerator, kind, error):
    rate, decay = accelerator.HYPER["learning_rate"], accelerator.HYPER["weight_decay"]
    for c in accelerator.contestants():
        if c.state == kind:
            grads, start, params = (
                accelerator.normal({"w": (48, 128)}, c.dtype, i) for i in (2, 1, 1)
            )
            given = params, c.tx.init(params)
            program, seconds = accelerator.compiled(c, 5, *given, grads)
            assert seconds > 0
            ended, _ = program(*given, grads)
            assert all(x.is_deleted() for x in jax.tree.leaves(given) if x.ndim)
            # While gradients stay the same, m_hat is g and v_hat is g**2: a step is the sign.
            expected = -5 * rate * (np.sign(grads["w"]) + decay * start["w"])
            # What the format of the moments costs on average, as a part of the way.
            found = np.abs(ended["w"] - start["w"] - expected).mean() / (5 * rate)
            assert found < error


def test_gpt2_small_is_that(accelerator):
    shapes = accelerator.gpt2().values()  # OpenAI's has 124,439,808 parameters
    assert (len(shapes), sum(map(math.prod, shapes))) == (148, 124_439_808)


def test_figures_are_medians_of_rounds(accelerator):
    times, copied = [0.002, 0.001, 0.005], np.array([20e9, 50e9, 40e9])
    # 14, 28 and 5.6 GB/s; 0.7, 0.56 and 0.14 of the copy.
    assert accelerator.figures(28e6, times, copied) == ["2.000", "14.0", "56%"]


def test_differing_counts_elements_with_other_bits(accelerator):
    nan = np.float32(np.nan)
    ours = {"a": np.float32([[0.0, nan, 1.5, 3.0]]), "b": np.int8([-1, 5, 7])}
    theirs = {"a": np.float32([[-0.0, nan, 1.5, 3.1]]), "b": np.int8([-1, 4, 7])}
    assert accelerator.differing(ours, theirs) == "3 of 7"
    assert accelerator.differing(ours, ours) == "0 of 7"
    assert accelerator.differing(None, None) == ""
    with pytest.raises(ValueError, match="zip"):
        accelerator.differing(ours, {"a": ours["a"]})


def test_each_array_of_two_results_has_its_own_cell(accelerator):
    c = next(c for c in accelerator.contestants() if c.name == "int8, update")
    params, grads = (accelerator.normal({"w": (40, 128)}, c.dtype, i) for i in (1, 2))
    params, state, updates = jax.device_get(c.step(params, c.tx.init(params), grads))
    changed = params["w"].copy()
    changed[1, :3] += 1
    mu = {"w": state.mu["w"] ^ (np.arange(128) < 2).astype(np.int8)}  # two of each of 40 rows
    scales = jax.tree.map(lambda x: x + np.uint16(1), state.nu_scale)
    far = {"w": updates["w"].copy()}
    far["w"][2, 7] += 0.25 * accelerator.HYPER["learning_rate"]
    found = accelerator.compared(
        (params, state, updates), ({"w": changed}, state._replace(mu=mu, nu_scale=scales), far)
    )
    scale_count = sum(x.size for x in jax.tree.leaves(scales))
    assert found[:3] == ["3 of 5,120", "80 of 5,120", "0 of 5,120"]
    assert found[3:] == [f"{scale_count} of {scale_count}" if scale_count else "", "", "0.25"]


@pytest.mark.usefixtures("unoptimized")
def test_the_step_on_the_device_is_compared_with_the_cpus(accelerator, monkeypatch):
    """A device that takes one gradient for its negative, which m sees and v does not."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    put = jax.device_put

    def wrong(x, where):
        if where is device:
            params, state, grads = x
            at = np.flatnonzero(grads["w"])[5]
            x = params, state, {"w": grads["w"].at[at].multiply(-1)}
        return put(x, where)

    monkeypatch.setattr(jax, "device_put", wrong)
    monkeypatch.setattr(accelerator, "STATES", {"full": accelerator.STATES["full"]})
    update, step = accelerator.bit_rows(device, {"w": (37,)})
    assert update[:-1] == ["full", "update", "1 of 37", "1 of 37", "0 of 37", "", ""]
    assert 0.01 < float(update[-1]) < 10
    assert step == ["full", "fa.step", "1 of 37", "1 of 37", "0 of 37", "", "", ""]


@pytest.mark.parametrize(
    ("given", "loaded"),
    [(None, None), ("", ""), ("cuda", "cuda,cpu"), ("cpu,tpu", "cpu,tpu"), ("tpu", "tpu,cpu")],
)
def test_the_cpu_is_loaded_beside_what_was_named(accelerator, given, loaded):
    assert accelerator.with_cpu(given) == loaded


@pytest.mark.parametrize("given", ["0", "-3", "2.5", "many"])
def test_options_are_whole_numbers(accelerator, given, tmp_path, capsys):
    with (
        called(BENCHMARKS / "accelerator.py", f"--steps={given}", cwd=tmp_path),
        pytest.raises(SystemExit),
    ):
        accelerator.arguments()
    assert f"must be a whole number of at least 1; got '{given}'" in capsys.readouterr().err
