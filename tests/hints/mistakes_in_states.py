"""Mistakes with states and with models of frameworks: cast, restored without a target, boxed.

A row is the code as a newcomer writes it, the error, and parts of its message in their order, what
is between them being free.
"""

import equinox as eqx
import jax
from codes import CODES
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState
from newcomer import (
    AMSGRAD,
    ANEW,
    BOXED,
    BOXES,
    CAST,
    GRADS,
    HALF,
    INT8,
    LAYERS,
    NO_NUMBERS,
    NO_STATE,
    ONE_MODEL,
    PARAMS,
    PLAIN,
    SHAPES,
    SHORT,
    STATE,
    STRUCTURE,
    TUPLE,
    TX,
    UNTYPED,
    UPDATES,
    cast,
    loss_of,
)

import functional_adam as fa

IN_STATES = {
    # States that were cast, restored without a target, boxed, or never made.
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
                "unless mu_dtype asks for fewer: pass ",
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
                "unless mu_dtype asks for fewer: ",
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
        ["state.nu['b'] is float16, ", 'pass nu_dtype="float16" if you want that.', CAST, ANEW],
    ),
    "nu cast, mu in bfloat16 as asked": (
        lambda: fa.adamw(mu_dtype="bfloat16").update(
            GRADS, cast(fa.adamw(mu_dtype="bfloat16").init(PARAMS), "bfloat16"), PARAMS
        ),
        ValueError,
        ["state.mu['b'] is bfloat16 and state.nu['b'] bfloat16, the format moments=", CAST, ANEW],
    ),
    "mu cast, update told nothing": (
        lambda: fa.update(GRADS, STATE._replace(mu=cast(STATE.mu, "bfloat16"))),
        ValueError,
        ["state.mu['b'] is bfloat16, ", 'pass mu_dtype="bfloat16" if you want that.', CAST, ANEW],
    ),
    "amsgrad's maximum cast alone": (
        lambda: AMSGRAD.update(
            GRADS, (s := AMSGRAD.init(PARAMS))._replace(extra=cast(s.extra, "bfloat16")), PARAMS
        ),
        ValueError,
        [
            "state.extra['nu_max']['b'] is bfloat16, but must have the dtype of its moment, ",
            "float32.",
            CAST,
            ANEW,
        ],
    ),
    "codes cast to float32": (
        lambda: INT8.update(
            GRADS, cast(s := INT8.init(PARAMS), "float32", True)._replace(count=s.count), PARAMS
        ),
        ValueError,
        [
            "state.mu['b'] is float32 and state.nu['b'] float32, but state.nu_scale needs codes",
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
        [f"{NO_STATE}dict. That is what to_state_dict returns: write state = fa.from_state_dict(f"],
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
            "convert_moments": lambda shapes: fa.convert_moments(shapes, PARAMS, moments=CODES),
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
    # Flax and Equinox.
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
