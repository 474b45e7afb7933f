"""The decorator of the factories, which records the call that made each transformation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from functional_adam._hints.keywords import signature_of, signed
from functional_adam._origin import origin
from functional_adam._overrides import bound as bound_to
from functional_adam._overrides import refuse_shared
from functional_adam._settings import Settings
from functional_adam._transform import settings_of, transformation
from functional_adam._types import GradientTransformation

P = ParamSpec("P")


def factory(make: Callable[P, GradientTransformation]) -> Callable[P, GradientTransformation]:
    """`make` with the same signature and types, and two additions.

    It stores the call in the settings of the transformation, where `repr`, equality and messages
    find it. It refuses arguments that `make` does not have, with a hint at what to write instead.
    """
    signature = signature_of(make)

    @functools.wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        settings: Any = settings_of(make(*args, **kwargs))
        within = [settings_of(value) for value in bound.arguments.values()]  # a modifier's tx
        inner = [x.origin.arguments for x in within if x is not None and x.origin is not None]
        made_by = origin(make.__name__, bound, frozenset[str]().union(*inner))
        if settings.overrides is not None:
            again = functools.partial(_again, call, bound.arguments)
            settings = settings._replace(overrides=bound_to(settings.overrides, again))
        return transformation(settings._replace(origin=made_by))

    return signed(call, signature)


def _again(
    call: Callable[..., Any], arguments: Mapping[str, Any], changes: Mapping[str, Any]
) -> Settings:
    """The settings of a call with some arguments changed; for a modifier, changed in its tx."""
    if "tx" in arguments:
        given = {"tx": _changed(arguments["tx"], changes)}
    else:
        refuse_shared(inspect.signature(call).parameters, changes)
        given = {"overrides": None, **changes}
    settings: Any = settings_of(call(**{**arguments, **given}))
    return settings


def _changed(tx: GradientTransformation, changes: Mapping[str, Any]) -> GradientTransformation:
    """`tx`, which has overrides, with these arguments changed."""
    settings: Any = settings_of(tx)
    return transformation(settings.overrides.make(changes))
