"""AdaBelief: steps shrink as gradients stray from their average (Zhuang et al. 2020)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam._equations.family import ADABELIEF
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, optional_decay, with_nesterov
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
def adabelief(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam with the variance of the gradient around m in place of its mean square.

    m_hat and v_hat are corrected for the start at 0, as in `adam`:

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) |g - m|**2 + eps_root
        u = -learning_rate * m_hat / (sqrt(v_hat) + eps)

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of |g - m|**2, in [0, 1). Default 0.999.
        eps: Added to the denominator, >= 0. With the default `eps_root` the denominator is positive
            even without it. Default 1e-16.
        eps_root: Added to v in every step, >= 0. In the long run it keeps v at or above eps_root /
            (1 - b2). The paper calls it epsilon. Default 1e-16.
        nesterov: True uses Nesterov momentum: m_hat looks one step ahead, as in `nadam`.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. None (default): no decay.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without
            the factor learning_rate.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`; `nu` is the v above.

    Raises:
        ValueError: `mask` or `independent_weight_decay` without `weight_decay`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.adabelief(0.1, b1=0.8)
        >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([3.0])))
        >>> updates.round(6)  # m_hat = g, and g - m = 0.8 g
        Array([-0.125], dtype=float32)

    References:
        Zhuang et al. 2020, AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
        Gradients, Algorithm 2.
    """
    return transformation(
        make_settings(
            with_nesterov(ADABELIEF, nesterov),
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            **optional_decay(weight_decay, mask, independent_weight_decay),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
        )
    )


@factory
def scale_by_belief(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """AdaBelief's direction, without learning rate and minus sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `adabelief`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_belief(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(5)
        Array([1.25], dtype=float32)
    """
    return without_rate(
        adabelief(
            1.0,
            b1,
            b2,
            eps,
            eps_root,
            nesterov=nesterov,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
        ),
        overrides,
    )
