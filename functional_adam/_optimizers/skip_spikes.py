"""`skip_spikes`: a wrapper that skips steps whose loss or gradient norm is far too high."""

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
    """`init` or `update` with its `Guard`, the arguments of `skip_spikes`."""

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
        """What `fa.step` calls instead of `update`; a skipped step returns the old parameters."""
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
    """Wrap `tx` so that it skips steps whose loss or gradient norm is far above the recent ones.

    Let x be the loss of a step or the global norm of its gradients. The step is off if x is NaN or
    infinite, or if

        x > mean(h) + factor * max(sd(h), 2**-10 max|h|)

    where h are the numbers of the last `window` accepted steps and sd(h) is their sample standard
    deviation (divided by n - 1). An off step is skipped: parameters, moments, counts and residuals
    keep every bit, and x does not enter h. Only a number that is too high is off; a loss may fall
    as fast as it likes. The 2**-10 prevents skips caused by rounding when a loss hardly changes;
    for a bfloat16 loss or gradients it is 2**-7.

    Pass the loss to each step: `tx.update(grads, state, params, value=loss)` or `fa.step(tx, grads,
    state, params, value=loss)`. If you already have the norm, pass it as `grad_norm=`. `fa.step`
    writes nothing for a skipped step. `update` returns updates of -0.0, which leave parameters
    unchanged when they are added. (On CPUs, any addition turns subnormal numbers into 0.)

    Put it around everything else, as in `fa.skip_spikes(optax.chain(optax.clip(1.0), tx))`: inside
    the chain it would see clipped gradients. Under `jax.shard_map`, pass a loss and a norm that are
    the same on all devices. See docs/spikes.md.

    Args:
        tx: The transformation to protect, of this package or of Optax; it may be a chain. If it
            takes extra arguments, it gets `value=`, `grad_norm=` and all others.
        factor: Number of standard deviations above the mean that is still accepted, > 0. Default 6.
        window: Number of accepted steps over which the mean and the deviation are taken, >= 2.
            Default 128.
        judge: What is judged: "both" (default), "loss" or "grad_norm". "loss" does not read the
            gradients, so NaN in them goes unseen. With "grad_norm", steps need no `value=`.
        warmup: Number of steps accepted before the first is judged, >= 2. None (default) is half
            the window. NaN and infinity are skipped from the first step on.
        max_consecutive: Number of steps in a row that may be skipped, >= 1. Further off steps are
            taken, and counted in `forced`, until a step is not off. So a run whose loss has changed
            for good goes on. NaN and infinity are never taken. Default 10.

    Returns:
        A `GradientTransformation` with a `SkipSpikesState`.

    Raises:
        TypeError: `tx` is not a transformation, or a number of steps is not an integer. In a step:
            `value=` is missing or not a real number, or `state` is not a `SkipSpikesState`.
        ValueError: `factor` is not > 0, `window` or `warmup` is below 2, `max_consecutive` is below
            1, or `judge` is unknown. In a step: `value=` or `grad_norm=` is not one number, or
            `state` was made with another `window` or `judge`.

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
        `SkipStepOptimizer` in OLMo-core, `SkipStepConfig` in Levanter and `skip_step_on_spikes` in
        MaxText use the same test.
    """
    for name in ("init", "update"):
        if not callable(getattr(tx, name, None)):
            raise TypeError(
                f"tx must be a transformation, such as adamw(1e-3); got {_check.show(tx)}, which "
                f"has no {name}."
            )
    _check.choice("judge", judge, JUDGED)
    few = " A deviation needs at least two numbers."
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
    """Updates that change nothing when added: -0.0 + (-0.0) is -0.0, and 0.0 + (-0.0) is 0.0."""
    # Not `jax.eval_shape`, which forgets over which axes of `jax.shard_map` results vary.
    program, (updates, _) = jax.make_jaxpr(take, return_shape=True)(inner_state)
    leaves, treedef = jax.tree.flatten(updates)
    return treedef.unflatten(map(_no_update, program.out_avals[: len(leaves)]))


def _no_update(like: Any) -> jax.Array:
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        return filled(like, complex(-0.0, -0.0))
    return filled(like, -0.0 if jnp.issubdtype(like.dtype, jnp.floating) else 0)
