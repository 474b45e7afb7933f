"""From `Settings` to the pair of functions that Optax's wrappers and users call."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from functional_adam import _check, _host, _masks, _nested, _overrides, _trees
from functional_adam._hints import argument_hints
from functional_adam._origin import Bound
from functional_adam._settings import Settings, identity
from functional_adam._state import AdamState, fresh
from functional_adam._step import step
from functional_adam._types import GradientTransformation, PyTree, real_dtype

# Collects what each `init` makes while `_interop.variants_in` asks what a wrapper holds.
STATES_MADE: ContextVar[list[tuple[Settings, AdamState]] | None] = ContextVar(
    "STATES_MADE", default=None
)


class _Leaf:
    """The settings of a leaf as a leaf of a tree; a NamedTuple would be a node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


class BoundSettings(Bound):
    """A module function bound to settings."""

    @property
    def settings(self) -> Settings:
        return self.args[0]

    @functools.cached_property
    def identity(self) -> tuple[Any, ...]:
        return self.func, identity(self.settings)

    @property
    def call(self) -> str:
        return repr(self.settings.origin or self.settings.variant.name)


def transformation(settings: Settings) -> GradientTransformation:
    """`init` and `update` with these settings."""
    return GradientTransformation(BoundSettings(_init, settings), BoundSettings(_update, settings))


def without_rate(tx: GradientTransformation, overrides: Any = None) -> GradientTransformation:
    """The direction of `tx`, whose learning rate is 1: without the minus sign, with overrides."""
    update: Any = tx.update
    settings: Settings = update.settings
    # An update has a minus sign; a step size of -1 removes it.
    overrides = _overrides.checked(overrides)
    return transformation(settings._replace(learning_rate=-1.0, overrides=overrides))


def settings_of(tx: Any) -> Settings | None:
    """The settings of a transformation of this package; None for any other object."""
    update = getattr(tx, "update", None)
    return update.settings if isinstance(update, BoundSettings) else None


def _init(settings: Settings, params: PyTree) -> AdamState:
    state = fresh(params, settings.moments, settings.rounding)
    if jax.tree.leaves(params):  # optax.tree.map_params calls `init` with a leafless stand-in
        _masks.broadcast(settings.mask, params)
        _masks.leaf_variants(settings.variant, params)
    each = _settings_by_leaf(settings, params)
    if settings.variant.initial_moments is not None:
        begin = functools.partial(_begin, settings.variant.initial_moments)
        mu, nu = (jax.tree.map(begin, x, each) for x in (state.mu, state.nu))
        state = state._replace(mu=mu, nu=nu)
    extra = {
        name: jax.tree.map(jnp.zeros_like, getattr(state, like))
        for name, like in settings.variant.extra
    }
    state = state._replace(extra=extra or None)
    if settings.waiting:
        state = _nested.with_moments(state, settings.waiting, _host.on_host)
    made = STATES_MADE.get()
    if made is not None:
        made.append((settings, state))
    return state


def _settings_by_leaf(settings: Settings, params: PyTree) -> PyTree:
    """The settings of each leaf, in a tree like `params`; raises for overrides that do not fit."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_trees.is_none)
    # A leaf frozen by None counts: a rule for it is not a mistake.
    paths = [_overrides.path_of(path) for path, _ in paths_and_leaves]
    _overrides.check_matches(settings.overrides, paths)

    def of_leaf(path: Any, leaf: Any) -> _Leaf:
        return _Leaf(_overrides.of_leaf(settings, "params", path, leaf))

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def _begin(name: str, zeros: jax.Array, leaf: _Leaf) -> jax.Array:
    """A moment that starts at the value of one of the variant's hyperparameters."""
    value = leaf.settings.hyperparams[name]
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
    refuse_arguments(settings, extra_args)
    return step(settings, updates, state, params)


def refuse_arguments(settings: Settings, extra_args: Mapping[str, Any]) -> None:
    """Raise for an argument of a factory that was given to its `update` instead."""
    # Optax passes every member of a chain the arguments of all, and a line search passes the
    # arguments of its `value_fn`, which can have any name.
    if settings.origin is not None and "value_fn" not in extra_args:
        for name in sorted(settings.origin.arguments & extra_args.keys()):
            raise TypeError(argument_hints.extra_argument(settings.origin, name))
