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
    """Adam divided by the largest recent gradient instead of the root of v.

        m <- b1 m + (1 - b1) g        v <- max(b2 v, |g| + eps)
        u = -learning_rate * m / (1 - b1**t) / v

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v is kept each step, in [0, 1): a gradient t steps ago counts b2**t of its
            size.
        eps: Added to |g|, >= 0, as in Optax and PyTorch. The paper has none.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        l2: L2 regularization >= 0, or a schedule: adds l2 * theta to the gradient; `update` then
            needs `params`. None (default): no regularization.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

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
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v is kept each step, in [0, 1): a gradient t steps ago counts b2**t of its
            size.
        eps: Added to |g|, >= 0, as in Optax and PyTorch. The paper has none.
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
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
    """AdaMax's direction without learning rate and sign, for `optax.chain`.

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
