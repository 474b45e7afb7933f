"""Mistakes in calls: the order of arguments, another model, the pair not unpacked, no gradients.

A row is the code as a newcomer writes it, the error, and parts of its message in their order, what
is between them being free.
"""

import jax
import optax
from newcomer import (
    DEEPER,
    GRADS,
    NEXT,
    NO_STATE,
    ONE_MODEL,
    ORDER,
    OTHER,
    PAIR,
    PARAMS,
    PLAIN,
    STATE,
    STATIC,
    STRUCTURE,
    TUPLE,
    TX,
    UPDATES,
    WIDER,
    X,
    loss_of,
)

import functional_adam as fa

IN_CALLS = {
    # The order of arguments.
    "state first": (
        lambda: TX.update(STATE, GRADS, PARAMS),
        TypeError,
        [f"{NO_STATE}dict. The state was given as grads: {ORDER}"],
    ),
    "state last": (
        lambda: TX.update(GRADS, PARAMS, STATE),
        TypeError,
        [f"{NO_STATE}dict. The state was given as params: {ORDER}"],
    ),
    "params first, as in a step": (
        lambda: fa.update(PARAMS, GRADS, STATE, weight_decay=0.1),
        TypeError,
        [f"{NO_STATE}dict. The state was given as params: {ORDER}"],
    ),
    "params in place of the state": (
        lambda: PLAIN.update(GRADS, PARAMS),
        TypeError,
        [f"{NO_STATE}dict. It has the structure of grads: the order is update(grads, state, p"],
    ),
    "state twice": (
        lambda: TX.update(GRADS, STATE, STATE),
        ValueError,
        [
            "params must have",
            "params is a node of type",
            "AdamState",
            "That is a state: write updates, ",
        ],
    ),
    "state to init": (
        lambda: TX.init(STATE),
        TypeError,
        ["params.count", "dtype int32. If this is an optimizer's state, pass the parameters alone"],
    ),
    "learning rate as the third argument": (
        lambda: fa.update(GRADS, STATE, 1e-3),
        ValueError,
        ["params is a leaf", "To pass a number, name it: update(", "learning_rate=...)."],
    ),
    # Parameters forgotten.
    "decay without params": (
        lambda: TX.update(GRADS, STATE),
        ValueError,
        ["weight_decay needs the parameters: call update(grads, state, params), or pass weight_"],
    ),
    # A state of the model as it was.
    "layer added": (
        lambda: TX.update(DEEPER, STATE, DEEPER),
        ValueError,
        [f"{STRUCTURE}['v'] does not belong there. ", ONE_MODEL, "extend_state"],
    ),
    "layer removed": (
        lambda: TX.update(GRADS, TX.init(DEEPER), PARAMS),
        ValueError,
        [f"{STRUCTURE}['v'] is missing. ", ONE_MODEL, "extend_state"],
    ),
    "kernel of another shape": (
        lambda: TX.update(WIDER, STATE, WIDER),
        ValueError,
        ["params['b'] has shape (4,), but state.mu['b'] has shape (2,). ", ONE_MODEL],
    ),
    "kernel of another shape without decay": (
        lambda: PLAIN.update(WIDER, STATE, WIDER),
        ValueError,
        ["params['b'] has shape (4,), but state.mu['b'] has shape (2,). ", ONE_MODEL],
    ),
    "params that nothing needs": (
        lambda: PLAIN.update(GRADS, STATE, STATE),
        ValueError,
        ["params must have the structure of", "That is a state: write updates, state = tx.update("],
    ),
    # Applying.
    "apply the pair": (
        lambda: fa.apply_updates(PARAMS, TX.update(GRADS, STATE, PARAMS)),
        ValueError,
        [f"updates must have the structure of params: updates{TUPLE}updates{PAIR}"],
    ),
    "apply the pair to one array": (
        lambda: fa.apply_updates(X, PLAIN.update(X, PLAIN.init(X))),
        ValueError,
        ["updates is a node of type tuple, where a leaf belongs. updates", PAIR],
    ),
    "apply to the pair": (
        lambda: fa.apply_updates((PARAMS, STATE), UPDATES),
        ValueError,
        ["updates is a node of type dict", "params[0] has it: unpack", "params, state = step("],
    ),
    "apply the state": (
        lambda: fa.apply_updates(PARAMS, NEXT),
        ValueError,
        [
            "updates is a node of type",
            "AdamState",
            "That is a state: write updates, state = tx.update(",
        ],
    ),
    "apply to another model": (
        lambda: fa.apply_updates(OTHER, UPDATES),
        ValueError,
        ["updates['", "does not belong there. Pass the updates that update returned for these pa"],
    ),
    "apply to another shape": (
        lambda: fa.apply_updates(WIDER, UPDATES),
        ValueError,
        ["updates['b'] has shape (2,), but params['b'] has shape (4,). Pass the updates that "],
    ),
    # Gradients of another model.
    "gradients of another structure": (
        lambda: TX.update(OTHER, STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE}['", "does not belong there. Gradients, parameters and state ", ONE_MODEL],
    ),
    "gradients of another shape": (
        lambda: TX.update(WIDER, STATE, PARAMS),
        ValueError,
        ["grads['b'] has shape (4,), but state.mu['b'] has shape (2,). Gradients, ", ONE_MODEL],
    ),
    # The state lost, or something else in its place.
    "params = step(params, state)": (
        lambda: TX.update(GRADS, STATE, (PARAMS, STATE)),
        ValueError,
        [f"params{TUPLE}params[0] has it: unpack the tuple, as in params, state = step(params, "],
    ),
    "params = step(params, state), then init": (
        lambda: TX.init((PARAMS, STATE)),
        TypeError,
        ["params[1].count", "If this is an optimizer's state, pass the parameters alone"],
    ),
    "state = update(...)": (
        lambda: TX.update(GRADS, TX.update(GRADS, STATE, PARAMS), PARAMS),
        TypeError,
        [f"{NO_STATE}tuple. state[1] is an AdamState: unpack the pair that update returns"],
    ),
    "updates = update(...) as gradients": (
        lambda: TX.update((UPDATES, NEXT), STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE}{TUPLE}grads{PAIR}"],
    ),
    "state of a chain": (
        lambda: TX.update(GRADS, optax.chain(optax.clip(1.0), TX).init(PARAMS), PARAMS),
        TypeError,
        [f"{NO_STATE}tuple. state[1] is an AdamState: ", "call the update of that chain."],
    ),
    "the transformation itself": (
        lambda: TX.update(GRADS, TX, PARAMS),
        TypeError,
        [f"{NO_STATE}GradientTransformation. Make it once, before the loop: state = tx.init(pa"],
    ),
    "init without a call": (
        lambda: TX.update(GRADS, TX.init, PARAMS),
        TypeError,
        [f"{NO_STATE}a function. Make it once, before the loop: state = tx.init(params)."],
    ),
    "no state": (
        lambda: TX.update(GRADS, None, PARAMS),
        TypeError,
        [f"{NO_STATE}NoneType. Make it once, before the loop: state = tx.init(params)."],
    ),
    "state of optax.adam": (
        lambda: TX.update(GRADS, optax.adam(1e-3).init(PARAMS), PARAMS),
        TypeError,
        [f"{NO_STATE}tuple. Make a new one, state = tx.init(params), or continu", "fa.from_optax("],
    ),
    "state of optax.scale_by_adam": (
        lambda: TX.update(GRADS, optax.scale_by_adam().init(PARAMS), PARAMS),
        TypeError,
        [f"{NO_STATE}Optax's ScaleByAdamState. Make a new one", "fa.from_optax(state, like=tx."],
    ),
    "state of another variant": (
        lambda: fa.amsgrad(1e-3).update(GRADS, STATE, PARAMS),
        ValueError,
        ["state.extra holds no trees, but amsgrad needs", "`init` of the same transformation."],
    ),
    "diagnostics of the transformation": (
        lambda: fa.diagnostics(UPDATES, TX, PARAMS),
        ValueError,
        [
            "state must hold one AdamState; found none in adamw(learning_rate=0.01) of type ",
            "Make it once, bef",
        ],
    ),
    "diagnostics of a state of Optax's": (
        lambda: fa.diagnostics(UPDATES, optax.adam(1e-3).init(PARAMS), PARAMS),
        ValueError,
        [
            "state must hold one AdamState; found none in (ScaleByAdamState(",
            "fa.from_optax(state, ",
        ],
    ),
    # What jax.grad gives.
    "value_and_grad whole": (
        lambda: TX.update(jax.value_and_grad(loss_of)(PARAMS), STATE, PARAMS),
        ValueError,
        [
            f"{STRUCTURE}{TUPLE}grads[1] has it: unpack",
            "loss, grads = jax.value_and_grad(loss_of)(",
        ],
    ),
    "grad with aux whole": (
        lambda: TX.update((GRADS, {"accuracy": 0.5}), STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE}{TUPLE}grads[0] has it: unpack", "grads, aux = jax.grad(loss_of, has_aux=Tr"],
    ),
    "grad without a call": (
        lambda: TX.update(jax.grad(loss_of), STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE} is a leaf", "Pass the gradients: grads = jax.grad(loss_of)(params)."],
    ),
    "the loss": (
        lambda: TX.update(loss_of(PARAMS), STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE} is a leaf", "Pass the gradients: grads = jax.grad(loss_of)(params)."],
    ),
    "no gradients": (
        lambda: TX.update(None, STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE} is None", "Pass the gradients: grads = jax.grad(loss_of)(params)."],
    ),
    # Under jit, what decides must be static.
    "a flag under jit": (
        lambda: jax.jit(fa.update)(GRADS, STATE, PARAMS, nesterov=True),
        TypeError,
        ["nesterov must be True or False; got ", f'{STATIC}"nesterov"), or bind it with functools'],
    ),
    "moments under jit": (  # JAX's own words: nothing of ours has run
        lambda: jax.jit(fa.update)(GRADS, STATE, PARAMS, moments="int8"),
        TypeError,
        ["moments", "static_argnames"],
    ),
    "no decay under jit": (
        lambda: jax.jit(fa.update)(GRADS, STATE, weight_decay=0.0),
        ValueError,
        ["weight_decay needs the parameters: ", "pass weight_decay=0.0 as a Python number."],
    ),
}
