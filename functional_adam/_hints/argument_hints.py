"""What a caller most likely meant by an argument: the hint that ends an error message.

Except for `called`, nothing here runs before an error is certain. `tree_hints` has the hints for
trees and states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from functional_adam._hints import words

_SEVERAL = (
    " To give leaves different values, write for example "
    'overrides=[(r"^embed/", dict(learning_rate=1e-4))].'
)
RULE = '(r"(^|/)(bias|scale)$", dict(weight_decay=0.0))'
OVERRIDES = (
    "a list of (regular expression, dict of arguments), or a function (path, leaf) -> dict of "
    "arguments"
)
FUNCTION = (
    "A function for overrides is called with the path of a leaf, such as 'layers/0/kernel', and its"
    " shape and dtype. It returns a dict of arguments. Under optax.inject_hyperparams name it in"
    ' static_args=("overrides",).'
)
LEAF_RULE = (
    "A function for leaves is called with the path of a leaf, such as 'layers/0/kernel', and the "
    "shape and dtype of its first moment, and returns True or False."
)
_MASK = "mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)"
MASK = f"A mask function is called once, with the whole tree of parameters: {_MASK}."


def members(x: Any) -> list[Any]:
    """The members of a plain tuple or list."""
    return list(x) if type(x) in (tuple, list) else []


def shape_of(x: Any) -> tuple[Any, ...]:
    """The shape, also of other libraries' tensors; () if `x.shape` is not one."""
    try:
        return tuple(getattr(x, "shape", ()))
    except TypeError:
        return ()


def called(function: Callable[..., Any], *arguments: Any, advice: str) -> Any:
    """Call a function of the caller; what it raises gets `advice` as a note."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(advice)
        raise


def schedule(name: str) -> str:
    """For a schedule that raises."""
    return (
        f"Raised by the schedule for {name}. It is called with the step count, a traced number"
        " under jax.jit: write jnp.where instead of `if`. If you passed a function that makes"
        " schedules, call it first, as in optax.cosine_decay_schedule(1e-3, 1000)."
    )


def scalar(name: str, value: Any) -> str:
    """For a hyperparameter `name`, or `name(count)`, that is not a number."""
    if isinstance(value, str) and _reads_as_number(value):
        return f" Write float({value!r}). (YAML, for example, reads 1e-3 as text.)"
    if shape_of(value) != ():
        return array(name, value)
    others = bool | complex | np.generic | np.ndarray
    if hasattr(value, "__float__") and not isinstance(value, others):
        return " Write float(value)."
    if _is_several(value):
        return _SEVERAL
    if name in ("b1", "b2") and len(members(value)) == 2:
        return f" Write b1={value[0]!r}, b2={value[1]!r} for PyTorch's betas={value!r}."
    return _returned(value) if name.endswith("(count)") else _no_schedule(value)


def _no_schedule(value: Any) -> str:
    """For a function given for a hyperparameter that must be a number."""
    if not callable(value) or is_model(value):
        return ""
    return " It cannot be a schedule; to change it between steps, use optax.inject_hyperparams."


def _returned(value: Any) -> str:
    """For a wrong return value of a schedule."""
    if value is None:
        return " Does the schedule lack a return statement?"
    if callable(value):
        return " The schedule returned a function: pass that function, or call it with the count."
    return " A schedule must return one number."


def _is_several(value: Any) -> bool:
    """Whether `value` is a dict or list of numbers, as for groups of leaves."""
    leaves = jax.tree.leaves(value) if isinstance(value, Mapping | list) else []
    return bool(leaves) and all(shape_of(x) == () and hasattr(x, "__float__") for x in leaves)


def coarse(name: str) -> str:
    """For a hyperparameter `name` whose dtype cannot hold its usual values."""
    small = "1e-8 is 0" if name.startswith("eps") else "0.9999 is 1"
    return (
        f"in which {small}. Pass a Python number or jnp.float32(...). optax.inject_hyperparams "
        "casts to the parameters' dtype unless you pass it hyperparam_dtype=jnp.float32."
    )


def array(name: str, value: Any) -> str:
    """For a hyperparameter `name`, or `name(count)`, with a shape other than ()."""
    if math.prod(shape_of(value)) == 1:
        return " Take its only element: value.reshape(())."
    one = " A schedule must return one number." if name.endswith("(count)") else ""
    return f"{one} To use many values at once, apply jax.vmap to the update."


def flag(name: str, value: Any) -> str:
    """For a value that should be True or False."""
    if isinstance(value, Tracer):
        return (
            " It decides what is compiled, so it cannot be traced: write"
            f' jax.jit(f, static_argnames="{name}"), or bind it with functools.partial.'
        )
    return ""


def zero(name: str, value: Any) -> str:
    """How to turn `name` off, which is now `value`."""
    traced = " as a Python number" if isinstance(value, jax.Array) else ""
    return f"{name}=0.0{traced}"


def moments(value: Any, options: Iterable[str]) -> str:
    """For a value that does not name a format."""
    if isinstance(value, type) and hasattr(value, "is_random"):
        return f" Call it: fa.{value.__name__}()."
    return words.choice("moments", value, options)


def not_parameters(name: str, value: Any) -> str:
    """For a learning rate that looks like the parameters, which come first in PyTorch."""
    if name != "learning_rate":
        return ""
    leaves = jax.tree.leaves(value, is_leaf=_is_passing)
    alone = len(leaves) == 1 and leaves[0] is value
    arrays = any(shape_of(x) != () and not (alone and math.prod(shape_of(x)) == 1) for x in leaves)
    if arrays or is_model(value) or any(map(_is_passing, leaves)):
        return ", not the parameters: state = tx.init(params) takes them"
    return ""


def _is_passing(x: Any) -> bool:
    """Whether `x` is an iterable but not a JAX tree, as PyTorch's `parameters()` is."""
    return isinstance(x, Iterator | Set | ValuesView)


def is_model(x: Any) -> bool:
    """Whether `x` is a Flax Linen or PyTorch model, which is callable like a schedule."""
    ways = ("init", "apply"), ("parameters", "state_dict")
    return any(all(callable(getattr(x, name, None)) for name in names) for names in ways)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def mask(leaf: Any) -> str:
    """For a leaf of a mask that is not a boolean."""
    hint = ""
    if shape_of(leaf) != ():
        hint = " Give one boolean for a whole leaf, not one for each element."
    elif isinstance(leaf, str):
        hint = " A name does not select a leaf."
    return (
        f"{hint} A mask is a tree (or prefix of a tree) of Python booleans, or a function from the "
        "parameters to one; under optax.inject_hyperparams name it in "
        'static_args=("mask",).'
    )


def bare_mask(value: bool) -> str:
    """For a mask that is a single boolean where something decays."""
    effect = (
        "makes every parameter decay: leave mask out instead"
        if value
        else "makes no parameter decay: pass weight_decay=0.0 instead"
    )
    return (
        f"{effect}. If you passed a mask function, optax.inject_hyperparams called it with the "
        'step count and took the result for the mask: name it in static_args=("mask",).'
    )


def overrides(value: Any) -> str:
    """For a value that cannot be overrides."""
    if isinstance(value, Mapping):
        return " Turn a dict of rules into a list: list(overrides.items())."
    return f" For example overrides=[{RULE}]."


def pattern(value: Any) -> str:
    """For a value that is not a regular expression."""
    glob = " The * of file names is .* in a regular expression." if "*" in str(value) else ""
    return f"Write re.escape(...) around text that is to match literally.{glob}"


_APART = (
    "To change it for some leaves, give them an optimizer of their own: optax.partition({...}, "
    "labels)."
)
_SHARED = {
    "mask": "To exclude leaves from decay, override weight_decay=0.0 for them.",
    "overrides": "Rules cannot hold rules: the first rule that matches a leaf wins.",
    "moments": f"Int8(min_size=...) keeps float32 moments for small leaves. {_APART}",
}


def shared(name: str) -> str:
    """For an argument in `overrides` that must be the same for all leaves."""
    return _SHARED.get(name, _APART)


def extra_argument(call: object, name: str) -> str:
    """The whole message for an argument of a factory that was given to the update instead."""
    return (
        f"{name} has no effect on the update of {call!r}: it is an argument of the factory. To "
        "change a number between steps, pass the factory a schedule, or use "
        f"optax.inject_hyperparams and set state.hyperparams[{name!r}]. If it is meant for another "
        "member of an optax.chain, put optax.GradientTransformation(*tx) into the chain instead of "
        "tx: Optax passes no extra arguments to that."
    )


def mask_structure() -> str:
    """For a mask that does not fit the parameters."""
    return (
        f" A function fits any model: {_MASK}. (A callable object that holds only booleans counts "
        "as a tree. To have it called, write mask=lambda params: it(params).)"
    )
