"""AdEMAMix: Adam with a second, slower average of the gradient (Pagliardini et al. 2024)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import ADEMAMIX
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation, without_rate
from functional_adam._types import (
    GradientTransformation,
    Mask,
    ParameterRounding,
    Scalar,
    ScalarOrSchedule,
)


@factory
def ademamix(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    independent_weight_decay: bool = False,
) -> GradientTransformation:
    """Adam that adds an average over some ten thousand gradients to its own over ten.

    m and v as in `update`; beside them m_slow <- b3 m_slow + (1 - b3) g, which is not corrected:

        d = (m_hat + alpha * m_slow) / (sqrt(v_hat + eps_root) + eps)
        u = -learning_rate * (d + weight_decay * theta)

    The paper raises `alpha` and `b3` from 0 and b1 over the run: pass schedules.

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        b3: in [0, 1), or a schedule, called with the count before the step.
        alpha: >= 0, or a schedule: the weight of the slow average (here not the step size).
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`, for `mu` and `mu_slow`; a state that holds another dtype is refused.
        weight_decay: lambda >= 0 or a schedule; `update` then needs `params`.
        mask: which parameters decay.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`; not "int8". A state of another format is refused.
        rounding: see `update`.
        independent_weight_decay: True takes the learning rate out of the decay's part of u.

    Returns:
        A `GradientTransformation` whose state is an `AdamState` with `extra["mu_slow"]`: 12 bytes
        a parameter.

    Raises:
        ValueError: an argument out of range; at `init` and `update`, a mask that does not fit.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.ademamix(0.1, b3=0.99, alpha=2.0)
        >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([3.0])))
        >>> updates.round(6)  # (g + 2 (1 - 0.99) g) / |g|
        Array([-0.102], dtype=float32)

    References:
        Pagliardini, Ablin and Grangier 2024, The AdEMAMix Optimizer: Better, Faster, Older,
        Algorithm 1.
    """
    return transformation(
        make_settings(
            ADEMAMIX,
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            weight_decay=weight_decay,
            mask=mask,
            independent_weight_decay=independent_weight_decay,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            hyperparams={
                "b3": _check.scalar("b3", b3, below=1.0, schedule=True),
                "alpha": _check.scalar("alpha", alpha, schedule=True),
            },
        )
    )


@factory
def scale_by_ademamix(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
) -> GradientTransformation:
    """AdEMAMix's direction alone, neither scaled nor signed, for `optax.chain`.

    Args:
        b1: see `ademamix`, as for all arguments below. In [0, 1).
        b2: in [0, 1).
        b3: in [0, 1), or a schedule.
        alpha: >= 0, or a schedule; as in Optax the default is not that of `ademamix`.
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`; not "int8". A state of another format is refused.

    Returns:
        A `GradientTransformation` whose state is an `AdamState` with `extra["mu_slow"]`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_ademamix(b3=0.99)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(5)
        Array([1.06], dtype=float32)

    References:
        Pagliardini, Ablin and Grangier 2024, Algorithm 1.
    """
    return without_rate(
        ademamix(
            1.0, b1, b2, b3, alpha, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, moments=moments
        )
    )
