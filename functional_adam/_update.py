"""`update`: one step of Adam or AdamW, all arguments given at once."""

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

    Every hyperparameter is data: a Python or NumPy number (range checked), or a JAX array of
    shape (), traced or not (not checked). Python and NumPy numbers are used at full precision.
    The other choices (`moments`, `rounding`, `nesterov`, dtypes, masks, overrides, schedules) are
    not data: under `jax.jit` bind them with `functools.partial`, or name them in `static_argnames`.
    Arrays for b1 and b2 must have at least 32 bits, because 0.999 is 1 in bfloat16.

    Args:
        grads: Tree of gradients. None for an array parameter skips that leaf: zero update, no
            decay, moments untouched. For complex parameters pass the conjugate of what `jax.grad`
            returns: only the conjugate points uphill.
        state: What `init` or the last `update` returned.
        params: The parameters. Needed for `weight_decay`, `l2` and for `rounding` other than
            "nearest".
        learning_rate: Step size >= 0, or a schedule `count -> step size`; the first count is 0. A
            coordinate moves by about the step size, whatever the size of its gradient.
        b1: How much of m, the running average of gradients, is kept each step, in [0, 1).
        b2: How much of v, the running average of squared gradients, is kept each step, in [0, 1).
        eps: Added to the denominator, >= 0. It shortens the steps where gradients are small.
        eps_root: Added under the square root, >= 0. The paper has none.
        mu_dtype: Dtype of m in the state, such as "bfloat16". None (default): at least float32. A
            state of another dtype is refused. (If `mu` has 16 bits and you did not ask for them,
            most often a cast of the whole state has made it.)
        weight_decay: Decoupled weight decay >= 0, or a schedule. The learning rate multiplies it.
            Unless it is 0, `update` needs `params`.
        mask: Which parameters decay: a tree of booleans (or a prefix of one), or a function from
            the parameters to such a tree. None (default): all of them. A single boolean is refused
            beside a decay: write `mask=None` or `weight_decay=0.0`.
        nesterov: True looks one step ahead (Nesterov momentum): m_hat is then that of `nadam`. It
            is b1 m / (1 - b1**(t+1)) + (1 - b1) g / (1 - b1**t).
        nu_dtype: Dtype of v in the state, always real. None (default): at least float32. A state of
            another dtype is refused.
        moments: How m and v are stored: "full" (default), "bfloat16" or "int8", which take 8, 4 and
            2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object. A state of
            another format is refused.
        rounding: How a step of a 16-bit parameter is rounded: "nearest" (default), "stochastic",
            "compensated" or "split". All but the first keep small steps; `update` then needs
            `params`. "nearest" rounds as `apply_updates` does and loses steps below half a unit of
            the parameter. "stochastic" rounds up or down so that the mean is right. "compensated"
            rounds to nearest and stores the rest in `state.residual`, in 1/256ths of a unit.
            "split" stores all of it: training is then the same, bit for bit, as with float32
            weights that are cast in the loss. With these three the update is float32, lands exactly
            on the parameter's grid, and must come last in a chain.
        l2: L2 regularization >= 0, or a schedule: adds l2 * theta to the gradient; `update` then
            needs `params`. None (default): no regularization. The sum is the gradient of the loss
            plus l2/2 |theta|**2, as with `weight_decay` of `torch.optim.Adam`.
        independent_weight_decay: True: the learning rate does not multiply `weight_decay`.
        eps_placement: Where eps is added: "after_correction" (default) to sqrt(v_hat), or
            "before_correction" to sqrt(v), as in TensorFlow and Keras. The second is the paper's
            other form, with both corrections outside:
            `m sqrt(1 - b2**t) / (1 - b1**t) / (sqrt(v + eps_root) + eps)`.
        overrides: Hyperparameters for some leaves: a list of (regular expression, dict of
            arguments), of which the first one found in a leaf's path, such as "layers/0/bias",
            wins; or a function (path, leaf) -> dict (see docs/per-layer.md). None (default): all
            leaves have the same. A rule that matches no leaf is refused here; with a factory, at
            `init`.

    Returns:
        `(updates, state)`: updates to add to the parameters, and a state with the same structure,
        shapes and dtypes as before. An update has the dtype of its gradient, or that of its
        parameter where `params` are given and theirs is wider; it is float32 where `rounding`
        rounds the parameter. A step without any gradient is not counted.

    Raises:
        ValueError: a number out of range, or a b1 or b2 that float32 rounds to 1; trees that differ
            in structure or shape; a mask that does not fit; a state that was made with another
            `moments`, `mu_dtype`, `nu_dtype` or `rounding`; `params` that are needed and not given.
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
