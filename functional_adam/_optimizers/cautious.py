"""`cautious`: any of the others, without the coordinates that climb (Liang et al. 2024)."""

from __future__ import annotations

from typing import Any

from functional_adam._equations import relatives as R
from functional_adam._optimizers.factory import factory
from functional_adam._settings import check_format
from functional_adam._transform import settings_of, transformation
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
    settings = settings_of(tx)
    if settings is None:
        raise TypeError(
            "cautious needs a transformation made by functional_adam, such as cautious(adamw()); "
            f"got {_describe(tx)}. Within optax.chain or another wrapper, wrap the member."
        )
    variant = settings.variant
    if isinstance(variant.numerator, R.Cautious):
        raise ValueError(f"tx is cautious already: cautious({variant.name}(...)) will do.")
    variant = variant._replace(numerator=R.Cautious(variant.numerator), whole_leaf=True)
    check_format(settings.moments, variant, settings.b1, settings.b2)
    return transformation(settings._replace(variant=variant))


def _describe(tx: Any) -> str:
    if callable(tx):
        return f"the function {getattr(tx, '__name__', type(tx).__name__)}: call it first"
    return f"an object of type {type(tx).__module__}.{type(tx).__qualname__}"
