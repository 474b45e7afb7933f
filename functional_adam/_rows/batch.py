"""The rows of a batch: checks them, and makes each row distinct with the sum of its gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from functional_adam import _check
from functional_adam._rows.table import ORDER


def checked(row_grads: Any, rows: Any, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row numbers (k,) and their gradients (k, ...), with the axes of `rows` flattened."""
    rows = _row_numbers(rows, row_grads, table.shape[0])
    _check.leaf_dtype("row_grads", row_grads)
    shape = (*rows.shape, *table.shape[1:])
    if np.shape(row_grads) != shape:
        raise ValueError(
            f"row_grads has shape {np.shape(row_grads)}, but for rows of shape {rows.shape} of a "
            f"table of shape {table.shape} it must have shape {shape}: one gradient row for each "
            f"row number.{_whole_table(row_grads, table)}"
        )
    grads = _check.leaf_like("row_grads", row_grads, jax.ShapeDtypeStruct(shape, table.dtype), "")
    return rows.reshape(-1), grads.reshape(-1, *table.shape[1:])


def _whole_table(row_grads: Any, table: jax.Array) -> str:
    if np.shape(row_grads) != table.shape:
        return ""
    return (
        " This is a gradient of the whole table. Differentiate with respect to the rows that were "
        "read, table[rows], or pass row_grads[rows] if no row occurs twice."
    )


def _row_numbers(rows: Any, row_grads: Any, height: int) -> jax.Array:
    if isinstance(rows, list | tuple):
        rows = np.asarray(rows, np.int32 if len(rows) == 0 else None)
    dtype = getattr(rows, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        are_swapped = jnp.issubdtype(getattr(row_grads, "dtype", np.float32), jnp.integer)
        whole = "If all of them are whole numbers, write rows.astype(jnp.int32)."
        raise TypeError(
            f"rows must be an array of integers, the row numbers in the table; got "
            f"{dtype or _check.show(rows)}. {ORDER if are_swapped else whole}"
        )
    # Only concrete values in this process can be checked. `distinct` drops negative traced ones.
    is_known = not isinstance(rows, Tracer)
    if is_known and rows.size and getattr(rows, "is_fully_addressable", True):
        least = int(np.min(np.asarray(rows)))
        if least < 0:
            raise ValueError(
                f"rows must be from 0 to {height - 1}, or at least {height} for padding; got "
                f"{least}. Write jnp.where(rows < 0, {height}, rows) if those are padding."
            )
    return jnp.asarray(rows)


def distinct(grads: jax.Array, rows: jax.Array, height: int) -> tuple[jax.Array, jax.Array]:
    """(slots, sums): each distinct row number in rising order, and the sum of its gradients.

    Both are as long as `rows`, so that shapes do not depend on values. Unused slots, and numbers
    outside the table, become distinct slots beyond the last row. Gradients are summed in the order
    of the batch and in their own dtype, as `jnp.zeros_like(table).at[rows].add(grads)` does.
    """
    if rows.shape[0] == 0:
        return rows.astype(jnp.int32), grads
    if rows.dtype.itemsize < 4:  # `height` may be out of its range
        rows = rows.astype(jnp.int32)
    is_row = (rows >= 0) & (rows < height)
    numbers = jnp.where(is_row, rows.astype(jnp.int32), jnp.int32(height))
    found, slot = jnp.unique(numbers, return_inverse=True, size=rows.shape[0], fill_value=height)
    sums = jnp.zeros_like(grads).at[slot.reshape(-1)].add(grads)
    beyond = height + jnp.arange(rows.shape[0], dtype=jnp.int32)
    return jnp.where(found < height, found, beyond), sums
