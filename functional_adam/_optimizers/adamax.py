"""AdaMax: Adam with the infinity norm (Kingma & Ba 2015)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam._equations.family import ADAMAX
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation, without_rate
from functional_adam._types import (
    GradientTransformation,
    Mask,
    Overrides,
    ParameterRounding,
    Scalar,
    ScalarOrSchedule,
)


@factory
def adamax(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    l2: ScalarOrSchedule | None = None,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam that divides by the largest recent gradient instead of the root of v.

        m <- b1 m + (1 - b1) g        v <- max(b2 v, |g| + eps)
        u = -learning_rate * m / (1 - b1**t) / v

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, in [0, 1): a gradient from t steps ago counts with b2**t of its size.
            Default 0.999.
        eps: Added to |g|, >= 0, as Optax and PyTorch do. The paper does not have it. Default 1e-8.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        l2: L2 regularization, >= 0, or a schedule `count -> l2`. It adds l2 * theta to the
            gradient, so `update` needs `params`. None (default): no regularization.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`; `nu` is the v above.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.adamax(0.1, b2=0.5)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (8.0, 1.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> state.nu
        Array([4.], dtype=float32)

    References:
        Kingma and Ba 2015, Algorithm 2.
    """
    return transformation(
        make_settings(
            ADAMAX,
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            l2=l2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
        )
    )


@factory
def adamaxw(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """`adamax` with decoupled weight decay.

    u = -learning_rate * (m / (1 - b1**t) / v + weight_decay * theta), with the m and v of `adamax`.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, in [0, 1): a gradient from t steps ago counts with b2**t of its size.
            Default 0.999.
        eps: Added to |g|, >= 0, as Optax and PyTorch do. The paper does not have it. Default 1e-8.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. Default 0.0001.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
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
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, theta = fa.adamaxw(0.5, weight_decay=0.25), jnp.array([2.0])
        >>> updates, state = tx.update(jnp.array([0.0]), tx.init(theta), theta)
        >>> updates
        Array([-0.25], dtype=float32)

    References:
        Kingma and Ba 2015, Algorithm 2. Loshchilov and Hutter 2019, Algorithm 2.
    """
    return transformation(
        make_settings(
            ADAMAX,
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


@factory
def scale_by_adamax(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """AdaMax's direction, without learning rate and minus sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `adamax`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_adamax(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([1.], dtype=float32)
    """
    return without_rate(
        adamax(1.0, b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype, moments=moments),
        overrides,
    )
