"""A newcomer's values, and the words of the messages, for the mistakes of the first hour."""

import jax
import jax.numpy as jnp
import numpy as np
from codes import CODES
from flax import linen

import functional_adam as fa

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(-1, 1)
Y = np.sin(3 * X)
PARAMS = {"w": np.full((3, 2), 0.7, np.float32), "b": np.full(2, -0.3, np.float32)}
GRADS = {"w": np.full((3, 2), 0.4, np.float32), "b": np.full(2, 1.5, np.float32)}
DEEPER = PARAMS | {"v": np.ones((2, 1), np.float32)}
WIDER = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
OTHER = {"kernel": PARAMS["w"], "bias": PARAMS["b"]}
TX, PLAIN = fa.adamw(1e-2), fa.adam(1e-2)
STATE = TX.init(PARAMS)
UPDATES, NEXT = TX.update(GRADS, STATE, PARAMS)
SHAPES = jax.eval_shape(lambda: PARAMS)
INT8, SHORT = fa.adamw(1e-2, moments=CODES), fa.adamw(1e-2, rounding="compensated")
AMSGRAD = fa.amsgrad(1e-2)
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
BOXED = {"w": linen.Partitioned(PARAMS["w"], names=(None, "x")), "b": PARAMS["b"]}
LAYERS = [PARAMS["w"], PARAMS["b"]]


def cast(tree, dtype, counts=False):
    """Every float array (with `counts` every array) of `tree` in another dtype."""

    def one(x):
        return x.astype(dtype) if counts or jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(one, tree)


def loss_of(params):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 3)


def scheduled(value):
    """One update with a schedule that returns `value`."""
    return fa.adamw(lambda count: value).update(GRADS, STATE, PARAMS)


# Words of messages.
NO_STATE = "state must be an AdamState, as `init` returns it; got "
ORDER = "the order is update(grads, state, params)."
ONE_MODEL = "must belong to one model: if it has changed since init, make a new state with init(p"
STRUCTURE = "grads must have the structure of the parameters given to init: grads"
TUPLE = " is a node of type tuple, where a node of type dict belongs. "
PAIR = "[0] has it: unpack the tuple, as in updates, state = tx.update(grads, state, params)."
RATE = "learning_rate must be a finite number >= 0, a JAX scalar or a schedule (count -> value)"
NOT_PARAMS = ", not the parameters: state = tx.init(params) takes them; got "
FORMATS = "moments must be 'full' or 'bfloat16' or 'int8'"
CAST = (
    " If something cast the state (a cast of a whole TrainState, a mixed-precision policy, a check"
)
ANEW = "cast only the parameters, and restore with a target in the right dtypes: from_state_dict("
UNTYPED = (
    ", as in a checkpoint restored without a target. Restore it with a target: from_state_dict("
)
NO_NUMBERS = ".ShapeDtypeStruct. jax.eval_shape returns shapes without values: "
BOXES = (
    "Some arrays are in Flax's boxes and others are not. Unbox all of them before init, or none: "
)
SEVERAL = "To give leaves different values, write for example overrides=[(r"
STATIC = "jax.jit(f, static_argnames="
RETURNED = "learning_rate(count) must be a finite number >= 0 or a JAX scalar; got "
