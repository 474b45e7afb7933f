"""The pages of the documentation, and the code blocks in them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(page, *languages):
    found = BLOCK.findall(page.read_text())
    return [code for language, code in found if language in languages]
