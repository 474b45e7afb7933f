"""A run carried over from Optax, or to it: every Adam state of a tree of states put into the other.

Both libraries keep the same moments and the same counts; only the places differ. A state of
`optax.adamw` is a tuple with Adam's part first and perhaps a schedule's counter last, ours one
`AdamState`; around both there may be any wrappers. So the arrays are matched by the names on the
way to them (fields and keys, not positions), and the tree that results is that of `like`.
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

# Fields of Optax's states that ours have under another name; AdEMAMix counts twice.
_OURS = {"m1": "mu", "m2": "mu_slow", "m": "mu", "n": "nu"}


def from_optax(opt_state: PyTree, like: PyTree) -> PyTree:
    """An Optax state as the state of the same optimizer with this package's Adam in it.

    Every Adam state inside `opt_state` (Adam's, AMSGrad's, AdEMAMix's and those of the others of
    the family that Optax has) goes into the `AdamState` at its place in `like`; everything else
    (hyperparameters, accumulated gradients, counters of other transformations) is taken over as
    it is. The next update continues the run as Optax would have.

    Arrays are matched by the names on the way to them, not by positions, and a single Adam state
    is found wherever it is: `optax.chain(clip, optax.scale_by_adam(), decay, rate)` may become
    `optax.chain(clip, fa.adamw())`. The holes of `optax.masked` stay holes.

    A counter of a schedule with a counterpart of the same name is taken over. One without is
    dropped, since a schedule here is called with the count of its Adam; where the two differ, as
    after a schedule was started anew, that raises. Under `jax.jit` counters have no values to
    compare: call it outside.

    Args:
        opt_state: the state of an Optax optimizer, however wrapped.
        like: what the `init` of the new optimizer returns for the same parameters: an `AdamState`,
            or the same wrappers around such states. Only its structure, dtypes and shapes count,
            so that `jax.eval_shape(tx.init, params)` does as well.

    Returns:
        A tree like `like`, in its dtypes. Arrays that need no cast are shared with `opt_state`.

    Raises:
        ValueError: there is no Adam state on either side, something has no counterpart on the
            other, a counter without a counterpart differs from Adam's count, shapes or structures
            differ, or `like` has 8-bit moments (carry over into moments="full" and call
            `convert_moments`).
        TypeError: a complex array where a real one belongs, or the reverse.

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
    """A state of this package as the state of the same Optax optimizer: `from_optax` reversed.

    Args:
        state: an `AdamState`, or the state of wrappers around this package's transformations.
        like: what the `init` of the Optax optimizer returns for the same parameters, or its
            `jax.eval_shape`. The class of its Adam state says what is kept (`nu_max` or not).

    Returns:
        A tree like `like`, in its dtypes: in Optax the moments of 16-bit parameters have 16 bits.
        Counters of schedules are set to Adam's count, unless one of the same name is in `state`.
        What `residual` holds is left behind; see `master_params`.

    Raises:
        ValueError: as in `from_optax`; 8-bit moments in `state` go through `convert_moments` first.
        TypeError: as in `from_optax`.

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
    """Of each wanted piece that has a counterpart, by its path, that counterpart."""
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
        # Of fewer or more counters than the other side has, nobody knows which is which.
        if found[0].kind == COUNTER and len(found) != wanted[role(found[0])]:
            for piece in found:
                check_counter(piece, have)
    partners = {p.path: free[role(p)].pop(0) for p in want if free.get(role(p))}
    missing = [str(p) for p in want if p.path not in partners and p.kind != COUNTER]
    left = [str(p) for pieces in free.values() for p in pieces if p.kind != COUNTER]
    if missing or left:
        told = [f"{', '.join(found)} without a counterpart" for found in (left, missing) if found]
        raise ValueError(
            f"Not everything can be carried over: {'; and '.join(told)}. Both states must come "
            "from the same wrappers around their Adam; or hand over one Adam state alone."
        )
    return partners


def _adam(source: Piece, target: Piece) -> Any:
    """The Adam state `source`, as one like `target`."""
    found, wanted = _moment_trees(source), _moment_trees(target)
    if set(found) != set(wanted):
        raise ValueError(
            f"{source.where} keeps {' and '.join(found)}, but {target.where} keeps "
            f"{' and '.join(wanted)}: they are states of different optimizers."
        )
    check_one_count(source)
    # Optax gives the second moment of complex parameters their dtype; its values are real.
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
    """The moments of an Adam state by our names."""
    state: Any = adam.value
    if not is_adam_state(state):
        fields: dict[str, PyTree] = state._asdict()
        return {_OURS.get(name, name): x for name, x in fields.items() if name not in COUNTS}
    if holds_codes(state.nu_scale):
        raise ValueError(
            f"{adam.where} has 8-bit moments, which Optax has not: carry a run over with "
            'moments="full" and change it with convert_moments, before or after.'
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
    """`value` in the dtype of `like`, shared if that is its own."""
    _check.same_shape(where, value, like, "its counterpart in like")
    dtype = like.dtype if hasattr(like, "dtype") else jnp.result_type(like)
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # a PRNG key
        return value
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{where} is {value.dtype}, but its counterpart in like is {dtype}.")
    return value.astype(dtype)


def _copy(count: Any, like: Any) -> jax.Array:
    """Not shared: a state with a buffer twice in it cannot be donated."""
    return jnp.array(count, dtype=like.dtype)
