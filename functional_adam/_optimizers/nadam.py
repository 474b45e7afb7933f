"""NAdam: Adam that looks one step ahead (Dozat 2016)."""

from __future__ import annotations

from typing import Any

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations import formulas as F
from functional_adam._equations.family import ADAM
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, with_eps
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation
from functional_adam._types import (
    GradientTransformation,
    Mask,
    ParameterRounding,
    Placement,
    Scalar,
    ScalarOrSchedule,
)


@factory
def nadam(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    momentum_decay: Scalar | None = None,
    l2: ScalarOrSchedule | None = None,
    eps_placement: Placement = "after_correction",
) -> GradientTransformation:
    """Adam with Nesterov's momentum: m_hat is that of the next step, seen from this one.

    By default in the simplified form (Optax's, the same as `adam(nesterov=True)`):

        m_hat = b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).

    With `momentum_decay` psi, Dozat's schedule mu_t = b1 (1 - 0.96**(t psi) / 2), as PyTorch has it
    (there psi = 4e-3), with P_t = mu_1 mu_2 ... mu_t:

        m_hat = mu_(t+1) m / (1 - P_(t+1)) + (1 - mu_t) g / (1 - P_t).

    P_t is computed from t alone: the state is Adam's.

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`. A state of another format is refused.
        rounding: see `update`.
        momentum_decay: None (default) for the simplified form, or psi >= 0.
        l2: None (default), or >= 0 or a schedule; `update` then needs `params`.
        eps_placement: "after_correction" or "before_correction".

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.nadam(0.1, b1=0.9, momentum_decay=4e-3)
        >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([3.0])))
        >>> updates.round(5)
        Array([-0.10565], dtype=float32)

    References:
        Dozat 2016, Incorporating Nesterov Momentum into Adam, Algorithm 2.
    """
    return transformation(
        make_settings(
            **_look_ahead(momentum_decay, eps_placement),
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
def nadamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    momentum_decay: Scalar | None = None,
    independent_weight_decay: bool = False,
    eps_placement: Placement = "after_correction",
) -> GradientTransformation:
    """`nadam` with decoupled weight decay.

    u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta), m_hat as
    in `nadam`.

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        weight_decay: lambda >= 0 or a schedule; `update` then needs `params`.
        mask: which parameters decay.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`. A state of another format is refused.
        rounding: see `update`.
        momentum_decay: None (default) or psi >= 0, see `nadam`.
        independent_weight_decay: True takes the learning rate out of the decay's part of u.
        eps_placement: "after_correction" or "before_correction".

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range; at `init` and `update`, a mask that does not fit.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, theta = fa.nadamw(0.5, weight_decay=0.25), jnp.array([2.0])
        >>> updates, state = tx.update(jnp.array([0.0]), tx.init(theta), theta)
        >>> updates
        Array([-0.25], dtype=float32)

    References:
        Dozat 2016, Algorithm 2. Loshchilov and Hutter 2019, Algorithm 2.
    """
    return transformation(
        make_settings(
            **_look_ahead(momentum_decay, eps_placement),
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
        )
    )


def _look_ahead(momentum_decay: Any, eps_placement: Any) -> dict[str, Any]:
    """The variant and its own hyperparameters."""
    variant = with_eps(ADAM, eps_placement)._replace(name="nadam")
    if momentum_decay is None:
        return {"variant": variant.look_ahead()}
    return {
        "variant": variant.look_ahead(F.dozat_weights),
        "hyperparams": {"momentum_decay": _check.scalar("momentum_decay", momentum_decay)},
    }
