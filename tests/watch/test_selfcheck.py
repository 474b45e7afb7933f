"""`python -m functional_adam`: what it prints is true, and it says no where something is wrong."""

import contextlib
import functools
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import functional_adam as fa
from functional_adam import __main__ as program
from functional_adam._watch import selfcheck as check

PAGE = Path(__file__).parents[2] / "docs" / "why-exact.md"


def run(*args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "functional_adam", *args],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def no_json(word):
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture(scope="module")
def report():
    """What `python -m functional_adam --json` prints, with less to measure.

    float32, which a page quotes, has all its steps.
    """
    wide = check.PRECISIONS[-1]._replace(steps=100)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(check, "PRECISIONS", (check.PRECISIONS[0], wide))
        patch.setattr(check, "FORMATS", ("full", "int8"))
        patch.setattr(check, "timings", functools.partial(check.timings, 2**16, 0.02))
        patch.setattr(sys, "argv", ["functional_adam", "--json"])
        assert program.main() == 0
    return json.loads(out.getvalue(), parse_constant=no_json)


def error_of(report, library, dtype, b1, b2):
    for row in report["errors"]:
        if [row[k] for k in ("library", "dtype", "b1", "b2")] == [library, dtype, b1, b2]:
            return row["rms"], row["worst"]
    raise AssertionError(f"no row for {library}, {dtype}, {b1}, {b2}")


@pytest.mark.slow
def test_the_whole_program_in_a_process():
    done = run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads(done.stdout, parse_constant=no_json)
    assert_is_exact(whole, "float32", "bfloat16", "float16", "float64")
    assert_formats_cost_what_they_should(whole, "full", "bfloat16", "int8")


def test_this_machine_is_exact(report):
    assert_is_exact(report, "float32", "float64")


def assert_is_exact(report, *dtypes):
    assert report["wrong"] == []
    assert {row["dtype"] for row in report["errors"]} == {*dtypes}
    assert report["versions"]["functional_adam"] == fa.__version__
    for b1, b2 in check.RATES:
        rms, worst = error_of(report, "functional_adam", "float32", b1, b2)
        assert 0.5 < rms <= 4
        assert rms < worst <= 40
        rms, worst = error_of(report, "optax", "float32", b1, b2)
        assert worst > rms > 100


def test_formats_cost_what_they_should(report):
    assert_formats_cost_what_they_should(report, "full", "int8")


# Bytes of state a parameter, and bounds of the error.
FORMATS = {
    "full": (8, 3e-8, 3e-7),
    "bfloat16": (4, 1e-3, 5e-3),
    "int8": (2 + 1 / 64, 5e-3, 0.03),
}


def assert_formats_cost_what_they_should(report, *formats):
    assert [row["moments"] for row in report["formats"]] == [*formats]
    for row in report["formats"]:
        size, least, most = FORMATS[row["moments"]]
        assert row["state_bytes"] == pytest.approx(size, abs=1e-5)
        assert least < row["error"] < most
        assert (row["programs"], row["reused"]) == (1, 1.0)
        assert row["to_optax"] > 0
        assert row["of_copy"] > 0


@pytest.mark.parametrize(("library", "column"), [("functional_adam", 0), ("optax", 1)])
@pytest.mark.parametrize("rates", check.RATES)
def test_the_page_quotes_these_numbers(report, library, column, rates):
    b1, b2 = rates
    row = re.search(rf"^\| {b1}, {b2} \|(.*)\|$", PAGE.read_text(), re.M)[1]
    quoted = [float(x.replace(",", "")) for x in row.split("|")[column].split("/")]
    # Another processor may round another way in its vectors.
    assert error_of(report, library, "float32", b1, b2) == pytest.approx(quoted, rel=0.1)


def test_the_truth_is_that_of_the_tests_reference():
    of = check.Precision("float32", 24, 50, 7, 4, 40)
    grads = check.gradients(of)
    for b1, b2 in ((0.83, 0.97), (0.9, 0.9999)):
        hyper = dict(learning_rate=check.RATE, b1=b1, b2=b2, eps=1e-8)
        wanted = reference.adam(grads, **hyper).updates
        np.testing.assert_allclose(check.algorithm_1(grads, b1, b2), wanted, rtol=1e-10)
        np.testing.assert_allclose(check.algorithm_1_in_decimal(grads, b1, b2), wanted, rtol=1e-10)


def test_decimal_truth_is_nearer_than_float64():
    # At t = 1 the corrections cancel what the averages put in: the step is that of |g| alone.
    grads = np.array([[0.3, -2.0]])
    wanted = [-check.RATE * g / (abs(g) + 1e-8) for g in grads[0]]
    found = check.algorithm_1_in_decimal(grads, 0.9, 0.999)[0]
    np.testing.assert_allclose(found, wanted, rtol=2**-51)


class Small:
    """Measurements that take no time."""

    PRECISIONS = (check.Precision("float32", 24, 300, 32, 4.0, 40.0),)

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(check, "PRECISIONS", self.PRECISIONS)
        monkeypatch.setattr(check, "timings", lambda: iter(()))
        monkeypatch.setattr(sys, "argv", ["functional_adam"])


class TestVerdicts(Small):
    def test_a_good_device(self, monkeypatch, capsys):
        monkeypatch.setattr(check, "timings", lambda: iter([check.Timing("full", None, 0.5)]))
        monkeypatch.setattr(check, "FORMATS", ("full",))
        assert program.main() == 0
        printed = capsys.readouterr().out
        assert printed.endswith("GOOD: exact, one program, no copies.\n")
        assert "no Optax" in printed

    def test_inexact_updates(self, monkeypatch, capsys):
        monkeypatch.setattr(check, "adam", optax.adam)
        monkeypatch.setattr(program, "costs", lambda *_: [])
        assert program.main() == 1
        wrong = capsys.readouterr().out.rpartition("WRONG: ")[2]
        assert wrong.count("float32 updates have errors above 4.0 / 40.0") == 2

    def test_nan(self, monkeypatch, capsys):
        monkeypatch.setattr(check, "adam", lambda *_: optax.scale(jnp.nan))
        monkeypatch.setattr(program, "costs", lambda *_: [])
        assert program.main() == 1
        assert "WRONG" in capsys.readouterr().out

    def test_a_format_that_is_off_and_forgets(self, monkeypatch, capsys):
        monkeypatch.setattr(program, "errors", lambda *_: [])
        monkeypatch.setattr(check, "FORMATS", ("int8",))
        monkeypatch.setattr(check, "coarseness", lambda _: (0.062, False))
        monkeypatch.setattr(check, "compilations_and_donation", lambda _: (1, 1.0))
        monkeypatch.setattr(check, "timings", lambda: iter([check.Timing("int8", 1.0, 0.5)]))
        assert program.main() == 1
        wrong = capsys.readouterr().out.rpartition("WRONG: ")[2]
        assert "int8: updates have a relative error of 0.062, above 0.04" in wrong
        assert "int8: a NaN gradient is lost (does XLA use fast math?)" in wrong

    def test_a_second_program_and_memory_that_is_not_reused(self, monkeypatch, capsys):
        monkeypatch.setattr(program, "errors", lambda *_: [])
        monkeypatch.setattr(check, "FORMATS", ("full",))
        monkeypatch.setattr(check, "compilations_and_donation", lambda _: (2, 0.75))
        monkeypatch.setattr(check, "state_bytes", lambda _: (8.5, 8.0))
        monkeypatch.setattr(check, "timings", lambda: iter([check.Timing("full", 1.0, 0.5)]))
        assert program.main() == 1
        wrong = capsys.readouterr().out.rpartition("WRONG: ")[2]
        assert "full: ten steps compiled 2 programs" in wrong
        assert "full: only 75% of the donated memory was reused" in wrong
        assert "full: 8.5 bytes of state per parameter, not 8.0" in wrong


def test_programs_and_donation_are_counted(monkeypatch):
    class Weak:  # a state whose dtype drifts after the first step, which compiles twice
        init = staticmethod(lambda params: jnp.float32(0))
        update = staticmethod(lambda g, s, p: (g, s.astype(jnp.bfloat16)))

    monkeypatch.setattr(check, "adamw", lambda *_, **__: Weak)
    programs, reused = check.compilations_and_donation("full")
    assert programs == 2
    assert 0.9 < reused <= 1


IN_FAST_MATH = """
from functional_adam._watch import selfcheck as check
import json, sys
print(json.dumps([check.coarseness(moments) for moments in sys.argv[1:]]))
"""


def assert_fast_math_changes_nothing_of(*formats):
    flags = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", IN_FAST_MATH, *formats],
        env=os.environ | flags, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    for moments, (error, stays) in zip(formats, json.loads(done.stdout), strict=True):
        assert stays
        assert error == pytest.approx(check.coarseness(moments)[0], rel=0.1)


def test_fast_math_changes_not_the_coarsest_format(report, monkeypatch):
    (error,) = (row["error"] for row in report["formats"] if row["moments"] == "int8")
    monkeypatch.setattr(check, "coarseness", lambda _: (error, True))  # as measured once
    assert_fast_math_changes_nothing_of("int8")


@pytest.mark.slow
def test_fast_math_changes_no_format():
    assert_fast_math_changes_nothing_of(*check.FORMATS)


@pytest.mark.parametrize(
    "device",
    [
        "nonsense",
        pytest.param("tpu", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.slow),
    ],
)
def test_a_missing_device_is_named(device):
    done = run(JAX_PLATFORMS=device)
    assert done.returncode == 2
    assert f"JAX found no device for JAX_PLATFORMS={device}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_finite_is_null():
    given = {"a": [1.5, np.inf, {"b": np.nan}], "c": "inf", "d": 3}
    assert program.finite(given) == {"a": [1.5, None, {"b": None}], "c": "inf", "d": 3}


def test_without_optax_it_does_without(monkeypatch):
    real = check.importlib.util.find_spec
    monkeypatch.setattr(
        check.importlib.util, "find_spec", lambda name: None if name == "optax" else real(name)
    )
    assert "optax" not in check.libraries()
    assert "optax" not in program.versions()


def test_ctrl_c_ends_it_without_a_traceback(monkeypatch, capsys):
    def ended(status):
        raise SystemExit(status)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(sys, "argv", ["functional_adam"])
    monkeypatch.setattr(check, "errors", lambda _: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(program.__file__, run_name="__main__")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
