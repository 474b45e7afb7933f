"""The state of `skip_spikes`: counters and a history, and how a step is judged by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functional_adam import _check
from functional_adam._equations import spikes as S
from functional_adam._state import next_count
from functional_adam._types import PyTree

# The histories that the state has for each value of `judge`.
JUDGED: dict[str, tuple[str, ...]] = {
    "both": ("losses", "grad_norms"),
    "loss": ("losses",),
    "grad_norm": ("grad_norms",),
}
# Deviations below this fraction of the largest recent number count as rounding. It is the relative
# spacing of float16; `_spread` raises it for coarser dtypes, such as bfloat16.
_LEAST_SPREAD = 2.0**-10


class SkipSpikesState(NamedTuple):
    """The state of `skip_spikes`: counters, a history of recent steps, and the wrapped state.

    Attributes:
        inner_state: the state of the wrapped transformation.
        accepted: int32, shape (): number of steps taken. All counters stop at 2**31 - 1.
        skipped: int32, shape (): number of steps skipped.
        forced: int32, shape (): number of accepted steps that were off. They were taken because
            the `max_consecutive` steps before them, or more, were off too.
        off_in_a_row: int32, shape (): number of consecutive off steps, skipped or forced, up to
            now; 0 if the last step was not off.
        last_accepted: bool, shape (): whether the last step was taken; True before the first.
        losses: float32, shape (window,): the losses of the last accepted steps, the newest last.
            Zeros fill the front until there are `window` of them. None with judge="grad_norm".
        grad_norms: float32, shape (window,): the global gradient norms, stored in the same way.
            None with judge="loss".

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
    """The arguments of `skip_spikes`, checked, in the order of its signature."""

    tx: Any
    factor: Any
    window: int
    judge: str
    warmup: int | None
    max_consecutive: int

    @property
    def least_history(self) -> int:
        """Number of steps accepted before the first is judged."""
        return max(2, self.window // 2) if self.warmup is None else self.warmup


class _Seen(NamedTuple):
    """A loss or a norm of the step to be judged."""

    x: jax.Array
    least: float  # deviations below this fraction of the largest number are rounding


def judged(
    guard: Guard,
    grads: PyTree,
    state: SkipSpikesState,
    value: Any = None,
    grad_norm: Any = None,
    **extra_args: Any,
) -> SkipSpikesState:
    """The state after this step, without `inner_state`; `last_accepted` says whether to take it."""
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
    # Integer leaves are frozen parameters; their gradients have dtype float0.
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
            f"state must be the SkipSpikesState that init made; got {_check.show(state)}. To "
            "continue from a state of the wrapped transformation, pass "
            "tx.init(params)._replace(inner_state=state)."
        )
    for name in JUDGED["both"]:
        history, is_judged = getattr(state, name), name in JUDGED[guard.judge]
        if (history is not None) != is_judged:
            found = "None" if history is None else "an array"
            raise ValueError(
                f"state.{name} is {found}, but skip_spikes was called with judge={guard.judge!r}: "
                "make the state with the init of the same transformation. To keep the inner state, "
                "pass tx.init(params)._replace(inner_state=state.inner_state)."
            )
        if is_judged and jnp.shape(history) != (guard.window,):
            raise ValueError(
                f"state.{name} has shape {jnp.shape(history)}, but skip_spikes was called with "
                f"window={guard.window}: keep the window, or start a new history with "
                "tx.init(params)._replace(inner_state=state.inner_state)."
            )
