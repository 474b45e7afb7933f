"""The checked arguments of a factory, and the choices that several factories share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from functional_adam import _check, _masks, _overrides
from functional_adam._equations import formulas as F
from functional_adam._equations.family import ADAM, Variant
from functional_adam._equations.operands import Prepare
from functional_adam._host import Waiting
from functional_adam._origin import Origin, SameTree, comparable
from functional_adam._overrides import Overrides
from functional_adam._storage.formats import Format, make_format
from functional_adam._storage.rounding import ROUNDINGS, Rounding


class Settings(NamedTuple):
    """A variant and its hyperparameters: numbers as floats, arrays and schedules as given."""

    variant: Variant
    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    weight_decay: Any
    mask: Any
    l2: Any
    moments: Format
    rounding: Rounding
    hyperparams: Mapping[str, Any]  # the variant's own, by the names of its arguments
    overrides: Overrides | None = None  # for some leaves, not bound before the factory returns
    origin: Origin | None = None  # the call of the factory, once it has returned
    waiting: Waiting = frozenset()  # the leaves whose moments wait on the host between steps


def make_settings(
    variant: Variant,
    *,
    learning_rate: Any,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
    independent_weight_decay: Any = False,
    l2: Any = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    moments: Any = "full",
    rounding: Any = "nearest",
    hyperparams: Mapping[str, Any] | None = None,
    overrides: Any = None,
) -> Settings:
    """Check the arguments of a factory or of `update`; `hyperparams` are checked already."""
    if _check.flag("independent_weight_decay", independent_weight_decay):
        variant = variant.prepare_first(F.independent_decay)._replace(scale_rate=F.scale_step)
    b1, b2 = (_check.scalar(name, b, below=1.0) for name, b in (("b1", b1), ("b2", b2)))
    weight_decay = _check.scalar("weight_decay", weight_decay, schedule=True)
    format = make_format(moments, mu_dtype, nu_dtype)
    check_format(format, variant, b1, b2)
    return Settings(
        variant=variant,
        learning_rate=_check.scalar("learning_rate", learning_rate, schedule=True),
        b1=b1,
        b2=b2,
        eps=_check.scalar("eps", eps, tiny=1e-8),
        eps_root=_check.scalar("eps_root", eps_root, tiny=1e-8),
        weight_decay=weight_decay,
        mask=_masks.make_mask(mask, weight_decay),
        # The default is None because optax.inject_hyperparams makes an array of every number, and a
        # traced 0.0 does not show that no parameters are needed.
        l2=0.0 if l2 is None else _check.scalar("l2", l2, schedule=True),
        moments=format,
        rounding=_check.choice("rounding", rounding, ROUNDINGS),
        hyperparams={} if hyperparams is None else hyperparams,
        overrides=_overrides.checked(overrides),
    )


def optional_decay(weight_decay: Any, mask: Any, independent: Any) -> dict[str, Any]:
    """The arguments of `make_settings` for a `weight_decay` that may be None, for no decay."""
    if weight_decay is None and not (mask is None and independent is False):
        raise ValueError(
            "mask and independent_weight_decay have no effect without weight_decay: pass "
            "weight_decay too."
        )
    return {
        "weight_decay": 0.0 if weight_decay is None else weight_decay,
        "mask": mask,
        "independent_weight_decay": independent,
    }


def identity(settings: Settings) -> tuple[Any, ...]:
    """`settings` as a value to compare and hash; arrays and functions count by identity."""
    origin, mask = settings.origin, settings.mask
    values = settings._replace(
        mask=comparable(mask) if mask is None or _masks.is_called(mask) else SameTree(mask),
        overrides=settings.overrides and _rules(settings.overrides),
        origin=origin and (origin.factory, origin.arguments),
    )
    return tuple(x if isinstance(x, SameTree) else comparable(x) for x in values)


def _rules(overrides: Overrides) -> tuple[Any, ...]:
    """`overrides` as a value to compare and hash."""
    if callable(overrides.rules):
        return (comparable(overrides.rules),)
    patterns = (rule.pattern for rule in overrides.rules)
    return tuple(zip(patterns, map(identity, overrides.made), strict=True))


def check_format(moments: Format, variant: Variant, b1: Any, b2: Any) -> None:
    """Raise unless `moments` can store the moments of `variant` with these decay rates."""
    incompatibility = moments.incompatibility(variant, b1, b2)
    if incompatibility is not None:
        raise ValueError(incompatibility)


def with_eps(variant: Variant, placement: Any) -> Variant:
    """`variant` with eps at this place."""
    options = {
        "after_correction": F.eps_after_correction,
        "before_correction": F.eps_before_correction,
    }
    correction = _check.choice("eps_placement", placement, options)
    if variant.correction is None:
        raise ValueError(
            f"eps_placement={placement!r} has no meaning for {variant.name}, which does not "
            "correct the second moment."
        )
    return variant._replace(correction=correction)


def with_nesterov(
    variant: Variant, nesterov: Any, weights: Prepare = F.nesterov_weights
) -> Variant:
    """`variant`, with Nesterov's numerator if `nesterov` is True."""
    return variant.look_ahead(weights) if _check.flag("nesterov", nesterov) else variant


def adam_like(nesterov: Any, placement: Any) -> Variant:
    """Adam with these two choices made."""
    return with_nesterov(with_eps(ADAM, placement), nesterov)
