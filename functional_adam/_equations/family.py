"""The family: each optimizer is a value that names its formulas and the trees of its state.

The loop in `_step` knows nothing else about a variant. A new one is a new value and, if it has
equations of its own, a section in `relatives`. A modifier is also a value, which changes parts of
any member's step; `modifiers` has the package's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from functional_adam._equations import formulas as F
from functional_adam._equations import relatives as R
from functional_adam._equations.operands import (
    Denominator,
    GradientSize,
    Moments,
    Numerator,
    Prepare,
    RescaleUpdate,
    Scalars,
    ScaleRate,
    UpdateMoments,
)


class LeafStep(NamedTuple):
    """The step of a leaf so far. A modifier may read all of it and changes one part."""

    variant: Variant
    scalars: Scalars
    x: jax.Array  # what the first moment averaged
    new: Moments
    theta: Any  # the parameter; None if nothing needs it
    numerator: jax.Array
    direction: Any = None  # numerator / denominator; the step is `-scalars.step_size` times this
    decaying: Any = None  # what the decay multiplies: theta
    update: Any = None
    stacked: int = 0  # leading axes that stack several matrices, each with sums of its own


class Modifier(NamedTuple):
    """Changes to the step of a member, part by part and in this order.

    A part takes the `LeafStep` and returns the field of the same name; None leaves it as it is.
    """

    name: str
    numerator: Callable[[LeafStep], jax.Array] | None = None
    direction: Callable[[LeafStep], jax.Array] | None = None
    scalars: Callable[[LeafStep], Scalars] | None = None
    decaying: Callable[[LeafStep], Any] | None = None
    update: Callable[[LeafStep], jax.Array] | None = None
    needs_params: bool = False
    whole_leaf: bool = False  # whether an element's step depends on the others of its leaf
    mask: Any = None  # the leaves it applies to (None: all), for `_masks.leaf_variants`
    stacked: Any = 0  # for `LeafStep`: a number for all leaves, or like the mask


def modified(step: LeafStep, part: str) -> LeafStep:
    """`step` with this part changed by the modifiers, the innermost first."""
    for modifier in step.variant.modifiers:
        change: Callable[[LeafStep], Any] | None = getattr(modifier, part)
        if change is not None:
            step = step._replace(stacked=modifier.stacked)
            step = step._replace(**{part: change(step)})
    return step


class Variant(NamedTuple):
    """The differences between optimizers; the defaults are Adam."""

    name: str = "adam"
    prepare: tuple[Prepare, ...] = ()  # before the correction, in this order
    correction: Prepare | None = F.eps_after_correction  # None: eps has no place relative to one
    rectify: tuple[Prepare, ...] = ()  # after the correction
    update_moments: UpdateMoments = F.adam
    numerator: Numerator = F.momentum
    denominator: Denominator = F.root
    rescale_update: RescaleUpdate | None = None  # needs the parameters, and sums over a leaf
    gradient_size: GradientSize = F.gradient_size
    scale_rate: ScaleRate = F.scale_rate
    modifiers: tuple[Modifier, ...] = ()  # the innermost first
    extra: tuple[tuple[str, str], ...] = ()  # (name in state.extra, moment it is stored like)
    maxima: tuple[str, ...] = ()  # those that never fall, so that rounding up would raise them
    initial_moments: str | None = None  # the hyperparameter at which both moments begin
    decay_rates: tuple[str, ...] = ()  # the hyperparameters that are decay rates
    ratio_is_bounded: bool = True  # if |m| <= C sqrt(v) (`largest_ratio`) and `extra` is empty

    @property
    def whole_leaf(self) -> bool:
        """Whether an element's step depends on the others of its leaf."""
        return self.rescale_update is not None or any(x.whole_leaf for x in self.modifiers)

    @property
    def preparations(self) -> tuple[Prepare, ...]:
        """All preparations of the scalars of a step, in order."""
        correction = () if self.correction is None else (self.correction,)
        return (*self.prepare, *correction, *self.rectify)

    @property
    def averages(self) -> tuple[str, ...]:
        """The names of the trees in `extra` that are averages."""
        return tuple(name for name, _ in self.extra if name not in self.maxima)

    def prepare_first(self, *prepare: Prepare) -> Variant:
        """The variant with these preparations before the others."""
        return self._replace(prepare=(*prepare, *self.prepare))

    def look_ahead(self, weights: Prepare = F.nesterov_weights) -> Variant:
        """The variant with Nesterov's numerator."""
        return self.prepare_first(weights)._replace(numerator=F.nesterov_momentum)


ADAM = Variant()
AMSGRAD = Variant(
    name="amsgrad",
    ratio_is_bounded=False,
    update_moments=R.amsgrad,
    denominator=R.root_of_maximum,
    extra=(("nu_max", "nu"),),
    maxima=("nu_max",),
)
AMSGRAD_OF_CORRECTED = AMSGRAD._replace(
    prepare=(F.first_correction,),
    correction=None,
    update_moments=R.amsgrad_of_corrected,
    gradient_size=R.corrected_size,
)
ADAMAX = Variant(
    name="adamax",
    ratio_is_bounded=False,
    prepare=(F.first_correction,),
    correction=None,
    update_moments=R.adamax,
    denominator=R.maximum,
    gradient_size=R.maximum,
)
RADAM = Variant(
    name="radam",
    rectify=(R.rectification,),
    denominator=R.rectified_root,
)
ADABELIEF = Variant(
    name="adabelief",
    ratio_is_bounded=False,
    prepare=(R.belief_floor,),
    update_moments=R.adabelief,
)
YOGI = Variant(
    name="yogi",
    ratio_is_bounded=False,
    update_moments=R.yogi,
    initial_moments="initial_accumulator_value",
)
LAMB = Variant(
    name="lamb",
    prepare=(R.unit_rate,),
    scale_rate=R.scale_relative_rate,
    rescale_update=R.trust_ratio,
)
ADOPT = Variant(
    name="adopt",
    ratio_is_bounded=False,
    correction=None,
    update_moments=R.adopt,
    denominator=R.one,
    gradient_size=R.one,
)
ADEMAMIX = Variant(
    name="ademamix",
    ratio_is_bounded=False,
    prepare=(R.mixing,),
    update_moments=R.ademamix,
    numerator=R.mixed_momentum,
    extra=(("mu_slow", "mu"),),
    decay_rates=("b3",),
)
SIMPLIFIED_ADEMAMIX = Variant(
    name="simplified_ademamix",
    ratio_is_bounded=False,
    prepare=(F.without_first_correction,),
    update_moments=R.simplified_ademamix,
    numerator=R.sum_and_gradient,
)
LAPROP = Variant(
    name="laprop",
    ratio_is_bounded=False,
    prepare=(F.first_correction,),
    correction=None,
    update_moments=R.laprop,
    denominator=R.one,
    gradient_size=R.one,
)
ADAM_ATAN2 = Variant(
    name="adam_atan2",
    prepare=(R.angle_scalars,),
    correction=None,
    numerator=R.angle_of_momentum,
    denominator=R.one,
)
