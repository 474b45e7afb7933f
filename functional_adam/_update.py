"""`update`: one step of Adam or AdamW as a single function of all its arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from jax.typing import DTypeLike

from functional_adam import _overrides
from functional_adam._hints.keywords import explained
from functional_adam._settings import Settings, adam_like, make_settings
from functional_adam._state import AdamState
from functional_adam._step import step
from functional_adam._storage.formats import MomentFormat
from functional_adam._types import (
    Mask,
    Overrides,
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
    overrides: Overrides | None = None,
) -> tuple[PyTree, AdamState]:
    r"""One step of Adam, or of AdamW where `weight_decay` is not 0.

    With g the gradient, theta the parameter and t = count + 1:

        m <- b1 m + (1 - b1) g              m_hat = m / (1 - b1**t)
        v <- b2 v + (1 - b2) |g|**2         v_hat = v / (1 - b2**t)
        u = -learning_rate * (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay * theta)

    A hyperparameter can be a Python or NumPy number, whose range is checked and which is used at
    full precision. It can also be a JAX array of shape (), traced or not, whose value is not
    checked. Arrays for b1 and b2 must have at least 32 bits, because 0.999 is 1 in bfloat16.

    The other arguments (`moments`, `rounding`, `nesterov`, dtypes, masks, overrides, schedules)
    decide what is compiled. Under `jax.jit` bind them with `functools.partial`, or name them in
    `static_argnames`.

    Args:
        grads: Tree of gradients, like the parameters. A None leaf skips its parameter: the update
            is zero, nothing decays, and the moments stay as they are. For complex parameters pass
            the conjugate of what `jax.grad` returns, because only the conjugate points uphill.
        state: The `AdamState` that `init` or the previous `update` returned.
        params: The parameters. `weight_decay`, `l2` and every `rounding` except "nearest" need
            them.
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. A parameter moves by about the step size, whatever the size of its gradient.
            Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider. The state must have this dtype. (If `mu` has 16 bits
            and you did not ask for them, a cast of the whole state has most likely changed it.)
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. Default 0.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters. A single boolean is refused
            where anything decays: write `mask=None` or `weight_decay=0.0`.
        nesterov: True uses Nesterov momentum: m_hat looks one step ahead, as in `nadam`. m_hat is
            then b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision. The state must have this dtype.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object. The state
            must have this format.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
            "nearest" rounds as `apply_updates` does and loses steps smaller than half the distance
            to the next number. "stochastic" rounds up or down so that the mean is right.
            "compensated" rounds to nearest and stores the error in `state.residual`, in 1/256ths of
            that distance. "split" stores all of the error: training is then bit for bit the same as
            with float32 master weights that are cast in the loss. With these three the update is
            float32, moves the parameter to a number of its own dtype exactly, and must come last in
            a chain.
        l2: L2 regularization, >= 0, or a schedule `count -> l2`. It adds l2 * theta to the
            gradient, so `update` needs `params`. None (default): no regularization. The sum is the
            gradient of the loss plus l2/2 |theta|**2, as with `weight_decay` of `torch.optim.Adam`.
        independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without
            the factor learning_rate.
        eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
            "before_correction" to sqrt(v), as TensorFlow and Keras do. The second is the paper's
            other form, with both corrections outside:
            `m sqrt(1 - b2**t) / (1 - b1**t) / (sqrt(v + eps_root) + eps)`.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters. A rule that
            matches no leaf is refused here; a factory refuses it at `init`.

    Returns:
        `(updates, state)`: the updates to add to the parameters, and a state with the same
        structure, shapes and dtypes as before. An update has the dtype of its gradient, or of its
        parameter if `params` are given and their dtype is wider. Where `rounding` rounds the
        parameter, the update is float32. A step without any gradient does not count.

    Raises:
        ValueError: A number is out of range, or float32 rounds b1 or b2 to 1; trees differ in
            structure or shape, or a mask does not fit; the state was made with another `moments`,
            `mu_dtype`, `nu_dtype` or `rounding`; or `params` are needed and not given.
        TypeError: An argument or a leaf has the wrong type.

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
    settings = _settings(
        overrides,
        nesterov=nesterov,
        eps_placement=eps_placement,
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


def _settings(overrides: Any, **arguments: Any) -> Settings:
    """The settings of a call of `update`."""
    settings = _made(overrides=overrides, **arguments)
    if settings.overrides is None:
        return settings
    again = functools.partial(_again, arguments)
    return settings._replace(overrides=_overrides.bound(settings.overrides, again))


def _again(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """The settings of a call with some arguments changed."""
    signature = inspect.signature(update)
    _overrides.refuse_shared(signature.parameters, changes)
    signature.bind(None, None, **changes)  # raises for what `update` does not have
    return _made(**{**arguments, **changes})


def _made(*, nesterov: Any, eps_placement: Any, **arguments: Any) -> Settings:
    return make_settings(adam_like(nesterov, eps_placement), **arguments)
