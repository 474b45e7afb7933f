"""`cautious_weight_decay`: decay only where the step does not oppose it (Chen et al. 2025)."""

from __future__ import annotations

from functional_adam._equations import modifiers
from functional_adam._equations.family import Modifier
from functional_adam._optimizers.factory import factory
from functional_adam._optimizers.modifier import modifiable, modify, takes
from functional_adam._types import GradientTransformation


@factory
def cautious_weight_decay(tx: GradientTransformation) -> GradientTransformation:
    """`tx`, whose weight decay spares the weights that its step makes larger.

    With d the direction of `tx`, of which the step is -learning_rate * d:

        u = -learning_rate * (d + weight_decay * [d theta >= 0] * theta)

    Where d and theta have the same sign, the step itself makes theta smaller, and decay helps it
    on. Where their signs differ, the gradients want theta larger, and there is no decay. Where
    d = 0, theta decays. For complex parameters d theta is Re(d conj(theta)). The moments are not
    changed, and each element is judged by itself.

    Args:
        tx: A transformation of this package that takes a `weight_decay`: `adamw`, `nadamw`,
            `amsgrad`, `lamb` and others, its mask, schedule or `independent_weight_decay` included.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package.
        ValueError: `tx` takes no `weight_decay`, or is wrapped so already.

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
            "cautious_weight_decay says where weight_decay acts, and tx takes none: "
            f"{settings.origin!r}. Wrap adamw(weight_decay=...) or another factory that has it."
        )
    return modify(tx, Modifier("cautious_weight_decay", decaying=modifiers.where_it_shrinks))
