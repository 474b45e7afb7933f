"""What a caller most likely meant by an argument: the way out that a message ends with.

But for `called`, nothing here runs unless an error is raised already. `tree_hints` has the way out
for trees and states.
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
    " For several rates say which leaves have which: "
    'overrides=[(r"^embed/", dict(learning_rate=1e-4))].'
)
RULE = '(r"(^|/)(bias|scale)$", dict(weight_decay=0.0))'
OVERRIDES = (
    "a list of (regular expression, dict of arguments), or a function (path, leaf) -> dict of "
    "arguments"
)
FUNCTION = (
    "A function for overrides is called with the path of a leaf, such as 'layers/0/kernel', and its"
    " shape and dtype, and returns a dict of arguments; under optax.inject_hyperparams name it in"
    ' static_args=("overrides",).'
)
LEAF_RULE = (
    "A function for leaves is called with the path of a leaf, such as 'layers/0/kernel', and the "
    "shape and dtype of its first moment, and returns True or False."
)
_MASK = "mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)"
MASK = f"A mask function is called once, with the whole tree of parameters: {_MASK}."


def members(x: Any) -> list[Any]:
    """What lies in a plain tuple or list."""
    return list(x) if type(x) in (tuple, list) else []


def shape_of(x: Any) -> tuple[Any, ...]:
    """The shape, also of other libraries' tensors; () where `x.shape` is none."""
    try:
        return tuple(getattr(x, "shape", ()))
    except TypeError:
        return ()


def called(function: Callable[..., Any], *arguments: Any, advice: str) -> Any:
    """What a caller's own function returns; what it raises gets `advice` as a note."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(advice)
        raise


def schedule(name: str) -> str:
    """For a schedule that raises."""
    return (
        f"Raised by {name}, which is called with the count of steps: a traced number under jax.jit,"
        " so choose with jnp.where in place of `if`. A function that makes schedules must be called"
        " first, as in optax.cosine_decay_schedule(1e-3, 1000)."
    )


def scalar(name: str, value: Any) -> str:
    """For a hyperparameter `name`, or `name(count)`, that is no number."""
    if isinstance(value, str) and _reads_as_number(value):
        return f" Write float({value!r}). (YAML, for one, reads 1e-3 as text.)"
    if shape_of(value) != ():
        return array(name, value)
    others = bool | complex | np.generic | np.ndarray
    if hasattr(value, "__float__") and not isinstance(value, others):
        return " Write float(value)."
    if _is_several(value):
        return _SEVERAL
    if name in ("b1", "b2") and len(members(value)) == 2:
        return f" PyTorch's betas={value!r} are b1={value[0]!r}, b2={value[1]!r} here."
    return _returned(value) if name.endswith("(count)") else _no_schedule(value)


def _no_schedule(value: Any) -> str:
    """For a function where a number alone belongs."""
    if not callable(value) or is_model(value):
        return ""
    return " It takes no schedule; optax.inject_hyperparams changes any number between steps."


def _returned(value: Any) -> str:
    """For what a schedule returned."""
    if value is None:
        return " Does the schedule return its value?"
    if callable(value):
        return " The schedule returned a function: pass that one, or call it with the count."
    return " A schedule returns one number."


def _is_several(value: Any) -> bool:
    """Whether `value` is a container of numbers by name or place, as for groups of leaves."""
    leaves = jax.tree.leaves(value) if isinstance(value, Mapping | list) else []
    return bool(leaves) and all(shape_of(x) == () and hasattr(x, "__float__") for x in leaves)


def coarse(name: str) -> str:
    """For a hyperparameter `name` whose dtype cannot hold what it usually is."""
    small = "1e-8 is 0" if name.startswith("eps") else "0.9999 is 1"
    return (
        f"in which {small}. Give a Python number or jnp.float32(...); optax.inject_hyperparams "
        "casts to the parameters' dtype unless you pass it hyperparam_dtype=jnp.float32."
    )


def array(name: str, value: Any) -> str:
    """For a hyperparameter `name`, or `name(count)`, with a shape other than ()."""
    if math.prod(shape_of(value)) == 1:
        return " Take its only element: value.reshape(())."
    one = " A schedule returns one number." if name.endswith("(count)") else ""
    return f"{one} To use many values at once, jax.vmap over the update."


def flag(name: str, value: Any) -> str:
    """For what should be True or False."""
    if isinstance(value, Tracer):
        return (
            " It decides what is computed, so it must be known before: name it under jax.jit, as in"
            f' jax.jit(f, static_argnames="{name}"), or bind it with functools.partial.'
        )
    return ""


def zero(name: str, value: Any) -> str:
    """How to say that there is no `name`, which now is `value`."""
    traced = " as a Python number" if isinstance(value, jax.Array) else ""
    return f"{name}=0.0{traced}"


def moments(value: Any, options: Iterable[str]) -> str:
    """For what names no format."""
    if isinstance(value, type) and hasattr(value, "is_random"):
        return f" Call it: fa.{value.__name__}()."
    return words.choice("moments", value, options)


def not_parameters(name: str, value: Any) -> str:
    """For a learning rate that looks like the parameters, which PyTorch wants there."""
    if name != "learning_rate":
        return ""
    leaves = jax.tree.leaves(value, is_leaf=_is_passing)
    alone = len(leaves) == 1 and leaves[0] is value
    arrays = any(shape_of(x) != () and not (alone and math.prod(shape_of(x)) == 1) for x in leaves)
    if arrays or is_model(value) or any(map(_is_passing, leaves)):
        return ", not the parameters: state = tx.init(params) takes them"
    return ""


def _is_passing(x: Any) -> bool:
    """Whether `x` is an iterable that JAX does not take for a tree, as PyTorch's parameters()."""
    return isinstance(x, Iterator | Set | ValuesView)


def is_model(x: Any) -> bool:
    """Whether `x` is a model of Flax Linen or PyTorch, which can be called, as a schedule can."""
    ways = ("init", "apply"), ("parameters", "state_dict")
    return any(all(callable(getattr(x, name, None)) for name in names) for names in ways)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def mask(leaf: Any) -> str:
    """For a leaf of a mask that is no boolean."""
    hint = ""
    if shape_of(leaf) != ():
        hint = " It is for a whole leaf, not for each element."
    elif isinstance(leaf, str):
        hint = " A name selects nothing."
    return (
        f"{hint} A mask is a tree (or prefix of a tree) of Python booleans, or a function from the "
        "parameters to one; under optax.inject_hyperparams name it in "
        'static_args=("mask",).'
    )


def bare_mask(value: bool) -> str:
    """For a mask that is one boolean, beside a decay."""
    effect, instead = ("everything", "leave mask out") if value else ("nothing", "weight_decay=0.0")
    return (
        f"lets {effect} decay: for that, {'' if value else 'pass '}{instead}. If this was a mask "
        "function: optax.inject_hyperparams calls it with the count of steps, and what it makes of "
        'that number became the mask; name it in static_args=("mask",).'
    )


def overrides(value: Any) -> str:
    """For what is no overrides."""
    if isinstance(value, Mapping):
        return " A dict of rules becomes a list: list(overrides.items())."
    return f" For example overrides=[{RULE}]."


def pattern(value: Any) -> str:
    """For what is no regular expression."""
    glob = " What is * in names of files is .* there." if "*" in str(value) else ""
    return f"Write re.escape(...) around what is to be found as it stands.{glob}"


_APART = (
    "For leaves that need another, give them an optimizer of their own: optax.partition({...}, "
    "labels)."
)
_SHARED = {
    "mask": "Leaves without decay have weight_decay=0.0 in overrides.",
    "overrides": "Of several rules the first that matches wins.",
    "moments": f"Int8(min_size=...) leaves small leaves out. {_APART}",
}


def shared(name: str) -> str:
    """For an argument in `overrides` that leaves have in common."""
    return _SHARED.get(name, _APART)


def extra_argument(call: object, name: str) -> str:
    """The whole message where a transformation's update is given an argument of its factory."""
    return (
        f"{name} has no effect on the update of {call!r}: it is an argument of the factory. To "
        "change a number between steps, give the factory a schedule, or use "
        f"optax.inject_hyperparams and set state.hyperparams[{name!r}]. If another member of an "
        "optax.chain takes it, give the chain optax.GradientTransformation(*tx) in place of tx: "
        "Optax hands that one no extra arguments."
    )


def mask_structure() -> str:
    """For a mask that does not fit the parameters."""
    return (
        f" A function fits any model: {_MASK}. (An object that can be called and holds booleans "
        "alone is taken for a tree: write mask=lambda params: it(params) to have it called.)"
    )
