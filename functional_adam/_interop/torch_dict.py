"""Reads PyTorch's `state_dict()`: its parameters by number or name, and its arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from functional_adam import _check
from functional_adam._types import NumPyArray, PyTree

# A function from a path to torch's index or name of the parameter, or a tree of these.
Names: TypeAlias = PyTree | Callable[[str], int | str]
Transform: TypeAlias = Callable[[str, NumPyArray], NumPyArray]


def parts_of(name: str, state_dict: Any) -> tuple[list[Any], Mapping[Any, Any]]:
    """The groups and the states of a state dict."""
    if isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict):
        groups, states = list(state_dict["param_groups"]), state_dict["state"]
        held = states.values() if isinstance(states, Mapping) else ()
        entries = [states, *groups, *(x for x in held if x is not None)]
        if all(isinstance(x, Mapping) for x in entries) and all("params" in x for x in groups):
            return groups, states
    raise TypeError(
        f'{name} must be the state_dict() of a torch optimizer, a dict with "state" and '
        f'"param_groups"; got {_check.show(state_dict)}.'
    )


def keys_of(name: str, groups: list[Any], paths: list[str], names: Any) -> list[Any]:
    """The key of each leaf's parameter in the state dict."""
    known = [key for group in groups for key in group["params"]]
    for key in _twice(known):
        raise ValueError(
            f"{name}['param_groups'] lists parameter {key!r} twice, but it has only one state."
        )
    if names is None:
        if len(known) == len(paths):
            return known
        count = f"{name} has {len(known)} parameters, but there are {len(paths)} leaves."
        raise ValueError(f"{count} Pass names= to say which parameter belongs to each leaf.")
    by_name = _by_name(name, groups, known)
    tree = {} if callable(names) else {keystr(p): k for p, k in tree_leaves_with_path(names)}
    keys: list[Any] = []
    for path in paths:
        if not callable(names) and path not in tree:
            raise ValueError(
                f"names has nothing for leaf {path}: it must be a tree like params, or a function "
                "from a path to torch's name or index."
            )
        key = names(path) if callable(names) else tree[path]
        if key not in by_name:
            few = ", ".join(map(repr, list(by_name)[:8])) + ", ..." * (len(by_name) > 8)
            raise ValueError(f"names has {key!r} for leaf {path}, but {name} has {few}.")
        if by_name[key] in keys:
            raise ValueError(f"names has {key!r} for leaf {path} and for another leaf.")
        keys.append(by_name[key])
    return keys


def _by_name(name: str, groups: list[Any], known: list[Any]) -> dict[Any, Any]:
    """The keys of a state dict, by key and by the names that its groups give them."""
    pairs = [(key, key) for key in known]
    for number, group in enumerate(groups):
        called = group.get("param_names", ())
        if called and len(called) != len(group["params"]):
            raise ValueError(
                f"{name}['param_groups'][{number}] has {len(called)} names for "
                f"{len(group['params'])} parameters."
            )
        named = zip(called, group["params"], strict=bool(called))
        pairs += [pair for pair in named if pair[0] != pair[1]]
    for called in _twice([called for called, _ in pairs]):
        raise ValueError(f"{name} has two parameters called {called!r}: use their indices.")
    return dict(pairs)


def _twice(keys: list[Any]) -> list[Any]:
    """The items that are in a list more than once."""
    return [key for key, number in Counter(keys).items() if number > 1]


def laid_out(
    path: str, array: Any, transform: Transform | None, shape: tuple[int, ...] | None, whose: str
) -> NumPyArray:
    """`array` with its axes in the order of the other side, where it has this shape."""
    if transform is not None:
        array = numpy_of(whose, transform(path, array))
    if shape is None or array.shape == shape:
        return array
    advice = "Pass names= to say which parameter belongs to each leaf."
    if sorted(array.shape) == sorted(shape):
        turn = ".T" if array.shape == shape[::-1] else ".transpose(...)"
        advice = f"It fits transposed: pass transform=lambda path, x: x{turn} for this path."
    raise ValueError(
        f"{whose}: the array has shape {array.shape}"
        f"{'' if transform is None else ' after transform'}, but must have {shape}. {advice}"
    )


def check_numbers(name: str, whose: str, array: NumPyArray) -> None:
    """Raise unless a moment is finite and, if it is a mean of squares, not negative."""
    if not np.isfinite(array).all():
        raise ValueError(
            f"{whose} holds NaN or infinity in {array.dtype}: the run has diverged. Continue from "
            "an earlier checkpoint."
        )
    if name != "exp_avg" and np.any(np.less(array, 0)):
        raise ValueError(f"{whose} holds negative numbers, but is a mean of squares.")


def numpy_of(whose: str, value: Any) -> NumPyArray:
    """A tensor, an array or a number as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # unknown to NumPy
        value = value.numpy()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{whose} is a NumPy masked array, whose mask would be lost: pass array.filled(...)."
        )
    return np.asarray(value)
