"""From `Settings` to the pair of functions that Optax's wrappers and users call."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from functional_adam import _check
from functional_adam._settings import Settings
from functional_adam._state import AdamState, fresh
from functional_adam._step import step
from functional_adam._types import GradientTransformation, PyTree, real_dtype

# While `_variants_in` asks which of our transformations a wrapper holds: what each `init` made.
MADE: ContextVar[list[tuple[Settings, AdamState]] | None] = ContextVar("MADE", default=None)


def transformation(settings: Settings) -> GradientTransformation:
    """`init` and `update` with these settings."""
    # Partials of module functions, not closures: they pickle.
    return GradientTransformation(
        functools.partial(_init, settings), functools.partial(_update, settings)
    )


def direction(tx: GradientTransformation) -> GradientTransformation:
    """`tx`, made here with a learning rate of 1, neither scaled nor signed."""
    update: Any = tx.update
    settings: Settings = update.args[0]
    # An update descends; a step size of -1 undoes just that.
    return transformation(settings._replace(learning_rate=-1.0))


def settings_of(tx: Any) -> Settings | None:
    """The settings of a transformation made here; None for any other object."""
    update = getattr(tx, "update", None)
    if isinstance(update, functools.partial) and update.func is _update:
        return update.args[0]
    return None


def _init(settings: Settings, params: PyTree) -> AdamState:
    state = fresh(params, settings.moments, settings.rounding)
    if jax.tree.leaves(params):  # optax.tree.map_params calls `init` with a leafless stand-in
        _check.mask_leaves(settings.mask, params)
    if settings.variant.start is not None:
        begin = functools.partial(_begin, settings.variant.start, settings.own)
        state = state._replace(mu=jax.tree.map(begin, state.mu), nu=jax.tree.map(begin, state.nu))
    extra = {
        name: jax.tree.map(jnp.zeros_like, getattr(state, like))
        for name, like in settings.variant.keeps
    }
    state = state._replace(extra=extra or None)
    made = MADE.get()
    if made is not None:
        made.append((settings, state))
    return state


def _begin(name: str, own: Mapping[str, Any], zeros: jax.Array) -> jax.Array:
    """A moment that starts at one of the variant's own hyperparameters."""
    value = own[name]
    if isinstance(value, float):
        value = _check.fitting(name, value, real_dtype(zeros.dtype))
    return zeros + value.astype(zeros.dtype)


def _update(
    settings: Settings,
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **extra_args: Any,
) -> tuple[PyTree, AdamState]:
    del extra_args  # Optax hands every member of a chain what any member takes.
    return step(settings, updates, state, params)
