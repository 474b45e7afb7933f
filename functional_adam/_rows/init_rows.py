"""`init_rows`: the state of a table whose rows `update_rows` updates."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from functional_adam import _check
from functional_adam._hints.keywords import explained
from functional_adam._mesh import dimensions, divided, sharding_of, zeros
from functional_adam._rows.table import LAST, checked_table
from functional_adam._state import AdamState, fresh
from functional_adam._storage.formats import Int8, MomentFormat, make_format
from functional_adam._storage.rounding import ROUNDINGS
from functional_adam._types import ParameterRounding


@explained
def init_rows(
    table: chex.Array,
    *,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
) -> AdamState:
    """A fresh state for a table whose rows `update_rows` updates.

    It is the state that `init` makes for one array, with a counter for each row.

    Args:
        table: The table: one array, with rows along its first axis.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object. "int8"
            needs rows of at least 32 elements.
        rounding: How a 16-bit parameter is rounded when it takes a step: "nearest" (default),
            "stochastic", "compensated" or "split". "nearest" loses small steps. The other three
            keep them.

    Returns:
        An `AdamState` of one array. `extra["last"]`, int32 of shape (rows,), holds the value of
        `count` at which each row was last updated, or 0 if it never was.

    Raises:
        TypeError: `table` is not an array of floats, or `moments` cannot hold its dtype.
        ValueError: `table` has no axis of rows, its rows are too short for "int8", or a name is
            unknown.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> state = fa.init_rows(jnp.zeros((1000, 64)))
        >>> state.mu.shape, state.extra["last"].shape
        ((1000, 64), (1000,))
    """
    checked_table(table)
    table = jnp.asarray(table)
    format = make_format(moments)
    state = fresh(table, format, _check.choice("rounding", rounding, ROUNDINGS))
    if isinstance(format, Int8) and state.nu_scale is not None:
        _refuse_blocks_of_rows(format, table, state.nu_scale)
    lies = sharding_of(table)
    if lies is not None:
        lies = divided(lies, dimensions(lies, table.ndim)[:1], in_full=len(lies.spec) == table.ndim)
    return state._replace(extra={LAST: zeros(table.shape[:1], jnp.int32, lies)})


def _refuse_blocks_of_rows(format: Int8, table: jax.Array, scales: Any) -> None:
    """Refuse int8 unless each block, which shares a scale, lies within one row."""
    if scales.ndim > 1 and scales.shape[0] == table.shape[0]:
        return
    size, least = table.size // max(table.shape[0], 1), min(format.block_size, 32)
    smaller = "" if size < 16 else ", Int8(block_size=16)"
    raise ValueError(
        f'moments="int8" scales the rows in blocks, so a row needs at least {least} elements; got '
        f'rows of {size}. Use moments="bfloat16"{smaller} or moments="full".'
    )
