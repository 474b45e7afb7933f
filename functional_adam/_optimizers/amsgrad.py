"""AMSGrad: a second moment that never falls (Reddi, Kale & Kumar 2018)."""

from __future__ import annotations

from typing import Any

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations import formulas as F
from functional_adam._equations.family import AMSGRAD, AMSGRAD_OF_CORRECTED, Variant
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, optional_decay, with_eps
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation, without_rate
from functional_adam._types import (
    GradientTransformation,
    Mask,
    Overrides,
    ParameterRounding,
    Placement,
    Scalar,
    ScalarOrSchedule,
)


@factory
def amsgrad(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    maximum: Placement = "after_correction",
    eps_placement: Placement = "after_correction",
    l2: ScalarOrSchedule | None = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam divided by the root of the largest v so far.

    With Adam's m and v, c1 = 1 - b1**t and c2 = 1 - b2**t, by default as in Optax:

        v_max <- max(v_max, v / c2)
        u = -learning_rate * (m / c1 / (sqrt(v_max + eps_root) + eps) + weight_decay * theta)

    `maximum="before_correction"` is PyTorch's form: v_max <- max(v_max, v), and u has v_max / c2 in
    place of v_max. The paper corrects nothing: set `bias_correction_mu` and `bias_correction_nu` to
    False.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        bias_correction_mu: False leaves m uncorrected: c1 = 1.
        bias_correction_nu: False leaves v uncorrected: c2 = 1.
        nu_dtype: Dtype of v and v_max in the state, always real. None (default): at least float32.
        moments: How the three moments are stored: "full" (default) or "bfloat16", which take 12 and
            6 bytes per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        maximum: What v_max is the maximum of: "after_correction" (default) of v / c2, or
            "before_correction" of v.
        eps_placement: Where eps is added: "after_correction" (default), or (only with
            `maximum="before_correction"`) "before_correction", as in Keras.
        l2: L2 regularization >= 0, or a schedule: adds l2 * theta to the gradient; `update` then
            needs `params`. None (default): no regularization.
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`. None (default): no decay.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`; `extra["nu_max"]` is v_max.

    Raises:
        ValueError: `eps_placement="before_correction"` without `maximum="before_correction"`;
            `mask` or `independent_weight_decay` without `weight_decay`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.amsgrad(0.1, b2=0.5, maximum="before_correction")
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (8.0, 0.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> state.nu, state.extra["nu_max"]
        (Array([16.], dtype=float32), Array([32.], dtype=float32))

    References:
        Reddi, Kale and Kumar 2018, On the Convergence of Adam and Beyond, Algorithm 2.
    """
    return transformation(
        make_settings(
            _variant(bias_correction_mu, bias_correction_nu, maximum, eps_placement),
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            **optional_decay(weight_decay, mask, independent_weight_decay),
            l2=l2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
        )
    )


@factory
def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    maximum: Placement = "after_correction",
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """AMSGrad's direction without learning rate and sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `amsgrad`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState` with `extra["nu_max"]`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_amsgrad(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([1.], dtype=float32)
    """
    return without_rate(
        amsgrad(
            1.0,
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            bias_correction_mu,
            bias_correction_nu,
            nu_dtype=nu_dtype,
            moments=moments,
            maximum=maximum,
            eps_placement=eps_placement,
        ),
        overrides,
    )


def _variant(correct_mu: Any, correct_nu: Any, maximum: Any, eps_placement: Any) -> Variant:
    of = {"after_correction": AMSGRAD_OF_CORRECTED, "before_correction": AMSGRAD}
    variant = _check.choice("maximum", maximum, of)
    with_that_eps = with_eps(AMSGRAD, eps_placement)
    if variant is AMSGRAD:
        variant = with_that_eps
    elif eps_placement != "after_correction":
        raise ValueError(
            f'eps_placement={eps_placement!r} needs maximum="before_correction": a maximum of '
            "corrected moments is not corrected again."
        )
    if not _check.flag("bias_correction_mu", correct_mu):
        variant = variant.prepare_first(F.without_first_correction)
    if not _check.flag("bias_correction_nu", correct_nu):
        variant = variant.prepare_first(F.without_second_correction)
    return variant
