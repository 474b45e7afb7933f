"""`skip_spikes`: a wrapper that leaves out steps whose loss or gradient is far off."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from functional_adam import _check
from functional_adam._branch import changed_if
from functional_adam._hints.keywords import explained
from functional_adam._mesh import filled, replicated, sharding_of, zeros
from functional_adam._optimizers.spike_state import JUDGED, Guard, SkipSpikesState, judged
from functional_adam._origin import Bound, comparable, origin
from functional_adam._take_step import step
from functional_adam._types import GradientTransformation, PyTree, Scalar, takes_extra_args


class _Wrapper(Bound):
    """`init` or `update` with their guard."""

    @property
    def guard(self) -> Guard:
        return self.args[0]

    @functools.cached_property
    def identity(self) -> tuple[Any, ...]:
        guard = self.guard._replace(warmup=self.guard.least_history)
        return self.func, *map(comparable, guard)

    @property
    def call(self) -> str:
        tx, *others = self.guard
        signature = inspect.signature(skip_spikes)
        names = list(signature.parameters)[1:]
        bound = signature.bind(tx, **dict(zip(names, others, strict=True)))
        return repr(origin("skip_spikes", bound, frozenset()))

    def take_step(
        self, grads: PyTree, state: PyTree, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        """What `fa.step` does: a skipped step returns the parameters themselves."""
        return _step(self.guard, grads, state, params, **extra_args)


@explained
def skip_spikes(
    tx: GradientTransformation,
    *,
    factor: Scalar = 6.0,
    window: int = 128,
    judge: Literal["both", "loss", "grad_norm"] = "both",
    warmup: int | None = None,
    max_consecutive: int = 10,
) -> GradientTransformation:
    """`tx` without the steps whose loss or gradient is far above those of the steps before.

    A step is off if its loss or its gradients' global norm x is NaN or infinite, or if

        x > mean(h) + factor * max(sd(h), 2**-10 max|h|)

    where h are the numbers of the last `window` accepted steps and sd their standard deviation
    (that of a sample, divided by n - 1). An off step is skipped: parameters, moments, counts and
    residuals stay what they are, bit for bit, and x does not enter h. Only what is too high is off;
    a loss may fall as fast as it likes. (2**-10 keeps a loss that hardly moves from being skipped
    for its rounding; for a loss or gradients of bfloat16 it is 2**-7.)

    Give the loss to each step, `tx.update(grads, state, params, value=loss)` or `fa.step(tx, grads,
    state, params, value=loss)`, and the norm as `grad_norm=` if you have it already. `fa.step`
    writes nothing for a skipped step. `update` returns updates of -0.0, which change no
    parameter when they are added (but on CPUs, where any addition makes subnormal numbers 0).

    Put it around everything else, `fa.skip_spikes(optax.chain(optax.clip(1.0), tx))`: inside the
    chain it would see clipped gradients. Under `jax.shard_map` hand it numbers
    that all devices share. See docs/spikes.md.

    Args:
        tx: The transformation to protect, of this package or of Optax, a whole chain too. It gets
            `value=`, `grad_norm=` and any further arguments if it takes extra ones.
        factor: How many standard deviations above the mean are still accepted, > 0. Default 6.
        window: How many accepted steps the mean and the deviation are of, >= 2. Default 128.
        judge: What is looked at: "both" (default), "loss" or "grad_norm". With "loss" gradients are
            not read, so that NaN in them is not seen; with "grad_norm" steps need no `value=`.
        warmup: How many steps are accepted before the first is judged, >= 2; None (default) is half
            of the window. NaN and infinity are skipped from the first step on.
        max_consecutive: How many steps in a row may be skipped, >= 1. After that an off step is
            taken, and counted in `forced`, until a step is not off again: a run whose loss has
            moved for good goes on. NaN and infinity are never taken. Default 10.

    Returns:
        A `GradientTransformation` with a `SkipSpikesState`.

    Raises:
        TypeError: `tx` is no transformation. From a step: `value=` is missing or no real number, or
            `state` is of another transformation.
        ValueError: From a step: `value=` or `grad_norm=` is not one number, or `state` was made
            with another `window` or `judge`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.skip_spikes(fa.adam(0.1), window=8, warmup=3)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> for loss in (2.0, 1.9, 1.95, 50.0, 1.8):  # the fourth batch is bad
        ...     params, state = fa.step(tx, jnp.ones(2), state, params, value=loss)
        >>> int(state.skipped), int(state.accepted), [round(float(x), 3) for x in params]
        (1, 4, [0.6, -2.4])

    References:
        The test is that of `SkipStepOptimizer` in OLMo-core, `SkipStepConfig` in Levanter and
        `skip_step_on_spikes` in MaxText.
    """
    for name in ("init", "update"):
        if not callable(getattr(tx, name, None)):
            raise TypeError(
                f"tx must be a transformation, such as adamw(1e-3); got {_check.show(tx)}, which "
                f"has no {name}."
            )
    _check.choice("judge", judge, JUDGED)
    few = " A deviation needs two numbers."
    guard = Guard(
        tx=tx,
        factor=_check.scalar("factor", factor, above=0.0),
        window=_check.whole("window", window, 2, few),
        judge=judge,
        warmup=None if warmup is None else _check.whole("warmup", warmup, 2, few),
        max_consecutive=_check.whole("max_consecutive", max_consecutive, 1),
    )
    return GradientTransformation(_Wrapper(_init, guard), _Wrapper(_update, guard))


def _init(guard: Guard, params: PyTree) -> SkipSpikesState:
    lies = next(filter(None, map(sharding_of, jax.tree.leaves(params))), None)

    def fresh(dtype: Any, *shape: int) -> jax.Array:
        return zeros(shape, dtype, replicated(lies, len(shape)))

    histories = {
        name: fresh(jnp.float32, guard.window) if name in JUDGED[guard.judge] else None
        for name in JUDGED["both"]
    }
    return SkipSpikesState(
        guard.tx.init(params),
        *(fresh(jnp.int32) for _ in range(4)),
        last_accepted=jnp.ones((), jnp.bool_, device=replicated(lies, 0)),
        **histories,
    )


def _update(
    guard: Guard, updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
) -> tuple[PyTree, SkipSpikesState]:
    def take(inner_state: PyTree) -> tuple[PyTree, PyTree]:
        return guard.tx.update(updates, inner_state, params, **_handed_on(guard, extra_args))

    after = judged(guard, updates, state, **extra_args)
    old = _no_updates(take, state.inner_state), state.inner_state
    new, inner_state = changed_if(after.last_accepted, lambda old: take(old[1]), old)
    return new, after._replace(inner_state=inner_state)


def _step(
    guard: Guard, grads: PyTree, state: PyTree, params: PyTree, **extra_args: Any
) -> tuple[PyTree, SkipSpikesState]:
    def take(old: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        params, inner_state = old
        return step(guard.tx, grads, inner_state, params, **_handed_on(guard, extra_args))

    after = judged(guard, grads, state, **extra_args)
    old = jax.tree.map(jnp.asarray, (params, state.inner_state))
    params, inner_state = changed_if(after.last_accepted, take, old)
    return params, after._replace(inner_state=inner_state)


def _handed_on(guard: Guard, extra_args: dict[str, Any]) -> dict[str, Any]:
    return extra_args if takes_extra_args(guard.tx) else {}


def _no_updates(take: Callable[[PyTree], tuple[PyTree, PyTree]], inner_state: PyTree) -> PyTree:
    """What changes nothing where it is added: -0.0 + (-0.0) is -0.0, and -0.0 + 0.0 is 0.0."""
    # `jax.eval_shape` forgets over which axes of `jax.shard_map` its results differ.
    program, (updates, _) = jax.make_jaxpr(take, return_shape=True)(inner_state)
    leaves, treedef = jax.tree.flatten(updates)
    return treedef.unflatten(map(_no_update, program.out_avals[: len(leaves)]))


def _no_update(like: Any) -> jax.Array:
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        return filled(like, complex(-0.0, -0.0))
    return filled(like, -0.0 if jnp.issubdtype(like.dtype, jnp.floating) else 0)
