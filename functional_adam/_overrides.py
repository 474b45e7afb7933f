"""Hyperparameters for some leaves, chosen by rules about their paths or by a function.

A leaf's path is written `layers/0/attn/kernel`. The factory binds the rules to a function that
calls it again with some arguments changed, so the factory's own checks apply to them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check
from functional_adam._hints import argument_hints


class Rule(NamedTuple):
    """The arguments of the leaves in whose path a regular expression is found."""

    pattern: re.Pattern[str]
    arguments: Mapping[str, Any]


class Overrides(NamedTuple):
    """The `overrides` of a call, and the settings that they lead to."""

    rules: tuple[Rule, ...] | Callable[[str, jax.ShapeDtypeStruct], Any]
    make: Callable[[Mapping[str, Any]], Any] | None = None  # settings with these arguments changed
    made: tuple[Any, ...] = ()  # the settings of each rule


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf in the form that rules match."""
    return keystr(path, simple=True, separator="/")


def checked(value: Any) -> Overrides | None:
    """The `overrides` of a caller, checked and not bound yet."""
    if value is None or callable(value):
        return value and Overrides(value)
    if not isinstance(value, list | tuple):
        raise TypeError(
            f"overrides must be {argument_hints.OVERRIDES}; got {_check.show(value)}."
            f"{argument_hints.overrides(value)}"
        )
    return Overrides(tuple(_rule(n, entry) for n, entry in enumerate(value))) if value else None


def _rule(number: int, entry: Any) -> Rule:
    where = f"overrides[{number}]"
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise TypeError(
            f"{where} must be a pair of a regular expression and a dict of arguments; got "
            f"{_check.show(entry)}. For example overrides=[{argument_hints.RULE}]."
        )
    pattern, arguments = entry
    return Rule(compiled(f"{where}[0]", pattern), _arguments(f"{where}[1]", arguments))


def compiled(where: str, pattern: Any) -> re.Pattern[str]:
    """A regular expression that a caller gave."""
    if not isinstance(getattr(pattern, "pattern", pattern), str):
        raise TypeError(f"{where} must be a regular expression; got {_check.show(pattern)}.")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{where} is {pattern!r}, which is not a regular expression: {error}. "
            f"{argument_hints.pattern(pattern)}"
        ) from None


def _arguments(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"{where} must be a dict of arguments, such as dict(weight_decay=0.0), or {{}} to "
            f"change nothing; got {_check.show(value)}."
        )
    return value


def bound(overrides: Overrides, make: Callable[[Mapping[str, Any]], Any]) -> Overrides:
    """`overrides`, bound to a function that makes settings with some arguments changed."""
    if callable(overrides.rules):
        return overrides._replace(make=make)
    made = tuple(
        _made(make, f"overrides[{n}] ({rule.pattern.pattern!r})", rule.arguments)
        for n, rule in enumerate(overrides.rules)
    )
    return overrides._replace(make=make, made=made)


def _made(make: Callable[[Mapping[str, Any]], Any], where: str, arguments: Any) -> Any:
    try:
        return make(arguments)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}") from None


def refuse_shared(parameters: Mapping[str, inspect.Parameter], changes: Mapping[str, Any]) -> None:
    """Raise for an argument that all leaves share: only numbers and schedules can differ."""
    for name in changes:
        if name in parameters and not str(parameters[name].annotation).startswith("Scalar"):
            raise TypeError(
                f"{name} is the same for all leaves and cannot be overridden. "
                f"{argument_hints.shared(name)}"
            )


def of_leaf(settings: Any, tree: str, key_path: tuple[Any, ...], leaf: Any) -> Any:
    """The settings of a leaf in the tree of this name."""
    overrides: Overrides | None = settings.overrides
    path, name = path_of(key_path), tree + keystr(key_path)
    shape = jax.ShapeDtypeStruct(np.shape(leaf), _check.leaf_dtype(name, leaf))
    if overrides is None or overrides.make is None:
        return settings
    if callable(overrides.rules):
        given = argument_hints.called(overrides.rules, path, shape, advice=argument_hints.FUNCTION)
        where = f"overrides({path!r}, leaf)"
        return _made(overrides.make, where, _arguments(where, given)) if given != {} else settings
    number = _first(overrides.rules, path)
    return settings if number is None else overrides.made[number]


def _first(rules: Sequence[Rule], path: str) -> int | None:
    return next((n for n, rule in enumerate(rules) if rule.pattern.search(path)), None)


def check_matches(overrides: Overrides | None, paths: Sequence[str]) -> None:
    """Raise unless each rule is the first to match some leaf; a tree without leaves passes."""
    if overrides is None or callable(overrides.rules) or not paths:
        return
    used = {_first(overrides.rules, path) for path in paths}
    for number, rule in enumerate(overrides.rules):
        if number in used:
            continue
        name = f"overrides[{number}] ({rule.pattern.pattern!r})"
        matched = [path for path in paths if rule.pattern.search(path)]
        if matched:
            raise ValueError(
                f"{name} has no effect: it matches {_few(matched)}, but earlier rules match all of "
                "these, and the first match wins. Put it before them."
            )
        raise _no_match(name, paths)


def check_found(where: str, pattern: re.Pattern[str], paths: Sequence[str]) -> None:
    """A regular expression matches some leaf, in a tree that has any."""
    if paths and not any(map(pattern.search, paths)):
        raise _no_match(f"{where} ({pattern.pattern!r})", paths)


def _no_match(name: str, paths: Sequence[str]) -> ValueError:
    return ValueError(f"{name} matches no leaf; the paths of the leaves are {_few(paths)}.")


def _few(paths: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(map(repr, paths[:most]))
    return shown if len(paths) <= most else f"{shown} and {len(paths) - most} more"
