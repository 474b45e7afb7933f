"""The family: each member a value, naming its formulas and the trees it keeps.

The loop in `_step` knows nothing else about a variant, so a new one is a new value and, where it
has equations of its own, a page in `formulas`.
"""

from __future__ import annotations

from typing import NamedTuple

from functional_adam._equations import formulas as F
from functional_adam._equations.operands import Advance, Denominator, Finish, Numerator, Prepare


class Variant(NamedTuple):
    """What distinguishes one optimizer from another; as it stands here, Adam."""

    name: str = "adam"
    prepare: tuple[Prepare, ...] = (F.eps_after_correction,)  # in this order
    advance: Advance = F.adam
    numerator: Numerator = F.momentum
    denominator: Denominator = F.root
    finish: Finish | None = None  # needs the parameters
    keeps: tuple[tuple[str, str], ...] = ()  # (name in state.extra, moment it is stored like)
    maxima: tuple[str, ...] = ()  # those of them that never fall, which rounding up would raise
    start: str | None = None  # that of its own hyperparameters which both moments begin at
    rates: tuple[str, ...] = ()  # those of its own hyperparameters that are decay rates
    whole_leaf: bool = False  # whether an element's step depends on the others of its leaf
    ratio_is_bounded: bool = True  # whether |m| <= C sqrt(v), see `largest_ratio`, and nothing else

    @property
    def averages(self) -> tuple[str, ...]:
        """The names of those it keeps that are averages."""
        return tuple(name for name, _ in self.keeps if name not in self.maxima)

    def first(self, *prepare: Prepare) -> Variant:
        """With these preparations before the others."""
        return self._replace(prepare=(*prepare, *self.prepare))

    def look_ahead(self, weights: Prepare = F.nesterov_weights) -> Variant:
        """With Nesterov's numerator."""
        return self.first(weights)._replace(numerator=F.nesterov_momentum)


ADAM = Variant()
AMSGRAD = Variant(
    name="amsgrad",
    ratio_is_bounded=False,
    advance=F.amsgrad,
    denominator=F.root_of_maximum,
    keeps=(("nu_max", "nu"),),
    maxima=("nu_max",),
)
AMSGRAD_OF_CORRECTED = AMSGRAD._replace(
    prepare=(F.first_correction,), advance=F.amsgrad_of_corrected
)
ADAMAX = Variant(
    name="adamax",
    ratio_is_bounded=False,
    prepare=(F.first_correction,),
    advance=F.adamax,
    denominator=F.maximum,
)
RADAM = Variant(
    name="radam",
    prepare=(F.eps_after_correction, F.rectification),
    denominator=F.rectified_root,
)
ADABELIEF = Variant(
    name="adabelief",
    ratio_is_bounded=False,
    prepare=(F.belief_floor, F.eps_after_correction),
    advance=F.adabelief,
)
YOGI = Variant(
    name="yogi",
    ratio_is_bounded=False,
    advance=F.yogi,
    start="initial_accumulator_value",
)
LAMB = Variant(
    name="lamb",
    whole_leaf=True,
    prepare=(F.unit_rate, F.eps_after_correction),
    finish=F.trust_ratio,
)
ADOPT = Variant(
    name="adopt",
    ratio_is_bounded=False,
    prepare=(),
    advance=F.adopt,
    denominator=F.one,
)
ADEMAMIX = Variant(
    name="ademamix",
    ratio_is_bounded=False,
    prepare=(F.mixing, F.eps_after_correction),
    advance=F.ademamix,
    numerator=F.mixed_momentum,
    keeps=(("mu_slow", "mu"),),
    rates=("b3",),
)
