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
    Overrides,
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
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam for large batches: every leaf moves by the same fraction of its own norm.

        d = m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta
        u = -learning_rate * |theta| / |d| * d

    The norms are Euclidean, each over a whole leaf. Where one of them is 0, u is
    -learning_rate * d. A leaf that stacks layers has one norm for all of them; `jax.vmap` over
    `update` gives each layer its own (see docs/variants.md). `update` always needs `params`.

    Args:
        learning_rate: Relative step size, >= 0, or a schedule `count -> step size`. Each leaf moves
            by learning_rate * |theta|. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator in d, >= 0. A larger value shortens d where gradients are
            small. Default 1e-6.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        weight_decay: Weight decay, >= 0, or a schedule `count -> weight decay`. It is part of d, so
            the norms scale it too. Default 0.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters. The norms scale every leaf,
            whether it decays or not.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: `update` is called without `params`.

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
            overrides=overrides,
        )
    )
