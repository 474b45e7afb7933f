"""Yogi: a second moment that changes additively (Zaheer et al. 2018)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import YOGI
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, optional_decay
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
def yogi(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    *,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam whose v moves towards |g|**2 by (1 - b2) |g|**2, however far away it is.

        m <- b1 m + (1 - b1) g        v <- v - (1 - b2) sign(v - |g|**2) |g|**2
        u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps)

    As in Optax, m and v start at `initial_accumulator_value`, and both are corrected. (The paper
    corrects neither.)

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: 1 - b2 is the size of v's steps in units of |g|**2; b2 is in [0, 1).
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        initial_accumulator_value: What every element of m and v starts at, >= 0.
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
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: `mask` or `independent_weight_decay` without `weight_decay`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.yogi(0.1, b2=0.75, initial_accumulator_value=1.0)
        >>> _, state = tx.update(jnp.array([2.0, 0.5]), tx.init(jnp.zeros(2)))
        >>> state.nu
        Array([2.    , 0.9375], dtype=float32)

    References:
        Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization, Algorithm 2.
    """
    start = _check.scalar("initial_accumulator_value", initial_accumulator_value)
    return transformation(
        make_settings(
            YOGI,
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
            hyperparams={"initial_accumulator_value": start},
            overrides=overrides,
        )
    )


@factory
def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    mu_dtype: DTypeLike | None = None,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Yogi's direction without learning rate and sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `yogi`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_yogi(b1=0.8, eps=0.0, initial_accumulator_value=0.0)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([1.], dtype=float32)
    """
    return without_rate(
        yogi(
            1.0,
            b1,
            b2,
            eps,
            eps_root=eps_root,
            initial_accumulator_value=initial_accumulator_value,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
        ),
        overrides,
    )
