"""What a caller most likely meant: the way out that a message of `_check` ends with.

But for `called`, nothing here runs unless an error is raised already, so nothing has to be fast;
and a guess is put as one. Every hint begins with a space, or is empty where nothing useful is
known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from functional_adam import _restored, _words

ONE_MODEL = (
    " Gradients, parameters and state must be of one model: if it has changed since init, make a "
    "new state with init(params), or with extend_state to keep the moments."
)
_OTHERWISE = {
    "grads": ONE_MODEL,
    "params": ONE_MODEL,
    "updates": " Pass the updates that update returned for these params.",
}
_ORDER = "the order is update(grads, state, params)"
_INIT = "state = tx.init(params)"
_UPDATE = "updates, state = tx.update(grads, state, params)"
_FREEZE = (
    "pass None as its gradient (and its parameter), or leave it out with optax.masked or "
    "optax.partition"
)
_MASK = "mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)"
_SEVERAL = (
    " For several rates give each group of leaves an optimizer of its own: "
    'optax.partition({"slow": fa.adam(1e-4), "fast": fa.adam(1e-3)}, labels).'
)
MASK = f"A mask function is called once, with the whole tree of parameters: {_MASK}."


def is_adam(x: Any) -> bool:
    """Whether `x` is a state of Adam, this package's or Optax's."""
    return {"count", "mu", "nu"} <= set(getattr(type(x), "_fields", ()))


def _is_ours(x: Any) -> bool:
    return is_adam(x) and type(x).__name__ == "AdamState"


def _members(x: Any) -> list[Any]:
    """What lies in a plain tuple or list."""
    return list(x) if type(x) in (tuple, list) else []


def _built_like(x: Any, like: Any) -> bool:
    """Whether `x` is a tree with the structure and the shapes of `like`."""
    (leaves, treedef), (wanted, structure) = jax.tree.flatten(x), jax.tree.flatten(like)
    return treedef == structure and list(map(_shape, leaves)) == list(map(_shape, wanted))


def _shape(x: Any) -> tuple[Any, ...]:
    """The shape, also of other libraries' tensors; () where `x.shape` is none."""
    try:
        return tuple(getattr(x, "shape", ()))
    except TypeError:
        return ()


def called(function: Callable[[Any], Any], argument: Any, advice: str) -> Any:
    """What a caller's own function returns; what it raises gets `advice` as a note."""
    try:
        return function(argument)
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


def not_a_state(state: Any, grads: Any = None, params: Any = None) -> str:
    """The whole message where something else was given as the state."""
    whose = "Optax's " if is_adam(state) and not _is_ours(state) else ""
    what = "a function" if callable(state) else f"{whose}{type(state).__name__}"
    return (
        f"state must be an AdamState, as `init` returns it; got {what}."
        f"{no_state(state, grads, params)}"
    )


def no_state(state: Any, grads: Any = None, params: Any = None) -> str:
    """For what was given as a state and is, or holds, none of ours."""
    for name, other in (("grads", grads), ("params", params)):
        if is_adam(other):
            return f" The state was given as {name}: {_ORDER}."
    if state is None or callable(state) or callable(getattr(state, "init", None)):
        return f" Make it once, before the loop: {_INIT}."
    ours = [i for i, member in enumerate(_members(state)) if _is_ours(member)]
    if ours:
        return (
            f" state[{ours[0]}] is an AdamState: unpack the pair that update returns, {_UPDATE}; "
            "or, if this is the state of an optax.chain, call the update of that chain."
        )
    if any(is_adam(x) for x in (state, *_members(state))):
        return (
            f" Make a new one, {_INIT}, or go on from Optax's: "
            "state = fa.from_optax(state, like=tx.init(params))."
        )
    if grads is not None and _built_like(state, grads):
        return f" It is built like grads: {_ORDER}, and the first state is tx.init(params)."
    return _restored.untyped(state) or (
        " (optax.chain keeps a tuple of states; a checkpoint restored without a target is a dict.)"
    )


def structure(name: str, tree: Any, wanted: Any, whose: str) -> str:
    """For a tree `name` that is not built like `wanted`, which belongs to `whose`."""
    if name not in _OTHERWISE:
        return ""
    if name == "grads" and wanted is None:
        return f" `init` was given None in place of the parameters: {_INIT}."
    return (
        _pair(name, tree, wanted)
        or _pair(whose, wanted, tree)
        or _restored.boxed(tree, wanted)
        or _restored.numbered(tree, wanted)
        or _other(name, tree)
    )


def _pair(name: str, tree: Any, wanted: Any) -> str:
    """For a tuple, given as `name`, of which one member is what should have been given."""
    members = _members(tree)
    fits = [i for i, member in enumerate(members) if _built_like(member, wanted)]
    if not fits or name not in _OTHERWISE:
        return ""
    way = "params, state = step(params, state)" if name == "params" else _UPDATE
    if name == "grads" and not any(map(is_adam, members)):
        way = "loss, grads = jax.value_and_grad(loss_of)(params)"
        if fits[0] == 0:
            way = "grads, aux = jax.grad(loss_of, has_aux=True)(params)"
    return f" {name}[{fits[0]}] has it: unpack the {type(tree).__name__}, as in {way}."


def _other(name: str, tree: Any) -> str:
    """For what is recognized by itself."""
    if is_adam(tree):
        return f" That is a state: {_UPDATE}."
    if name == "grads" and (tree is None or jax.tree_util.all_leaves([tree])):
        return " Give the gradients: grads = jax.grad(loss_of)(params)."
    if name == "params" and isinstance(tree, int | float):
        return " That is a number: name it, as in update(grads, state, params, learning_rate=...)."
    return _OTHERWISE[name]


def no_array(path: str, leaf: Any) -> str:
    """For a leaf at `path` that is no array."""
    if hasattr(leaf, "detach") or hasattr(leaf, "state_dict"):
        return " Convert PyTorch's tensors: jnp.asarray(x.detach().cpu().numpy())."
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return " jax.eval_shape tells shapes, without the numbers: pass the arrays."
    if path.startswith("state"):
        return " Make the state with `init`."
    if callable(getattr(leaf, "init", None)):
        return " A Flax Linen model holds no parameters: model.init(key, x)['params'] makes them."
    return (
        " Keep only the arrays of a model, as equinox.filter(model, equinox.is_inexact_array) does."
    )


def frozen(path: str, dtype: Any) -> str:
    """For a leaf at `path` that is neither float nor complex."""
    if path.startswith("state"):
        return _restored.CAST
    freeze = f" To freeze it, {_FREEZE}."
    if path.startswith("params") and path.endswith(".count"):
        return f" If this is an optimizer's state, pass the parameters alone.{freeze}"
    if jnp.issubdtype(dtype, jnp.inexact):
        return " A step is lost in fewer: keep it in bfloat16 or float32, and cast it in use."
    if jnp.issubdtype(dtype, jnp.integer):
        return f" To train it, cast it: x.astype(jnp.float32).{freeze}"
    return freeze


def other_dtype() -> str:
    """For a parameter whose dtype has changed since `init`."""
    return (
        " Add updates with fa.apply_updates, which keeps it; a bare addition, as in "
        "equinox.apply_updates, takes that of the float32 update. If the change was meant, make a "
        "new state: tx.init(params)."
    )


def shape(path: str) -> str:
    """For a leaf at `path` whose shape is not that of its counterpart."""
    if path.startswith("params"):
        return ONE_MODEL
    if path.startswith("updates"):
        return _OTHERWISE["updates"]
    return ""


def scalar(name: str, value: Any) -> str:
    """For a hyperparameter `name`, or `name(count)`, that is no number."""
    if isinstance(value, str) and _reads_as_number(value):
        return f" Write float({value!r}). (YAML, for one, reads 1e-3 as text.)"
    if _shape(value) != ():
        return array(name, value)
    others = bool | complex | np.generic | np.ndarray
    if hasattr(value, "__float__") and not isinstance(value, others):
        return " Write float(value)."
    if _is_several(value):
        return _SEVERAL
    if name in ("b1", "b2") and len(_members(value)) == 2:
        return f" PyTorch's betas={value!r} are b1={value[0]!r}, b2={value[1]!r} here."
    return _returned(value) if name.endswith("(count)") else ""


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
    return bool(leaves) and all(_shape(x) == () and hasattr(x, "__float__") for x in leaves)


def coarse(name: str) -> str:
    """For a hyperparameter `name` whose dtype cannot hold what it usually is."""
    small = "1e-8 is 0" if name.startswith("eps") else "0.9999 is 1"
    return (
        f"in which {small}. Give a Python number or jnp.float32(...); optax.inject_hyperparams "
        "casts to the parameters' dtype unless you pass it hyperparam_dtype=jnp.float32."
    )


def array(name: str, value: Any) -> str:
    """For a hyperparameter `name`, or `name(count)`, with a shape other than ()."""
    if math.prod(_shape(value)) == 1:
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
    return _words.choice("moments", value, options)


def not_parameters(name: str, value: Any) -> str:
    """For a learning rate that looks like the parameters, which PyTorch wants there."""
    if name != "learning_rate":
        return ""
    leaves = jax.tree.leaves(value, is_leaf=_is_passing)
    alone = len(leaves) == 1 and leaves[0] is value
    arrays = any(_shape(x) != () and not (alone and math.prod(_shape(x)) == 1) for x in leaves)
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
    if _shape(leaf) != ():
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
    return f" A function fits any model: {_MASK}."
