"""`clip_update_rms`: smaller steps where the second moment lags (Wortsman et al. 2023)."""

from __future__ import annotations

from typing import Any

from functional_adam import _check
from functional_adam._equations import modifiers
from functional_adam._equations.family import Modifier
from functional_adam._masks import STACKED, hashable
from functional_adam._optimizers.factory import factory
from functional_adam._optimizers.modifier import modify
from functional_adam._types import GradientTransformation, PyTree, ScalarOrSchedule


@factory
def clip_update_rms(
    tx: GradientTransformation, threshold: ScalarOrSchedule = 1.0, *, stacked: PyTree = 0
) -> GradientTransformation:
    """`tx` with a lower rate in each leaf whose gradient is too large for v: StableAdamW.

        rate = learning_rate / max(1, rms(g / max(sqrt(v_hat), eps)) / threshold)

    The root mean square is taken over the leaf, and v_hat already includes the current g. The lower
    rate applies to everything that `learning_rate` multiplies. That includes the decay, unless
    `independent_weight_decay` is set. The moments do not change: they see the whole gradient,
    whereas clipping the gradient's norm hides a spike from them too.

    With `adamax`, v replaces sqrt(v_hat). With `adopt` and `laprop`, the quotient is the gradient
    that they have divided themselves. A v_hat of 0 counts as 1.

    Args:
        tx: A transformation of this package (`adamw`, `lamb`, `scale_by_adam`, ...). In a chain,
            wrap the member.
        threshold: Largest root mean square that leaves the rate unchanged, > 0, or a schedule
            `count -> threshold`. Default 1.
        stacked: How many leading axes of a leaf stack layers or experts. Each of these then has a
            mean of its own. An integer for all leaves, a tree of integers (or a prefix of one), or
            a function from the parameters to such a tree. Default 0.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package, or `threshold` or `stacked` has another type.
        ValueError: `tx` already has this modifier, `threshold` is not positive, or `stacked` is
            larger than the number of axes of a leaf.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.clip_update_rms(fa.adam(0.5, b1=0.0, b2=0.75))
        >>> state = tx.init(jnp.zeros(2))
        >>> for g in (1.0, 1.0, 100.0):  # v_hat trails behind: g / sqrt(v_hat) = 1.52
        ...     updates, state = tx.update(jnp.full(2, g), state)
        >>> updates.round(5)  # 0.5 and no more
        Array([-0.5, -0.5], dtype=float32)

    References:
        Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language
        models, Algorithm 2.
    """
    name = "clip_update_rms"
    hyperparams: dict[str, Any] = {
        modifiers.THRESHOLD: _check.scalar("threshold", threshold, schedule=True, above=0.0)
    }
    modifier = Modifier(
        name,
        scalars=modifiers.clipped_rate,
        whole_leaf=True,
        stacked=hashable(stacked, STACKED),
    )
    return modify(tx, modifier, hyperparams)
