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
) -> GradientTransformation:
    """Adam divided by the largest recent gradient instead of a root mean square.

        m <- b1 m + (1 - b1) g        v <- max(b2 v, |g| + eps)
        u = -learning_rate * m / (1 - b1**t) / v

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1); here b2**t is how much a gradient t steps ago still counts.
        eps: >= 0, added to |g|, as in Optax and PyTorch (the paper has none).
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`; not "int8". A state of another format is refused.
        rounding: see `update`.
        l2: None (default), or >= 0 or a schedule; `update` then needs `params`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`; `nu` is the v above.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

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
) -> GradientTransformation:
    """`adamax` with decoupled weight decay.

    u = -learning_rate * (m / (1 - b1**t) / v + weight_decay * theta), m and v as in `adamax`.

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0, added to |g|.
        weight_decay: lambda >= 0 or a schedule; `update` then needs `params`.
        mask: which parameters decay.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`; not "int8". A state of another format is refused.
        rounding: see `update`.
        independent_weight_decay: True takes the learning rate out of the decay's part of u.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range; at `init` and `update`, a mask that does not fit.
        TypeError: an argument of the wrong type.

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
) -> GradientTransformation:
    """AdaMax's direction alone, neither scaled nor signed, for `optax.chain`.

    Args:
        b1: see `adamax`, as for all arguments below. In [0, 1).
        b2: in [0, 1).
        eps: >= 0, added to |g|.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        moments: see `init`; not "int8". A state of another format is refused.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_adamax(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([1.], dtype=float32)

    References:
        Kingma and Ba 2015, Algorithm 2.
    """
    return without_rate(
        adamax(1.0, b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype, moments=moments)
    )
