"""One step over a tree: the only loop over leaves.

A gradient's way through `_arithmetic` is one line: check, load, through the variant's formulas,
store, round, out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check, _hints
from functional_adam import _formulas as F
from functional_adam._chunks import in_chunks
from functional_adam._family import Variant
from functional_adam._moments import Format, Stored
from functional_adam._numerics import over, times, widened
from functional_adam._operands import Scalars
from functional_adam._rounding import Draw, Rounding, bits, draw, is_short, land, late_keys, master
from functional_adam._scalars import at, is_zero, scalars
from functional_adam._settings import Settings
from functional_adam._state import AdamState, check_state, is_ours
from functional_adam._types import PyTree, arithmetic_dtype, real_dtype


class Once(NamedTuple):
    """What all leaves of a step share."""

    settings: Settings
    scalars: Callable[[np.dtype[Any]], Scalars]
    draw: Draw | None
    keys: dict[str, jax.Array]
    advice: str  # for a gradient of another shape


def step(
    settings: Settings, grads: PyTree, state: AdamState, params: PyTree | None
) -> tuple[PyTree, AdamState]:
    """Updates and the next state: the one loop over leaves."""
    if not is_ours(state):  # `check_state` would say so too, without knowing what else was passed
        raise TypeError(_hints.not_a_state(state, grads, params))
    check_state(
        state,
        settings.variant.name,
        [name for name, _ in settings.variant.keeps],
        settings.moments,
        settings.rounding,
    )
    settings = at(settings, state.count)
    paths_and_mu, treedef = jax.tree_util.tree_flatten_with_path(state.mu, is_leaf=_check.is_none)
    gs = _check.leaves_like("grads", grads, state.mu, "the parameters given to init")
    stored = _stored(settings.variant, state)
    thetas = _thetas(settings, paths_and_mu, gs, state.mu, params)
    count = jnp.minimum(state.count, np.iinfo(np.int32).max - 1) + 1  # stops instead of wrapping
    random = settings.moments.is_random or settings.rounding.is_early
    paths = tuple(keystr(path) for path, _ in paths_and_mu)
    once = Once(
        settings,
        functools.cache(functools.partial(scalars, settings, count)),
        draw(count, settings.variant.averages) if random else None,
        dict(zip(paths, late_keys(paths, count), strict=True)) if random else {},
        "" if params is None else _hints.ONE_MODEL,
    )
    stepped = [
        _leaf(once, path, g, old, theta)
        for path, g, old, theta in zip(paths, gs, stored, thetas, strict=True)
    ]

    def tree(leaf: Callable[[Stored], Any]) -> PyTree:
        return treedef.unflatten(leaf(new) for _, new in stepped)

    extra = {name: tree(lambda new, k=name: new.more[k]) for name, _ in settings.variant.keeps}
    return treedef.unflatten(u for u, _ in stepped), AdamState(
        count=count,
        mu=tree(lambda new: new.m),
        nu=tree(lambda new: new.v),
        nu_scale=None if state.nu_scale is None else tree(lambda new: new.scale),
        residual=None if state.residual is None else tree(lambda new: new.residual),
        extra=extra or None,
    )


def _stored(variant: Variant, state: AdamState) -> list[Stored]:
    """The state, leaf by leaf."""
    mus = jax.tree.leaves(state.mu, is_leaf=_check.is_none)

    def leaves(name: str, tree: PyTree) -> list[Any]:
        return _check.leaves_like(f"state.{name}", tree, state.mu, "state.mu")

    more = {k: leaves(f"extra[{k!r}]", state.extra[k]) for k, _ in variant.keeps}
    columns = (
        mus,
        leaves("nu", state.nu),
        _check.leaves_if_any("state.nu_scale", state.nu_scale, state.mu, "state.mu"),
        _check.leaves_if_any("state.residual", state.residual, state.mu, "state.mu"),
    )
    return [
        Stored(mu, nu, {name: leaves[i] for name, leaves in more.items()}, scale, residual)
        for i, (mu, nu, scale, residual) in enumerate(zip(*columns, strict=True))
    ]


class Theta(NamedTuple):
    """The parameter of a leaf, where anything needs it."""

    value: Any = None
    decays: bool = False


def _thetas(
    settings: Settings,
    paths_and_mu: list[Any],
    gs: list[Any],
    structure: PyTree,
    params: PyTree | None,
) -> list[Theta]:
    """For each leaf its parameter, if it decays or the variant or the rounding needs it."""
    decays = not is_zero(settings.weight_decay)
    rounding = f'rounding="{settings.rounding.name}"'
    needed = {
        settings.variant.name: settings.variant.finish is not None,
        "weight_decay": decays,
        "l2": not is_zero(settings.l2),
        rounding: settings.rounding.is_early,
    }
    why = [name for name, needs in needed.items() if needs]
    if not why or all(g is None for g in gs):
        return [Theta()] * len(gs)
    if params is None:
        others = {rounding: 'rounding="nearest"'}
        without = ", ".join(others.get(name, f"{name}=0.0") for name in why)
        instead = "" if settings.variant.name in why else f", or pass {without}"
        raise ValueError(
            f"{' and '.join(why)} {'needs' if len(why) == 1 else 'need'} the parameters: call "
            f"update(grads, state, params){instead}."
        )
    thetas = _check.leaves_like("params", params, structure, "the parameters given to init")
    keep = _check.mask_leaves(settings.mask, params) if decays else [False] * len(gs)
    always = why != ["weight_decay"]
    return [
        Theta(_theta(keystr(path), theta, mu), kept)
        if (kept or always) and g is not None and mu is not None
        else Theta()
        for (path, mu), g, theta, kept in zip(paths_and_mu, gs, thetas, keep, strict=True)
    ]


def _theta(path: str, theta: Any, mu: Any) -> jax.Array:
    return _check.leaf_like("params" + path, theta, mu, "state.mu" + path)


def _leaf(once: Once, path: str, g: Any, stored: Stored, theta: Theta) -> tuple[Any, Stored]:
    """(update, what is stored) of one leaf."""
    if stored.m is None and g is not None:
        raise ValueError(f"grads{path} is an array, but the parameter given to init is None.")
    if g is None:
        return None if stored.m is None else _no_update(stored.m), stored
    settings = once.settings
    dtype = settings.moments.check(path, stored)
    for name, like in settings.variant.keeps:
        _check.kept_like(
            f"state.extra[{name!r}]{path}",
            stored.more[name],
            stored.m if like == "mu" else stored.v,
        )
    g = _check.leaf_like("grads" + path, g, stored.m, "state.mu" + path, advice=once.advice)
    s = once.scalars(real_dtype(arithmetic_dtype(dtype, g.dtype)))
    rounding = settings.rounding if _rounds(settings.rounding, path, stored, theta) else None
    kind = Kind(settings.variant, settings.moments, rounding, theta.decays)
    shared = s, once.draw if kind.is_random else None
    key = once.keys[path] if kind.is_random else None
    if settings.moments.chunked:
        return in_chunks(functools.partial(_arithmetic, kind, *shared), key, g, stored, theta.value)
    return _arithmetic(kind, *shared, key, g, stored, theta.value)


def _no_update(m: jax.Array) -> jax.Array:
    """Zeros in the moment's dtype, as there is no gradient to give its own; float32 for codes."""
    return jnp.zeros_like(m, dtype=m.dtype if jnp.issubdtype(m.dtype, jnp.inexact) else jnp.float32)


def _rounds(rounding: Rounding, path: str, stored: Stored, theta: Theta) -> bool:
    """Whether this parameter is rounded; its residual is checked, rounded or not."""
    short = rounding.is_early and theta.value is not None and is_short(theta.value.dtype)
    if rounding.keeps_error:
        _check.residual(path, stored.residual, np.shape(stored.m) if short else (0,))
    return short


class Kind(NamedTuple):
    """What is known of a leaf's step before any number is."""

    variant: Variant
    moments: Format
    rounding: Rounding | None
    decays: bool

    @property
    def is_random(self) -> bool:
        """Whether anything is rounded stochastically."""
        return self.moments.is_random or self.rounding is not None


# Jitted so that leaves of one shape and dtype share one trace: a tree of 1,000 equal leaves is
# traced once, and an eager update runs a leaf as one fused kernel. XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=0)
def _arithmetic(
    kind: Kind, s: Scalars, draw: Draw | None, key: Any, g: jax.Array, stored: Stored, theta: Any
) -> tuple[jax.Array, Stored]:
    """Load, through the formulas, store, round: (update, what is stored), dtypes as they were."""
    variant, moments, rounding, decays = kind
    random: Any = None if draw is None else bits(draw, key, g.shape)
    wide = functools.partial(widened, s.eps.dtype)
    x, old = jax.tree.map(wide, (g, moments.load(stored)))
    weights: Any = _weights(rounding, stored, theta, wide)
    x, new = variant.advance(s, F.coupled_decay(s, x, weights), old)
    u = -times(s.step, over(variant.numerator(s, x, new), variant.denominator(s, new)))
    if decays:
        u = F.decoupled_decay(s, u, weights)
    if variant.finish is not None:
        u = variant.finish(s, u, weights)
    stored = moments.store(new, stored, random, s)
    if rounding is None:
        return u.astype(g.dtype), stored
    u, residual = land(rounding, (weights + u).astype(jnp.float32), theta, random)
    return u, stored._replace(residual=residual)


def _weights(rounding: Rounding | None, stored: Stored, theta: Any, wide: Any) -> Any:
    """The parameter in the arithmetic's precision, with what its own dtype lacks."""
    if rounding is None or not rounding.keeps_error:
        return jax.tree.map(wide, theta)
    return master(theta, stored.residual)
