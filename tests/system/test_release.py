"""What is released: sdist and wheel are complete, say what they are, and work when installed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from pages import blocks

import functional_adam as fa

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_is_pure_python_and_complete(built):
    _, wheel = built
    assert wheel.name == f"functional_adam-{fa.__version__}-py3-none-any.whl"
    files = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    have = {str(p.relative_to(ROOT)) for p in (ROOT / "functional_adam").rglob("*.py")}
    assert files == have | {"functional_adam/py.typed"}


def test_the_sdist_holds_what_the_two_commands_need(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {"Makefile", "constraints/tests.txt", "tools/legs.sh", "LICENSE"} <= names
    assert names >= {n for n in tracked if not n.startswith((".ci", ".git"))}


def test_nothing_names_a_package_registry_or_a_path_of_one_machine(built):
    sdist, _ = built
    elsewhere = re.compile(rb"py" rb"pi\.org|python" rb"hosted\.org|/(?:root|home|Users)/\w")
    with tarfile.open(sdist) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            found = elsewhere.search(archive.extractfile(member).read())
            assert not found, (member.name, found)


def test_the_installed_wheel_runs_the_ten_lines(built, tmp_path):
    _, wheel = built
    zipfile.ZipFile(wheel).extractall(tmp_path)  # a wheel of pure Python needs no more
    code = blocks(ROOT / "README.md", "python")[0]
    code += "\nassert loss(params) < 0.01\nprint(fa.__file__)\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loss, file = done.stdout.split("\n")[:2]
    assert re.fullmatch(r"loss 0\.00\d+", loss)
    assert Path(file).is_relative_to(tmp_path)


def test_metadata_agree_with_the_project(built):
    _, wheel = built
    archive = zipfile.ZipFile(wheel)
    info = f"functional_adam-{fa.__version__}.dist-info/"
    metadata = Parser().parsestr(archive.read(info + "METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("functional_adam", fa.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert archive.read(info + "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    # The classifiers name the versions of Python that docs/compatibility.md has tested.
    named = re.findall(r":: (3\.\d+)", " ".join(metadata.get_all("Classifier")))
    table = (ROOT / "docs" / "compatibility.md").read_text()
    tested = re.findall(r"^\| \w+ \| (3\.\d+)\.\d+ \|", table, re.M)
    assert set(named) == set(tested)


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version, date = headings[0]
    assert version == fa.__version__
    assert date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_the_workflow_runs_what_ci_runs():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    runs = re.findall(r"^ +- run: (.*)$", text, re.M)
    ci = (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1]
    assert ci == "make test"
    native = ["make native", "make native-sanitized"]
    assert runs == [ci, "make test-all", "make dist-check", *native]
    assert re.search(r"^  schedule:\n    - cron: \"\d+ \d+ \* \* \*\"$", text, re.M)  # every night
    legs = (ROOT / "tools" / "legs.sh").read_text()
    assert set(re.findall(r"^ +(3\.\d+)$", text, re.M)) == set(
        re.findall(r"^leg \w+ (3\.\d+)", legs, re.M)
    )


def steps_of(target):
    """The commands that `make` would run, were the environment ready."""
    make = [shutil.which("make"), "--dry-run", "--old-file=.venv/test", target]
    done = subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def test_make_test_leaves_out_what_make_test_all_adds():
    short, everything = steps_of("test"), steps_of("test-all")
    for steps in (short, everything):
        assert "ruff check ." in steps
        assert "ruff format --check ." in steps
        assert "bin/pyright" in steps
        assert steps.count("-m pytest") == 1
        assert "cmake" not in steps  # of native/, which needs a compiler
    assert '-m ""' not in short
    assert "legs.sh" not in short
    assert '-m ""' in everything
    assert "legs.sh" in everything
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert shlex.split(options["addopts"])[-2:] == ["-m", "not slow"]
    assert '-m ""' in (ROOT / "tools" / "legs.sh").read_text()
