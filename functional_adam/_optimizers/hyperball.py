"""`hyperball`: steps on the sphere of each matrix's norm (Wen et al. 2026)."""

from __future__ import annotations

from functional_adam._equations import modifiers
from functional_adam._equations.family import Modifier
from functional_adam._masks import MASK, STACKED, hashable
from functional_adam._optimizers.factory import factory
from functional_adam._optimizers.modifier import modifiable, modify, takes
from functional_adam._origin import short
from functional_adam._scalars import is_zero
from functional_adam._types import GradientTransformation, Mask, PyTree


@factory
def hyperball(
    tx: GradientTransformation, mask: Mask | None = None, *, stacked: PyTree = 0
) -> GradientTransformation:
    """`tx`, turning each matrix by a given angle and never changing its norm: AdamH around `adam`.

    With d the direction of `tx`, n(x) = x / |x|, the Euclidean (Frobenius) norm over a leaf, and
    R = |theta| that of the parameter as it is now:

        theta <- R n(theta - learning_rate R n(d))

    `learning_rate` is so the relative size of each step, the same for all matrices, and weight
    decay has nothing to do. The norm is that of the first step to within rounding: nothing is
    stored, and the update is computed without cancellation (docs/variants.md measures the drift).

    A leaf of zeros stays 0 and a scalar does not move: leave such leaves out by `mask`. `update`
    always needs `params`. A NaN makes its whole leaf NaN.

    Args:
        tx: A transformation of this package with a learning rate, such as `adam(3e-3)`.
        mask: Which leaves are on the sphere: a tree of booleans (or a prefix of one), or a function
            from the parameters to such a tree. None (default): all of them. The others take the
            steps of `tx`, with its decay.
        stacked: How many leading axes of a leaf stack matrices of layers or experts, which then
            have a norm each: an integer for all leaves, a tree (or prefix of one) of integers, or a
            function from the parameters to such a tree.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package; a `mask` or `stacked` of another type.
        ValueError: `tx` decays all leaves or has no learning rate, or is on the sphere already;
            more stacked axes than a leaf has; `update` without `params`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, theta = fa.hyperball(fa.adam(0.75)), jnp.array([[4.0, 0.0]])
        >>> updates, state = tx.update(jnp.array([[0.0, 2.0]]), tx.init(theta), theta)
        >>> jnp.allclose(theta + updates, jnp.array([3.2, -2.4]))  # (4, -3), at the length 4
        Array(True, dtype=bool)

    References:
        Wen et al. 2026, Hyperball optimization, arXiv 2606.16899; R as Levanter's AdamH has it.
    """
    settings = modifiable(tx, "hyperball")
    if not takes(settings, "learning_rate"):
        raise ValueError(
            f"hyperball needs the learning rate, which {settings.origin!r} leaves to others: the "
            "step is projected after it. Wrap adam(learning_rate) or another optimizer."
        )
    if mask is None and not is_zero(settings.weight_decay):
        raise ValueError(
            "hyperball keeps every norm as it is, so that weight_decay would do nothing; got "
            f"weight_decay={short(settings.weight_decay)} of {settings.origin!r}. Pass "
            "weight_decay=0.0, or say by mask= which leaves are on the sphere: the others decay."
        )
    modifier = Modifier(
        "hyperball",
        update=modifiers.on_the_sphere,
        needs_params=True,
        whole_leaf=True,
        mask=hashable(mask, MASK),
        stacked=hashable(stacked, STACKED),
    )
    return modify(tx, modifier)
