"""Which leaves have their moments on the host: the rules of `offload(leaves=...)`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from functional_adam import _check, _overrides
from functional_adam._hints import argument_hints
from functional_adam._host import Waiting

# A number of bytes, a regular expression, a fraction, or a function.
LeafRule = int | float | str | re.Pattern[str] | Callable[[str, jax.ShapeDtypeStruct], bool]

# Starting a copy takes about ten microseconds, in which PCIe 5 could move half a megabyte.
LARGE = 2**20


class Moments(NamedTuple):
    """The moments of one parameter."""

    path: str  # as rules see it, such as layers/0/kernel
    first: jax.ShapeDtypeStruct
    bytes: int  # of all of them, on one device


Leaves = Mapping[str, Moments]  # by path, as error messages write it


def chosen(rules: Any, leaves: Leaves) -> Waiting:
    """The paths of the leaves chosen; each rule chooses among those that the one before chose."""
    rules = LARGE if rules is None else rules
    left = leaves
    for where, rule in _named(rules):
        left = {path: leaves[path] for path in _by_rule(where, rule, left, leaves)}
    return frozenset(left)


def _named(rules: Any) -> list[tuple[str, Any]]:
    """The rules, each with its name in error messages."""
    if not isinstance(rules, list | tuple):
        return [("leaves", rules)]
    several: Sequence[Any] = rules
    return [(f"leaves[{n}]", rule) for n, rule in enumerate(several)]


def _by_rule(where: str, rule: Any, left: Leaves, all_leaves: Leaves) -> list[str]:
    """The paths of the leaves in `left` that one rule chooses."""
    if isinstance(rule, bool):
        raise _no_rule(where, rule)
    if isinstance(rule, int):
        least = _check.whole(where, rule)
        return [path for path, leaf in left.items() if leaf.bytes >= least]
    if isinstance(rule, float):
        return _largest(_fraction(where, rule), left)
    if isinstance(rule, str | re.Pattern):
        pattern = _overrides.compiled(where, rule)
        _overrides.check_found(where, pattern, [leaf.path for leaf in all_leaves.values()])
        return [path for path, leaf in left.items() if pattern.search(leaf.path)]
    if not callable(rule):
        raise _no_rule(where, rule)
    return [path for path, leaf in left.items() if _says(where, rule, leaf)]


def _fraction(where: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(
            f"{where} must be in (0, 1] where it is a float, a fraction of the bytes; got "
            f"{value!r}. A number of bytes must be an integer."
        )
    return value


def _largest(fraction: float, left: Leaves) -> list[str]:
    """The paths of the fewest leaves, largest first, that hold this fraction of the bytes."""
    paths = sorted(left, key=lambda path: -left[path].bytes)
    sums = list(itertools.accumulate(left[path].bytes for path in paths))
    wanted = fraction * sums[-1] if sums else 0
    # A leaf is needed if the larger ones before it hold less than what is wanted.
    return [
        path for path, total in zip(paths, sums, strict=True) if total - left[path].bytes < wanted
    ]


def _says(where: str, rule: Callable[..., Any], leaf: Moments) -> bool:
    answer = argument_hints.called(rule, leaf.path, leaf.first, advice=argument_hints.LEAF_RULE)
    return _check.flag(f"{where}({leaf.path!r}, leaf)", answer)


def _no_rule(where: str, rule: Any) -> TypeError:
    return TypeError(
        f"{where} must be a number of bytes, a regular expression, a fraction in (0, 1], or a "
        f"function (path, leaf) -> bool; got {_check.show(rule)}."
    )
