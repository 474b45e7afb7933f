"""Tables of text no wider than a terminal."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 88
UNITS = "K, M, G, T: powers of 1024 bytes"
_PATH = 16  # least width of the first column; longer words get a line of their own


def whole(size: int) -> str:
    """A size in bytes with all digits."""
    return f"{size:,}"


def short(size: int) -> str:
    """A size in bytes with three digits and a unit."""
    value, units = float(size), iter("KMGTPE")
    unit = ""
    while value >= 999.5:
        value, unit = value / 1024, next(units)
    return f"{value:.3g}{unit}"


def fits(rows: Sequence[Sequence[str]], gap: int) -> bool:
    """Whether these rows fit, if necessary with words of the first column on separate lines."""
    first, *rest = _widths(rows)
    return min(first, _PATH) + sum(gap + width for width in rest) <= WIDTH


def lines(rows: Sequence[Sequence[str]], gap: int, words: int) -> list[str]:
    """The aligned rows: the first `words` columns to the left, the others, numbers, to the right.

    The first row is the head, the last the total.
    """
    first, *rest = _widths(rows)
    first = min(first, max(_PATH, WIDTH - sum(gap + width for width in rest)))
    texts = [_line(row, (first, *rest), gap, words) for row in rows]
    rule = "-" * len(texts[0])
    return [texts[0], rule, *texts[1:-1], rule, texts[-1]]


def _line(row: Sequence[str], widths: Sequence[int], gap: int, words: int) -> str:
    text = (" " * gap).join(
        cell.ljust(width) if i < words else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    word = row[0]
    if len(word) <= widths[0]:
        return text
    alone = word if len(word) <= WIDTH else "…" + word[1 - WIDTH :]
    return f"{alone}\n{' ' * widths[0]}{text[len(word) :]}"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
