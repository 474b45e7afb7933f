"""What all modifiers share: a transformation of this package, with a step that is changed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from functional_adam._equations.family import Modifier
from functional_adam._settings import Settings, check_format
from functional_adam._transform import settings_of, transformation
from functional_adam._types import GradientTransformation

NONE: Mapping[str, Any] = MappingProxyType({})


def modify(
    tx: Any, modifier: Modifier, hyperparams: Mapping[str, Any] = NONE
) -> GradientTransformation:
    """`tx` with `modifier` around it; `hyperparams` are further ones, which `scalars` can read."""
    settings = modifiable(tx, modifier.name)
    variant = settings.variant
    if modifier.name in [other.name for other in variant.modifiers]:
        raise ValueError(
            f"tx is {modifier.name} already: {modifier.name}({variant.name}(...)) will do."
        )
    variant = variant._replace(modifiers=(*variant.modifiers, modifier))
    check_format(settings.moments, variant, settings.b1, settings.b2)
    return transformation(
        settings._replace(variant=variant, hyperparams={**settings.hyperparams, **hyperparams})
    )


def modifiable(tx: Any, name: str) -> Settings:
    """The settings of what the modifier `name` was given."""
    settings = settings_of(tx)
    if settings is None:
        raise TypeError(
            f"{name} needs a transformation made by functional_adam, such as {name}(adamw()); "
            f"got {_describe(tx)}. Within optax.chain or another wrapper, wrap the member."
        )
    return settings


def takes(settings: Settings, argument: str) -> bool:
    """Whether the factory of a member has this argument; a variant without a factory may have."""
    return settings.origin is None or argument in settings.origin.arguments


def _describe(tx: Any) -> str:
    if callable(tx):
        return f"the function {getattr(tx, '__name__', type(tx).__name__)}: call it first"
    return f"an object of type {type(tx).__module__}.{type(tx).__qualname__}"
