"""`step`: `update` and `apply_updates` in one call and, where possible, in one pass over memory."""

from __future__ import annotations

from functional_adam import _check, _step
from functional_adam._apply import apply_updates
from functional_adam._transform import refuse_arguments, settings_of
from functional_adam._types import GradientTransformation, PyTree


def step(
    tx: GradientTransformation, grads: PyTree, state: PyTree, params: PyTree, **extra_args: PyTree
) -> tuple[PyTree, PyTree]:
    """One training step: returns the new parameters and the next state.

    The result is the same as that of

        updates, state = tx.update(grads, state, params, **extra_args)
        params = apply_updates(params, updates)

    For a transformation of this package, `step` never writes the update to memory. With
    moments="int8" a GPU or TPU then moves 16 bytes per float32 parameter instead of 28, in one
    kernel per leaf, and a CPU needs no copies (see docs/performance.md). The same holds for
    `skip_spikes` around such a transformation, which writes nothing in a step that it skips. For
    any other transformation, including `optax.chain`, `step` makes the two calls above.

    Under `jax.jit` donate `state` and `params`. Let the jitted function take them in the order in
    which it returns them: JAX gives donated memory to the first result of the same shape.

    Args:
        tx: A transformation made by a factory of this package or by Optax.
        grads: Tree of gradients, like the parameters. A None leaf leaves its parameter and moments
            unchanged.
        state: The state that `tx.init` or the previous step returned.
        params: The parameters.
        **extra_args: Further arguments of `tx.update`, such as `value=` for Optax's line searches.

    Returns:
        `(params, state)`, with the same structures, shapes and dtypes as before.

    Raises:
        ValueError: `tx.update` or `apply_updates` raises it.
        TypeError: `tx.update` or `apply_updates` raises it, `tx` is not a transformation, or
            `params` is None.

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
