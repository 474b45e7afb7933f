"""NAdam: Adam that looks one step ahead (Dozat 2016)."""

from __future__ import annotations

from typing import Any

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations import formulas as F
from functional_adam._equations.family import ADAM
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, with_eps
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation
from functional_adam._types import (
    GradientTransformation,
    Mask,
    Overrides,
    ParameterRounding,
    Placement,
    Scalar,
    ScalarOrSchedule,
)


@factory
def nadam(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    momentum_decay: Scalar | None = None,
    l2: ScalarOrSchedule | None = None,
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam with Nesterov momentum: m_hat looks one step ahead.

    m, v and v_hat are computed as in `adam`. The default is Optax's simplified form, which
    `adam(nesterov=True)` uses too:

        m_hat = b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t)
        u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps)

    `momentum_decay` = psi replaces b1 by Dozat's schedule mu_t = b1 (1 - 0.96**(t psi) / 2), as in
    PyTorch. With P_t = mu_1 mu_2 ... mu_t:

        m_hat = mu_(t+1) m / (1 - P_(t+1)) + (1 - mu_t) g / (1 - P_t)

    The state is the same as Adam's, because P_t is computed from t alone.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        momentum_decay: The constant psi >= 0 of Dozat's momentum schedule; PyTorch's default is
            0.004. None (default): the simplified form.
        l2: L2 regularization, >= 0, or a schedule `count -> l2`. It adds l2 * theta to the
            gradient, so `update` needs `params`. None (default): no regularization.
        eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
            "before_correction" to sqrt(v), as TensorFlow and Keras do.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.nadam(0.1, b1=0.9, momentum_decay=4e-3)
        >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([3.0])))
        >>> updates.round(5)
        Array([-0.10565], dtype=float32)

    References:
        Dozat 2016, Incorporating Nesterov Momentum into Adam, Algorithm 2.
    """
    return transformation(
        make_settings(
            **_look_ahead(momentum_decay, eps_placement),
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            l2=l2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
        )
    )


@factory
def nadamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    momentum_decay: Scalar | None = None,
    independent_weight_decay: bool = False,
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """`nadam` with decoupled weight decay.

    u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta), with the
    m_hat of `nadam`.

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. Default 0.0001.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        momentum_decay: The constant psi >= 0 of Dozat's momentum schedule; PyTorch's default is
            0.004. None (default): the simplified form.
        independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without
            the factor learning_rate.
        eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
            "before_correction" to sqrt(v), as TensorFlow and Keras do.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, theta = fa.nadamw(0.5, weight_decay=0.25), jnp.array([2.0])
        >>> updates, state = tx.update(jnp.array([0.0]), tx.init(theta), theta)
        >>> updates
        Array([-0.25], dtype=float32)

    References:
        Dozat 2016, Algorithm 2. Loshchilov and Hutter 2019, Algorithm 2.
    """
    return transformation(
        make_settings(
            **_look_ahead(momentum_decay, eps_placement),
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
        )
    )


def _look_ahead(momentum_decay: Any, eps_placement: Any) -> dict[str, Any]:
    """The variant and its own hyperparameters."""
    variant = with_eps(ADAM, eps_placement)._replace(name="nadam")
    if momentum_decay is None:
        return {"variant": variant.look_ahead()}
    return {
        "variant": variant.look_ahead(F.dozat_weights),
        "hyperparams": {"momentum_decay": _check.scalar("momentum_decay", momentum_decay)},
    }
