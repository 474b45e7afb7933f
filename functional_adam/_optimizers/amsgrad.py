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
    """Adam that divides by the root of the largest v so far.

    m and v are computed as in `adam`. With c1 = 1 - b1**t and c2 = 1 - b2**t, Optax's form is the
    default:

        v_max <- max(v_max, v / c2)
        u = -learning_rate * (m / c1 / (sqrt(v_max + eps_root) + eps) + weight_decay * theta)

    `maximum="before_correction"` is PyTorch's form: v_max <- max(v_max, v), and v_max / c2 replaces
    v_max in u. The paper makes no bias corrections: for its form set `bias_correction_mu` and
    `bias_correction_nu` to False.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        bias_correction_mu: False turns the bias correction of m off: c1 = 1.
        bias_correction_nu: False turns the bias correction of v off: c2 = 1.
        nu_dtype: Dtype in which v and v_max are stored; always real. None (default): float32, or
            float64 for parameters of 64-bit precision.
        moments: Storage format of the three moments: "full" (default) or "bfloat16", which take 12
            and 6 bytes per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        maximum: What v_max is the running maximum of: "after_correction" (default) takes v / c2,
            "before_correction" takes v.
        eps_placement: Where eps is added: "after_correction" (default), or (only with
            `maximum="before_correction"`) "before_correction", as Keras does.
        l2: L2 regularization, >= 0, or a schedule `count -> l2`. It adds l2 * theta to the
            gradient, so `update` needs `params`. None (default): no regularization.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. None (default): no decay.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without
            the factor learning_rate.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`; `extra["nu_max"]` is v_max.

    Raises:
        ValueError: `eps_placement="before_correction"` without `maximum="before_correction"`, or
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
    """AMSGrad's direction, without learning rate and minus sign, for `optax.chain`.

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
            f'eps_placement={eps_placement!r} needs maximum="before_correction": with '
            'maximum="after_correction", v_max holds corrected moments and is not corrected again.'
        )
    if not _check.flag("bias_correction_mu", correct_mu):
        variant = variant.prepare_first(F.without_first_correction)
    if not _check.flag("bias_correction_nu", correct_nu):
        variant = variant.prepare_first(F.without_second_correction)
    return variant
