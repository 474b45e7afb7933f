"""What `skip_spikes` knows of a run, and how it judges a step by it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functional_adam import _check
from functional_adam._equations import spikes as S
from functional_adam._state import next_count
from functional_adam._types import PyTree

# The fields of the state that each judge has.
JUDGED: dict[str, tuple[str, ...]] = {
    "both": ("losses", "grad_norms"),
    "loss": ("losses",),
    "grad_norm": ("grad_norms",),
}
# Deviations below this share of the largest recent number are rounding, whatever the history says:
# float16's spacing, or that of a coarser dtype if numbers come in one.
_LEAST_SPREAD = 2.0**-10


class SkipSpikesState(NamedTuple):
    """The state of `skip_spikes`: counters, what recent steps looked like, the state within.

    Attributes:
        inner_state: the state of the wrapped transformation.
        accepted: int32, shape (): steps taken. All counters stop at 2**31 - 1.
        skipped: int32, shape (): steps left out.
        forced: int32, shape (): steps among the accepted that were off, and were taken since
            `max_consecutive` steps before had been skipped.
        off_in_a_row: int32, shape (): how many of the last steps were off, skipped or forced; 0
            after a step that was not.
        last_accepted: bool, shape (): whether the last step was taken; True before the first.
        losses: float32, shape (window,): the losses of the last accepted steps, the newest last,
            zeros before there are as many. None where only norms are judged.
        grad_norms: likewise the gradients' global norms. None where only losses are judged.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, params = fa.skip_spikes(fa.adam(1e-3), window=3), jnp.ones(2)
        >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(params), params, value=0.5)
        >>> state.losses, state.grad_norms, int(state.accepted)
        (Array([0. , 0. , 0.5], dtype=float32), Array([0., 0., 5.], dtype=float32), 1)
    """

    inner_state: PyTree
    accepted: jax.Array
    skipped: jax.Array
    forced: jax.Array
    off_in_a_row: jax.Array
    last_accepted: jax.Array
    losses: jax.Array | None
    grad_norms: jax.Array | None


class Guard(NamedTuple):
    """The arguments of `skip_spikes`, checked and in their order."""

    tx: Any
    factor: Any
    window: int
    judge: str
    warmup: int | None
    max_consecutive: int

    @property
    def least_history(self) -> int:
        """How many steps are accepted before the first is judged."""
        return max(2, self.window // 2) if self.warmup is None else self.warmup


class _Seen(NamedTuple):
    """What is looked at of a step."""

    x: jax.Array
    least: float  # what deviations are rounding, as a share


def judged(
    guard: Guard,
    grads: PyTree,
    state: SkipSpikesState,
    value: Any = None,
    grad_norm: Any = None,
    **extra_args: Any,
) -> SkipSpikesState:
    """The state after this step, but for `inner_state`; `last_accepted` says whether to take it."""
    del extra_args
    _check_state(guard, state)
    fields = JUDGED[guard.judge]
    seen: dict[str, _Seen] = {}
    if "losses" in fields:
        seen["losses"] = _loss(value)
    if "grad_norms" in fields:
        seen["grad_norms"] = _norm(grads, grad_norm)
    return _counted(guard, state, seen)


def _counted(guard: Guard, state: SkipSpikesState, seen: dict[str, _Seen]) -> SkipSpikesState:
    is_finite, is_high = jnp.array(True), jnp.array(False)
    for name, (x, least) in seen.items():
        history, factor = getattr(state, name), jnp.asarray(guard.factor, jnp.float32)
        is_finite &= jnp.isfinite(x)
        is_high |= S.is_far_above(x, history, state.accepted, factor, least)
    is_off = ~is_finite | (is_high & (state.accepted >= guard.least_history))
    off_in_a_row = jnp.where(is_off, next_count(state.off_in_a_row), 0)
    forced = is_off & is_finite & (off_in_a_row > guard.max_consecutive)
    accepted = ~is_off | forced

    def one_more_if(condition: jax.Array, count: jax.Array) -> jax.Array:
        return jnp.where(condition, next_count(count), count)

    def after(name: str) -> jax.Array | None:
        if name not in seen:
            return None
        history = getattr(state, name)
        return jnp.where(accepted, S.with_newest(history, seen[name].x), history)

    return SkipSpikesState(
        inner_state=None,
        accepted=one_more_if(accepted, state.accepted),
        skipped=one_more_if(~accepted, state.skipped),
        forced=one_more_if(forced, state.forced),
        off_in_a_row=off_in_a_row,
        last_accepted=accepted,
        losses=after("losses"),
        grad_norms=after("grad_norms"),
    )


def _spread(*dtypes: Any) -> float:
    floats = [float(jnp.finfo(x).eps) for x in dtypes if jnp.issubdtype(x, jnp.inexact)]
    return max([_LEAST_SPREAD, *floats])


def _loss(value: Any) -> _Seen:
    if value is None:
        raise TypeError(
            "skip_spikes judges steps by their loss: call tx.update(grads, state, params, "
            "value=loss), or fa.step(tx, grads, state, params, value=loss). Where a framework "
            'calls update for you, skip_spikes(tx, judge="grad_norm") needs no loss.'
        )
    x = jax.lax.stop_gradient(_check.measured("value", value))
    return _Seen(S.in_float32(x), _spread(x.dtype))


def _norm(grads: PyTree, grad_norm: Any) -> _Seen:
    if grad_norm is not None:
        x = jax.lax.stop_gradient(_check.measured("grad_norm", grad_norm))
        return _Seen(S.in_float32(x), _spread(x.dtype))
    # Leaves of integers are frozen parameters, whose gradients are of float0.
    leaves = [x for x in jax.tree.leaves(grads) if _is_inexact(x)]
    arrays = [jax.lax.stop_gradient(jnp.asarray(x)) for x in leaves]
    return _Seen(S.euclidean_norm(arrays), _spread(*(x.dtype for x in arrays)))


def _is_inexact(x: Any) -> bool:
    if isinstance(x, float | complex):
        return True
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)


def _check_state(guard: Guard, state: Any) -> None:
    if not isinstance(state, SkipSpikesState):
        raise TypeError(
            f"state must be the SkipSpikesState that init made; got {_check.show(state)}. To go "
            "on from a state of the wrapped transformation: "
            "tx.init(params)._replace(inner_state=state)."
        )
    for name in JUDGED["both"]:
        history, is_judged = getattr(state, name), name in JUDGED[guard.judge]
        if (history is not None) != is_judged:
            found = "None" if history is None else "an array"
            raise ValueError(
                f"state.{name} is {found}, but skip_spikes was called with judge={guard.judge!r}: "
                "make the state with the init of the same transformation. Its inner_state can be "
                "kept: tx.init(params)._replace(inner_state=state.inner_state)."
            )
        if is_judged and jnp.shape(history) != (guard.window,):
            raise ValueError(
                f"state.{name} has shape {jnp.shape(history)}, but skip_spikes was called with "
                f"window={guard.window}: keep the window, or begin a new history with "
                "tx.init(params)._replace(inner_state=state.inner_state)."
            )
