"""AdaBelief: steps by how far a gradient is from its mean (Zhuang et al. 2020)."""

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
    """Adam with the gradient's variance around m in place of its mean square.

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) |g - m|**2 + eps_root
        u = -learning_rate * m_hat / (sqrt(v_hat) + eps)

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of |g - m|**2, is kept each step, in [0, 1).
        eps: Added to the denominator, >= 0; `eps_root` alone keeps it from 0 by default.
        eps_root: Added to v in every step, >= 0, so that v tends to at least eps_root / (1 - b2).
            This is the paper's epsilon.
        nesterov: True looks one step ahead (Nesterov momentum): m_hat is then that of `nadam`.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`. None (default): no decay.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

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
    """AdaBelief's direction without learning rate and sign, for `optax.chain`.

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
