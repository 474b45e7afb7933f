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
    Overrides,
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
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam with a second, slower average of gradients: over about 10,000 of them, m over 10.

        m_slow <- b3 m_slow + (1 - b3) g        (not corrected for its start at 0)
        d = (m_hat + alpha * m_slow) / (sqrt(v_hat + eps_root) + eps)
        u = -learning_rate * (d + weight_decay * theta)

    The paper raises `alpha` from 0 and `b3` from b1 during the run: pass schedules for that.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        b3: Decay rate of m_slow, the slow average of gradients, in [0, 1), or a schedule
            `count -> b3`. Default 0.9999.
        alpha: Weight of m_slow in the step, >= 0, or a schedule `count -> alpha`. Default 5.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        mu_dtype: Dtype in which m and m_slow are stored, such as "bfloat16". None (default):
            float32, or the parameter's dtype if that is wider.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. Default 0.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of the three moments: "full" (default) or "bfloat16", which take 12
            and 6 bytes per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
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
        A `GradientTransformation` whose state is an `AdamState`; `extra["mu_slow"]` is m_slow.

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
            overrides=overrides,
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
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """AdEMAMix's direction, without learning rate and minus sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `ademamix`, except that
    `alpha` is 6 by default, as in Optax.

    Returns:
        A `GradientTransformation` whose state is an `AdamState` with `extra["mu_slow"]`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_ademamix(b3=0.99)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(5)
        Array([1.06], dtype=float32)
    """
    return without_rate(
        ademamix(
            1.0, b1, b2, b3, alpha, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, moments=moments
        ),
        overrides,
    )
