"""`cautious`: any optimizer, without the coordinates that move uphill (Liang et al. 2024)."""

from __future__ import annotations

from functional_adam._equations import modifiers
from functional_adam._equations.family import Modifier
from functional_adam._optimizers.factory import factory
from functional_adam._optimizers.modifier import modify
from functional_adam._types import GradientTransformation


@factory
def cautious(tx: GradientTransformation) -> GradientTransformation:
    """`tx` without the coordinates whose direction differs in sign from the gradient.

    d is the direction of `tx`, before weight decay. Every coordinate with d g <= 0 becomes 0. The
    others are divided by the share of coordinates that remain in the leaf, or by 1/1000 if that is
    larger:

        d <- d [d g > 0] / max(mean([d g > 0]), 1/1000)

    The moments do not change. For complex parameters d g means Re(d conj(g)). The mean is over a
    whole leaf, so splitting a leaf changes the result. A leaf that stacks layers has one mean for
    all of them; `jax.vmap` over `update` gives each layer its own (see docs/variants.md).

    Args:
        tx: A transformation of this package (`adam`, `adamw`, `lamb`, `scale_by_adam`, ...). In a
            chain, wrap the member: `optax.chain(optax.clip(1.0), fa.cautious(fa.adam()))`.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package, so its direction and decay cannot be separated.
        ValueError: `tx` already has this modifier.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.cautious(fa.adam(0.5, b1=0.5, b2=0.5))
        >>> state = tx.init(jnp.zeros(2))
        >>> for g in ([4.0, 4.0], [4.0, -1.0]):  # the momentum of the second now points uphill
        ...     updates, state = tx.update(jnp.array(g), state)
        >>> updates.round(5)
        Array([-1., -0.], dtype=float32)

    References:
        Liang, Chen, Liu and Liu 2024, Cautious Optimizers: Improving Training with One Line of
        Code, Algorithm 1. The bound 1/1000 comes from the authors' code.
    """
    return modify(tx, Modifier("cautious", numerator=modifiers.without_climbing, whole_leaf=True))
