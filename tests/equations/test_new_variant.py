"""A variant that is not in the package is a value and its formulas."""

import numpy as np
import pytest
from family_runs import gradients, parameters, run

import functional_adam as fa
from functional_adam._equations import formulas as F
from functional_adam._equations import numerics as N
from functional_adam._equations.family import (
    ADAM,
    ADAMAX,
    ADOPT,
    AMSGRAD,
    AMSGRAD_OF_CORRECTED,
    Variant,
)
from functional_adam._settings import make_settings, with_eps
from functional_adam._transform import transformation

pytestmark = pytest.mark.usefixtures("strict")


def mean_size(s, g, old):
    """Adam with the mean of |g| in place of its mean square."""
    v = N.average(old.v, abs(g), s.b2)
    return g, old._replace(m=N.average(old.m, g, s.b1), v=v)


def over_mean_size(s, new):
    return new.v / s.c2 + s.eps


MEAN_SIZE = Variant(
    "mean_size",
    (F.first_correction,),
    correction=None,
    update_moments=mean_size,
    denominator=over_mean_size,
)


@pytest.mark.parametrize("placement", ["after_correction", "before_correction"])
def test_eps_has_no_place_in_a_variant_without_a_correction(placement):
    for variant in (ADAMAX, ADOPT, AMSGRAD_OF_CORRECTED, MEAN_SIZE):
        wanted = f"eps_placement='{placement}' has no meaning for {variant.name}, which does not"
        with pytest.raises(ValueError, match=wanted):
            with_eps(variant, placement)
    for variant in (ADAM, AMSGRAD):
        placed = with_eps(variant, placement)
        assert placed.correction is getattr(F, f"eps_{placement}")
        assert placed == variant._replace(correction=placed.correction)


@pytest.mark.parametrize("cautious", [False, True])
def test_a_new_variant_is_a_value_and_its_formulas(cautious, x64):
    tx = transformation(
        make_settings(MEAN_SIZE, learning_rate=0.1, b1=0.83, b2=0.97, eps=1e-3, weight_decay=0.3)
    )
    grads, theta = gradients(40, 64).astype(np.float64), parameters(64).astype(np.float64)
    updates, state = run(fa.cautious(tx) if cautious else tx, grads, theta)
    m = v = 0
    for t, (g, u) in enumerate(zip(grads, updates, strict=True), start=1):
        m, v = 0.83 * m + 0.17 * g, 0.97 * v + 0.03 * abs(g)
        d = m / (1 - 0.83**t) / (v / (1 - 0.97**t) + 1e-3)
        d = d * (d * g > 0) / (d * g > 0).mean() if cautious else d
        np.testing.assert_allclose(u, -0.1 * (d + 0.3 * theta), rtol=1e-11)
    np.testing.assert_allclose(state.nu, v, rtol=1e-12)
