"""Open every page of the built site in a browser and say what is wrong with it: `make docs-check`.

Every page of `site/` is served from this machine and opened in headless Chromium, wide and narrow,
light and dark. Wrong are: a message on the console, a request that leaves the machine or fails, a
formula or a list that was left as source text, a page that scrolls sideways. Links that lead out of
the site are listed, not followed. Pictures of all pages go to `site-check/`.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import itertools
import shutil
import sys
import threading
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"wide": 1280, "narrow": 390}
THEMES = ("light", "dark")
SETTLE = 200  # milliseconds for what scripts do after a page has loaded
SEARCHED = {  # word -> where a reader who types it wants to go
    "speed": "performance.html",
    "resume": "checkpoints.html",
    "FSDP": "distributed.html",
    "LoRA": "freezing.html",
    "master weights": "precision.html",
    "gradient accumulation": "accumulation.html",
    "muP": "per-layer.html",
    "diagnostics": "watching.html",
    "8-bit": "memory.html",
}

# What a reader sees that should have been drawn. Code shows source text on purpose.
LEFT = r"""() => {
    const found = [];
    const article = document.querySelector("article") || document.body;
    const walk = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
    const raw = /\\[()\[\]<>*_]|\$\$|\\[a-zA-Z]{2,}/;
    if (location.pathname.includes("/reference/"))
        for (const node of article.querySelectorAll("code"))
            if (/\\[\[\]*_]|&[lg]t;/.test(node.textContent))
                found.push("escaped twice: " + node.textContent.trim().slice(0, 80));
    while (walk.nextNode()) {
        const text = walk.currentNode.data, parent = walk.currentNode.parentElement;
        if (parent.closest("code, pre, script, style, template, annotation")) continue;
        if (raw.test(text)) found.push("raw formula: " + text.trim().slice(0, 80));
        if (parent.closest("p") && /^\s*([-*]|\d+\.) /m.test(text.replace(/^[^\n]*/, "")))
            found.push("raw list: " + text.trim().slice(0, 80));
        if (/(^|\s)\|[-:]{3,}\|/.test(text)) found.push("raw table: " + text.trim().slice(0, 80));
    }
    for (const node of article.querySelectorAll(".arithmatex, merror"))
        found.push("formula not rendered: " + node.textContent.slice(0, 80));
    for (const node of article.querySelectorAll("math"))
        if (!node.getBoundingClientRect().width) found.push("empty formula: " + node.textContent);
    for (const node of article.querySelectorAll("img"))
        if (!node.naturalWidth) found.push("picture not shown: " + node.getAttribute("src"));
    return found;
}"""

# How far the page can be scrolled sideways, and what sticks out.
WIDE = """() => {
    const over = document.documentElement.scrollWidth - window.innerWidth;
    if (over <= 0) return null;
    const clips = (node) => {
        for (let up = node.parentElement; up && up !== document.body; up = up.parentElement)
            if (getComputedStyle(up).overflowX !== "visible") return true;
        return false;
    };
    const out = [...document.querySelectorAll("article *")].filter(
        (node) => node.getBoundingClientRect().right > window.innerWidth + 1 && !clips(node));
    const named = out.slice(0, 3).map((node) =>
        node.tagName.toLowerCase() + " " + JSON.stringify(node.textContent.trim().slice(0, 40)));
    return `scrolls sideways by ${over} pixels: ` + named.join(", ");
}"""


class Links(HTMLParser):
    """The addresses that a page's links lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Links alone: what is loaded is seen by the browser."""
        address = dict(attrs).get("href")
        if tag == "a" and address:
            self.found.append(address)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def external_links(site: Path, pages: list[str]) -> dict[str, list[str]]:
    """Address -> the pages that link to it."""
    found: dict[str, list[str]] = defaultdict(list)
    for page in pages:
        links = Links()
        links.feed((site / page).read_text(encoding="utf-8"))
        for address in sorted({a for a in links.found if urlsplit(a).scheme in ("http", "https")}):
            found[address].append(page)
    return dict(sorted(found.items()))


class View:
    """A browser of one width and one theme, which notes what goes wrong."""

    def __init__(self, browser: Any, home: str, size: str, theme: str) -> None:
        self.home, self.host = home, urlsplit(home).netloc
        self.name = f"{size}-{theme}"
        self.wrong: list[str] = []
        self.context = browser.new_context(
            viewport={"width": WIDTHS[size], "height": 900},
            color_scheme=theme,
            reduced_motion="reduce",
        )
        self.context.route("**/*", self._on_route)

    def look(self, page: str, pictures: Path) -> list[str]:
        """What is wrong with one page."""
        self.wrong = []
        tab = self.context.new_page()
        tab.on("console", self._on_console)
        tab.on("pageerror", lambda error: self.wrong.append(f"error in a script: {error}"))
        tab.on("response", self._on_response)
        tab.goto(self.home + page, wait_until="load")
        tab.wait_for_timeout(SETTLE)
        self.wrong += tab.evaluate(LEFT)
        sideways = tab.evaluate(WIDE)
        if sideways:
            self.wrong.append(sideways)
        name = page.removesuffix(".html").replace("/", "-")
        tab.screenshot(path=pictures / f"{name}-{self.name}.png", full_page=True)
        tab.close()
        return list(dict.fromkeys(self.wrong))

    def _on_route(self, route: Any) -> None:
        address = urlsplit(route.request.url)
        if address.netloc == self.host or address.scheme in ("data", "blob"):
            route.continue_()
        else:
            self.wrong.append(f"request that leaves the machine: {route.request.url}")
            route.abort()

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.type}: {message.text}")

    def _on_response(self, response: Any) -> None:
        if response.status >= 400:
            self.wrong.append(f"status {response.status}: {response.url}")


def search_works(browser: Any, home: str, word: str, page: str) -> list[str]:
    """Whether the first thing that the search finds for a word is on the page."""
    from playwright.sync_api import Error  # noqa: PLC0415 (in .venv-docs alone)

    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        tab.goto(home + "index.html", wait_until="load")
        tab.click("input[name=query]", timeout=10_000)
        tab.keyboard.type(word, delay=20)
        tab.wait_for_selector(".md-search-result__item", timeout=10_000)
        tab.wait_for_timeout(SETTLE)  # results of a part of the word go
        found = tab.get_attribute(".md-search-result__item a", "href") or ""
    except Error as e:
        return [f"{home}: search finds nothing for {word!r}: {e.message.splitlines()[0]}"]
    finally:
        tab.close()
    if not urlsplit(found).path.endswith(page):
        return [f"{home}: search leads from {word!r} to {found}, not to {page}"]
    return []


def check(site: Path, pictures: Path, pages: list[str], browser_path: str) -> list[str]:
    """What is wrong, one line each."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 (in .venv-docs alone)

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    wrong: list[str] = []
    with sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as in containers.
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for size, theme in itertools.product(WIDTHS, THEMES):
            view = View(browser, home, size, theme)
            for page in pages:
                found = view.look(page, pictures)
                wrong += [f"{page}, {size}, {theme}: {what}" for what in found]
        for start in (home, site.resolve().as_uri() + "/"):  # served, and opened as a file
            for word, page in SEARCHED.items():
                wrong += search_works(browser, start, word, page)
        browser.close()
    server.shutdown()
    return wrong


def main() -> int:
    """0 if nothing is wrong, 1 otherwise, 2 if the check cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="the built site")
    parser.add_argument("--pictures", type=Path, default=ROOT / "site-check", help="where to draw")
    parser.add_argument("--pages", nargs="*", help="only these, such as math.html")
    given = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        print(f"No browser: none of {', '.join(BROWSERS)} is on the path.", file=sys.stderr)
        print("Install one, on Debian and Ubuntu: apt-get install chromium", file=sys.stderr)
        return 2
    pages = sorted(p.relative_to(given.site).as_posix() for p in given.site.rglob("*.html"))
    if not pages:
        print(f"No pages in {given.site}: run make docs", file=sys.stderr)
        return 2
    if given.pages:
        pages = [page for page in pages if page in given.pages]
    shutil.rmtree(given.pictures, ignore_errors=True)
    given.pictures.mkdir(parents=True)
    links = external_links(given.site, pages)
    print(f"{len(links)} links lead out of the site (not followed):")
    for address, where in links.items():
        print(f"  {address}  ({where[0]}{f' and {len(where) - 1} more' if where[1:] else ''})")
    wrong = check(given.site, given.pictures, pages, browser_path)
    views = f"{len(WIDTHS)} widths and {len(THEMES)} themes"
    print(f"{len(pages)} pages in {views}: {len(wrong)} faults")
    for line in wrong:
        print("  " + line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
