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
    """Adam with a second, slower average: over about 10,000 gradients, where m is over 10.

        m_slow <- b3 m_slow + (1 - b3) g        (not corrected for its start at 0)
        d = (m_hat + alpha * m_slow) / (sqrt(v_hat + eps_root) + eps)
        u = -learning_rate * (d + weight_decay * theta)

    The paper raises `alpha` from 0 and `b3` from b1 over the run: pass schedules.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        b3: How much of m_slow is kept each step, in [0, 1), or a schedule `count -> b3`.
        alpha: Weight of m_slow in the step, >= 0, or a schedule `count -> alpha`.
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        mu_dtype: Dtype of m and m_slow in the state, such as "bfloat16". None (default): at least
            float32.
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How the three moments are stored: "full" (default) or "bfloat16", which take 12 and
            6 bytes per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

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
    """AdEMAMix's direction without learning rate and sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `ademamix`, but
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
