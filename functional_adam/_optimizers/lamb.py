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

    The norms are Euclidean, each over a whole leaf; where either is 0, u = -learning_rate * d.
    A leaf that stacks layers has one norm for all of them: `jax.vmap` over `update` gives each
    layer its own (see docs/variants.md). `update` always needs `params`.

    Args:
        learning_rate: Relative step size >= 0, or a schedule `count -> step size`: each leaf moves
            by learning_rate * |theta|.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the denominator in d, >= 0. It shortens d where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        weight_decay: Weight decay >= 0, or a schedule. It is a part of d, which the norms scale.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them. The norms scale every leaf,
            decayed or not.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: `update` without `params`.

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
