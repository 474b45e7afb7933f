"""`update`, and the factories that bind its arguments and those of `init`."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._settings import adam_like, bind
from functional_adam._state import AdamState, check_state
from functional_adam._step import is_zero, step
from functional_adam._transform import direction, transformation
from functional_adam._types import (
    GradientTransformation,
    Mask,
    Placement,
    PyTree,
    Scalar,
    ScalarOrSchedule,
)


def update(
    grads: PyTree,
    state: AdamState,
    params: PyTree | None = None,
    *,
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    l2: ScalarOrSchedule | None = None,
    independent_weight_decay: bool = False,
    eps_placement: Placement = "after_correction",
) -> tuple[PyTree, AdamState]:
    r"""One step of Adam, or of AdamW where `weight_decay` is not 0.

    With g the gradient, theta the parameter and t = count + 1:

        m <- b1 m + (1 - b1) g              m_hat = m / (1 - b1**t)
        v <- b2 v + (1 - b2) |g|**2         v_hat = v / (1 - b2**t)
        u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta)

    Every hyperparameter is data: a Python or NumPy number (range checked), or a JAX array of
    shape (), traced or not (not checked). Python and NumPy numbers are used at full precision.

    Args:
        grads: tree of gradients. None for an array parameter skips that leaf: zero update, no
            decay, moments untouched.
        state: from `init` or the last `update`.
        params: the parameters; needed for `weight_decay`.
        learning_rate: alpha >= 0, or a schedule `count -> alpha`, called with the count before
            the step (0 first).
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: >= 0, added to the square root.
        eps_root: >= 0, added under the square root.
        mu_dtype: None (default: whatever the state holds), or the dtype that `mu` must have.
        weight_decay: lambda >= 0 of decoupled decay, or a schedule `count -> lambda`. It is
            multiplied by the learning rate.
        mask: which parameters decay: a tree (or prefix of one) of booleans, or a function from
            `params` to one. None (default): all of them.
        nesterov: look one step ahead (Dozat 2016): m_hat becomes
            b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).
        nu_dtype: as `mu_dtype`, for `nu`.
        l2: None (default), or >= 0, or a schedule: g + l2 theta takes the place of g, the
            gradient of the loss plus l2/2 |theta|**2 (`weight_decay` of `torch.optim.Adam`).
            Needs `params`.
        independent_weight_decay: True makes the decay's part of u -weight_decay * theta, not
            multiplied by the learning rate.
        eps_placement: "after_correction" as above; "before_correction" for the paper's other
            form, with eps added to sqrt(v) and both corrections outside, as in TensorFlow and
            Keras: m sqrt(1 - b2**t) / (1 - b1**t) / (sqrt(v + eps_root) + eps).

    Returns:
        `(updates, state)`: updates to add to the parameters, each with its gradient's dtype, and
        a state with the same structure, shapes and dtypes as before.

    Raises:
        ValueError: a number out of range; trees that differ in structure or shape; decay without
            `params`; a b that float32 rounds to 1.
        TypeError: an argument or a leaf of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> params, grads = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
        >>> updates, state = fa.update(grads, fa.init(params), learning_rate=0.1)
        >>> fa.apply_updates(params, updates).round(6)  # the first step is the gradient's sign
        Array([ 0.9, -2.1], dtype=float32)

    References:
        Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, Algorithm 1.
        Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, Algorithm 2.
        Dozat 2016, Incorporating Nesterov Momentum into Adam.
    """
    bound = bind(
        adam_like(nesterov, eps_placement),
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        mask=mask,
        independent_weight_decay=independent_weight_decay,
        l2=l2,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
    )
    if is_zero(bound.weight_decay):
        # Then `step` looks at neither: right for Optax's wrappers, which pass what they have, but
        # here whatever is given was meant.
        check_state(state, bound.variant.name)
        if params is not None:
            _check.leaves_like("params", params, state.mu, "the parameters given to init")
        if mask is not None:
            _check.mask_leaves(bound.mask, state.mu if params is None else params)
    return step(bound, grads, state, params)


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
    l2: ScalarOrSchedule | None = None,
    eps_placement: Placement = "after_correction",
) -> GradientTransformation:
    """Adam as an Optax-compatible transformation: `init` and `update` with these arguments bound.

    u = -learning_rate * m_hat / (sqrt(v_hat + eps_root) + eps); no decoupled decay (see `adamw`).
    Argument order and defaults are Optax's, where `learning_rate` has no default.

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nesterov: True or False.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        l2: None (default), or >= 0 or a schedule; `update` then needs `params`.
        eps_placement: "after_correction" or "before_correction".

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

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
        bind(
            adam_like(nesterov, eps_placement),
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            l2=l2,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
        )
    )


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
    independent_weight_decay: bool = False,
    eps_placement: Placement = "after_correction",
) -> GradientTransformation:
    """Adam with decoupled weight decay, as an Optax-compatible transformation.

    u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta).
    Argument order and defaults are Optax's (`torch.optim.AdamW` has `weight_decay=1e-2`).

    Args:
        learning_rate: see `update`, as for all arguments below.
        b1: in [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        weight_decay: lambda >= 0 or a schedule; `update` then needs `params`.
        mask: which parameters decay.
        nesterov: True or False.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        independent_weight_decay: True takes the learning rate out of the decay's part of u.
        eps_placement: "after_correction" or "before_correction".

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range; at `init` and `update`, a mask that does not fit.
        TypeError: an argument of the wrong type.

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
        bind(
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
        )
    )


def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    eps_placement: Placement = "after_correction",
) -> GradientTransformation:
    """Adam's direction alone, neither scaled nor signed, for `optax.chain`.

    u = m_hat / (sqrt(v_hat + eps_root) + eps): to descend, scale it by a negative number.

    Args:
        b1: see `update`, as for all arguments below. In [0, 1).
        b2: in [0, 1).
        eps: >= 0.
        eps_root: >= 0.
        mu_dtype: see `init`; a state that holds another dtype is refused.
        nesterov: True or False.
        nu_dtype: see `init`; a state that holds another dtype is refused.
        eps_placement: "after_correction" or "before_correction".

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_adam(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction.round(6)
        Array([1.], dtype=float32)

    References:
        Kingma and Ba 2015, Algorithm 1.
    """
    return direction(
        adam(
            1.0,
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            nesterov=nesterov,
            nu_dtype=nu_dtype,
            eps_placement=eps_placement,
        )
    )
