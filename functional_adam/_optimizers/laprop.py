"""LaProp: Adam that divides each gradient and then averages (Ziyin, Wang & Ueda 2020)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam._equations.family import LAPROP
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation
from functional_adam._types import (
    GradientTransformation,
    Mask,
    Overrides,
    ParameterRounding,
    Scalar,
    ScalarOrSchedule,
)


@factory
def laprop(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-15,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam that first divides each gradient by the root of v and then averages the quotients.

        x = g / (sqrt(v_hat) + eps)             m <- b1 m + (1 - b1) x
        u = -learning_rate * (m_hat + weight_decay * theta)

    Unlike in `adopt`, v already includes the current gradient, so |x| < 1 / sqrt(1 - b2). m is an
    average of such numbers for any b1, so b1 and b2 can be chosen independently.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of x, in [0, 1). Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the number that divides the gradient, >= 0. It makes x smaller where gradients
            are small. Default 1e-15.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. Default 0.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without
            the factor learning_rate.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`; `mu` is the average of x.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.laprop(0.1, b1=0.5, b2=0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (4.0, 0.0):  # x = 1, then 0
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> state.mu, updates.round(5)
        (Array([0.25], dtype=float32), Array([-0.03333], dtype=float32))

    References:
        Ziyin, Wang and Ueda 2020, LaProp: Separating Momentum and Adaptivity in Adam, Algorithm 1.
    """
    return transformation(
        make_settings(
            LAPROP,
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            weight_decay=weight_decay,
            mask=mask,
            independent_weight_decay=independent_weight_decay,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
        )
    )
