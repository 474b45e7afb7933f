"""The scalars of one step: schedules evaluated, numbers cast, decay rates in exact parts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._equations.numerics import LOG_OF_ZERO, Rate, bias_correction
from functional_adam._equations.operands import Scalars
from functional_adam._hints import argument_hints
from functional_adam._settings import Settings, identity
from functional_adam._types import arithmetic_dtype


class Group(NamedTuple):
    """Leaves with equal hyperparameters, which share the scalars of a step."""

    settings: Settings  # with schedules evaluated
    scalars: Callable[[np.dtype[Any]], Scalars]


def groups(each: list[Settings], before: Any, after: jax.Array) -> list[Group]:
    """The group of each leaf, from the settings of each and the count before and after the step."""
    by_object = {id(settings): settings for settings in each}
    by_value: dict[Any, Group] = {}

    def group(settings: Settings) -> Group:
        # (Without overrides there is nothing to compare.)
        key = len(by_object) > 1 and identity(settings._replace(overrides=None))
        if key not in by_value:
            now = evaluate_schedules(settings, before)
            by_value[key] = Group(now, functools.cache(functools.partial(scalars, now, after)))
        return by_value[key]

    found = {name: group(settings) for name, settings in by_object.items()}
    return [found[id(settings)] for settings in each]


def evaluate_schedules(settings: Settings, count: chex.Array) -> Settings:
    """`settings` with its schedules evaluated at `count`, the count before the step."""

    def value(name: str, given: Any, below: float = math.inf) -> Any:
        if not callable(given):
            return given
        found = argument_hints.called(given, count, advice=argument_hints.schedule(name))
        return _check.scalar(f"{name}(count)", found, below)

    rates = settings.variant.decay_rates
    hyperparams = {
        k: value(k, v, 1.0 if k in rates else math.inf) for k, v in settings.hyperparams.items()
    }
    scheduled = ("learning_rate", "weight_decay", "l2")
    return settings._replace(
        hyperparams=hyperparams, **{k: value(k, getattr(settings, k)) for k in scheduled}
    )


def scalars(settings: Settings, count: jax.Array, real: np.dtype[Any]) -> Scalars:
    """The scalars of a step for leaves whose arithmetic has the real dtype `real`."""

    def cast(name: str, value: Any) -> Any:
        if isinstance(value, jax.Array):
            return value.astype(real)
        return _check.fitting(name, value, real)

    def unless_zero(name: str) -> Any:
        value = getattr(settings, name)
        return None if is_zero(value) else cast(name, value)

    rates = settings.variant.decay_rates
    derived = {
        name: _rate(name, value, real) if name in rates else cast(name, value)
        for name, value in settings.hyperparams.items()
    }
    t, alpha = count.astype(real), cast("learning_rate", settings.learning_rate)
    b1, b2 = _rate("b1", settings.b1, real), _rate("b2", settings.b2, real)
    weight_decay = cast("weight_decay", settings.weight_decay)
    s = Scalars(
        t=t,
        alpha=alpha,
        b1=b1,
        b2=b2,
        eps=cast("eps", settings.eps),
        eps_root=unless_zero("eps_root"),
        weight_decay=weight_decay,
        l2=unless_zero("l2"),
        derived=derived,
        c1=bias_correction(b1, t),
        c2=bias_correction(b2, t),
        step_size=alpha,
        decay=alpha * weight_decay,
    )
    return functools.reduce(lambda s, prepare: prepare(s), settings.variant.preparations, s)


def is_zero(value: Any) -> bool:
    """Whether `value` is known to be 0 when the step is traced."""
    return isinstance(value, float) and not value


def _rate(name: str, b: Any, dtype: np.dtype[Any]) -> Rate:
    """b, 1 - b and log b in `dtype`, each computed before b is rounded."""
    if isinstance(b, float):
        if dtype.type(b) == 1:
            raise ValueError(
                f"{name}={b!r} is 1 in {dtype}, the dtype of the arithmetic, so its average would "
                f"never change. Use at most {np.nextafter(dtype.type(1), dtype.type(0))}."
            )
        log = math.log(b) if b > 0 else LOG_OF_ZERO
        parts = (b, 1.0 - b, log, *((1.0, 1.0) if b > 0.5 else (b, 0.0)))
        return Rate(*(dtype.type(part) for part in parts))
    wide = arithmetic_dtype(dtype, b.dtype if jnp.issubdtype(b.dtype, jnp.floating) else dtype)
    b = b.astype(wide)
    complement = 1 - b  # exact for b >= 1/2
    positive, near_one = b > 0, b > 0.5
    # Each logarithm is taken where its argument is exact, and never of 0: its slope there is
    # infinite.
    log = jnp.where(
        near_one,
        jnp.log1p(-jnp.where(near_one, complement, jnp.zeros_like(b))),
        jnp.log(jnp.where(positive, b, jnp.ones_like(b))),
    )
    log = jnp.where(positive, log, jnp.full_like(b, LOG_OF_ZERO))
    keep, subtract = jnp.where(near_one, jnp.ones_like(b), b), near_one
    return Rate(*(part.astype(dtype) for part in (b, complement, log, keep, subtract)))
