"""`hyperball`: steps that keep the norm of every matrix (Wen et al. 2026)."""

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
    """`tx` with steps that turn each matrix and keep its norm; around `adam` this is AdamH.

    With d the direction of `tx`, R = |theta| the present Euclidean (Frobenius) norm of the leaf and
    n(x) = x / |x|:

        theta <- R n(theta - learning_rate R n(d))

    `learning_rate` is therefore the relative size of each step, the same for all matrices, and
    weight decay would have no effect. The norm stays the same to within rounding: it is not stored,
    and the update is computed without cancellation (docs/variants.md measures the drift).

    A leaf of zeros stays 0, and a scalar does not move: exclude such leaves with `mask`. `update`
    always needs `params`. A NaN makes its whole leaf NaN.

    Args:
        tx: A transformation of this package with a learning rate, such as `adam(3e-3)`.
        mask: Which leaves keep their norm: a tree of booleans, a prefix of one, or a function from
            the parameters to such a tree. None (default): all leaves. The other leaves take the
            steps of `tx`, including its decay.
        stacked: How many leading axes of a leaf stack the matrices of layers or experts. Each of
            these matrices then has a norm of its own. An integer for all leaves, a tree of integers
            (or a prefix of one), or a function from the parameters to such a tree. Default 0.

    Returns:
        A `GradientTransformation` with the state of `tx`.

    Raises:
        TypeError: `tx` is not from this package, or `mask` or `stacked` has another type.
        ValueError: `tx` decays all leaves, has no learning rate or already has this modifier;
            `stacked` is larger than the number of axes of a leaf; or `update` is called without
            `params`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, theta = fa.hyperball(fa.adam(0.75)), jnp.array([[4.0, 0.0]])
        >>> updates, state = tx.update(jnp.array([[0.0, 2.0]]), tx.init(theta), theta)
        >>> jnp.allclose(theta + updates, jnp.array([3.2, -2.4]))  # (4, -3), at the length 4
        Array(True, dtype=bool)

    References:
        Wen et al. 2026, Hyperball optimization, arXiv 2606.16899. R is defined as in Levanter's
        AdamH.
    """
    settings = modifiable(tx, "hyperball")
    if not takes(settings, "learning_rate"):
        raise ValueError(
            f"hyperball needs a tx with a learning rate, but {settings.origin!r} has none. Wrap "
            "adam(learning_rate) or another optimizer: hyperball projects the finished step."
        )
    if mask is None and not is_zero(settings.weight_decay):
        raise ValueError(
            "hyperball keeps every norm, so weight_decay would have no effect; got "
            f"weight_decay={short(settings.weight_decay)} in {settings.origin!r}. Pass "
            "weight_decay=0.0, or choose with mask= the leaves that keep their norm: the others "
            "decay."
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
