"""LaProp: divides the gradient, then averages (Ziyin, Wang & Ueda 2020)."""

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
    """Adam that divides each gradient by the root of v first, and averages the quotients.

        x = g / (sqrt(v_hat) + eps)             m <- b1 m + (1 - b1) x
        u = -learning_rate * (m_hat + weight_decay * theta)

    v has this step's gradient in it, unlike that of `adopt`, so that |x| < 1 / sqrt(1 - b2), and m
    is an average of such numbers for any b1: momentum and v need not fit each other.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of x, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the divisor of a gradient, >= 0. It makes x smaller where gradients are small.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

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
