"""A newcomer's first hour: the loop of the README in four frameworks, and the usual mistakes.

A row is the code as a newcomer writes it, and the error: where, what was given, the way out. What
pure functions of these arguments cannot see is `UNSEEN`, so that nobody takes silence for a
promise.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from quick import quick_jit

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
INT8, SHORT = fa.adamw(1e-2, moments="int8"), fa.adamw(1e-2, rounding="compensated")
AMSGRAD = fa.amsgrad(1e-2)
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
BOXED = {"w": linen.Partitioned(PARAMS["w"], names=(None, "x")), "b": PARAMS["b"]}
LAYERS = [PARAMS["w"], PARAMS["b"]]


def cast(tree, dtype, counts=False):
    """Every float array (with `counts` every array) of `tree` in another dtype."""

    def one(x):
        return x.astype(dtype) if counts or jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(one, tree)


class TorchSize(tuple):
    pass


class Tensor:
    """What PyTorch's tensor is to others: `size` a method, `shape` a tuple of its own, a dtype
    that NumPy does not know, no numbers for NumPy while it needs a gradient."""

    __module__ = "torch"

    def __init__(self, values):
        self.values, self.dtype = np.float32(values), object()
        self.shape, self.size = TorchSize(self.values.shape), self.values.copy

    def __repr__(self):
        return f"tensor({self.values})"

    def __float__(self):
        return float(self.values)

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def detach(self):
        return self.values


class TorchModule:
    """PyTorch's module: like a schedule, it can be called."""

    def __call__(self, x):
        return x

    def parameters(self):
        return iter([Tensor(np.ones((3, 2))), Tensor(np.ones(2))])

    def state_dict(self):
        return {"weight": Tensor(np.ones((3, 2))), "bias": Tensor(np.ones(2))}


def loss_of(params):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"] ** 3)


def scheduled(value):
    """One update with a schedule that returns `value`."""
    return fa.adamw(lambda count: value).update(GRADS, STATE, PARAMS)


# Ten lines in each framework ------------------------------------------------------------------


def plain_jax():
    loss = lambda p: jnp.mean((jnp.tanh(X @ p["w"]) @ p["v"] - Y) ** 2)  # noqa: E731
    params = {"w": jax.random.normal(jax.random.key(0), (1, 32)), "v": jnp.zeros((32, 1))}
    tx = fa.adamw(learning_rate=1e-2)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return fa.apply_updates(params, updates), state

    first = loss(params)
    for _ in range(100):
        params, state = step(params, state)
    return first, loss(params)


def flax_linen():
    model = linen.Sequential([linen.Dense(32), linen.tanh, linen.Dense(1)])
    loss = lambda p: jnp.mean((model.apply({"params": p}, X) - Y) ** 2)  # noqa: E731
    params = model.init(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=fa.adamw(1e-2))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params)))
    for _ in range(100):
        state = step(state)
    return loss(params), loss(state.params)


def flax_nnx():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(1, 32, rngs=rngs), nnx.tanh, nnx.Linear(32, 1, rngs=rngs))
    loss = lambda model: jnp.mean((model(X) - Y) ** 2)  # noqa: E731
    optimizer = nnx.Optimizer(model, fa.adamw(1e-2), wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model)))
    first = loss(model)
    for _ in range(100):
        step(model, optimizer)
    return first, loss(model)


def equinox():
    model = eqx.nn.MLP(1, 1, 32, 1, key=jax.random.key(0))
    loss = lambda model: jnp.mean((jax.vmap(model)(X) - Y) ** 2)  # noqa: E731
    tx, first = fa.adamw(1e-2), loss(model)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(eqx.filter_grad(loss)(model), state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(100):
        model, state = step(model, state)
    return first, loss(model)


@pytest.mark.parametrize("loop", [plain_jax, flax_linen, flax_nnx, equinox])
def test_ten_lines_train(loop, monkeypatch):
    monkeypatch.setattr(jax, "jit", quick_jit)
    first, last = loop()
    assert last < first / 2


# Mistakes -------------------------------------------------------------------------------------

NO_STATE = "state must be an AdamState, as `init` returns it; got "
ORDER = "the order is update(grads, state, params)."
ONE_MODEL = "must be of one model: if it has changed since init, make a new state with init(params)"
STRUCTURE = "grads must have the structure of the parameters given to init: grads"
TUPLE = " is a node of type tuple, where a node of type dict belongs. "
PAIR = "[0] has it: unpack the tuple, as in updates, state = tx.update(grads, state, params)."
RATE = "learning_rate must be a finite number >= 0, a JAX scalar or a schedule (count -> value)"
NOT_PARAMS = ", not the parameters: state = tx.init(params) takes them; got "
FORMATS = "moments must be 'full' or 'bfloat16' or 'int8'"
CAST = (
    " If something cast the state (a cast of a whole TrainState, a mixed-precision policy, a check"
)
ANEW = "cast the parameters alone, and restore with a target in the right dtypes: from_state_dict("
UNTYPED = ", as in a checkpoint restored without a target. Restore it with one: from_state_dict("
NO_NUMBERS = ".ShapeDtypeStruct. jax.eval_shape tells shapes, without the numbers: "
BOXES = "Some arrays are in Flax's boxes and some are not. Take them out everywhere, before init: "
SEVERAL = "For several rates give each group of leaves an optimizer of its own: optax.partition({"
STATIC = "jax.jit(f, static_argnames="
RETURNED = "learning_rate(count) must be a finite number >= 0 or a JAX scalar; got "

# Parts of a message in their order, what is between them being free.
MISTAKES = {
    # 1. The order of arguments.
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
        [f"{NO_STATE}dict. It is built like grads: the order is update(grads, state, params)"],
    ),
    "state twice": (
        lambda: TX.update(GRADS, STATE, STATE),
        ValueError,
        ["params must have", "params is a node of type", "AdamState", "That is a state: updates, "],
    ),
    "state to init": (
        lambda: TX.init(STATE),
        TypeError,
        ["params.count", "dtype int32. If this is an optimizer's state, pass the parameters alone"],
    ),
    "learning rate as the third argument": (
        lambda: fa.update(GRADS, STATE, 1e-3),
        ValueError,
        ["params is a leaf", "That is a number: name it, as in update(", "learning_rate=...)."],
    ),
    # 2. Parameters forgotten.
    "decay without params": (
        lambda: TX.update(GRADS, STATE),
        ValueError,
        ["weight_decay needs the parameters: call update(grads, state, params), or pass weight_"],
    ),
    # 3. A state of the model as it was.
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
        ["params must have the structure of", "That is a state: updates, state = tx.update("],
    ),
    # 4. Integers.
    "counter among params": (
        lambda: TX.init(PARAMS | {"n": jnp.arange(3)}),
        TypeError,
        ["params['n']", "got dtype int32. To train it, cast it", "To freeze it, pass None"],
    ),
    "weights written as integers": (
        lambda: TX.init({"w": jnp.array([1, 2, 3])}),
        TypeError,
        ["params['w']", "got dtype int32. To train it, cast it: x.astype(jnp.float32)."],
    ),
    "weights of 8 bits": (
        lambda: TX.init({"w": jnp.ones(3, jnp.float8_e4m3fn)}),
        TypeError,
        ["params['w'] must be a float array of at least 16 bits; got dtype float8_e4m3fn.", "keep"],
    ),
    "moments of 8 bits": (
        lambda: fa.adam(nu_dtype=jnp.float8_e5m2),
        TypeError,
        ["nu_dtype must be None or a float dtype of at least 16 bits, such as 'bfloat16'; got"],
    ),
    # 5. The learning rate.
    "text from a config": (
        lambda: fa.adam("1e-3"),
        TypeError,
        [f"{RATE}; got '1e-3' of type str. Write float('1e-3')."],
    ),
    "text from a config to update": (
        lambda: fa.update(GRADS, STATE, learning_rate="1e-3"),
        TypeError,
        [f"{RATE}; got '1e-3' of type str. Write float('1e-3')."],
    ),
    "array of shape (1,)": (
        lambda: fa.adam(np.array([1e-3])),
        TypeError,
        [f"{RATE}; got array([0.001]) of type numpy.ndarray. Take its only element: value.reshape"],
    ),
    "betas": (
        lambda: fa.adam(1e-3, (0.85, 0.99)),
        TypeError,
        [
            "b1 must be a number in [0, 1) or a JAX scalar; got (0.85, 0.99) of type tuple. ",
            "PyTorch's betas=(0.85, 0.99) are b1=0.85, b2=0.99 here.",
        ],
    ),
    "moments by their class": (
        lambda: fa.adam(moments=fa.Int8),
        TypeError,
        ["moments must be 'full' or 'bfloat16' or 'int8', or a", "Call it: fa.Int8()."],
    ),
    "moments by their dtype": (
        lambda: fa.adam(moments=jnp.bfloat16),
        TypeError,
        ["moments must be 'full' or 'bfloat16' or 'int8', or a", 'Write moments="bfloat16".'],
    ),
    # 6. Masks.
    "mask of another model": (
        lambda: fa.adamw(mask={"kernel": True, "bias": False}).init(PARAMS),
        ValueError,
        ["mask must be a prefix of the parameters: mask['", "does not belong", "mask=lambda param"],
    ),
    "mask with a key too few": (
        lambda: fa.adamw(mask={"w": True}).init(PARAMS),
        ValueError,
        ["mask['b'] is missing. A function fits any model: mask=lambda params: jax.tree.map("],
    ),
    "mask of arrays": (
        lambda: fa.adamw(mask={"w": jnp.ones((3, 2), bool), "b": False}),
        TypeError,
        ["mask['w'] must be True or False; got Array(", "for a whole leaf, not for each element."],
    ),
    "mask as one array": (
        lambda: fa.adamw(mask=np.ones(2, bool)),
        TypeError,
        ["mask must be True or False; got array(", "for a whole leaf, not for each element."],
    ),
    "mask of numbers": (
        lambda: fa.adamw(mask=lambda p: jax.tree.map(jnp.ndim, p)).init(PARAMS),
        TypeError,
        ["mask['b'] must be True or False; got 1 of type int. A mask is a tree"],
    ),
    "mask of names": (
        lambda: fa.adamw(mask=["w"]),
        TypeError,
        ["mask[0] must be True or False; got 'w' of type str. A name selects nothing. A mask is"],
    ),
    "mask of None": (
        lambda: fa.adamw(mask={"w": None, "b": True}).init(PARAMS),
        TypeError,
        ["mask has None at mask['w'], where the parameters have arrays; use True or False."],
    ),
    "mask that returns nothing": (
        lambda: fa.adamw(mask=lambda params: None).init(PARAMS),
        TypeError,
        ["mask(params) is None: let the function return its tree of booleans."],
    ),
    "mask made for each leaf": (
        lambda: fa.adamw(mask=lambda p: p.ndim > 1).init(PARAMS),
        AttributeError,
        ["'dict' object has no attribute 'ndim'", "A mask function is called once, with the whole"],
    ),
    "mask of nothing": (
        lambda: fa.adamw(mask={}).init(PARAMS),
        ValueError,
        ["mask must be a prefix of the parameters: mask['", "is missing. A function fits any mod"],
    ),
    # 7. Applying.
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
        ["updates is a node of type", "AdamState", "That is a state: updates, state = tx.update("],
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
    # 8. Schedules.
    "schedule of shape (1,)": (
        lambda: scheduled(jnp.array([1e-3])),
        ValueError,
        [f"{RETURNED}an array of shape (1,). Take its only element: value.reshape(())."],
    ),
    "schedule of NumPy's shape (1,)": (
        lambda: scheduled(np.array([1e-3])),
        TypeError,
        [f"{RETURNED}array([0.001]) of type numpy.ndarray. Take its only element: value.reshape("],
    ),
    "schedule of many": (
        lambda: scheduled(jnp.ones(3)),
        ValueError,
        [f"{RETURNED}an array of shape (3,). A schedule returns one number."],
    ),
    "schedule without return": (
        lambda: scheduled(None),
        TypeError,
        [f"{RETURNED}None of type NoneType. Does the schedule return its value?"],
    ),
    "schedule of text": (
        lambda: scheduled("1e-3"),
        TypeError,
        [f"{RETURNED}'1e-3' of type str. Write float('1e-3')."],
    ),
    "schedule of a tuple": (
        lambda: scheduled((1e-3,)),
        TypeError,
        [f"{RETURNED}(0.001,) of type tuple. A schedule returns one number."],
    ),
    "schedule of schedules": (
        lambda: scheduled(optax.constant_schedule(1e-3)),
        TypeError,
        [f"{RETURNED}<function", "The schedule returned a function: pass that one, or call it"],
    ),
    "schedule that was not made": (
        lambda: fa.adam(optax.cosine_decay_schedule).update(GRADS, STATE),
        TypeError,
        [
            "decay_steps",
            "Raised by learning_rate, ",
            "A function that makes schedules must be call",
        ],
    ),
    "schedule with an if": (
        lambda: jax.jit(fa.adam(lambda count: 1e-3 if count < 5 else 1e-4).update)(GRADS, STATE),
        jax.errors.TracerBoolConversionError,
        ["Raised by learning_rate, ", "so choose with jnp.where in place of `if`."],
    ),
    # 9. Gradients of another model.
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
    # 10. The state lost, or something else in its place.
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
        [f"{NO_STATE}tuple. Make a new one, state = tx.init(params), or go on", "fa.from_optax("],
    ),
    "state of optax.scale_by_adam": (
        lambda: TX.update(GRADS, optax.scale_by_adam().init(PARAMS), PARAMS),
        TypeError,
        [f"{NO_STATE}Optax's ScaleByAdamState. Make a new one", "fa.from_optax(state, like=tx."],
    ),
    "state of another variant": (
        lambda: fa.amsgrad(1e-3).update(GRADS, STATE, PARAMS),
        ValueError,
        ["state.extra holds nothing, but amsgrad", "`init` of the same transformation."],
    ),
    "diagnostics of the transformation": (
        lambda: fa.diagnostics(UPDATES, TX, PARAMS),
        ValueError,
        [
            "state must hold one AdamState; got none, in adamw(learning_rate=0.01) of type ",
            "Make it once, bef",
        ],
    ),
    "diagnostics of a state of Optax's": (
        lambda: fa.diagnostics(UPDATES, optax.adam(1e-3).init(PARAMS), PARAMS),
        ValueError,
        ["state must hold one AdamState; got none, in (ScaleByAdamState(", "fa.from_optax(state, "],
    ),
    # 11. What jax.grad gives.
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
        [f"{STRUCTURE} is a leaf", "Give the gradients: grads = jax.grad(loss_of)(params)."],
    ),
    "the loss": (
        lambda: TX.update(loss_of(PARAMS), STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE} is a leaf", "Give the gradients: grads = jax.grad(loss_of)(params)."],
    ),
    "no gradients": (
        lambda: TX.update(None, STATE, PARAMS),
        ValueError,
        [f"{STRUCTURE} is None", "Give the gradients: grads = jax.grad(loss_of)(params)."],
    ),
    # 12. Habits from PyTorch.
    "adam(params)": (
        lambda: fa.adam(PARAMS),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type dict."],
    ),
    "adam(list of params, 1e-3)": (
        lambda: fa.adam(jax.tree.leaves(PARAMS), 1e-3),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type list."],
    ),
    "adam(one array, 1e-3)": (
        lambda: fa.adam(jnp.ones((3, 2)), 1e-3),
        ValueError,
        [f"{RATE}{NOT_PARAMS}an array of shape (3, 2)."],
    ),
    "adam(model.parameters())": (
        lambda: fa.adam(TorchModule().parameters()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", "iterator"],
    ),
    "adam(the values of a dict)": (
        lambda: fa.adam(TorchModule().state_dict().values()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}dict_values([tensor("],
    ),
    "adam(list(model.parameters()))": (
        lambda: fa.adam(list(TorchModule().parameters())),
        TypeError,
        [f"{RATE}{NOT_PARAMS}[tensor(", " of type list."],
    ),
    "adam(model.state_dict())": (
        lambda: fa.adam(TorchModule().state_dict()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type dict."],
    ),
    "adam(groups of parameters)": (
        lambda: fa.adam([{"params": list(TorchModule().parameters()), "lr": 1e-3}]),
        TypeError,
        [f"{RATE}{NOT_PARAMS}", " of type list."],
    ),
    "adam(model)": (
        lambda: fa.adam(TorchModule()),
        TypeError,
        [f"{RATE}{NOT_PARAMS}<", "TorchModule."],
    ),
    "adam(Linen's model)": (
        lambda: fa.adam(linen.Dense(2)),
        TypeError,
        [f"{RATE}{NOT_PARAMS}Dense(", "linear.Dense."],
    ),
    "a rate in a tensor": (
        lambda: fa.adam(Tensor(1e-3)),
        TypeError,
        [f"{RATE}; got tensor(0.001", " of type torch.Tensor. Write float(value)."],
    ),
    "a rate in a tensor of shape (1,)": (
        lambda: fa.adam(Tensor([1e-3])),
        TypeError,
        [
            f"{RATE}; got tensor(",
            " of type torch.Tensor. Take its only element: value.reshape(()).",
        ],
    ),
    "a schedule of tensors": (
        lambda: scheduled(Tensor(1e-3)),
        TypeError,
        [f"{RETURNED}tensor(0.001", " of type torch.Tensor. Write float(value)."],
    ),
    "tensors to init": (
        lambda: fa.init(TorchModule().state_dict()),
        TypeError,
        [
            "params['bias'] must be an array; got tensor(",
            "PyTorch's tensors: jnp.asarray(x.detach()",
        ],
    ),
    "tensors as gradients": (
        lambda: TX.update({"w": Tensor(GRADS["w"]), "b": Tensor(GRADS["b"])}, STATE, PARAMS),
        TypeError,
        ["grads['b'] must be an array; got tensor(", "PyTorch's tensors: jnp.asarray(x.detach()."],
    ),
    "PyTorch's model to init": (
        lambda: fa.init(TorchModule()),
        TypeError,
        ["params must be an array; got <", "PyTorch's tensors: jnp.asarray(x.detach().cpu().nump"],
    ),
    # 13. Several rates; words for formats.
    "rates by name": (
        lambda: fa.adam({"w": 1e-3, "b": np.float32(1e-2)}),
        TypeError,
        [f"{RATE}; got {{'w': 0.001, ", f" of type dict. {SEVERAL}", "labels)."],
    ),
    "rates by place": (
        lambda: fa.adam([1e-3, jnp.array(1e-2)]),
        TypeError,
        [f"{RATE}; got [0.001, ", f" of type list. {SEVERAL}", "labels)."],
    ),
    "decays by name": (
        lambda: fa.adamw(1e-3, weight_decay={"w": 0.1, "b": 0.0}),
        TypeError,
        ["weight_decay must be a finite number", f" of type dict. {SEVERAL}", "labels)."],
    ),
    **{
        f"moments={value!r}": (
            lambda value=value: fa.adam(moments=value),
            error,
            [FORMATS, f'Write moments="{right}".'],
        )
        for value, error, right in [
            (jnp.int8, TypeError, "int8"),
            (np.dtype("int8"), TypeError, "int8"),
            (8, TypeError, "int8"),
            ("8bit", ValueError, "int8"),
            ("8-bit", ValueError, "int8"),
            ("INT8", ValueError, "int8"),
            ("bf16", ValueError, "bfloat16"),
            (jnp.float16, TypeError, "bfloat16"),
            ("fp32", ValueError, "full"),
            (jnp.float32, TypeError, "full"),
            (None, TypeError, "full"),
        ]
    },
    "moments with a slip": (
        lambda: fa.adam(moments="bflaot16"),
        ValueError,
        [f"{FORMATS}; got 'bflaot16'. Did you mean moments=\"bfloat16\"?"],
    ),
    "rounding by another name": (
        lambda: fa.adam(rounding="kahan"),
        ValueError,
        ["rounding must be 'nearest' or 'stoch", "got 'kahan'. Write rounding=\"compensated\"."],
    ),
    "no rounding": (
        lambda: fa.init(PARAMS, rounding=None),
        TypeError,
        ["rounding must be 'nearest' or 'stoch", 'NoneType. Write rounding="nearest".'],
    ),
    # 14. States that were cast, restored without a target, boxed, or never made.
    **{
        f"state cast to {dtype}{', count too' * counts}, {name}": (
            lambda tx=tx, params=params, dtype=dtype, counts=counts: tx.update(
                GRADS, cast(tx.init(params), dtype, counts), params
            ),
            TypeError if counts else ValueError,
            [f"state.{field}", dtype, says, CAST, ANEW],
        )
        for name, tx, params, dtype, counts, field, says in [
            (
                "full",
                TX,
                PARAMS,
                "float16",
                False,
                "mu['b'] is ",
                "unless mu_dtype asks for fewer: ",
            ),
            (
                "full",
                TX,
                PARAMS,
                "bfloat16",
                False,
                "mu['b'] is ",
                'Pass moments="bfloat16", or mu_',
            ),
            ("full", TX, PARAMS, "float16", True, "count must be an int32 array", "."),
            ("full", TX, PARAMS, "float32", True, "count must be an int32 array", "."),
            ("int8", INT8, PARAMS, "float32", True, "count must be an int32 array", "."),
            (
                "amsgrad",
                AMSGRAD,
                PARAMS,
                "float16",
                False,
                "mu['b'] is ",
                "unless mu_dtype asks for",
            ),
            (
                "compensated",
                SHORT,
                HALF,
                "bfloat16",
                False,
                "mu['b'] is ",
                'Pass moments="bfloat16"',
            ),
        ]
    },
    "nu cast alone": (
        lambda: TX.update(GRADS, STATE._replace(nu=cast(STATE.nu, "float16")), PARAMS),
        ValueError,
        ["state.nu['b'] is float16, ", 'pass nu_dtype="float16" if it is meant.', CAST, ANEW],
    ),
    "nu cast, mu in bfloat16 as asked": (
        lambda: fa.adamw(mu_dtype="bfloat16").update(
            GRADS, cast(fa.adamw(mu_dtype="bfloat16").init(PARAMS), "bfloat16"), PARAMS
        ),
        ValueError,
        ["state.mu['b'] is bfloat16 and state.nu['b'] bfloat16, that is moments=", CAST, ANEW],
    ),
    "mu cast, update told nothing": (
        lambda: fa.update(GRADS, STATE._replace(mu=cast(STATE.mu, "bfloat16"))),
        ValueError,
        ["state.mu['b'] is bfloat16, ", 'pass mu_dtype="bfloat16" if it is meant.', CAST, ANEW],
    ),
    "amsgrad's maximum cast alone": (
        lambda: AMSGRAD.update(
            GRADS, (s := AMSGRAD.init(PARAMS))._replace(extra=cast(s.extra, "bfloat16")), PARAMS
        ),
        ValueError,
        ["state.extra['nu_max']['b'] is bfloat16, but the moment it is ", "float32.", CAST, ANEW],
    ),
    "codes cast to float32": (
        lambda: INT8.update(
            GRADS, cast(s := INT8.init(PARAMS), "float32", True)._replace(count=s.count), PARAMS
        ),
        ValueError,
        [
            "state.mu['b'] is float32 and state.nu['b'] float32, but beside state.nu_scale",
            CAST,
            ANEW,
        ],
    ),
    "scales cast": (
        lambda: INT8.update(
            GRADS,
            (s := INT8.init(PARAMS))._replace(nu_scale=cast(s.nu_scale, "int32", True)),
            PARAMS,
        ),
        ValueError,
        ["state.nu_scale['b'] must be uint16 of shape (1,)", "got int32", CAST.strip(), ANEW],
    ),
    "residual cast": (
        lambda: SHORT.update(
            GRADS, (s := SHORT.init(HALF))._replace(residual=cast(s.residual, "int32", True)), HALF
        ),
        ValueError,
        ["state.residual['b'] must be int8 of shape (2,)", "got int32", CAST.strip(), ANEW],
    ),
    "moments cast to integers": (
        lambda: TX.update(GRADS, STATE._replace(mu=cast(STATE.mu, "int32")), PARAMS),
        TypeError,
        ["state.mu['b'] must be a float or complex array; got dtype int32.", CAST, ANEW],
    ),
    "state restored as a dict": (
        lambda: TX.update(GRADS, serialization.to_state_dict(STATE), PARAMS),
        TypeError,
        [f"{NO_STATE}dict. It has the fields of an AdamState{UNTYPED}"],
    ),
    "state of a chain restored as a dict": (
        lambda: TX.update(GRADS, {"0": {}, "1": serialization.to_state_dict(STATE)}, PARAMS),
        TypeError,
        [f"{NO_STATE}dict. It has the fields of an AdamState{UNTYPED}"],
    ),
    "state restored as a list": (
        lambda: TX.update(GRADS, list(STATE), PARAMS),
        TypeError,
        [f"{NO_STATE}list. It has the members of an AdamState{UNTYPED}"],
    ),
    "state as to_state_dict gives it": (
        lambda: TX.update(GRADS, fa.to_state_dict(STATE), PARAMS),
        TypeError,
        [f"{NO_STATE}dict. That is what to_state_dict returns: state = fa.from_state_dict(f"],
    ),
    "lists restored as dicts": (
        lambda: TX.update(LAYERS, TX.init(serialization.to_state_dict(LAYERS)), LAYERS),
        ValueError,
        [
            f"{STRUCTURE} is a node of type list",
            f". A list has become a dict in the state{UNTYPED}",
        ],
    ),
    "shapes as the state": (
        lambda: TX.update(GRADS, jax.eval_shape(TX.init, PARAMS), PARAMS),
        TypeError,
        ["state.count must be an int32 array", f"{NO_NUMBERS}make the state with tx.init(par"],
    ),
    **{
        f"shapes as the state of {name}": (
            lambda call=call: call(jax.eval_shape(TX.init, PARAMS)),
            TypeError,
            ["state.count must be an int32 array", f"{NO_NUMBERS}make the state with tx.init(par"],
        )
        for name, call in {
            "diagnostics": lambda shapes: fa.diagnostics(UPDATES, shapes, PARAMS),
            "convert_moments": lambda shapes: fa.convert_moments(shapes, PARAMS, moments="int8"),
            "master_params": lambda shapes: fa.master_params(PARAMS, shapes),
        }.items()
    },
    "shapes as the parameters": (
        lambda: TX.update(GRADS, STATE, SHAPES),
        TypeError,
        ["params['b'] must be an array; got ShapeDtypeStruct(", f"{NO_NUMBERS}pass the arrays."],
    ),
    "shapes as the gradients": (
        lambda: PLAIN.update(SHAPES, STATE),
        TypeError,
        ["grads['b'] must be an array; got ShapeDtypeStruct(", f"{NO_NUMBERS}pass the arrays."],
    ),
    "shapes as the updates": (
        lambda: fa.apply_updates(PARAMS, SHAPES),
        TypeError,
        ["updates['b'] must be an array; got ShapeDtypeStruct(", f"{NO_NUMBERS}pass the arrays."],
    ),
    **{
        f"init(None), {name}": (
            lambda tx=tx: tx.update(GRADS, tx.init(None), PARAMS),
            ValueError,
            [f"{STRUCTURE} is a node of type dict, where None belongs. `init` was given None"],
        )
        for name, tx in {"full": TX, "int8": INT8, "compensated": SHORT}.items()
    },
    "gradients out of Linen's boxes": (
        lambda: TX.update(GRADS, TX.init(BOXED), BOXED),
        ValueError,
        [f"{STRUCTURE}['w'] is a leaf", f"{BOXES}params = flax.linen.meta.unbox(params)"],
    ),
    "parameters in Linen's boxes": (
        lambda: TX.update(GRADS, STATE, BOXED),
        ValueError,
        ["params['w'] is a node of type flax", f"{BOXES}params = flax.linen.meta.unbox(params)"],
    ),
    "updates out of Linen's boxes": (
        lambda: fa.apply_updates(BOXED, UPDATES),
        ValueError,
        ["updates['w'] is a leaf", f"{BOXES}params = flax.linen.meta.unbox(params)"],
    ),
    "gradients out of NNX's variables": (
        lambda: TX.update(GRADS, TX.init({k: nnx.Param(v) for k, v in PARAMS.items()}), PARAMS),
        ValueError,
        [f"{STRUCTURE}['b'] is a leaf", f"{BOXES}params = flax.nnx.as_pure(params)"],
    ),
    "state of an nnx.Optimizer": (
        lambda: TX.update(
            GRADS, nnx.Optimizer(nnx.Linear(1, 2, rngs=nnx.Rngs(0)), TX, wrt=nnx.Param).opt_state
        ),
        TypeError,
        ["state.count must be an int32 array", "OptArray. ", "nnx.as_pure(optimizer.opt_state)."],
    ),
    # 15. Under jit, what decides must be static.
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
    # 16. Flax and Equinox.
    "a Linen model": (
        lambda: TX.init(linen.Dense(2)),
        TypeError,
        ["params must be an array; got Dense(", "model.init(key, x)['params'] makes them."],
    ),
    "value_and_grad whole in a TrainState": (
        lambda: TrainState.create(apply_fn=None, params=PARAMS, tx=TX).apply_gradients(
            grads=jax.value_and_grad(loss_of)(PARAMS)
        ),
        ValueError,
        [f"{STRUCTURE}{TUPLE}grads[1] has it: unpack the tuple"],
    ),
    "another model to an nnx.Optimizer": (
        lambda: nnx.Optimizer(nnx.Linear(1, 2, rngs=nnx.Rngs(0)), TX, wrt=nnx.Param).update(
            *2 * [nnx.Linear(1, 3, rngs=nnx.Rngs(0))]
        ),
        ValueError,
        ["params['bias'] has shape (3,), but state.mu['bias'] has shape (2,). ", ONE_MODEL],
    ),
    "a whole Equinox model": (
        lambda: TX.init(eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))),
        TypeError,
        ["params.activation must be an array", "equinox.filter(model, equinox.is_inexact_array)"],
    ),
}


@pytest.mark.parametrize(("code", "error", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_says_what_was_given_and_what_to_do(code, error, parts):
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))):
        code()


TRACED = {
    "state first": (STATE, GRADS, PARAMS),
    "layer added": (DEEPER, STATE, DEEPER),
    "gradients of another shape": (WIDER, STATE, PARAMS),
    "updates = update(...) as gradients": ((UPDATES, NEXT), STATE, PARAMS),
}


@pytest.mark.parametrize("under", [jax.jit, lambda f: jax.vmap(f, axis_size=2, in_axes=None)])
@pytest.mark.parametrize("name", TRACED)
def test_a_mistake_says_the_same_in_a_trace(name, under):
    _, error, parts = MISTAKES[name]
    with pytest.raises(error, match=".*".join(map(re.escape, parts))):
        under(TX.update)(*TRACED[name])


def test_what_the_messages_advise_for_a_restored_dict_gives_the_state_back():
    for state in (NEXT, INT8.init(PARAMS)):
        restored = serialization.to_state_dict(state)
        found = [
            serialization.from_state_dict(jax.tree.map(jnp.zeros_like, state), restored),
            fa.from_state_dict(fa.to_state_dict(state), target=jax.tree.map(jnp.zeros_like, state)),
        ]
        for one in found:
            jax.tree.map(np.testing.assert_array_equal, one, state)


# No mistakes, or none that can be seen --------------------------------------------------------


class Rate(float):
    """A number from some library of configurations."""


def test_a_schedule_may_return_any_number():
    wanted = jax.tree.leaves(scheduled(0.125))
    for value in (Rate(0.125), np.float32(0.125), np.array(0.125), jnp.array(0.125)):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(scheduled(value)), wanted)


def test_the_gradient_of_a_model_with_none_is_one_with_none():
    params = PARAMS | {"frozen": None}
    grads = jax.grad(loss_of)(params)
    updates, state = TX.update(grads, TX.init(params), params)
    assert updates["frozen"] is state.mu["frozen"] is None
    new = fa.apply_updates(params, updates)
    assert new["frozen"] is None
    np.testing.assert_allclose(new["b"], PARAMS["b"] - 1e-2 * (1 + 1e-4 * PARAMS["b"]), rtol=1e-5)


UNSEEN = {
    "params and gradients swapped": lambda: TX.update(PARAMS, STATE, GRADS),
    "params and updates swapped": lambda: fa.apply_updates(UPDATES, PARAMS),
    "updates applied twice": lambda: fa.apply_updates(fa.apply_updates(PARAMS, UPDATES), UPDATES),
    "gradients in place of updates": lambda: fa.apply_updates(PARAMS, GRADS),
    "state not kept": lambda: [TX.update(GRADS, STATE, PARAMS)[0] for _ in range(2)],
    "a rate of 1000, which is as far as that in the parameter's unit": lambda: fa.adamw(1000),
}


@pytest.mark.parametrize("code", UNSEEN.values(), ids=UNSEEN)
def test_what_has_the_right_types_is_taken_as_meant(code):
    code()
