"""A table with its state: checks that they fit, takes rows out, and puts them back."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._leaf_params import LeafParam
from functional_adam._scalars import is_zero
from functional_adam._settings import Settings
from functional_adam._state import AdamState, check_state
from functional_adam._step import rounds
from functional_adam._storage.leaf_state import LeafState

LAST = "last"  # in `AdamState.extra`: the count at which each row was last brought up to date
ORDER = "The order is update_rows(row_grads, rows, state, table)."


class Table(NamedTuple):
    """A table and its stored state, or some rows of both."""

    theta: jax.Array
    stored: LeafState
    last: jax.Array


def read(settings: Settings, state: Any, table: Any) -> Table:
    """`table` and `state` as a `Table`; raises if they do not fit each other."""
    height = np.shape(checked_table(table))[0]
    if not isinstance(state, AdamState) or LAST not in (state.extra or {}):
        kind = "an AdamState without it" if isinstance(state, AdamState) else _check.show(state)
        raise TypeError(
            f"state must count the steps of each row, in extra[{LAST!r}]; got {kind}. Make it with "
            "init_rows(table). If the table was trained as a whole, add a count for each row to "
            f"its state: state._replace(extra={{{LAST!r}: jnp.full({height}, state.count)}})."
        )
    check_state(state, "a table", [LAST], settings.moments, settings.rounding)
    stored = LeafState(state.mu, state.nu, {}, state.nu_scale, state.residual)
    if len(jax.tree.leaves(state.mu)) != 1 or not hasattr(state.mu, "shape"):
        raise TypeError(f"state.mu must be one array; got {_check.show(state.mu)}.")
    advice = " The state is of another table: make it with init_rows(table)."
    _check.same_shape("table", table, state.mu, "state.mu", advice)
    settings.moments.of(stored).check("", stored)
    last = state.extra[LAST]
    if getattr(last, "dtype", None) != np.int32 or np.shape(last) != (height,):
        found = f"{getattr(last, 'dtype', type(last).__name__)} of shape {np.shape(last)}"
        raise ValueError(
            f"state.extra[{LAST!r}] must be int32 of shape ({height},), one for each row; got "
            f"{found}."
        )
    table = _check.leaf_like("table", table, state.mu, "state.mu")
    rounds(settings.rounding, "", stored, parameter(settings, table))
    return Table(table, stored, jnp.asarray(last))


def checked_table(table: Any) -> Any:
    """`table`, if it is one array of floats with an axis of rows; raises otherwise."""
    if isinstance(table, dict | list | tuple):
        advice = (
            ORDER if isinstance(table, AdamState) else "Make one call for each table of a tree."
        )
        raise TypeError(f"table must be one array; got {_check.show(table)}. {advice}")
    _check.leaf_dtype("table", table)
    if np.ndim(table) == 0:
        raise ValueError("table must have rows along its first axis; got shape ().")
    return table


def parameter(settings: Settings, table: jax.Array) -> LeafParam:
    """The table as the step of a leaf expects a parameter."""
    return LeafParam(settings.variant, table, not is_zero(settings.weight_decay), table.dtype)


def written(state: AdamState, table: Table, count: jax.Array) -> tuple[jax.Array, AdamState]:
    """(table, state) after a step."""
    stored = table.stored
    return table.theta, AdamState(
        count, stored.m, stored.v, stored.scale, stored.residual, {LAST: table.last}
    )


# ---- Rows ----


def _has_rows(x: Any) -> bool:
    """Whether an array has an axis of rows; a scalar residual that only marks a dtype has none."""
    return np.ndim(x) > 0


def taken(table: Table, slots: jax.Array) -> Table:
    """The rows at `slots`, zeros for slots beyond the last row. Slots are distinct and rising."""

    def of(x: jax.Array) -> jax.Array:
        if not _has_rows(x):
            return x
        at = x.at[slots]
        return at.get(mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True)

    return jax.tree.map(of, table)


def put(table: Table, slots: jax.Array, rows: Table) -> Table:
    """The table with `rows` written at `slots`; slots beyond the last row are dropped."""

    def of(x: jax.Array, new: jax.Array) -> jax.Array:
        if not _has_rows(x):
            return x
        return x.at[slots].set(new, mode="drop", indices_are_sorted=True, unique_indices=True)

    return jax.tree.map(of, table, rows)


def beside(numbers: jax.Array, x: jax.Array) -> jax.Array:
    """One number per row, reshaped so that it broadcasts against x along the axis of rows."""
    return numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))
