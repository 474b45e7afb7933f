"""Adam-atan2: Adam without eps (Everett et al. 2024)."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import ADAM_ATAN2
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
def adam_atan2(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    a: Scalar = 1.27,
    b: Scalar = 1.0,
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
    """Adam without eps: an arctangent in place of the division, which never divides by 0.

        d = a * atan2(m_hat, b * sqrt(v_hat))
        u = -learning_rate * (d + weight_decay * theta)

    Scaling the loss by any number changes nothing, as far as v holds the squares (down to gradients
    of 1e-19 in float32). No element of d is larger than a * pi / 2. Where m_hat is much smaller
    than b * sqrt(v_hat), d is a / b times Adam's direction. For complex gradients d has the size
    a * atan2(|m_hat|, b * sqrt(v_hat)) and the phase of m_hat.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        a: Factor of the arctangent, >= 0. The default is 4 / pi, with which d = 1 for a gradient
            that never changes, if b = 1.
        b: Factor of sqrt(v_hat) in the arctangent, >= 0. A large one with an equally large `a` is
            Adam; a small one makes steps that go by the sign of m_hat.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`, the same as Adam's.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.adam_atan2(0.1, a=1.0)
        >>> updates, state = tx.update(jnp.array([2e-30, 0.0]), tx.init(jnp.zeros(2)))
        >>> updates.round(6)  # pi / 2: the square of 2e-30 is 0 in float32
        Array([-0.15708, -0.     ], dtype=float32)

    References:
        Everett et al. 2024, Scaling Exponents Across Parameterizations and Optimizers, section 3.3;
        the default of `a` is that of lucidrains' adam-atan2-pytorch.
    """
    return transformation(
        make_settings(
            ADAM_ATAN2,
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=0.0,
            weight_decay=weight_decay,
            mask=mask,
            independent_weight_decay=independent_weight_decay,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
            hyperparams={"a": _check.scalar("a", a), "b": _check.scalar("b", b)},
        )
    )
