"""A step for some rows of a table, and the pass that brings all rows up to date.

The rows take the same step as a whole leaf (`advance` and `finish` of `_leaf`). The random bits of
an element depend on its place in the table, not on its place in the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _mesh
from functional_adam._equations import rows as R
from functional_adam._equations.numerics import one_minus_exp, times, widened
from functional_adam._equations.operands import Moments
from functional_adam._kernels.partition import LeafCall
from functional_adam._leaf import advance, finish, land, weights_of
from functional_adam._rows.batch import distinct
from functional_adam._rows.catch_up import CatchUp, missed_updates
from functional_adam._rows.table import Table, beside, parameter, put, taken
from functional_adam._scalars import groups
from functional_adam._settings import Settings
from functional_adam._state import next_count
from functional_adam._step import leaf_call, step_context
from functional_adam._storage.float_formats import Full
from functional_adam._storage.leaf_state import LeafState
from functional_adam._storage.noise import leaf_key, random_bits
from functional_adam._transform import BoundSettings

# Catching up needs other random bits than the step, since both may round in the same call.
_CATCH_UP = leaf_key("missed steps")


def compiled(
    do: Callable[..., Table], settings: Settings, catch_up: CatchUp, table: Table, *arrays: Any
) -> Table:
    """`do(settings, catch_up, table, *arrays)` as one compiled program, also in an eager call.

    Otherwise each eager call would compile the loops that catch up once more.
    """
    given = settings._asdict().items()
    numbers = {name: x for name, x in given if isinstance(x, jax.Array)}
    static = BoundSettings(do, settings._replace(**dict.fromkeys(numbers)))
    return _compiled(static, catch_up, numbers, table, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    static: BoundSettings, catch_up: CatchUp, numbers: Any, table: Table, *arrays: Any
) -> Table:
    settings = static.settings._replace(**numbers)
    do = functools.partial(static.func, settings, catch_up)
    return _mesh.over_auto_axes(do, table)(table, *arrays)


def step_rows(
    settings: Settings,
    catch_up: CatchUp,
    table: Table,
    before: jax.Array,
    numbers: jax.Array,
    grads: jax.Array,
) -> Table:
    """The table after a step in which the rows `numbers` have the gradients `grads`."""
    height, count = table.last.shape[0], next_count(before)
    slots, sums = distinct(grads, numbers, height)
    rows = taken(table, slots)
    # Slots beyond the last row count as current. With `last` 0 they would make `_log_keep` sum the
    # decays of a schedule from the first step.
    rows = rows._replace(last=jnp.where(slots < height, rows.last, before))
    call = _call(settings, table, sums, rows, before, count)
    call = call._replace(key=_keys(call.key, slots, sums))
    rows, old = _caught_up(settings, catch_up, call, rows, before)
    theta, stored = _step(call, sums, rows, old)
    # The value is `count`. The dependence on `rows.last` makes XLA read before it writes in place.
    last = jnp.maximum(rows.last, count)
    return put(table, slots, Table(theta, stored, last))


def flush_table(settings: Settings, catch_up: CatchUp, table: Table, count: jax.Array) -> Table:
    """The table with every row as if its gradient had been 0 in all the steps it missed."""
    after = jnp.maximum(count, 1)  # at count 0 there is no noise, and nothing to flush
    call = _call(settings, table, jnp.zeros_like(table.theta), table, count, after)
    rows, old = _caught_up(settings, catch_up, call, table, count)
    bits: Any = None
    if call.noise is not None:
        bits = random_bits(call.noise, call.key ^ _CATCH_UP, table.theta.shape)
    stored = call.config.moments.store(old, rows.stored, bits, call.s)
    flushed = rows._replace(stored=stored, last=jnp.maximum(table.last, count))

    def unless_current(new: jax.Array, was: jax.Array) -> jax.Array:
        # Storing a row again could round it again.
        return new if new.ndim == 0 else jnp.where(beside(table.last < count, new), new, was)

    return jax.tree.map(unless_current, flushed, table)


def _call(
    settings: Settings, table: Table, g: jax.Array, rows: Table, before: Any, count: jax.Array
) -> LeafCall:
    """The arguments of a leaf's step, for these rows."""
    # The size of the whole table decides whether moments are float32, not the size of the batch.
    settings = settings._replace(moments=settings.moments.of(table.stored))
    group = groups([settings], before, count)[0]
    context = step_context(settings, count, ("",), "")._replace(applies=True)
    call: Any = leaf_call(context, group, "", g, rows.stored, parameter(settings, rows.theta))
    return call


def _keys(key: Any, slots: jax.Array, like: jax.Array) -> Any:
    """A key for each row that gives its elements the random bits of their place in the table."""
    if key is None:
        return None
    width = np.uint32(np.prod(like.shape[1:], dtype=object) % 2**32)
    ahead = slots.astype(jnp.uint32) - jnp.arange(slots.shape[0], dtype=jnp.uint32)
    return beside(key + ahead * width, like)


def _caught_up(
    settings: Settings, catch_up: CatchUp, call: LeafCall, rows: Table, until: jax.Array
) -> tuple[Table, Moments]:
    """The rows and their moments as they are after step `until`, by the rule of `catch_up`."""
    wide = functools.partial(widened, call.s.eps.dtype)
    old = jax.tree.map(wide, call.config.moments.load(rows.stored))
    if catch_up == "lazy":
        return rows, old
    missed = jnp.maximum(until - rows.last, 0).astype(call.s.eps.dtype)
    now = R.coasted(call.s, beside(missed, old.m), old)
    if catch_up == "moments":
        return rows, now
    total, log_keep = missed_updates(settings, call.s, rows.last, until, old)
    weights = weights_of(call.config, call.s, rows.stored, rows.theta)
    if log_keep is not None:
        total = total - times(one_minus_exp(log_keep), weights)
    random: Any = None
    if call.noise is not None:
        random = random_bits(call.noise, call.key ^ _CATCH_UP, total.shape)
    theta, stored = land(call.config, total, weights, rows.stored, rows.theta, random)
    return rows._replace(theta=theta, stored=stored), now


def _step(call: LeafCall, g: jax.Array, rows: Table, old: Moments) -> tuple[jax.Array, LeafState]:
    """The step of a leaf whose moments have already been loaded and caught up."""
    held = rows.stored._replace(m=old.m, v=old.v, scale=None)
    config = call.config._replace(moments=Full())
    x, new = advance(config, call.s, g, held, rows.theta)
    return finish(call.config, call.s, call.noise, call.key, x, new, rows.stored, rows.theta)
