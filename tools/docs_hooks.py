"""What MkDocs lacks for this site: pages from outside of docs/, links to them, formulas as MathML.

The pages of docs/ are read in the repository too, so that their links are relative to the files
there. Here a link that leaves docs/ is led to a page that is made of the file it names.
"""

from __future__ import annotations

import ast
import html
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml import converter
from mkdocs.structure.files import File, Files, InclusionLevel
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks.docs")

# Repository path -> page of the site. Filled by `on_files`.
WRITTEN = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
PAGES: dict[str, str] = {}

# What is shown as source, and in which language.
SHOWN = {
    ".py": "python",
    ".sh": "sh",
    ".toml": "toml",
    ".yml": "yaml",
    ".json": "json",
    ".txt": "text",
    "": "text",
}

CODE = re.compile(
    r"^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)",
    re.M | re.S,
)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.S)

# What latex2mathml does not know, as what it does.
SAME = [(r"{aligned}", r"{align*}"), (r"\operatorname{", r"\text{")]

PICTURE = re.compile(r'<img alt="[^"]*" src="([^"]+\.png)" ?/?>')
PAGE = re.compile(r"\bdocs/([\w-]+)\.md\b")
NAME = re.compile(r"(?<!>)<code>(\w+)</code>(?!</a>)")


class PlainText(griffe.Extension):
    """Docstrings are plain text with `code` in it: `*`, `[` or `_` of an equation mark nothing."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Parse the docstrings of all modules before mkdocstrings does, and say what is what."""
        for module in pkg.modules.values():
            for member in module.members.values():
                if not member.is_alias and member.docstring:
                    # A dataclass has its signature later, so that its arguments look unknown.
                    sections = member.docstring.parse(
                        "google",
                        warnings=not member.is_class,
                        returns_multiple_items=False,
                        returns_named_value=False,
                    )
                    parsed = [_section(section, member) for section in sections]
                    member.docstring.__dict__["parsed"] = parsed  # a cached property


def _section(section: griffe.DocstringSection, owner: Any) -> griffe.DocstringSection:
    """A section of a docstring with its text escaped."""
    kind = griffe.DocstringSectionKind
    if section.kind is kind.admonition:
        text = section.value.contents
        if section.value.kind == "example":
            return griffe.DocstringSectionExamples([(kind.examples, text)])
        return griffe.DocstringSectionText(f"**{section.title}**\n\n{_escaped(text)}")
    if section.kind is kind.text:
        section.value = _escaped(section.value)
    elif section.kind is not kind.examples:
        for item in section.value:
            if section.kind is kind.returns and isinstance(item.annotation, str):
                # No types are written here: what stands before a colon is a part of the sentence.
                item.description = f"{item.annotation}: {item.description}"
                item.annotation = owner.returns
            if owner.is_class and section.kind is kind.parameters:
                item.annotation = owner.members[item.name].annotation
                item.value = owner.members[item.name].value
            item.description = _escaped(item.description)
    return section


def _escaped(text: str) -> str:
    """Plain text as Markdown that shows it: not in `code`, nor in lines that are set in."""
    lines = text.split("\n")
    at = [i for i, line in enumerate(lines) if line and not line.startswith("    ")]
    prose = "\n".join(lines[i] for i in at)
    prose = _outside_code(prose, _plain)
    for i, line in zip(at, prose.split("\n"), strict=True):
        lines[i] = line
    return "\n".join(lines)


def on_config(config: Any) -> Any:
    """Headings get GitHub's anchors, and the examples their places in the menu."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    for entry in config.nav:
        if "Examples" in entry:
            entry["Examples"] = _menu()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside of docs/ that is shown or linked."""
    PAGES.clear()
    PAGES.update(WRITTEN, **{path: _page_of(path) for path in [*_examples(), *_benchmarks()]})
    PAGES.update(dict.fromkeys(("examples", "benchmarks"), "examples/index.md"))
    PAGES["examples/frameworks"] = "examples/index.md"
    for page in files.documentation_pages():
        _add_linked(f"docs/{page.src_uri}", page.content_string)
    for source, uri in WRITTEN.items():
        if uri != "index.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            _add_linked(source, text)
            files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, "examples/index.md", content=_index()))
    for path, uri in PAGES.items():
        if path not in WRITTEN and (ROOT / path).is_file():
            page = _source_page(path, uri)
            inclusion = InclusionLevel.NOT_IN_NAV  # if not named there
            files.append(File.generated(config, uri, content=page, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Lead links out of docs/ to the pages made of what they name; tell the search what counts."""
    uri = page.file.src_uri
    # Found as the tags of a page are: before any text. No plugin shows them.
    page.meta["tags"] = config.extra["search_words"].get(uri, [])
    if uri in PAGES.values():  # made of scripts and the like: after what was written to be read
        page.meta["search"] = {"boost": 0.5}
    if uri in PAGES.values() and uri not in WRITTEN.values():
        return markdown
    source = next((path for path, made in WRITTEN.items() if made == uri), f"docs/{uri}")
    if source == "README.md":
        source = "docs/index.md"
    return _outside_code(markdown, lambda text: _rewrite(text, source, uri))


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script; pictures and names as links."""
    content = FORMULA.sub(lambda found: _mathml(found, page.file.src_uri), content)
    content = PICTURE.sub(r'<a href="\1">\g<0></a>', content)  # to be seen whole on a telephone
    if page.file.src_uri.startswith("reference/"):
        names = _reference()
        content = NAME.sub(lambda found: _linked(found, names, page.file.src_uri), content)
        content = PAGE.sub(r'<a href="../\1.html">\g<0></a>', content)
    return content


def _mathml(found: re.Match[str], uri: str) -> str:
    """One formula of arithmatex."""
    block, tex = found[1] == "div", html.unescape(found[2]).strip()
    for given, known in SAME:
        tex = tex.replace(given, known)
    try:
        made = converter.convert(tex, display="block" if block else "inline")
    except Exception as e:  # latex2mathml raises all kinds
        LOG.warning("%s: cannot render the formula %r: %r", uri, tex, e)
        return html.escape(found[0])
    if "\\" in html.unescape(re.sub(r"<[^>]*>", "", made)):
        LOG.warning("%s: a command in the formula %r is not known to latex2mathml", uri, tex)
    return f'<div class="formula">{made}</div>' if block else made


def _reference() -> dict[str, str]:
    """Public name -> the page of docs/reference that has it."""
    return {
        name: path.name.replace(".md", ".html")
        for path in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"^::: functional_adam\.(\w+)$", path.read_text(), re.M)
    }


def _linked(found: re.Match[str], names: dict[str, str], uri: str) -> str:
    """A public name in a docstring, with a link to where it is described."""
    if found[1] not in names:
        return found[0]
    page = names[found[1]]
    here = uri.endswith("/" + page.replace(".html", ".md"))
    return f'<a href="{"" if here else page}#functional_adam.{found[1]}">{found[0]}</a>'


def _plain(text: str) -> str:
    """Text that Markdown shows as it is; `<` and `>` it would show with the backslash."""
    text = re.sub(r"([\\*_\[\]$])", r"\\\1", text)
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _outside_code(text: str, change: Any) -> str:
    """`change` applied to what is neither a block nor a span of code."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def _target(link: str, source: str) -> tuple[str, str] | None:
    """Where in the repository a link leads, and its anchor; None if it leads elsewhere."""
    path, hash_, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), hash_ + anchor


def _rewrite(text: str, source: str, uri: str) -> str:
    def one(found: re.Match[str]) -> str:
        target = _target(found[2], source)
        if target is None:
            return found[0]
        path, anchor = target
        if path in PAGES:
            to, anchor = PAGES[path], "" if path == "README.md" else anchor
        elif path.startswith("docs/"):
            to = path.removeprefix("docs/")
        else:
            return found[0]  # MkDocs will say that it leads nowhere
        return found[1] + posixpath.relpath(to, posixpath.dirname(uri) or ".") + anchor + found[3]

    return LINK.sub(one, text)


def _add_linked(source: str, text: str) -> None:
    """Pages for further files of the repository that `text` links to."""

    def look(part: str) -> str:
        for found in LINK.finditer(part):
            target = _target(found[2], source)
            if target and not target[0].startswith(("docs/", "..")) and target[0] not in PAGES:
                path = ROOT / target[0]
                if path.is_file() and path.suffix in SHOWN:
                    PAGES[target[0]] = _page_of(target[0])
        return part

    _outside_code(text, look)


def _page_of(path: str) -> str:
    return re.sub(r"\.py$", "", path) + ".md"


def _examples() -> list[str]:
    """Scripts in the order of reading: the short one first."""
    found = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "examples").rglob("*.py"))
    return sorted(found, key=lambda p: (p.count("/"), p != "examples/quickstart.py", p))


def _benchmarks() -> list[str]:
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "benchmarks").glob("*.py"))


def _menu() -> list[Any]:
    """What stands below "Examples"."""
    plain = [p for p in _examples() if p.count("/") == 1]
    nested = [p for p in _examples() if p.count("/") > 1]
    return [
        "examples/index.md",
        *({Path(p).name: _page_of(p)} for p in plain),
        {"Frameworks": [{Path(p).name: _page_of(p)} for p in nested]},
        {"Benchmarks": [{Path(p).name: _page_of(p)} for p in _benchmarks()]},
    ]


def _docstring(path: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""


def _index() -> str:
    """The list of all scripts."""
    parts = [
        "# Examples\n\n`make demo` installs what these scripts need; those for frameworks and the "
        "benchmarks need `make test` too. Run them from the root of the repository, as in "
        "`.venv/bin/python examples/quickstart.py`. `--help` lists a script's options. "
        "`checkpoints.py`, `interrupts.py`, `command.py`, `baselines.py`, `entrants.py`, "
        "`low_memory_report.py` and `workloads.py` are parts of other scripts.\n"
    ]
    groups = [
        ("", [p for p in _examples() if p.count("/") == 1]),
        ("## Frameworks", [p for p in _examples() if p.count("/") > 1]),
        ("## Benchmarks", _benchmarks()),
    ]
    for title, paths in groups:
        rows = [
            f"| [{Path(p).name}]({posixpath.relpath(_page_of(p), 'examples')}) | {_cell(p)} |"
            for p in paths
        ]
        parts += [title, "", "| Script | What it shows |", "|---|---|", *rows, ""]
    return "\n".join(parts)


def _cell(path: str) -> str:
    """The first paragraph of a script's docstring, as one cell."""
    return " ".join(_docstring(path).split("\n\n")[0].split()).replace("|", "\\|")


def _source_page(path: str, uri: str) -> str:
    """A script with its pictures and its highlighted source."""
    text = (ROOT / path).read_text(encoding="utf-8")
    parts = [f"---\nhide: [toc]\n---\n\n# {path}\n"]  # room for 100 columns
    for picture in sorted((ROOT / "docs").glob("*.png")):
        if re.search(rf"\b{re.escape(picture.name)}\b", text):
            to = posixpath.relpath(picture.name, posixpath.dirname(uri) or ".")
            parts.append(f"![The picture that {path} draws]({to})\n")
    parts.append(f"`````{SHOWN[Path(path).suffix]}\n{text.rstrip()}\n`````\n")
    return "\n".join(parts)
