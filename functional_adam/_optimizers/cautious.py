"""`cautious`: any of the others, without the coordinates that climb (Liang et al. 2024)."""

from __future__ import annotations

from functional_adam._equations import modifiers
from functional_adam._equations.family import Modifier
from functional_adam._optimizers.factory import factory
from functional_adam._optimizers.modifier import modify
from functional_adam._types import GradientTransformation


@factory
def cautious(tx: GradientTransformation) -> GradientTransformation:
    """`tx` without the coordinates whose direction disagrees in sign with the gradient.

    In the direction d of `tx`, before weight decay, every coordinate with d g <= 0 becomes 0. The
    others are divided by the share of coordinates that is left in the leaf (at least 1/1000):

        d <- d [d g > 0] / max(mean([d g > 0]), 1/1000)

    The moments are not changed. For complex parameters d g is Re(d conj(g)). The mean is over a
    whole leaf, so splitting leaves changes the result. A leaf that stacks layers has one mean for
    all of them: `jax.vmap` over `update` gives each layer its own (see docs/variants.md).

    Args:
        tx: What a factory of this package returned (`adam`, `adamw`, `lamb`, `scale_by_adam`, ...).
            In a chain, wrap the member: `optax.chain(optax.clip(1.0), fa.cautious(fa.adam()))`.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package, so its direction cannot be told from its decay.
        ValueError: `tx` is cautious already.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx = fa.cautious(fa.adam(0.5, b1=0.5, b2=0.5))
        >>> state = tx.init(jnp.zeros(2))
        >>> for g in ([4.0, 4.0], [4.0, -1.0]):  # the second one's momentum still climbs
        ...     updates, state = tx.update(jnp.array(g), state)
        >>> updates.round(5)
        Array([-1., -0.], dtype=float32)

    References:
        Liang, Chen, Liu and Liu 2024, Cautious Optimizers: Improving Training with One Line of
        Code, Algorithm 1; the bound 1/1000 is that of the authors' code.
    """
    return modify(tx, Modifier("cautious", numerator=modifiers.without_climbing, whole_leaf=True))
