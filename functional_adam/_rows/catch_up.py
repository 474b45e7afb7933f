"""What the steps that a row has missed would have done to its moments and its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._equations import rows as R
from functional_adam._equations.numerics import times
from functional_adam._equations.operands import Moments, Scalars
from functional_adam._rows.table import beside
from functional_adam._scalars import evaluate_schedules, is_zero, scalars
from functional_adam._settings import Settings

CatchUp: TypeAlias = Literal["lazy", "moments", "dense"]
CATCH_UPS: dict[str, CatchUp] = {name: name for name in ("lazy", "moments", "dense")}

_UNROLLED = 8  # missed steps per loop iteration, which XLA fuses
_CALENDAR = 1024  # steps per loop iteration over the decays of a schedule


def refused(settings: Settings) -> str | None:
    """Why "dense" does not work with these settings; None if it does or if they are traced."""
    b1, b2 = settings.b1, settings.b2
    if not (isinstance(b1, float) and isinstance(b2, float)) or b1 * b1 < b2:
        return None
    return (
        'catch_up="dense" replays missed updates until they die away, which needs '
        f'b1**2 < b2; got b1={b1!r}, b2={b2!r}. Use a larger b2, or catch_up="moments".'
    )


def missed_updates(
    settings: Settings, s: Scalars, last: jax.Array, until: jax.Array, old: Moments
) -> tuple[jax.Array, jax.Array | None]:
    """(sum, log keep): the steps from last + 1 to `until` turn a weight w into keep * w + sum.

    `last` has shape (rows,) and is 0 for a row that never had a gradient. `log keep` is None
    without weight decay.
    """
    real = s.eps.dtype
    at = jax.vmap(jax.vmap(_scalars_at(settings, real)))  # for many steps of each row
    # After `count` steps the moments have died away, and only weight decay changes the weights.
    count = jnp.clip(until - last, 0, R.steps_that_count(s.b1, s.b2))
    turns = jnp.max(jnp.where(last > 0, count, 0), initial=0)

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, total = carry
        steps = first + jnp.arange(_UNROLLED, dtype=jnp.int32)
        scalars = at(last + steps[:, None])
        for n in range(_UNROLLED):
            now = jax.tree.map(lambda x, n=n: beside(x[n], old.v), scalars)
            coasting = R.coasted(now, steps[n].astype(real), old)
            next = R.missed_update(now, coasting, total)
            total = jnp.where(beside(steps[n] <= count, total), next, total)
        return first + _UNROLLED, total

    start = jnp.ones((), jnp.int32), jnp.zeros_like(old.m)
    _, total = jax.lax.while_loop(lambda carry: carry[0] <= turns, turn, start)
    if is_zero(settings.weight_decay):
        return total, None
    logs = _log_keep(settings, real, jnp.stack([last, last + count]), until)
    whole, rest = (beside(x, total) for x in logs)
    return times(jnp.exp(rest), total), whole


def _scalars_at(settings: Settings, real: np.dtype[Any]) -> Callable[[jax.Array], Scalars]:
    def at(count: jax.Array) -> Scalars:
        now = evaluate_schedules(settings, count - 1)
        return jax.tree.map(jnp.asarray, scalars(now, count, real))

    return at


def _log_keep(
    settings: Settings, real: np.dtype[Any], since: jax.Array, until: jax.Array
) -> jax.Array:
    """Log of the factor by which weight decay shrinks a weight in steps since + 1 to `until`."""
    at = _scalars_at(settings, real)
    if not (callable(settings.learning_rate) or callable(settings.weight_decay)):
        each = R.log_keep(at(jnp.maximum(until, 1)).decay)
        missed = jnp.maximum(until - since, 0)
        return jnp.where(missed > 0, missed.astype(real) * each, 0)
    # A schedule gives each step its own decay. All rows share one table of sums, from `until` back.
    least = jnp.min(since, initial=np.iinfo(np.int32).max)

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        top, total = carry
        counts = top - jnp.arange(_CALENDAR, dtype=jnp.int32)
        decay = jax.vmap(lambda count: at(count).decay)(jnp.maximum(counts, 1))
        sums = jnp.cumsum(jnp.where(counts > 0, R.log_keep(decay), 0))
        within = jnp.clip(top - since, 0, _CALENDAR)
        return top - _CALENDAR, total + jnp.where(within > 0, sums[within - 1], 0)

    start = until, jnp.zeros(since.shape, real)
    _, total = jax.lax.while_loop(lambda carry: carry[0] > least, turn, start)
    return total
