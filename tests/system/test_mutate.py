"""`tools/mutate.py`: its lists fit the package, and it tells a mistake that is noticed from others.

The mutations themselves run by `make mutate` alone.
"""

import ast
import functools
import importlib.util
import subprocess
import sys

import pytest
from pages import ROOT

PATH = ROOT / "tools" / "mutate.py"
spec = importlib.util.spec_from_file_location("mutate", PATH)
mutate = sys.modules["mutate"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate)

LISTED = mutate.mutations()
ROOMS = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} - {"system"}


def of(room):
    return [mutation for mutation in LISTED if mutation.room == room]


def test_every_room_has_some():
    assert len(LISTED) >= 60
    assert {mutation.room for mutation in LISTED} == ROOMS
    names = [mutation.name for mutation in LISTED]
    assert len(names) == len(set(names))
    changes = [(mutation.file, mutation.old, mutation.new) for mutation in LISTED]
    assert len(changes) == len(set(changes))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_each_text_occurs_once_and_what_replaces_it_is_python(room):
    for mutation in of(room):
        text = (ROOT / mutation.path).read_text()
        broken = mutation.applied(text)
        # Another program: not only other spaces or comments.
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text)), str(mutation)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_its_tests_exist(room):
    for mutation in of(room):
        paths = {test.partition("::")[0] for test in mutation.narrow}  # raises for an unknown name
        assert all((ROOT / path).exists() for path in paths), str(mutation)
        # One room alone runs on eight devices.
        assert room == "devices" or not any("devices" in path for path in paths), str(mutation)


def test_an_old_text_must_occur_once():
    mutation = mutate.Mutation("step", "sign", "_step.py", "- a", "+ a")
    assert mutation.applied("x = b - a") == "x = b + a"
    for text in ("x = b + a", "x = b - a - a"):
        with pytest.raises(ValueError, match=r"step/sign: functional_adam/_step.py has the old"):
            mutation.applied(text)


PACKAGE = """
def double(x):
    return 2 * x


def half(x):
    return x / 2


def third(x):
    return x / 3
"""
TESTS = """
import functional_adam


def test_double():
    assert functional_adam.double(3) == 6
"""
SLOW = """
import functional_adam
import pytest


def test_half():
    assert functional_adam.half(3) == 1.5


@pytest.mark.slow
def test_third():
    assert functional_adam.third(6) == 2
"""
OPTIONS = '[tool.pytest.ini_options]\naddopts = "-ra -m \'not slow\'"\nmarkers = ["slow"]\n'
LIST = """
[narrow]
file = "__init__.py"
old = "2 * x"
new = "3 * x"
tests = ["step/test_double.py"]

[wide]
file = "__init__.py"
old = "x / 2"
new = "x / 4"
tests = ["step::test_double"]

[slow]
file = "__init__.py"
old = "x / 3"
new = "x / 9"
tests = ["step/test_half.py"]

[no-program]
file = "__init__.py"
old = "def half(x):"
new = "def half(x, x):"
tests = ["step/test_half.py"]
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package of three functions in a repository of its own."""
    files = {
        "functional_adam/__init__.py": PACKAGE,
        "tests/step/test_double.py": TESTS,
        "tests/step/test_half.py": SLOW,
        "tools/mutations/step.toml": LIST,
        "pyproject.toml": OPTIONS,
        "ignored.txt": "",
        ".gitignore": "ignored.txt",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folder = tmp_path / "tools" / "mutations"
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "mutations", functools.partial(mutate.mutations, folder))
    mutate.check_control.cache_clear()
    yield tmp_path
    mutate.check_control.cache_clear()


def test_what_is_noticed_and_what_is_not(small, capsys):
    assert mutate.main(["--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "step/narrow: tests/step/test_double.py::test_double" in said
    assert "step/wide: tests/step/test_half.py::test_half (not by the tests that it names)" in said
    assert [line.split()[0] for line in said.splitlines() if " s  step/" in line] == [
        *("killed", "killed", "SURVIVED", "ERROR")
    ]
    assert said.endswith("2 of 4 killed\n  not: step/slow\n  not: step/no-program\n")
    assert (small / "functional_adam/__init__.py").read_text() == PACKAGE


def test_slow_tests_run_on_demand(small, capsys):
    assert mutate.main(["--only", "slow", "--all", "--narrow"]) == 0
    assert "killed" in capsys.readouterr().out


def test_without_mutation_all_must_pass(small):
    (small / "tests/step/test_double.py").write_text("def test_double():\n    assert False\n")
    with pytest.raises(SystemExit, match="step: without any mutation: killed"):
        mutate.main(["--only", "1"])


def test_a_copy_has_what_git_does_not_ignore(small, tmp_path_factory):
    (small / "pyproject.toml").unlink()
    copy = mutate.copied(small, tmp_path_factory.mktemp("copy"))
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert "functional_adam/__init__.py" in found
    assert not found & {"ignored.txt", "pyproject.toml"}


def test_another_package_on_the_path_is_found_out(small, tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "environment", lambda *_: {"PYTHONPATH": str(ROOT)})
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(SystemExit, match=r"tests would import .*, not the copy"):
        mutate.check_import(tmp_path / "elsewhere", "step")


def test_the_list_is_chosen_from(capsys):
    assert mutate.main(["--list", "--room", "step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(mutation.room == "step" for mutation in LISTED)
    number, name, path = lines[0].split()
    assert name.startswith("step/")
    assert path.startswith("functional_adam/")
    (one,) = mutate.chosen(LISTED, [], [number])
    assert str(one) == name
    with pytest.raises(SystemExit, match="no mutation 'nonsense'"):
        mutate.chosen(LISTED, [], ["nonsense"])
    with pytest.raises(SystemExit, match="no room 'nonsense'"):
        mutate.chosen(LISTED, ["nonsense"], [])
