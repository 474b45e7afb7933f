"""Simplified AdEMAMix: one slow sum and the gradient itself (Morwani et al. 2025)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import SIMPLIFIED_ADEMAMIX
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
def simplified_ademamix(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """AdEMAMix with one moment: a slow sum of gradients, and this step's gradient beside it.

        m <- b1 m + g        (a sum: m is up to 1 / (1 - b1) times an average, and not corrected)
        d = (m + alpha * g) / (sqrt(v_hat + eps_root) + eps)
        u = -learning_rate * (d + weight_decay * theta)

    Steps are some 1 / (1 - b1) times as long as Adam's at the same learning rate: begin with a
    hundredth of Adam's at the default b1.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the sum of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        alpha: Weight of this step's gradient beside m, >= 0, or a schedule `count -> alpha`.
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
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
        A `GradientTransformation` whose state is an `AdamState`; `mu` is the sum m.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.simplified_ademamix(0.1, b1=0.5, alpha=2.0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array([4.0]), state)
        >>> state.mu, updates.round(6)  # 0.5 * 4 + 4; (6 + 2 * 4) / 4
        (Array([6.], dtype=float32), Array([-0.35], dtype=float32))

    References:
        Morwani et al. 2025, Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated
        SGD Variants; arguments and defaults are Optax's.
    """
    return transformation(
        make_settings(
            SIMPLIFIED_ADEMAMIX,
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
            overrides=overrides,
            hyperparams={"alpha": _check.scalar("alpha", alpha, schedule=True)},
        )
    )


@factory
def scale_by_simplified_ademamix(
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Simplified AdEMAMix's direction without learning rate and sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `simplified_ademamix`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_simplified_ademamix(alpha=2.0)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([3.], dtype=float32)
    """
    return without_rate(
        simplified_ademamix(
            1.0,
            b1,
            b2,
            alpha,
            eps,
            eps_root,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
        ),
        overrides,
    )
