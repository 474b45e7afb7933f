"""Records the call that made a transformation, and decides when two transformations are equal."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Origin(NamedTuple):
    """The call of a factory, for `repr`, equality and messages."""

    factory: str
    shown: tuple[tuple[str, Any], ...]  # (name, value) where not the default; "" if required
    arguments: frozenset[str]  # all that the factory takes; for a modifier also those of its tx

    def __repr__(self) -> str:
        written = [f"{k}={short(v)}" if k else short(v) for k, v in self.shown]
        return f"{self.factory}({', '.join(written)})"


class Bound(functools.partial[Any]):
    """A module function with the value bound by a factory's call. It pickles.

    Equal calls make equal objects. `jax.jit` looks its compiled programs up by `==` and `hash`, so
    equal transformations share one.
    """

    def __new__(cls, func: Callable[..., Any], bound: Any) -> Bound:
        return super().__new__(cls, func, bound)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.func, *self.args)

    @functools.cached_property
    def identity(self) -> tuple[Any, ...]:
        """What `==` and `hash` compare; each subclass defines it."""
        raise NotImplementedError

    @property
    def call(self) -> str:
        """The call that made the transformation, as source code."""
        raise NotImplementedError

    @functools.cached_property
    def _hash(self) -> int:  # cached, since every call of a jitted step needs it
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.identity == other.identity

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"{self.call}.{self.func.__name__.removeprefix('_')}"


def origin(factory: str, bound: inspect.BoundArguments, inner: frozenset[str]) -> Origin:
    """The origin of a call of `factory` with these arguments, defaults included."""
    shown: list[tuple[str, Any]] = []
    for name, parameter in bound.signature.parameters.items():
        value = bound.arguments[name]
        if parameter.default is inspect.Parameter.empty:
            shown.append(("", value))
        elif name == "learning_rate" or not _is_default(value, parameter.default):
            shown.append((name, value))
    return Origin(factory, tuple(shown), inner.union(bound.signature.parameters))


def _is_default(value: Any, default: Any) -> bool:
    plain = isinstance(value, bool | int | float | str)
    return value is default or (plain and type(value) is type(default) and value == default)


def short(value: Any, width: int = 60) -> str:
    """`value` as source code on one line; of an array only its type, since it may be traced."""
    if isinstance(value, jax.Array):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return f"<{value.__qualname__.replace('.<locals>', '')}>".replace("<<lambda>>", "<lambda>")
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


class Same:
    """Wraps an array or a function so that it is equal only to itself."""

    __slots__ = ("it",)

    def __init__(self, it: Any) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


class SameTree:
    """Wraps a tree of booleans or integers so that it is compared by value."""

    __slots__ = ("leaves", "treedef")

    def __init__(self, tree: Any) -> None:
        leaves, self.treedef = jax.tree.flatten(tree)
        self.leaves = tuple(leaves)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SameTree)
            and self.leaves == other.leaves
            and self.treedef == other.treedef
        )

    def __hash__(self) -> int:
        return hash(self.leaves)  # not the treedef: static fields of a module need not be hashable

    @property
    def it(self) -> Any:
        """The wrapped tree."""
        return self.treedef.unflatten(self.leaves)


def comparable(value: Any) -> Any:
    """`value` in a form that has `==` and `hash`; arrays and functions compare by identity."""
    if isinstance(value, Mapping):
        return tuple((name, comparable(value[name])) for name in sorted(value))
    return Same(value) if isinstance(value, jax.Array) or callable(value) else value
