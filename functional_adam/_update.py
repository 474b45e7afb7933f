"""`update`: one step of Adam or AdamW, all arguments given at once."""

from __future__ import annotations

from jax.typing import DTypeLike

from functional_adam._hints.keywords import explained
from functional_adam._settings import adam_like, make_settings
from functional_adam._state import AdamState
from functional_adam._step import step
from functional_adam._storage.formats import MomentFormat
from functional_adam._types import (
    Mask,
    ParameterRounding,
    Placement,
    PyTree,
    Scalar,
    ScalarOrSchedule,
)


@explained
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
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
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
    The other choices (`moments`, `rounding`, `nesterov`, dtypes, masks, schedules) are no data:
    under `jax.jit` bind them with `functools.partial`, or name them in `static_argnames`.
    Arrays for b1 and b2 must have at least 32 bits, because 0.999 is 1 in bfloat16.

    Args:
        grads: tree of gradients. None for an array parameter skips that leaf: zero update, no
            decay, moments untouched. For complex parameters pass the conjugate of what `jax.grad`
            returns, which alone points uphill.
        state: from `init` or the last `update`.
        params: the parameters; needed for `weight_decay`.
        learning_rate: alpha >= 0, or a schedule `count -> alpha`, called with the count before
            the step (0 first). A coordinate moves by about alpha in a step, whatever its gradient:
            the rate is in the parameter's own unit, so no number is too large to be meant.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: >= 0, added to the square root.
        eps_root: >= 0, added under the square root.
        mu_dtype: None (default: `mu` has 32 bits or more), or the dtype that `mu` must have, as
            given to `init`. A `mu` of 16 bits that was not asked for here is refused: most often a
            cast of the whole state has made it.
        weight_decay: lambda >= 0 of decoupled decay, or a schedule `count -> lambda`. It is
            multiplied by the learning rate.
        mask: which parameters decay: a tree (or prefix of one) of booleans, or a function from
            `params` to one. None (default): all of them. A single boolean is refused beside a
            decay: write `mask=None` or `weight_decay=0.0`.
        nesterov: look one step ahead (Dozat 2016): m_hat becomes
            b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).
        nu_dtype: as `mu_dtype`, for `nu`.
        moments: the format that `state` has: see `init`.
        rounding: how a parameter of 16 bits takes its step. "nearest" (default): as
            `apply_updates` rounds, which loses what is below half a unit of the parameter.
            "stochastic": up or down so that the mean is right. "compensated": to nearest, and what
            is missing is kept in `state.residual`, in 1/256ths of a unit. These two need `params`,
            give a float32 update that lands exactly on the parameter's grid, and must come last
            where transformations are chained. Parameters of other dtypes are not affected.
        l2: None (default), or >= 0, or a schedule: g + l2 theta takes the place of g, the
            gradient of the loss plus l2/2 |theta|**2 (`weight_decay` of `torch.optim.Adam`).
            Needs `params`.
        independent_weight_decay: True makes the decay's part of u -weight_decay * theta, not
            multiplied by the learning rate.
        eps_placement: "after_correction" as above; "before_correction" for the paper's other
            form, with eps added to sqrt(v) and both corrections outside, as in TensorFlow and
            Keras: m sqrt(1 - b2**t) / (1 - b1**t) / (sqrt(v + eps_root) + eps).

    Returns:
        `(updates, state)`: updates to add to the parameters, and a state with the same structure,
        shapes and dtypes as before. An update has the wider dtype of its gradient and, where
        `params` are given, its parameter; it is float32 where the parameter is rounded. A step
        without any gradient is not counted.

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
    settings = make_settings(
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
        moments=moments,
        rounding=rounding,
    )
    return step(settings, grads, state, params, strict=True)
