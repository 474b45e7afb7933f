"""Every code block of README and docs runs, file by file, top to bottom in one namespace."""

import contextlib
import doctest
import functools
import io
import re
import shutil
import subprocess

import pytest
from pages import BLOCK, PAGES, ROOT, blocks
from running import exit_of

LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[\w-]+)?\)")


def heading_anchors(page):
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M)
    return {"#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_names_a_language_that_is_run(page):
    # "text" is for output and equations: nothing to run.
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= {"python", "sh", "text"}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page, monkeypatch, tmp_path):
    pytest.importorskip("optax")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for number, code in enumerate(blocks(page, "python")):
        name = f"{page.name} block {number}"
        if ">>> " in code:
            test = doctest.DocTestParser().get_doctest(code, namespace, name, str(page), 0)
            assert runner.run(test, clear_globs=False).failed == 0
            namespace.update(test.globs)
        else:
            exec(compile(code, name, "exec"), namespace)


@functools.cache  # several pages have the same lines
def check_make(*arguments):
    make = shutil.which("make")
    subprocess.run([make, "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)


def help_of(*arguments, cwd):
    """What `python ... --help` prints."""
    printed = io.StringIO()
    module = arguments[1] if arguments[0] == "-m" else None
    script = ROOT / (module or arguments[0])
    with contextlib.redirect_stdout(printed):
        assert exit_of(script, "--help", cwd=cwd, module=module) == 0
    return printed.getvalue()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "sh")], ids=lambda p: p.name)
def test_shell_lines_are_known_commands(page, tmp_path):
    lines = [
        line.split("#")[0].split() for code in blocks(page, "sh") for line in code.splitlines()
    ]
    for command, *arguments in filter(None, lines):
        if command == "make":
            check_make(*arguments)
        else:
            assert command in ("python", ".venv/bin/python"), command
            known = help_of(*arguments, cwd=tmp_path)
            options = {word for word in arguments if word.startswith("--")}
            assert options <= set(re.findall(r"--[\w-]+", known)), page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for path, anchor in LINK.findall(BLOCK.sub("", page.read_text())):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in heading_anchors(target), path + anchor


def test_the_readme_begins_with_the_two_commands():
    lines = blocks(ROOT / "README.md", "sh")[0].splitlines()
    assert [line.split("#")[0].strip() for line in lines] == ["make demo", "make test"]


def test_what_stands_on_two_pages_is_the_same():
    readme, index = ROOT / "README.md", ROOT / "docs" / "index.md"
    assert blocks(readme, "python")[:2] == blocks(index, "python")[:2]
    gains = [
        re.search(r"^\| \| `optax.adamw`.*\n(?:\|.*\n)+", page.read_text(), re.M)[0]
        for page in (readme, index)
    ]
    assert gains[0].replace("](docs/", "](") == gains[1]
    assert len(gains[1].splitlines()) == 2 + 6


def test_the_largest_errors_are_those_of_the_page_that_measures_them():
    """README counts in learning rates what the page counts in roundings of 2⁻²⁴ of it."""
    why = (ROOT / "docs" / "why-exact.md").read_text()
    (row,) = re.findall(
        r"^\| Largest error of a float32 step.*$", (ROOT / "README.md").read_text(), re.M
    )
    quoted = [float(x) for x in re.findall(r"\d\.\de-\d", row)]  # Optax's two, then ours
    for column, (first, second) in ((1, quoted[:2]), (0, quoted[2:])):
        for b2, found in ((0.999, first), (0.9999, second)):
            cells = re.search(rf"^\| 0\.9, {b2} \|(.*)\|$", why, re.M)[1].split("|")
            worst = float(cells[column].split("/")[1].replace(",", ""))
            assert found == float(f"{worst * 2**-24:.1e}")
