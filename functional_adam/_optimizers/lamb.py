"""LAMB: Adam's direction, scaled leaf by leaf to the parameters (You et al. 2020)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam._equations.family import LAMB
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation
from functional_adam._types import (
    GradientTransformation,
    Mask,
    ParameterRounding,
    Scalar,
    ScalarOrSchedule,
)


@factory
def lamb(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
) -> GradientTransformation:
    """Adam for large batches: every leaf moves by the same fraction of its own norm.

        d = m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta
        u = -learning_rate * |theta| / |d| * d

    with Euclidean norms over each leaf (of a leaf that stacks layers, over all of them:
    `jax.vmap` over `update` gives each its own, see docs/variants.md); where either norm is 0,
    u = -learning_rate * d. `update` always needs `params`. The decay is inside d, as in the paper,
    so it is always scaled along.

    Args:
        learning_rate: see `update`, as for all arguments below. Here it is the relative step:
            |u| = learning_rate * |theta|.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        weight_decay: lambda >= 0 or a schedule.
        mask: which parameters decay; the norms scale all of them.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`. A state of another format is refused.
        rounding: see `update`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range; `update` without `params`; at `init` and `update`, a
            mask that does not fit.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, theta = fa.lamb(0.1), jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(jnp.array([2.0, 0.0]), tx.init(theta), theta)
        >>> jnp.linalg.norm(updates).round(4)  # a tenth of |theta| = 5
        Array(0.5, dtype=float32)

    References:
        You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
        Algorithm 2.
    """
    return transformation(
        make_settings(
            LAMB,
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            weight_decay=weight_decay,
            mask=mask,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
        )
    )
