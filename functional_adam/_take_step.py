"""`step`: `update` and `apply_updates` in one call, and where that is possible in one pass."""

from __future__ import annotations

from functional_adam import _check, _step
from functional_adam._apply import apply_updates
from functional_adam._transform import refuse_arguments, settings_of
from functional_adam._types import GradientTransformation, PyTree


def step(
    tx: GradientTransformation, grads: PyTree, state: PyTree, params: PyTree, **extra_args: PyTree
) -> tuple[PyTree, PyTree]:
    """One step of training: new parameters and the next state.

    The result is that of

        updates, state = tx.update(grads, state, params, **extra_args)
        params = apply_updates(params, updates)

    For a transformation of this package the update is never written to memory: with
    moments="int8" a GPU or TPU then moves 16 bytes per float32 parameter instead of 28, in one
    kernel per leaf, and a CPU needs no copies (see docs/performance.md). `skip_spikes`
    around one does the same, and writes nothing in a step that it skips. For any other
    transformation, an `optax.chain` too, the two calls are made.

    Under `jax.jit` donate `state` and `params`, and take them in the order in which you return
    them: JAX gives donated memory to the first result of its shape.

    Args:
        tx: The transformation: from a factory of this package or from Optax.
        grads: Tree of gradients, like the parameters. A None leaf leaves its parameter and its
            moments as they are.
        state: From `tx.init` or the last step.
        params: The parameters.
        **extra_args: What `tx.update` takes besides, such as `value=` of Optax's line searches.

    Returns:
        `(params, state)`, of the structures, shapes and dtypes that they had.

    Raises:
        ValueError: as `tx.update` and `apply_updates`.
        TypeError: likewise; or `tx` is no transformation, or `params` is None.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> tx, params = fa.adam(0.1), jnp.array([1.0, -2.0])
        >>> train = jax.jit(lambda params, state, grads: fa.step(tx, grads, state, params))
        >>> params, state = train(params, tx.init(params), jnp.array([0.5, 3.0]))
        >>> params.round(6)  # the first step is the gradient's sign
        Array([ 0.9, -2.1], dtype=float32)
    """
    if not callable(getattr(tx, "update", None)):
        raise TypeError(f"tx must be a transformation, such as adam(1e-3); got {_check.show(tx)}.")
    if params is None:
        raise TypeError("step needs params: call step(tx, grads, state, params).")
    take_step = getattr(tx.update, "take_step", None)  # that of a wrapper of this package
    if take_step is not None:
        return take_step(grads, state, params, **extra_args)
    settings = settings_of(tx)
    if settings is None:
        updates, state = tx.update(grads, state, params, **extra_args)
        return apply_updates(params, updates), state
    refuse_arguments(settings, extra_args)
    return _step.step(settings, grads, state, params, applies=True)
