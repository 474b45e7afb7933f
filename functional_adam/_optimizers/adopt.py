"""ADOPT: Adam that divides each gradient before averaging (Taniguchi et al. 2024)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from functional_adam import _check
from functional_adam._equations import formulas as F
from functional_adam._equations.family import ADOPT
from functional_adam._optimizers.factory import factory
from functional_adam._settings import make_settings, optional_decay, with_nesterov
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


def _fourth_root(count: ArrayLike) -> jax.Array:
    return jnp.sqrt(jnp.sqrt(jnp.asarray(count, float)))


def _unbounded(count: ArrayLike) -> jax.Array:
    return jnp.full_like(count, math.inf, dtype=float)


@factory
def adopt(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: ScalarOrSchedule = _fourth_root,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    independent_weight_decay: bool = False,
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """Adam that divides each gradient by the root of the previous v and then averages.

    The first step only sets v = |g|**2. Later steps, with c = clip_value_fn(count), are:

        x = clip(g / max(sqrt(v), eps), -c, c)        m <- b1 m + (1 - b1) x
        v <- b2 v + (1 - b2) |g|**2                   u = -learning_rate * m

    Args:
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of x, in [0, 1). Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.9999.
        eps: Lower bound of the number that divides the gradient, >= 0. Default 1e-6.
        mu_dtype: Dtype in which m is stored, such as "bfloat16". None (default): float32, or the
            parameter's dtype if that is wider.
        nesterov: True replaces m in u by b1 m + (1 - b1) x, with the new m.
        use_clipping: True (default) clips x to [-c, c].
        clip_value_fn: The bound c: a schedule `count -> c`, or a constant >= 0. The default is
            count**(1/4). Clipping keeps the phase of a complex x.
        nu_dtype: Dtype in which v is stored; always real. None (default): float32, or float64 for
            parameters of 64-bit precision.
        moments: Storage format of m and v: "full" (default) or "bfloat16", which take 8 and 4 bytes
            per float32 parameter; or a `Full` or `BFloat16` object. "int8" is refused.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them, and `update` then needs `params`. Wider parameters are not affected.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Unless it is 0, `update`
            needs `params`. None (default): no decay.
        mask: Which parameters decay: a tree of booleans, a prefix of one, or a function from the
            parameters to such a tree. None (default): all parameters.
        independent_weight_decay: True shrinks theta by the fraction `weight_decay` itself, without
            the factor learning_rate.
        overrides: Other hyperparameters for some leaves: a list of (regular expression, dict of
            arguments) pairs, or a function (path, leaf) -> dict. A leaf gets the arguments of the
            first pair whose expression is found in its path, such as "layers/0/bias". See
            docs/per-layer.md. None (default): all leaves have the same hyperparameters.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Raises:
        ValueError: `clip_value_fn` is given with `use_clipping=False`, or `mask` or
            `independent_weight_decay` without `weight_decay`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.adopt(0.1, b1=0.8)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (4.0, 2.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        >>> updates.round(6)  # x = 2 / 4
        Array([-0.01], dtype=float32)

    References:
        Taniguchi et al. 2024, ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal
        Rate, Algorithm 2.
    """
    return transformation(
        make_settings(
            **_variant(nesterov, use_clipping, clip_value_fn),
            learning_rate=learning_rate,
            b1=b1,
            b2=b2,
            eps=eps,
            **optional_decay(weight_decay, mask, independent_weight_decay),
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            moments=moments,
            rounding=rounding,
            overrides=overrides,
        )
    )


@factory
def scale_by_adopt(
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: ScalarOrSchedule = _fourth_root,
    nu_dtype: DTypeLike | None = None,
    moments: MomentFormat = "full",
    overrides: Overrides | None = None,
) -> GradientTransformation:
    """ADOPT's direction, without learning rate and minus sign, for `optax.chain`.

    Follow it with `optax.scale_by_learning_rate`. The arguments are as in `adopt`.

    Returns:
        A `GradientTransformation` whose state is an `AdamState`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.scale_by_adopt(b1=0.8)
        >>> direction, state = tx.update(jnp.array([5.0]), tx.init(jnp.array([0.0])))
        >>> direction, state.nu  # the first step only sets v
        (Array([0.], dtype=float32), Array([25.], dtype=float32))
    """
    return without_rate(
        adopt(
            1.0,
            b1,
            b2,
            eps,
            mu_dtype,
            nesterov=nesterov,
            use_clipping=use_clipping,
            clip_value_fn=clip_value_fn,
            nu_dtype=nu_dtype,
            moments=moments,
        ),
        overrides,
    )


def _variant(nesterov: Any, use_clipping: Any, clip_value_fn: Any) -> dict[str, Any]:
    """The variant and its own hyperparameters."""
    clip = _check.scalar("clip_value_fn", clip_value_fn, schedule=True)
    clips = _check.flag("use_clipping", use_clipping)
    # (optax.inject_hyperparams passes an array, even for the default.)
    if not clips and clip is not _fourth_root and not isinstance(clip, jax.Array):
        raise ValueError(
            "clip_value_fn has no effect with use_clipping=False: leave it out, or pass "
            "use_clipping=True."
        )
    return {
        "variant": with_nesterov(ADOPT, nesterov, F.uncorrected_nesterov_weights),
        "hyperparams": {"clip_value_fn": clip if clips else _unbounded},
    }
