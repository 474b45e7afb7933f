"""`clip_update_rms`: slower where the second moment is out of date (Wortsman et al. 2023)."""

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
    """`tx`, slower in each leaf whose gradient is large for its second moment: StableAdamW.

        rate = learning_rate / max(1, rms(g / max(sqrt(v_hat), eps)) / threshold)

    The root mean square is over the leaf, and v_hat has this step's g in it. The rate is that of
    all that `learning_rate` multiplies, and so of the decay, unless that is independent of it. The
    moments are not changed: they see the whole gradient, where clipping its norm hides the spike
    from them too.

    `adamax` has v in place of sqrt(v_hat), `adopt` and `laprop` the gradient that they divided
    themselves. A v_hat of 0 counts as 1.

    Args:
        tx: A transformation of this package (`adamw`, `lamb`, `scale_by_adam`, ...). In a chain,
            wrap the member.
        threshold: The largest root mean square that goes unclipped, > 0, or a schedule
            `count -> threshold`.
        stacked: How many leading axes of a leaf stack layers or experts, which then have a mean
            each: an integer for all leaves, a tree (or prefix of one) of integers, or a function
            from the parameters to such a tree.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package; a `threshold` or `stacked` of another type.
        ValueError: `tx` is clipped so already; a threshold <= 0; more stacked axes than a leaf has.

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
