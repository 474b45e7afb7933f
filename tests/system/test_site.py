"""The site that `make docs` builds holds every page, and its reference every public name, once."""

import re
from collections import Counter
from pathlib import Path

import functional_adam as fa

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text()
# Made at build time by tools/docs_hooks.py, of files outside of docs/.
MADE = ["changelog.md", "contributing.md", "examples/index.md"]


def test_every_page_is_in_the_menu_once():
    menu = CONFIG[CONFIG.index("\nnav:\n") :].split("\n\n")[0]
    pages = re.findall(r"^ +- [^:]+: (\S+\.md)\b", menu, re.M)
    written = [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")]
    assert sorted(pages) == sorted(written + MADE)


def test_what_the_search_knows_a_page_by_is_of_a_page_that_there_is():
    words = re.search(r"\n  search_words:.*\n((?:    .*\n)+)", CONFIG)[1]
    pages = re.findall(r"^    (\S+): \[\w", words, re.M)
    assert len(pages) == len(words.splitlines()) >= 10
    assert [page for page in pages if not (DOCS / page).exists()] == []


def test_every_public_name_is_in_the_reference_once():
    names = Counter(
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    )
    assert names == Counter(f"functional_adam.{name}" for name in fa.__all__)


def test_nothing_is_loaded_from_elsewhere():
    # What a page would load; links that a reader may follow are another matter.
    files = [ROOT / "mkdocs.yml", *DOCS.rglob("*.css"), *DOCS.rglob("*.js"), *DOCS.rglob("*.svg")]
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"(https?:)?//[\w-]+\.\w", text), file
    assert "\n  font: false\n" in CONFIG
