"""What a caller most likely meant by a tree, leaf or state: the hint that ends an error message.

`argument_hints` has the hints for arguments. Nothing here runs before an error is certain, so
nothing has to be fast. A hint that is a guess says so. Every hint begins with a space, or is empty
if there is nothing useful to say.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from functional_adam._hints import restored
from functional_adam._hints.argument_hints import members, shape_of

ONE_MODEL = (
    " Gradients, parameters and state must belong to one model: if it has changed since init, make "
    "a new state with init(params), or with extend_state to keep the moments."
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


def is_adam(x: Any) -> bool:
    """Whether `x` is an Adam state of this package or of Optax."""
    return {"count", "mu", "nu"} <= set(getattr(type(x), "_fields", ()))


def _is_ours(x: Any) -> bool:
    return is_adam(x) and type(x).__name__ == "AdamState"


def _built_like(x: Any, like: Any) -> bool:
    """Whether `x` is a tree with the structure and the shapes of `like`."""
    (leaves, treedef), (wanted, structure) = jax.tree.flatten(x), jax.tree.flatten(like)
    return treedef == structure and list(map(shape_of, leaves)) == list(map(shape_of, wanted))


def not_a_state(state: Any, grads: Any = None, params: Any = None) -> str:
    """The whole message for something that was given as the state and is not one."""
    whose = "Optax's " if is_adam(state) and not _is_ours(state) else ""
    what = "a function" if callable(state) else f"{whose}{type(state).__name__}"
    return (
        f"state must be an AdamState, as `init` returns it; got {what}."
        f"{no_state(state, grads, params)}"
    )


def no_state(state: Any, grads: Any = None, params: Any = None) -> str:
    """For something given as a state that is no `AdamState` and holds none."""
    for name, other in (("grads", grads), ("params", params)):
        if is_adam(other):
            return f" The state was given as {name}: {_ORDER}."
    if state is None or callable(state) or callable(getattr(state, "init", None)):
        return f" Make it once, before the loop: {_INIT}."
    ours = [i for i, member in enumerate(members(state)) if _is_ours(member)]
    if ours:
        return (
            f" state[{ours[0]}] is an AdamState: unpack the pair that update returns, {_UPDATE}. "
            "If this is the state of an optax.chain, call the update of that chain."
        )
    if any(is_adam(x) for x in (state, *members(state))):
        return (
            f" Make a new one, {_INIT}, or continue from Optax's: "
            "state = fa.from_optax(state, like=tx.init(params))."
        )
    if grads is not None and _built_like(state, grads):
        return f" It has the structure of grads: {_ORDER}, and the first state is tx.init(params)."
    return restored.untyped(state) or (
        " (The state of an optax.chain is a tuple; a checkpoint restored without a target, a dict.)"
    )


def structure(name: str, tree: Any, wanted: Any, whose: str) -> str:
    """For a tree `name` whose structure is not that of `wanted`, which belongs to `whose`."""
    if name not in _OTHERWISE:
        return ""
    if name == "grads" and wanted is None:
        return f" `init` was given None instead of the parameters: write {_INIT}."
    return (
        _pair(name, tree, wanted)
        or _pair(whose, wanted, tree)
        or restored.boxed(tree, wanted)
        or restored.numbered(tree, wanted)
        or _other(name, tree)
    )


def _pair(name: str, tree: Any, wanted: Any) -> str:
    """For a tuple given as `name`, one of whose members should have been given instead."""
    parts = members(tree)
    fits = [i for i, member in enumerate(parts) if _built_like(member, wanted)]
    if not fits or name not in _OTHERWISE:
        return ""
    way = "params, state = step(params, state)" if name == "params" else _UPDATE
    if name == "grads" and not any(map(is_adam, parts)):
        way = "loss, grads = jax.value_and_grad(loss_of)(params)"
        if fits[0] == 0:
            way = "grads, aux = jax.grad(loss_of, has_aux=True)(params)"
    return f" {name}[{fits[0]}] has it: unpack the {type(tree).__name__}, as in {way}."


def _other(name: str, tree: Any) -> str:
    """For a tree that is recognized without its counterpart."""
    if is_adam(tree):
        return f" That is a state: write {_UPDATE}."
    if name == "grads" and (tree is None or jax.tree_util.all_leaves([tree])):
        return " Pass the gradients: grads = jax.grad(loss_of)(params)."
    if name == "params" and isinstance(tree, int | float):
        return " To pass a number, name it: update(grads, state, params, learning_rate=...)."
    return _OTHERWISE[name]


def no_array(path: str, leaf: Any) -> str:
    """For a leaf at `path` that is not an array."""
    if hasattr(leaf, "detach") or hasattr(leaf, "state_dict"):
        return " Convert PyTorch's tensors: jnp.asarray(x.detach().cpu().numpy())."
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return " jax.eval_shape returns shapes without values: pass the arrays."
    if path.startswith("state"):
        return " Make the state with `init`."
    if callable(getattr(leaf, "init", None)):
        return " A Flax Linen model holds no parameters: model.init(key, x)['params'] makes them."
    return (
        " Pass only the arrays of a model, as in equinox.filter(model, equinox.is_inexact_array)."
    )


def frozen(path: str, dtype: Any) -> str:
    """For a leaf at `path` whose dtype cannot be trained."""
    if path.startswith("state"):
        return restored.CAST
    freeze = f" To freeze it, {_FREEZE}."
    if path.startswith("params") and path.endswith(".count"):
        return f" If this is an optimizer's state, pass the parameters alone.{freeze}"
    if jnp.issubdtype(dtype, jnp.inexact):
        return " Fewer bits lose the steps: keep it in bfloat16 or float32, and cast it in use."
    if jnp.issubdtype(dtype, jnp.integer):
        return f" To train it, cast it: x.astype(jnp.float32).{freeze}"
    return freeze


def other_dtype() -> str:
    """For a parameter whose dtype has changed since `init`."""
    return (
        " Add updates with fa.apply_updates, which keeps the dtype; plain addition, as in "
        "equinox.apply_updates, gives the dtype of the float32 update. If you meant to change the "
        f"dtype, make a new state: tx.init(params).{other_rounding()}"
    )


def other_rounding() -> str:
    """For a state that was made with another rounding."""
    return (
        " To change the rounding and keep the moments, start a new residual: "
        "state._replace(residual=tx.init(params).residual)."
    )


def side(is_on_host: bool) -> str:
    """For a moment that lies where the step does not look for it: what is said of its place."""
    if is_on_host:
        return (
            "in the host's memory, and this transformation does not fetch it. Take the "
            "transformation that offload returned with this state's shardings, or bring the state "
            "to the devices: jax.device_put(state, state_shardings(tx, params))."
        )
    return (
        "on the devices, but this transformation from offload keeps it in the host's memory "
        "between steps. Move the state there once: jax.device_put(state, offloaded.shardings)."
    )


def shape(path: str) -> str:
    """For a leaf at `path` whose shape differs from that of its counterpart."""
    if path.startswith("params"):
        return ONE_MODEL
    if path.startswith("updates"):
        return _OTHERWISE["updates"]
    return ""
