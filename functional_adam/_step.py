"""One step over a tree: the bound hyperparameters and the only loop over leaves.

A gradient's way through `_leaf` is one line: check, cast to the arithmetic's dtype, through
`_formulas`, cast back to the storage's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr

from functional_adam import _check
from functional_adam import _formulas as F
from functional_adam._state import AdamState, check_state
from functional_adam._types import PyTree, arithmetic_dtype, real_dtype

Momentum: TypeAlias = Callable[[jax.Array, jax.Array, F.Scalars], jax.Array]


class Settings(NamedTuple):
    """What a factory binds, checked: numbers as Python floats, arrays and schedules as given."""

    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any
    eps_root: Any
    weight_decay: Any
    mask: Any
    momentum: Momentum
    mu_dtype: np.dtype[Any] | None
    nu_dtype: np.dtype[Any] | None


def bind(
    learning_rate: Any,
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
    weight_decay: Any,
    mask: Any,
    nesterov: Any,
    mu_dtype: Any,
    nu_dtype: Any,
) -> Settings:
    """What the caller of a factory or of `update` gave, checked before anything is computed."""
    nesterov = _check.flag("nesterov", nesterov)
    return Settings(
        learning_rate=_check.scalar("learning_rate", learning_rate, schedule=True),
        b1=_check.scalar("b1", b1, below=1.0),
        b2=_check.scalar("b2", b2, below=1.0),
        eps=_check.scalar("eps", eps),
        eps_root=_check.scalar("eps_root", eps_root),
        weight_decay=_check.scalar("weight_decay", weight_decay, schedule=True),
        mask=_check.mask(mask),
        momentum=F.nesterov_momentum if nesterov else F.momentum,
        mu_dtype=_check.moment_dtype("mu_dtype", mu_dtype, real=False),
        nu_dtype=_check.moment_dtype("nu_dtype", nu_dtype, real=True),
    )


def step(
    settings: Settings, grads: PyTree, state: AdamState, params: PyTree | None
) -> tuple[PyTree, AdamState]:
    """Updates and the next state: the one loop over leaves."""
    check_state(state)
    settings = _at(settings, state.count)
    paths_and_mu, treedef = jax.tree_util.tree_flatten_with_path(state.mu, is_leaf=_check.is_none)
    gs = _check.leaves_like("grads", grads, state.mu, "the parameters given to init")
    nus = _check.leaves_like("state.nu", state.nu, state.mu, "state.mu")
    thetas = _decaying(settings, paths_and_mu, gs, state.mu, params)
    count = jnp.minimum(state.count, np.iinfo(np.int32).max - 1) + 1  # stops instead of wrapping
    scalars = functools.cache(functools.partial(_scalars, settings, count))

    stepped = [
        _leaf(settings, scalars, keystr(path), g, mu, nu, theta)
        for (path, mu), g, nu, theta in zip(paths_and_mu, gs, nus, thetas, strict=True)
    ]
    columns = zip(*stepped, strict=True) if stepped else ((), (), ())
    updates, mu, nu = (treedef.unflatten(column) for column in columns)
    return updates, state._replace(count=count, mu=mu, nu=nu)


def _leaf(
    settings: Settings,
    scalars: Callable[[np.dtype[Any]], F.Scalars],
    path: str,
    g: Any,
    mu: Any,
    nu: Any,
    theta: Any,
) -> tuple[Any, Any, Any]:
    """(update, mu, nu) of one leaf."""
    if mu is None and g is not None:
        raise ValueError(f"grads{path} is an array, but the parameter given to init is None.")
    if g is None:
        return None if mu is None else jnp.zeros_like(mu), mu, nu
    dtype = _check.moments(path, mu, nu, settings.mu_dtype, settings.nu_dtype)
    g = _check.leaf_like("grads" + path, g, mu, "state.mu" + path)
    return _arithmetic(
        settings.momentum, scalars(arithmetic_dtype(dtype, g.dtype)), g, mu, nu, theta
    )


# Jitted so that leaves of one shape and dtype share one trace: a tree of 1,000 equal leaves is
# traced once, and an eager update runs a leaf as one fused kernel. XLA inlines the calls.
@functools.partial(jax.jit, static_argnums=0)
def _arithmetic(
    momentum: Momentum, s: F.Scalars, g: jax.Array, mu: jax.Array, nu: jax.Array, theta: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Load, through the formulas, store: (update, mu, nu) in the dtypes of g, mu and nu."""
    wide_g = g.astype(s.step.dtype)
    m = F.first_moment(mu.astype(s.step.dtype), wide_g, s.b1)
    v = F.second_moment(nu.astype(s.eps.dtype), wide_g, s.b2)
    u = -F.scaled_ratio(s.step, momentum(m, wide_g, s), F.denominator(v, s))
    if theta is not None:
        u = F.decoupled_decay(u, theta.astype(s.step.dtype), s)
    return u.astype(g.dtype), m.astype(mu.dtype), v.astype(nu.dtype)


def _at(settings: Settings, count: chex.Array) -> Settings:
    """`settings` with its schedules evaluated at `count`, that before the step."""

    def value(name: str) -> Any:
        given = getattr(settings, name)
        return _check.scalar(f"{name}(count)", given(count)) if callable(given) else given

    return settings._replace(
        learning_rate=value("learning_rate"), weight_decay=value("weight_decay")
    )


def _decaying(
    settings: Settings,
    paths_and_mu: list[Any],
    gs: list[Any],
    structure: PyTree,
    params: PyTree | None,
) -> list[Any]:
    """For each leaf the parameter that decays, or None."""
    if is_zero(settings.weight_decay) or all(g is None for g in gs):
        return [None] * len(gs)
    if params is None:
        raise ValueError(
            "weight_decay needs the parameters: call update(grads, state, params), or pass "
            "weight_decay=0.0."
        )
    thetas = _check.leaves_like("params", params, structure, "the parameters given to init")
    keep = _check.mask_leaves(settings.mask, params)
    return [
        _check.leaf_like("params" + keystr(path), theta, mu, "state.mu" + keystr(path))
        if kept and g is not None and mu is not None
        else None
        for (path, mu), g, theta, kept in zip(paths_and_mu, gs, thetas, keep, strict=True)
    ]


def _scalars(settings: Settings, count: jax.Array, dtype: np.dtype[Any]) -> F.Scalars:
    """The scalars of this step for leaves whose arithmetic has `dtype`."""
    real = real_dtype(dtype)

    def cast(name: str) -> Any:
        value = getattr(settings, name)
        if isinstance(value, jax.Array):
            return value.astype(real)
        if value > float(np.finfo(real).max):
            raise ValueError(
                f"{name}={value!r} is infinite in {real}, the dtype of the arithmetic."
            )
        return real.type(value)

    scalars = F.step_scalars(
        t=count.astype(real),
        alpha=cast("learning_rate"),
        b1=_rate("b1", settings.b1, real),
        b2=_rate("b2", settings.b2, real),
        eps=cast("eps"),
        eps_root=None if is_zero(settings.eps_root) else cast("eps_root"),
        weight_decay=cast("weight_decay"),
    )
    if dtype == real:
        return scalars
    # What multiplies complex arrays becomes complex: strict promotion mixes no dtypes.
    b1, step, shrink = jax.tree.map(
        lambda x: x.astype(dtype), (scalars.b1, scalars.step, scalars.shrink)
    )
    return scalars._replace(b1=b1._replace(log=scalars.b1.log), step=step, shrink=shrink)


def is_zero(value: Any) -> bool:
    """Whether `value` is known to be 0 now, and not only in some runs of a compiled program."""
    return isinstance(value, float) and not value


def _rate(name: str, b: Any, dtype: np.dtype[Any]) -> F.Rate:
    """b, 1 - b and log b in `dtype`, made before b is rounded to it."""
    if isinstance(b, float):
        if dtype.type(b) == 1:
            raise ValueError(
                f"{name}={b!r} is 1 in {dtype}, the dtype of the arithmetic: nothing would ever "
                f"be averaged. Use at most {np.nextafter(dtype.type(1), dtype.type(0))}."
            )
        log = math.log(b) if b > 0 else -math.inf
        parts = (b, 1.0 - b, log, *((1.0, 1.0) if b > 0.5 else (b, 0.0)))
        return F.Rate(*(dtype.type(part) for part in parts))
    wide = arithmetic_dtype(dtype, b.dtype if jnp.issubdtype(b.dtype, jnp.floating) else dtype)
    b = b.astype(wide)
    complement = 1 - b  # exact for b >= 1/2
    log = jax.lax.stop_gradient(jnp.log1p(-complement))  # its slope is in F.bias_correction
    near_one = b > 0.5
    carried, removed = jnp.where(near_one, jnp.ones_like(b), b), near_one
    return F.Rate(*(part.astype(dtype) for part in (b, complement, log, carried, removed)))
