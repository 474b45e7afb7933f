"""The pictures of the documentation: drawn by `make figures`, shown by a page, readable."""

import importlib
import json
import re
import shutil
import subprocess

import pytest
from pages import PAGES, ROOT

PICTURES = sorted((ROOT / "docs").glob("*.png"))
SHOWN = re.compile(r"!\[([^\]]*)\]\(([^)#]+\.png)\)")
WIDEST = 2000


@pytest.fixture(scope="module")
def commands():
    make = [shutil.which("make"), "--dry-run", "--always-make", "figures"]
    return subprocess.run(make, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_a_script_draws_every_picture(picture, commands):
    assert re.search(rf"\bdocs/{re.escape(picture.name)}\b", commands)


def test_the_scripts_of_the_figures_exist(commands):
    scripts = re.findall(r"\b((?:tools|examples|benchmarks)/\S+\.py)\b", commands)
    assert set(scripts) >= {
        f"tools/figures/{path.name}" for path in (ROOT / "tools/figures").glob("*.py")
    }
    assert all((ROOT / script).exists() for script in scripts)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_a_page_shows_every_picture_and_says_what_it_is(picture):
    texts = [
        text
        for page in PAGES
        for text, path in SHOWN.findall(page.read_text())
        if (page.parent / path).resolve() == picture
    ]
    assert texts
    assert all(len(text.split()) >= 4 for text in texts)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.name)
def test_every_picture_can_be_read_and_is_not_too_wide(picture):
    image = pytest.importorskip("PIL.Image").open(picture)
    image.load()  # raises where the file is damaged
    assert image.format == "PNG"
    assert 400 <= image.width <= WIDEST
    # White at the corners, also on a page of another colour: no transparency.
    pixels = image.convert("RGBA")
    corners = [(x, y) for x in (0, image.width - 1) for y in (0, image.height - 1)]
    assert {pixels.getpixel(corner) for corner in corners} == {(255, 255, 255, 255)}


def test_the_recorded_curve_fits_the_script_that_draws_it():
    recorded = json.loads((ROOT / "docs" / "data" / "torch_error.json").read_text())
    assert recorded["name"] == "torch"
    assert recorded["steps"] == 10_000
    lengths = {len(curve) for curve in recorded["curves"].values()}
    assert set(recorded["curves"]) == {"0.999", "0.9999"}
    assert len(lengths) == 1


def test_the_table_of_the_study_is_that_of_its_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    study = importlib.import_module("variants")
    runs = study.read(ROOT / "docs" / "data" / "variants.jsonl")
    assert {run["name"] for run in runs} == set(study.VARIANTS)
    assert all(0 < run["best"] < len(run["rates"]) - 1 for run in runs)
    study.report(runs)
    assert capsys.readouterr().out in (ROOT / "docs" / "variants.md").read_text()
