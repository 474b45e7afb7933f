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

    u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps), by default with the simplified form
    of Optax (and of `adam(nesterov=True)`):

        m_hat = b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t)

    `momentum_decay` psi uses Dozat's schedule mu_t = b1 (1 - 0.96**(t psi) / 2), as PyTorch does.
    With P_t = mu_1 mu_2 ... mu_t:

        m_hat = mu_(t+1) m / (1 - P_(t+1)) + (1 - mu_t) g / (1 - P_t)

    The state is Adam's: P_t is computed from t alone.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
        momentum_decay: psi >= 0 of Dozat's momentum schedule; PyTorch's default is 0.004. None
            (default): the simplified form.
        l2: L2 regularization >= 0, or a schedule: adds l2 * theta to the gradient; `update` then
            needs `params`. None (default): no regularization.
        eps_placement: Where eps is added: "after_correction" (default) to sqrt(v_hat), or
            "before_correction" to sqrt(v), as in TensorFlow and Keras.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

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
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
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
        momentum_decay: psi >= 0 of Dozat's momentum schedule; PyTorch's default is 0.004. None
            (default): the simplified form.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        eps_placement: Where eps is added: "after_correction" (default) to sqrt(v_hat), or
            "before_correction" to sqrt(v), as in TensorFlow and Keras.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same.

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
