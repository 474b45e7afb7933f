"""RAdam: warm-up by the variance of the adaptive step (Liu et al. 2020)."""

from __future__ import annotations

from typing import Any

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import RADAM
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, optional_decay, with_eps, with_nesterov
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
def radam(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    l2: ScalarOrSchedule | None = None,
    eps_placement: Placement = "after_correction",
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam that warms up by itself: momentum at first, then steps scaled by how reliable v is.

    rho is the number of gradients that v averages over. With rho_inf = 2 / (1 - b2) - 1 and
    rho = rho_inf - 2 t b2**t / (1 - b2**t),

        u = -learning_rate * r * m_hat / (sqrt(v_hat + eps_root) + eps)  where rho >= threshold,
        u = -learning_rate * m_hat                                       before,
        r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)).

    With the defaults, v is used from t = 6 on. It is never used if rho_inf is below the threshold:
    for a threshold of 5 that means b2 < 2/3.

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
        threshold: Smallest rho at which v is used, >= 4. Optax and PyTorch use 5, the paper 4.
            Default 5.
        nesterov: True uses Nesterov momentum: m_hat looks one step ahead, as in `nadam`.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        l2: L2 regularization, >= 0, or a schedule `count -> l2`. It adds l2 * theta to the
            gradient, so `update` needs `params`. None (default): no regularization.
        eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
            "before_correction" to sqrt(v), as `torch.optim.RAdam` does.
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
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: `mask` or `independent_weight_decay` without `weight_decay`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.radam(0.1)
        >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([3.0])))
        >>> updates.round(6)
        Array([-0.2], dtype=float32)

    References:
        Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond, Algorithm 2.
    """
    return transformation(
        make_settings(
            **_rectified(threshold, nesterov, eps_placement),
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
def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """RAdam's direction, without learning rate and minus sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `radam`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_radam(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(5)
        Array([5.], dtype=float32)
    """
    return without_rate(
        radam(
            1.0,
            b1,
            b2,
            eps,
            eps_root,
            threshold,
            nesterov=nesterov,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            eps_placement=eps_placement,
        ),
        overrides,
    )


def _rectified(threshold: Any, nesterov: Any, eps_placement: Any) -> dict[str, Any]:
    """The variant and its own hyperparameters."""
    return {
        "variant": with_nesterov(with_eps(RADAM, eps_placement), nesterov),
        "hyperparams": {"threshold": _check.scalar("threshold", threshold, at_least=4.0)},
    }
