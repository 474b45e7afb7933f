"""Mistakes in arguments: integers, rates, masks, schedules, the words for formats.

A row is the code as a newcomer writes it, the error, and parts of its message in their order, what
is between them being free.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from newcomer import FORMATS, GRADS, PARAMS, RATE, RETURNED, SEVERAL, STATE, TX, scheduled

import functional_adam as fa

IN_ARGUMENTS = {
    # Integers.
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
    # The learning rate.
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
            "Write b1=0.85, b2=0.99 for PyTorch's betas=(0.85, 0.99).",
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
    # Masks.
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
        ["mask['w'] must be True or False; got Array(", "for a whole leaf, not one for each elem"],
    ),
    "mask as one array": (
        lambda: fa.adamw(mask=np.ones(2, bool)),
        TypeError,
        ["mask must be True or False; got array(", "for a whole leaf, not one for each element."],
    ),
    "mask of numbers": (
        lambda: fa.adamw(mask=lambda p: jax.tree.map(jnp.ndim, p)).init(PARAMS),
        TypeError,
        ["mask['b'] must be True or False; got 1 of type int. A mask is a tree"],
    ),
    "mask of names": (
        lambda: fa.adamw(mask=["w"]),
        TypeError,
        ["mask[0] must be True or False; got 'w' of type str. A name does not select a leaf. A ma"],
    ),
    "mask of None": (
        lambda: fa.adamw(mask={"w": None, "b": True}).init(PARAMS),
        TypeError,
        ["mask has None at mask['w'], where the parameters have arrays: write True or False the"],
    ),
    "mask that returns nothing": (
        lambda: fa.adamw(mask=lambda params: None).init(PARAMS),
        TypeError,
        ["mask(params) is None: the function must return a tree of booleans."],
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
    # Schedules.
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
        [f"{RETURNED}an array of shape (3,). A schedule must return one number."],
    ),
    "schedule without return": (
        lambda: scheduled(None),
        TypeError,
        [f"{RETURNED}None of type NoneType. Does the schedule lack a return statement?"],
    ),
    "schedule of text": (
        lambda: scheduled("1e-3"),
        TypeError,
        [f"{RETURNED}'1e-3' of type str. Write float('1e-3')."],
    ),
    "schedule of a tuple": (
        lambda: scheduled((1e-3,)),
        TypeError,
        [f"{RETURNED}(0.001,) of type tuple. A schedule must return one number."],
    ),
    "schedule of schedules": (
        lambda: scheduled(optax.constant_schedule(1e-3)),
        TypeError,
        [f"{RETURNED}<function", "The schedule returned a function: pass that function, or ca"],
    ),
    "schedule that was not made": (
        lambda: fa.adam(optax.cosine_decay_schedule).update(GRADS, STATE),
        TypeError,
        [
            "decay_steps",
            "Raised by the schedule for learning_rate. ",
            "If you passed a function that makes schedules, call it first, as in optax.",
        ],
    ),
    "schedule with an if": (
        lambda: jax.jit(fa.adam(lambda count: 1e-3 if count < 5 else 1e-4).update)(GRADS, STATE),
        jax.errors.TracerBoolConversionError,
        ["Raised by the schedule for learning_rate. ", "write jnp.where instead of `if`."],
    ),
    # Several rates; words for formats.
    "rates by name": (
        lambda: fa.adam({"w": 1e-3, "b": np.float32(1e-2)}),
        TypeError,
        [f"{RATE}; got {{'w': 0.001, ", f" of type dict. {SEVERAL}", "dict(learning_rate=1e-4))]."],
    ),
    "rates by place": (
        lambda: fa.adam([1e-3, jnp.array(1e-2)]),
        TypeError,
        [f"{RATE}; got [0.001, ", f" of type list. {SEVERAL}", "dict(learning_rate=1e-4))]."],
    ),
    "decays by name": (
        lambda: fa.adamw(1e-3, weight_decay={"w": 0.1, "b": 0.0}),
        TypeError,
        ["weight_decay must be a finite number", f" of type dict. {SEVERAL}"],
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
}
