"""Adam and AdamW (Kingma & Ba 2015, Loshchilov & Hutter 2019) as transformations."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam._optimizers.factory import factory
from functional_adam._settings import adam_like, make_settings
from functional_adam._storage.formats import MomentFormat
from functional_adam._transform import transformation, without_rate
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
def adam(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    l2: ScalarOrSchedule | None = None,
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam: the average gradient divided by the root of the average squared gradient.

        m <- b1 m + (1 - b1) g              m_hat = m / (1 - b1**t)
        v <- b2 v + (1 - b2) |g|**2         v_hat = v / (1 - b2**t)
        u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps)

    Argument order and defaults are Optax's. For weight decay see `adamw`.

    Args:
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32.
        nesterov: True looks one step ahead (Nesterov momentum): m_hat is then that of `nadam`.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
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
        >>> tx = fa.adam(0.1, b2=0.99)
        >>> params = jnp.array([3.0])
        >>> updates, state = tx.update(jnp.array([2.0]), tx.init(params), params)
        >>> updates.round(6)
        Array([-0.1], dtype=float32)

    References:
        Kingma and Ba 2015, Algorithm 1.
    """
    return transformation(
        make_settings(
            adam_like(nesterov, eps_placement),
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
def adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    independent_weight_decay: bool = False,
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam with decoupled weight decay.

    u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta), with m_hat
    and v_hat the averages of the gradient and of its square, corrected for their start at 0.
    Argument order and defaults are Optax's (`torch.optim.AdamW` has `weight_decay=1e-2`).

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
        nesterov: True looks one step ahead (Nesterov momentum): m_hat is then that of `nadam`.
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`.
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
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        >>> tx = fa.adamw(0.5, weight_decay=0.1, mask=matrices)
        >>> params = {"b": jnp.ones(1), "w": jnp.ones((1, 1))}
        >>> zeros = {"b": jnp.zeros(1), "w": jnp.zeros((1, 1))}
        >>> updates, state = tx.update(zeros, tx.init(params), params)
        >>> updates["w"].round(6)  # decays; b does not
        Array([[-0.05]], dtype=float32)

    References:
        Loshchilov and Hutter 2019, Algorithm 2.
    """
    return transformation(
        make_settings(
            adam_like(nesterov, eps_placement),
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


@factory
def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    eps_placement: Placement = "after_correction",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam's direction without learning rate and sign, for `optax.chain`.

    u = m_hat / (sqrt(v_hat + eps_root) + eps).

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `adam`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_adam(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([1.], dtype=float32)
    """
    return without_rate(
        adam(
            1.0,
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            nesterov=nesterov,
            nu_dtype=nu_dtype,
            moments=moments,
            eps_placement=eps_placement,
        ),
        overrides,
    )
