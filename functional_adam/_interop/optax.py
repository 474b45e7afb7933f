"""Carries a run over from Optax or to it, by converting every Adam state in a tree of states.

Both libraries keep the same moments and the same counts in different places. A state of
`optax.adamw` is a tuple with Adam's part first and perhaps a schedule's counter last. Here it is
one `AdamState`. Any wrappers may surround both. So arrays are matched by the names in their paths
(fields and keys, not positions), and the result has the structure of `like`.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import SequenceKey, keystr

from functional_adam import _check, _trees
from functional_adam._interop.optax_pieces import (
    ADAM,
    COUNTER,
    COUNTS,
    Piece,
    Side,
    check_alike,
    check_counter,
    check_one_count,
    count_of,
    is_theirs,
    nearest,
    pieces_of,
)
from functional_adam._state import is_adam_state
from functional_adam._storage.leaf_state import holds_codes
from functional_adam._types import PyTree

# Fields of Optax's states that have another name here.
_OURS = {"m1": "mu", "m2": "mu_slow", "m": "mu", "n": "nu"}


def from_optax(opt_state: PyTree, like: PyTree) -> PyTree:
    """Convert an Optax state to the state of the same optimizer built with this package.

    Each Adam state inside `opt_state`, including those of AMSGrad, AdEMAMix and the rest of the
    family in Optax, is converted to the `AdamState` at the same place in `like`. Everything else
    (hyperparameters, accumulated gradients, counters of other transformations) is carried over
    unchanged. The next update continues the run as Optax would have.

    Arrays are matched by the names in their paths, not by position. If there is only one Adam
    state, it is found wherever it is: `optax.chain(clip, optax.scale_by_adam(), decay, rate)` may
    become `optax.chain(clip, fa.adamw())`. The holes of `optax.masked` stay holes.

    A schedule's counter is kept if `like` has a counter with the same name. Otherwise it is
    dropped, because a schedule here is called with the count of its Adam state. If the two counts
    differ, for example because a schedule was restarted, this raises an error. Call this function
    outside `jax.jit`, where counters have no values to compare.

    Args:
        opt_state: The state of an Optax optimizer, with any wrappers.
        like: The state that the `init` of the new optimizer returns for the same parameters: an
            `AdamState`, or the same wrappers around such states. Only its structure, dtypes and
            shapes are used, so `jax.eval_shape(tx.init, params)` works too.

    Returns:
        A tree like `like`, with its dtypes. Arrays that need no cast are shared with `opt_state`.

    Raises:
        ValueError: One side has no Adam state; a part of one side has no counterpart on the other;
            a counter without a counterpart differs from Adam's count; shapes or structures differ;
            or `like` has 8-bit moments (convert to moments="full", then call `convert_moments`).
        TypeError: One array is complex and its counterpart is real.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp, optax
        >>> params = {"w": jnp.ones(3)}
        >>> old = optax.chain(optax.clip(1.0), optax.adamw(1e-3))
        >>> updates, opt_state = old.update({"w": jnp.ones(3)}, old.init(params), params)
        >>> tx = optax.chain(optax.clip(1.0), fa.adamw(1e-3))
        >>> state = fa.from_optax(opt_state, like=tx.init(params))
        >>> int(state[1].count), state[1].mu["w"].round(3)
        (1, Array([0.1, 0.1, 0.1], dtype=float32))
    """
    return _carried(Side("opt_state", opt_state, is_theirs), Side("like", like, is_adam_state))


def to_optax(state: PyTree, like: PyTree) -> PyTree:
    """Convert a state of this package to that of the same Optax optimizer: `from_optax` reversed.

    Args:
        state: An `AdamState`, or the state of wrappers around this package's transformations.
        like: The state that the `init` of the Optax optimizer returns for the same parameters, or
            its `jax.eval_shape`. The class of its Adam state decides what is kept (`nu_max` or
            not).

    Returns:
        A tree like `like`, with its dtypes: in Optax the moments of 16-bit parameters have 16 bits.
        Counters of schedules are set to Adam's count, unless `state` has a counter with the same
        name. The `residual` is dropped; see `master_params`.

    Raises:
        ValueError: As in `from_optax`; 8-bit moments in `state` need `convert_moments` first.
        TypeError: As in `from_optax`.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp, optax
        >>> params = {"w": jnp.ones(3)}
        >>> tx, other = fa.adam(1e-3), optax.adam(optax.linear_schedule(1e-3, 0.0, 10))
        >>> updates, state = tx.update({"w": jnp.ones(3)}, tx.init(params), params)
        >>> adam_state, schedule_state = fa.to_optax(state, like=other.init(params))
        >>> int(adam_state.count), int(schedule_state.count)
        (1, 1)
    """
    return _carried(Side("state", state, is_adam_state), Side("like", like, is_theirs))


def _carried(source: Side, target: Side) -> PyTree:
    (have, _), (want, treedef) = pieces_of(source), pieces_of(target)
    partners = _partners(have, want)
    adams = {p.path: _adam(partners[p.path], p) for p in want if p.kind == ADAM}

    def new(piece: Piece) -> Any:
        if piece.kind == ADAM:
            return adams[piece.path]
        if piece.path in partners:
            leaves = (partners[piece.path].value, piece.value)
            return jax.tree.map(functools.partial(_array, partners[piece.path].where), *leaves)
        counts = {p.where: count_of(adams[p.path]) for p in nearest(piece, want)}
        check_alike(piece, counts)
        return jax.tree.map(functools.partial(_copy, next(iter(counts.values()))), piece.value)

    return treedef.unflatten(map(new, want))


def _partners(have: list[Piece], want: list[Piece]) -> dict[tuple[Any, ...], Piece]:
    """The counterparts of the wanted pieces, by path."""
    alone = all(sum(p.kind == ADAM for p in pieces) == 1 for pieces in (have, want))

    def role(piece: Piece) -> tuple[str, ...]:
        if alone and piece.kind == ADAM:
            return (ADAM,)
        names = (keystr((key,)) for key in piece.path if not isinstance(key, SequenceKey))
        return piece.kind, *names

    free: dict[tuple[str, ...], list[Piece]] = {}
    for piece in have:
        free.setdefault(role(piece), []).append(piece)
    wanted = Counter(map(role, want))
    for found in free.values():
        # If the numbers of counters differ, it is unknown which belongs to which.
        if found[0].kind == COUNTER and len(found) != wanted[role(found[0])]:
            for piece in found:
                check_counter(piece, have)
    partners = {p.path: free[role(p)].pop(0) for p in want if free.get(role(p))}
    missing = [str(p) for p in want if p.path not in partners and p.kind != COUNTER]
    left = [str(p) for pieces in free.values() for p in pieces if p.kind != COUNTER]
    if missing or left:
        told = [f"{', '.join(found)} without a counterpart" for found in (left, missing) if found]
        raise ValueError(
            f"Not everything can be converted: {'; and '.join(told)}. Both states must have the "
            "same wrappers around their Adam states. Or convert a single Adam state."
        )
    return partners


def _adam(source: Piece, target: Piece) -> Any:
    """The Adam state `source`, converted to one like `target`."""
    found, wanted = _moment_trees(source), _moment_trees(target)
    if set(found) != set(wanted):
        raise ValueError(
            f"{source.where} has {' and '.join(found)}, but {target.where} has "
            f"{' and '.join(wanted)}: these are states of different optimizers."
        )
    check_one_count(source)
    # In Optax the second moment of complex parameters has their dtype, but real values.
    found |= {n: jax.tree.map(jnp.real, x) for n, x in found.items() if n.startswith("nu")}
    new = {
        name: _moment(f"{source.where}: {name}", tree, wanted[name], f"{target.where}: {name}")
        for name, tree in found.items()
    }
    count = count_of(source.value)
    old: Any = target.value
    fields: tuple[str, ...] = old._fields
    if is_adam_state(old):
        extra = {name: new[name] for name in old.extra or {}} or None
        residual = jax.tree.map(jnp.zeros_like, old.residual)
        new = {"mu": new["mu"], "nu": new["nu"], "extra": extra, "residual": residual}
    else:
        new = {name: new[_OURS.get(name, name)] for name in fields if name not in COUNTS}
    counts = {name: _copy(count, getattr(old, name)) for name in fields if name in COUNTS}
    return old._replace(**counts, **new)


def _moment_trees(adam: Piece) -> dict[str, PyTree]:
    """The moments of an Adam state by their names in this package."""
    state: Any = adam.value
    if not is_adam_state(state):
        fields: dict[str, PyTree] = state._asdict()
        return {_OURS.get(name, name): x for name, x in fields.items() if name not in COUNTS}
    if holds_codes(state.nu_scale):
        raise ValueError(
            f"{adam.where} has 8-bit moments, which Optax does not have: convert between Optax and "
            'moments="full", and call convert_moments before or after.'
        )
    return {"mu": state.mu, "nu": state.nu} | (state.extra or {})


def _moment(where: str, tree: PyTree, like: PyTree, like_where: str) -> PyTree:
    leaves = _trees.leaves_like(where, tree, like, like_where)
    wanted, treedef = jax.tree_util.tree_flatten_with_path(like, is_leaf=_trees.is_none)
    return treedef.unflatten(
        None if old is None else _array(where + keystr(path), leaf, old)
        for leaf, (path, old) in zip(leaves, wanted, strict=True)
    )


def _array(where: str, value: Any, like: Any) -> Any:
    """`value` in the dtype of `like`, shared if it needs no cast."""
    _check.same_shape(where, value, like, "its counterpart in like")
    dtype = like.dtype if hasattr(like, "dtype") else jnp.result_type(like)
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # a PRNG key
        return value
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{where} is {value.dtype}, but its counterpart in like is {dtype}.")
    return value.astype(dtype)


def _copy(count: Any, like: Any) -> jax.Array:
    """A copy, because a state that contains a buffer twice cannot be donated."""
    return jnp.array(count, dtype=like.dtype)
