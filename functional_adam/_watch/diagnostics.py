"""Scalars to watch during a run, from an update, its state and the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from functional_adam import _check, _host, _nested, _trees
from functional_adam._equations import formulas as F
from functional_adam._equations.family import ADAM
from functional_adam._equations.numerics import abs_squared, over, times, widened
from functional_adam._equations.operands import Moments, Scalars
from functional_adam._equations.spikes import euclidean_norm
from functional_adam._hints.keywords import explained
from functional_adam._mesh import over_auto_axes
from functional_adam._scalars import evaluate_schedules, scalars
from functional_adam._settings import make_settings
from functional_adam._state import AdamState
from functional_adam._storage import int8
from functional_adam._storage.formats import FORMATS, Int8
from functional_adam._storage.leaf_state import LeafState, format_of
from functional_adam._types import PyTree, Scalar, ScalarOrSchedule, arithmetic_dtype, real_dtype

_DEFAULTS: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}


@explained
def diagnostics(
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    *,
    learning_rate: ScalarOrSchedule | None = None,
    b1: Scalar | None = None,
    b2: Scalar | None = None,
    eps: Scalar | None = None,
    eps_root: Scalar | None = None,
) -> dict[str, jax.Array]:
    """Scalars to plot during training: the length of the step and the state of the moments.

    The function is pure and works under `jax.jit`. With m_hat = m / (1 - b1**t) and
    v_hat = v / (1 - b2**t), from the moments after the step, it returns:

    - `count`: t, the number of steps taken (int32; all others are float32).
    - `update_norm`, `param_norm`: Euclidean norms over all leaves that belong to the state.
    - `update_to_param`: the ratio of these norms, 0 if all parameters are 0. About 1e-3 is usual. A
      value that grows towards 1 means that the learning rate is too high.
    - `direction_rms`: root mean square of Adam's direction m_hat / (sqrt(v_hat + eps_root) + eps).
      It is 1 if all gradients point the same way, and about sqrt((1 - b1) / (1 + b1)) if they are
      noise.
    - `below_eps`: the share of coordinates with sqrt(v_hat + eps_root) < eps, where eps shortens
      the step. At 1 the run does not move. Coordinates that are always 0 count too.
    - `clipped`, if any leaf has 8-bit moments: the share of their codes at the end of the range,
      where larger values are clipped. NaN counts too.
    - `learning_rate`, if known: that of the step that made `updates`.

    A state does not show its variant. `adamax`, `adopt`, `adabelief`, `amsgrad` and others divide
    by something else, so `direction_rms` and `below_eps` mean nothing for them; the other scalars
    hold for any variant. A state does not show `overrides` either: all leaves are judged by the
    hyperparameters given here.

    Args:
        updates: The updates that `tx.update` returned for `params`: an array for each parameter, or
            None where a parameter is None.
        state: The state that `tx.update` returned with them: an `AdamState`, or any state that
            holds one: that of `optax.chain`, `masked`, `MultiSteps`, `inject_hyperparams`, or the
            `opt_state` of a Flax `nnx.Optimizer`. From `optax.partition` pass the state of one
            group, `state.inner_states["group"]`, with all updates and parameters. The result then
            covers the leaves of this group.
        params: The parameters, before or after the step.
        learning_rate: The learning rate of the factory, a number or a schedule. None (default): the
            one that `optax.inject_hyperparams` keeps in `state`, if any.
        b1: The decay rate b1 of the factory, in [0, 1). None (default): the one that
            `inject_hyperparams` keeps in `state`, or else 0.9.
        b2: The decay rate b2 of the factory, in [0, 1). None (default): the one in `state`, or else
            0.999.
        eps: The `eps` of the factory, >= 0. None (default): the one in `state`, or else 1e-8.
        eps_root: The `eps_root` of the factory, >= 0. None (default): the one in `state`, or else
            0.

    Returns:
        A dict with the names above as keys and scalars as values.

    Raises:
        ValueError: `state` holds no `AdamState` or several, a number is out of range, or `updates`
            and `params` differ in structure.
        TypeError: An argument or a leaf has the wrong type.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> tx, params = fa.adam(0.01), jnp.array([3.0, 4.0])
        >>> updates, state = tx.update(jnp.array([0.5, -0.2]), tx.init(params), params)
        >>> watched = fa.diagnostics(updates, state, params, learning_rate=0.01)
        >>> for name, x in watched.items():
        ...     print(f"{name} {x:.4g}")
        count 1
        update_norm 0.01414
        param_norm 5
        update_to_param 0.002828
        direction_rms 1
        below_eps 0
        learning_rate 0.01
    """
    given = dict(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    adam_state = _the_state(state)
    known = _DEFAULTS | _injected(state) | {k: x for k, x in given.items() if x is not None}
    has_rate = "learning_rate" in known
    bound: dict[str, Any] = {"learning_rate": 1.0} | known
    settings = make_settings(ADAM, **bound)
    t = jnp.maximum(jnp.asarray(adam_state.count), 1)  # before the first step the moments are 0
    settings = evaluate_schedules(settings, t - 1)
    rate, settings = settings.learning_rate, settings._replace(learning_rate=1.0)
    of_dtype = functools.cache(functools.partial(scalars, settings, t))
    sums = _summed(adam_state, of_dtype)
    _trees.leaves_like("updates", updates, params, "params")
    # Leaves that masked or partition gave to other transformations are not part of this step.
    is_elsewhere = _nested.left_out(adam_state.mu)
    update_norm, param_norm = (
        _norm(name, tree, is_elsewhere) for name, tree in (("updates", updates), ("params", params))
    )
    watched = {
        "count": jnp.asarray(adam_state.count),
        "update_norm": update_norm,
        "param_norm": param_norm,
        "update_to_param": _ratio(update_norm, param_norm),
        "direction_rms": jnp.sqrt(_ratio(sums["squares"], sums["size"])),
        "below_eps": _ratio(sums["below"], sums["size"]),
    }
    if "ends" in sums:
        watched["clipped"] = _ratio(sums["ends"], sums["codes"])
    if has_rate:
        watched["learning_rate"] = jnp.asarray(rate, jnp.float32)
    return watched


def _the_state(state: PyTree) -> AdamState:
    """The only `AdamState` in a state."""
    found = _nested.states("state", state, "one AdamState")
    if len(found) > 1:
        paths = ", ".join(where for where, _ in found)
        raise ValueError(
            f"state must hold one AdamState; found {len(found)}: {paths}. Pass one of them, with "
            "all updates and params: leaves that it does not have are ignored."
        )
    return found[0][1]


def _injected(state: PyTree) -> dict[str, Any]:
    """The hyperparameters used here that `optax.inject_hyperparams` keeps in a state."""
    holds: Callable[[Any], bool] = lambda x: isinstance(getattr(x, "hyperparams", None), Mapping)  # noqa: E731
    names = ("learning_rate", *_DEFAULTS)
    nodes = [x for x in jax.tree.leaves(state, is_leaf=holds) if holds(x)]
    return {k: x for node in nodes for k, x in node.hyperparams.items() if k in names}


def _norm(name: str, tree: PyTree, is_elsewhere: Callable[[_nested.Path], bool]) -> jax.Array:
    """The Euclidean norm over all leaves except those that belong elsewhere."""
    leaves = [(name + keystr(p), x) for p, x in tree_leaves_with_path(tree) if not is_elsewhere(p)]
    return euclidean_norm([jnp.asarray(x, _check.leaf_dtype(path, x)) for path, x in leaves])


def _total(parts: Sequence[Any]) -> jax.Array:
    return sum((jnp.asarray(x, jnp.float32) for x in parts), jnp.float32(0))


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole, and 0 if whole is 0; a NaN or infinite part gives NaN there."""
    nothing = whole == 0
    return jnp.where(nothing, 0 * part, part / jnp.where(nothing, 1, whole))


def _summed(state: AdamState, of_dtype: Callable[[Any], Scalars]) -> dict[str, jax.Array]:
    """Sums over all coordinates: their number, squared directions, those below eps."""
    mus, nus, scales = (
        _nested.by_parameter(f"state.{name}", getattr(state, name), state).values()
        for name in ("mu", "nu", "nu_scale")
    )
    parts: dict[str, list[Any]] = {"size": [], "squares": [], "below": []}
    for stored in zip(mus, nus, scales, strict=True):
        mu, nu, scale = _host.brought(stored)
        if mu is None:  # frozen
            continue
        format = format_of(mu, nu)
        load = over_auto_axes(FORMATS[format]().load, Moments(mu, nu, {}))
        loaded = load(LeafState(mu, nu, {}, scale))
        real = real_dtype(arithmetic_dtype(loaded.m.dtype, loaded.v.dtype))
        new = jax.tree.map(functools.partial(widened, real), loaded)
        s = of_dtype(real)
        direction = times(s.step_size, over(F.momentum(s, new.m, new), F.root(s, new)))
        held = F.root(s, new) < 2 * s.eps  # the root itself below eps
        parts["size"].append(float(new.v.size))
        parts["squares"].append(jnp.sum(abs_squared(direction)))
        parts["below"].append(jnp.sum(held, dtype=jnp.float32))  # an int32 ends at 2**31
        if format == Int8.name:
            parts.setdefault("ends", []).append(int8.at_end(mu, nu))
            parts.setdefault("codes", []).append(float(mu.size + nu.size))
    return {name: _total(values) for name, values in parts.items()}
