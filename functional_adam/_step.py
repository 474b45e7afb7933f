"""One step over a tree: the only loop over leaves.

A gradient's way through `_arithmetic` is one line: check, cast to the arithmetic's dtype, through
the variant's formulas, cast back to the storage's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check
from functional_adam import _formulas as F
from functional_adam._family import Variant
from functional_adam._numerics import Rate, bias_correction, over, times
from functional_adam._operands import Moments, Scalars
from functional_adam._settings import Settings
from functional_adam._state import AdamState, check_state
from functional_adam._types import PyTree, arithmetic_dtype, real_dtype


def step(
    settings: Settings, grads: PyTree, state: AdamState, params: PyTree | None
) -> tuple[PyTree, AdamState]:
    """Updates and the next state: the one loop over leaves."""
    check_state(state, settings.variant.name, [name for name, _ in settings.variant.keeps])
    settings = _at(settings, state.count)
    paths_and_mu, treedef = jax.tree_util.tree_flatten_with_path(state.mu, is_leaf=_check.is_none)
    gs = _check.leaves_like("grads", grads, state.mu, "the parameters given to init")
    stored = _stored(settings.variant, state)
    thetas = _thetas(settings, paths_and_mu, gs, state.mu, params)
    count = jnp.minimum(state.count, np.iinfo(np.int32).max - 1) + 1  # stops instead of wrapping
    scalars = functools.cache(functools.partial(_scalars, settings, count))

    stepped = [
        _leaf(settings, scalars, keystr(path), g, moments, theta)
        for (path, _), g, moments, theta in zip(paths_and_mu, gs, stored, thetas, strict=True)
    ]
    updates = treedef.unflatten(u for u, _ in stepped)
    mu, nu = (treedef.unflatten(getattr(new, k) for _, new in stepped) for k in ("m", "v"))
    extra = {
        name: treedef.unflatten(new.more[name] for _, new in stepped)
        for name, _ in settings.variant.keeps
    }
    return updates, state._replace(count=count, mu=mu, nu=nu, extra=extra or None)


def _stored(variant: Variant, state: AdamState) -> list[Moments]:
    """The state, leaf by leaf."""
    mus = jax.tree.leaves(state.mu, is_leaf=_check.is_none)
    nus = _check.leaves_like("state.nu", state.nu, state.mu, "state.mu")
    more = {
        name: _check.leaves_like(f"state.extra[{name!r}]", state.extra[name], state.mu, "state.mu")
        for name, _ in variant.keeps
    }
    return [
        Moments(mu, nu, {name: leaves[i] for name, leaves in more.items()})
        for i, (mu, nu) in enumerate(zip(mus, nus, strict=True))
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
    """For each leaf its parameter, if it decays or the variant needs it."""
    decays = not is_zero(settings.weight_decay)
    needed = {
        settings.variant.name: settings.variant.finish is not None,
        "weight_decay": decays,
        "l2": not is_zero(settings.l2),
    }
    why = [name for name, needs in needed.items() if needs]
    if not why or all(g is None for g in gs):
        return [Theta()] * len(gs)
    if params is None:
        without = ", ".join(f"{name}=0.0" for name in why)
        instead = "" if settings.variant.name in why else f", or pass {without}"
        raise ValueError(
            f"{' and '.join(why)} {'needs' if len(why) == 1 else 'need'} the parameters: call "
            f"update(grads, state, params){instead}."
        )
    thetas = _check.leaves_like("params", params, structure, "the parameters given to init")
    keep = _check.mask_leaves(settings.mask, params) if decays else [False] * len(gs)
    always = why != ["weight_decay"]
    return [
        Theta(_check.leaf_like("params" + keystr(path), theta, mu, "state.mu" + keystr(path)), kept)
        if (kept or always) and g is not None and mu is not None
        else Theta()
        for (path, mu), g, theta, kept in zip(paths_and_mu, gs, thetas, keep, strict=True)
    ]


def _leaf(
    settings: Settings,
    scalars: Callable[[np.dtype[Any]], Scalars],
    path: str,
    g: Any,
    stored: Any,
    theta: Theta,
) -> tuple[Any, Moments]:
    """(update, moments) of one leaf."""
    if stored.m is None and g is not None:
        raise ValueError(f"grads{path} is an array, but the parameter given to init is None.")
    if g is None:
        return None if stored.m is None else jnp.zeros_like(stored.m), stored
    dtype = _check.moments(path, stored.m, stored.v, settings.mu_dtype, settings.nu_dtype)
    for name, like in settings.variant.keeps:
        _check.kept_like(
            f"state.extra[{name!r}]{path}",
            stored.more[name],
            stored.m if like == "mu" else stored.v,
        )
    g = _check.leaf_like("grads" + path, g, stored.m, "state.mu" + path)
    s = scalars(real_dtype(arithmetic_dtype(dtype, g.dtype)))
    return _arithmetic(settings.variant, theta.decays, s, g, stored, theta.value)


# Jitted so that leaves of one shape and dtype share one trace: a tree of 1,000 equal leaves is
# traced once, and an eager update runs a leaf as one fused kernel. XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _arithmetic(
    variant: Variant, decays: bool, s: Scalars, g: jax.Array, stored: Moments, theta: Any
) -> tuple[jax.Array, Moments]:
    """Load, through the formulas, store: (update, moments) in the dtypes of g and `stored`."""
    load = functools.partial(_wide, s.eps.dtype)
    x, old, weights = jax.tree.map(load, (g, stored, theta))
    if theta is not None:
        x = F.coupled_decay(s, x, weights)
    x, new = variant.advance(s, x, old)
    u = -times(s.step, over(variant.numerator(s, x, new), variant.denominator(s, new)))
    if decays:
        u = F.decoupled_decay(s, u, weights)
    if variant.finish is not None:
        u = variant.finish(s, u, weights)
    return u.astype(g.dtype), jax.tree.map(lambda a, like: a.astype(like.dtype), new, stored)


def _wide(real: np.dtype[Any], x: jax.Array) -> jax.Array:
    """x in the arithmetic's precision: `real`, or its complex counterpart."""
    return x.astype(np.promote_types(real, np.complex64) if jnp.iscomplexobj(x) else real)


def _at(settings: Settings, count: chex.Array) -> Settings:
    """`settings` with its schedules evaluated at `count`, that before the step."""

    def value(name: str, given: Any, below: float = math.inf) -> Any:
        if not callable(given):
            return given
        return _check.scalar(f"{name}(count)", given(count), below)

    rates = settings.variant.rates
    own = {k: value(k, v, 1.0 if k in rates else math.inf) for k, v in settings.own.items()}
    scheduled = ("learning_rate", "weight_decay", "l2")
    return settings._replace(own=own, **{k: value(k, getattr(settings, k)) for k in scheduled})


def _scalars(settings: Settings, count: jax.Array, real: np.dtype[Any]) -> Scalars:
    """The scalars of this step for leaves whose arithmetic has `real` parts of that dtype."""

    def cast(name: str, value: Any) -> Any:
        if isinstance(value, jax.Array):
            return value.astype(real)
        return _check.fitting(name, value, real)

    def unless_zero(name: str) -> Any:
        value = getattr(settings, name)
        return None if is_zero(value) else cast(name, value)

    rates = settings.variant.rates
    own = {
        name: _rate(name, value, real) if name in rates else cast(name, value)
        for name, value in settings.own.items()
    }
    t, alpha = count.astype(real), cast("learning_rate", settings.learning_rate)
    b1, b2 = _rate("b1", settings.b1, real), _rate("b2", settings.b2, real)
    weight_decay = cast("weight_decay", settings.weight_decay)
    s = Scalars(
        t=t,
        alpha=alpha,
        b1=b1,
        b2=b2,
        eps=cast("eps", settings.eps),
        eps_root=unless_zero("eps_root"),
        weight_decay=weight_decay,
        l2=unless_zero("l2"),
        own=own,
        c1=bias_correction(b1, t),
        c2=bias_correction(b2, t),
        step=alpha,
        shrink=alpha * weight_decay,
    )
    return functools.reduce(lambda s, prepare: prepare(s), settings.variant.prepare, s)


def is_zero(value: Any) -> bool:
    """Whether `value` is known to be 0 now, and not only in some runs of a compiled program."""
    return isinstance(value, float) and not value


def _rate(name: str, b: Any, dtype: np.dtype[Any]) -> Rate:
    """b, 1 - b and log b in `dtype`, made before b is rounded to it."""
    if isinstance(b, float):
        if dtype.type(b) == 1:
            raise ValueError(
                f"{name}={b!r} is 1 in {dtype}, the dtype of the arithmetic: nothing would ever "
                f"be averaged. Use at most {np.nextafter(dtype.type(1), dtype.type(0))}."
            )
        log = math.log(b) if b > 0 else -math.inf
        parts = (b, 1.0 - b, log, *((1.0, 1.0) if b > 0.5 else (b, 0.0)))
        return Rate(*(dtype.type(part) for part in parts))
    wide = arithmetic_dtype(dtype, b.dtype if jnp.issubdtype(b.dtype, jnp.floating) else dtype)
    b = b.astype(wide)
    complement = 1 - b  # exact for b >= 1/2
    positive = b > 0  # or the slope of the logarithm at 0 would be infinite
    log = jnp.log1p(-jnp.where(positive, complement, jnp.zeros_like(b)))
    log = jnp.where(positive, log, jnp.full_like(b, -jnp.inf))
    near_one = b > 0.5
    carried, removed = jnp.where(near_one, jnp.ones_like(b), b), near_one
    return Rate(*(part.astype(dtype) for part in (b, complement, log, carried, removed)))
