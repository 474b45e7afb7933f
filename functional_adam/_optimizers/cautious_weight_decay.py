"""`cautious_weight_decay`: decay only where the step does not oppose it (Chen et al. 2025)."""

from __future__ import annotations

from functional_adam._equations import modifiers
from functional_adam._equations.family import Modifier
from functional_adam._optimizers.factory import factory
from functional_adam._optimizers.modifier import modifiable, modify, takes
from functional_adam._types import GradientTransformation


@factory
def cautious_weight_decay(tx: GradientTransformation) -> GradientTransformation:
    """`tx` without weight decay on the weights that its own step makes larger.

    With d the direction of `tx`, whose step is -learning_rate * d:

        u = -learning_rate * (d + weight_decay * [d theta >= 0] * theta)

    Where d and theta have the same sign, the step makes theta smaller, and theta decays as well.
    Where their signs differ, the step makes theta larger, and theta does not decay. Where d = 0,
    theta decays. Each element is treated on its own, and the moments do not change. For complex
    parameters d theta means Re(d conj(theta)).

    Args:
        tx: A transformation of this package that takes a `weight_decay`: `adamw`, `nadamw`,
            `amsgrad`, `lamb` and others. Its `mask`, schedule and `independent_weight_decay` stay
            in force.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package.
        ValueError: `tx` takes no `weight_decay`, or already has this modifier.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.cautious_weight_decay(fa.adamw(0.5, weight_decay=0.5))
        >>> theta = jnp.array([2.0, -2.0])
        >>> updates, state = tx.update(jnp.array([3.0, 3.0]), tx.init(theta), theta)
        >>> updates.round(5)  # the second weight grows: no decay
        Array([-1. , -0.5], dtype=float32)

    References:
        Chen et al. 2025, Cautious Weight Decay, Algorithm 1.
    """
    settings = modifiable(tx, "cautious_weight_decay")
    if not takes(settings, "weight_decay"):
        raise ValueError(
            "cautious_weight_decay needs a tx with weight decay, but "
            f"{settings.origin!r} takes no weight_decay. Wrap adamw(weight_decay=...) instead, or "
            "another optimizer that takes it."
        )
    return modify(tx, Modifier("cautious_weight_decay", decaying=modifiers.where_it_shrinks))
