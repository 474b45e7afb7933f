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
    """Adam without eps: an arctangent replaces the division, so nothing is divided by 0.

        d = a * atan2(m_hat, b * sqrt(v_hat))
        u = -learning_rate * (d + weight_decay * theta)

    Scaling the loss by any number does not change the steps, as long as v can hold the squares (for
    gradients down to 1e-19 in float32). No element of d is larger than a * pi / 2. Where m_hat is
    much smaller than b * sqrt(v_hat), d is a / b times Adam's direction. For complex gradients d
    has the size a * atan2(|m_hat|, b * sqrt(v_hat)) and the phase of m_hat.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        a: Factor in front of the arctangent, >= 0. With b = 1, a = 4 / pi (about 1.27) gives d = 1
            for a gradient that never changes. Default 1.27.
        b: Factor of sqrt(v_hat) inside the arctangent, >= 0. A large `b` with an equally large `a`
            gives Adam. A small `b` gives steps that depend mostly on the sign of m_hat. Default 1.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. Default 0.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
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
        A `GradientTransformation` whose state is the same `AdamState` as that of `adam`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.adam_atan2(0.1, a=1.0)
        >>> updates, state = tx.update(jnp.array([2e-30, 0.0]), tx.init(jnp.zeros(2)))
        >>> updates.round(6)  # pi / 2: the square of 2e-30 is 0 in float32
        Array([-0.15708, -0.     ], dtype=float32)

    References:
        Everett et al. 2024, Scaling Exponents Across Parameterizations and Optimizers, section 3.3.
        The default of `a` comes from lucidrains' adam-atan2-pytorch.
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
