"""The parameters as a step sees them: values if anything needs them, otherwise only dtypes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _masks, _trees
from functional_adam._equations.family import Variant
from functional_adam._hints import argument_hints
from functional_adam._scalars import Group, is_zero
from functional_adam._settings import Settings
from functional_adam._types import PyTree


class LeafParam(NamedTuple):
    """The parameter of a leaf: its value if anything needs it, its dtype if it is given."""

    variant: Variant  # with the modifiers that apply to this leaf
    value: Any = None
    decays: bool = False
    dtype: np.dtype[Any] | None = None


def leaf_params(
    groups: list[Group],
    paths_and_mu: list[Any],
    gs: list[Any],
    structure: PyTree,
    params: PyTree | None,
    strict: bool,
    applies: bool,
) -> list[LeafParam]:
    """For each leaf its parameter, with its value if a part of the step needs it."""
    mask = groups[0].settings.mask if groups else None  # the same for all leaves
    decays = any(_decays(group.settings) for group in groups)
    if strict and not decays and mask is not None:
        _masks.broadcast(mask, structure if params is None else params)
    variants: list[Variant] = []
    if groups:
        variant = groups[0].settings.variant
        variants = _masks.leaf_variants(variant, structure if params is None else params)
    if params is None:
        for group, g in zip(groups, gs, strict=True):
            if g is not None and (why := _needs(group.settings)):
                raise _no_params(group.settings, why)
        return [LeafParam(variant) for variant in variants]
    thetas = _trees.leaves_like("params", params, structure, "the parameters given to init")
    keep = _masks.broadcast(mask, params) if decays else [False] * len(gs)

    def of_leaf(
        settings: Settings, path: str, mu: Any, g: Any, theta: Any, kept: bool, variant: Variant
    ) -> LeafParam:
        if mu is None or g is None:
            value, dtype = theta if applies else None, getattr(theta, "dtype", None)
            return LeafParam(variant, value, dtype=dtype)
        kept = kept and _decays(settings)
        if kept or applies or not {"weight_decay"}.issuperset(_needs(settings)):
            value = _check.leaf_like("params" + path, theta, mu, "state.mu" + path)
            return LeafParam(variant, value, bool(kept), value.dtype)
        dtype = _check.leaf_dtype("params" + path, theta)
        _check.same_shape("params" + path, theta, mu, "state.mu" + path)
        return LeafParam(variant, dtype=dtype)

    rows = zip(groups, paths_and_mu, gs, thetas, keep, variants, strict=True)
    return [
        of_leaf(group.settings, keystr(path), mu, g, theta, kept, variant)
        for group, (path, mu), g, theta, kept, variant in rows
    ]


def _decays(settings: Settings) -> bool:
    return not is_zero(settings.weight_decay)


def _needs(settings: Settings) -> list[str]:
    """The names of the arguments that need the parameters' values."""
    variant = settings.variant
    needed = {
        variant.name: variant.rescale_update is not None,
        **{modifier.name: modifier.needs_params for modifier in variant.modifiers},
        "weight_decay": _decays(settings),
        "l2": not is_zero(settings.l2),
        _rounding_name(settings): settings.rounding.rounds_update,
    }
    return [name for name, needs in needed.items() if needs]


def _rounding_name(settings: Settings) -> str:
    return f'rounding="{settings.rounding.name}"'


def _no_params(settings: Settings, why: list[str]) -> ValueError:
    ways = {
        _rounding_name(settings): 'rounding="nearest"',
        **{
            name: argument_hints.zero(name, getattr(settings, name))
            for name in ("weight_decay", "l2")
        },
    }
    without = ", ".join(ways[name] for name in why if name in ways)
    instead = f", or pass {without}" if ways.keys() >= {*why} else ""
    return ValueError(
        f"{' and '.join(why)} {'needs' if len(why) == 1 else 'need'} the parameters: call "
        f"update(grads, state, params){instead}."
    )
