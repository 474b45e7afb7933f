"""What all modifiers share: they take a transformation of this package and change its step."""

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
    """`tx` with `modifier` around it; `hyperparams` adds hyperparameters for `scalars` to read."""
    settings = modifiable(tx, modifier.name)
    variant = settings.variant
    if modifier.name in [other.name for other in variant.modifiers]:
        raise ValueError(
            f"tx already has {modifier.name} applied: apply it only once, as in "
            f"{modifier.name}({variant.name}(...))."
        )
    variant = variant._replace(modifiers=(*variant.modifiers, modifier))
    check_format(settings.moments, variant, settings.b1, settings.b2)
    return transformation(
        settings._replace(variant=variant, hyperparams={**settings.hyperparams, **hyperparams})
    )


def modifiable(tx: Any, name: str) -> Settings:
    """The settings of the transformation that was given to the modifier `name`."""
    settings = settings_of(tx)
    if settings is None:
        raise TypeError(
            f"{name} needs a transformation made by functional_adam, such as {name}(adamw()); "
            f"got {_describe(tx)}. In optax.chain or another wrapper, apply {name} to the member."
        )
    return settings


def takes(settings: Settings, argument: str) -> bool:
    """Whether the factory of `settings` has this argument; True if no factory made them."""
    return settings.origin is None or argument in settings.origin.arguments


def _describe(tx: Any) -> str:
    if callable(tx):
        return f"the function {getattr(tx, '__name__', type(tx).__name__)}: call it first"
    return f"an object of type {type(tx).__module__}.{type(tx).__qualname__}"
