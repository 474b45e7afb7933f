"""RAdam: warm-up by the variance of the adaptive step (Liu et al. 2020)."""

from __future__ import annotations

from typing import Any

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import RADAM
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, with_eps, with_nesterov
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation, without_rate
from functional_adam._types import (
    GradientTransformation,
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
) -> GradientTransformation:
    """Adam whose first steps are those of momentum, and the next ones rectified.

    With rho_inf = 2 / (1 - b2) - 1 and rho = rho_inf - 2 t b2**t / (1 - b2**t), the length of the
    average that v is,

        u = -learning_rate * r * m_hat / (sqrt(v_hat + eps_root) + eps)  where rho >= threshold,
        u = -learning_rate * m_hat                                       before,
        r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)).

    (For the defaults from t = 6 on; rho_inf below the threshold, b2 < 2/3, never.)

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        threshold: >= 4, below which r is no number; 5 (default) in Optax and PyTorch, 4 in the
            paper.
        nesterov: True or False.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`. A state of another format is refused.
        rounding: see `update`.
        l2: None (default), or >= 0 or a schedule; `update` then needs `params`.
        eps_placement: "after_correction", or "before_correction", as `torch.optim.RAdam` has it.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

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
            l2=l2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
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
) -> GradientTransformation:
    """RAdam's direction alone, neither scaled nor signed, for `optax.chain`.

    Args:
        b1: see `radam`, as for all arguments below. In [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        threshold: >= 4.
        nesterov: True or False.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`. A state of another format is refused.
        eps_placement: "after_correction" or "before_correction".

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_radam(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(5)
        Array([5.], dtype=float32)

    References:
        Liu et al. 2020, Algorithm 2.
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
        )
    )


def _rectified(threshold: Any, nesterov: Any, eps_placement: Any) -> dict[str, Any]:
    """The variant and its own hyperparameters."""
    return {
        "variant": with_nesterov(with_eps(RADAM, eps_placement), nesterov),
        "hyperparams": {"threshold": _check.scalar("threshold", threshold, at_least=4.0)},
    }
