"""`update_rows`: one step of Adam for some rows of a table."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from functional_adam import _check
from functional_adam._equations.family import ADAM
from functional_adam._hints.keywords import explained
from functional_adam._rows import batch
from functional_adam._rows.catch_up import CATCH_UPS, CatchUp, refused
from functional_adam._rows.row_step import compiled, flush_table, step_rows
from functional_adam._rows.table import read, written
from functional_adam._settings import Settings, make_settings, with_eps
from functional_adam._state import AdamState, next_count
from functional_adam._storage.formats import MomentFormat
from functional_adam._types import ParameterRounding, Placement, Scalar, ScalarOrSchedule


@explained
def update_rows(
    row_grads: chex.Array,
    rows: chex.Array,
    state: AdamState,
    table: chex.Array,
    *,
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    eps_placement: Placement = "after_correction",
    catch_up: CatchUp = "lazy",
) -> tuple[jax.Array, AdamState]:
    """One step of Adam, or of AdamW, for the rows of a table that a batch has read.

    Time and memory depend on the rows in the batch, not on the height of the table. A row that
    occurs several times is updated once, with the sum of its gradients. This is step t = count + 1.
    A row last updated at step L has missed t - 1 - L steps, in which its gradient was 0. `catch_up`
    says what happens to it before it takes step t:

        "lazy"      nothing: m and v stay as step L left them
        "moments"   m <- b1**(t-1-L) m, v <- b2**(t-1-L) v
        "dense"     the same moments, and theta becomes what dense Adam has after step t - 1

    To have the rows written in place, jit the step, donate `table` and `state`, and declare these
    two arguments in the order in which the step returns them. `catch_up="dense"` cannot be
    differentiated in reverse mode (`jax.grad`), since it loops over the missed steps with
    `jax.lax.while_loop`; the other two can.

    Args:
        row_grads: The gradients with respect to `table[rows]`, of shape
            (*rows.shape, *table.shape[1:]).
        rows: Row numbers, an integer array of any shape. A number equal to the height of the table
            or above is padding, and its gradient is dropped. A negative number raises an error; in
            a compiled step, where values are unknown, its gradient is dropped.
        state: What `init_rows` or the last `update_rows` returned.
        table: The table to update: one array, with rows along its first axis.
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Default 0.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object. Pass what
            was given to `init_rows`.
        rounding: How a 16-bit parameter is rounded when it takes a step, as it was given to
            `init_rows`: "nearest" (default), "stochastic", "compensated" or "split".
        eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
            "before_correction" to sqrt(v), as TensorFlow and Keras do.
        catch_up: What to do about the steps that a row has missed: "lazy" (default), "moments" or
            "dense". "lazy" with eps_placement="before_correction" is `torch.optim.SparseAdam`.
            "dense" needs b1**2 < b2. With "moments" or "dense", call `flush_rows` before an
            evaluation.

    Returns:
        `(table, state)`, with the same shapes and dtypes as before. `state.count` grows by 1.

    Raises:
        ValueError: a number is out of range; `row_grads` has the wrong shape; a row number is
            negative; `state` belongs to another table, `moments` or `rounding`; a name is unknown.
        TypeError: `rows` does not hold integers, `state` has no counters of rows, or `table` is a
            tree.

    Example:
        >>> import functional_adam as fa, jax, jax.numpy as jnp
        >>> table = jnp.ones((1000, 2))
        >>> tokens = jnp.array([7, 3, 7, 1000])  # row 7 twice; 1000 is padding
        >>> grads = jnp.array([[1.0, -1.0], [0.5, 2.0], [3.0, 1.5], [9.0, 9.0]])
        >>> table, state = fa.update_rows(grads, tokens, fa.init_rows(table), table)
        >>> table[7].round(6), int(state.extra["last"].sum())
        (Array([0.999, 0.999], dtype=float32), 2)

    References:
        Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, Algorithm 1.
    """
    settings = _settings(
        catch_up,
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        moments=moments,
        rounding=rounding,
        eps_placement=eps_placement,
    )
    whole = read(settings, state, table)
    numbers, grads = batch.checked(row_grads, rows, whole.theta)
    count = jnp.asarray(state.count)
    if numbers.size:
        whole = compiled(step_rows, settings, catch_up, whole, count, numbers, grads)
    return written(state, whole, next_count(count))


@explained
def flush_rows(
    state: AdamState,
    table: chex.Array,
    *,
    catch_up: CatchUp,
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    moments: MomentFormat = "full",
    rounding: ParameterRounding = "nearest",
    eps_placement: Placement = "after_correction",
) -> tuple[jax.Array, AdamState]:
    """Bring every row of a table up to date, as if it had taken all the steps it has missed.

    Call it before an evaluation or a checkpoint of a table that `update_rows` trains with
    catch_up="moments" or "dense". After "dense", table and state are those of dense Adam: `update`
    takes the state once you set its `extra` to None. Time and memory depend on the whole table.
    catch_up="dense" cannot be differentiated in reverse mode, as in `update_rows`.

    Args:
        state: What `init_rows` or the last `update_rows` returned.
        table: The table to bring up to date.
        catch_up: "moments" or "dense", the same as for `update_rows`.
        learning_rate: Step size, >= 0, or a schedule `count -> step size`; `count` is 0 at the
            first step. Default 0.001.
        b1: Decay rate of m, the running average of gradients, in [0, 1). m averages over about
            `1 / (1 - b1)` steps. Default 0.9.
        b2: Decay rate of v, the running average of squared gradients, in [0, 1). v averages over
            about `1 / (1 - b2)` steps. Default 0.999.
        eps: Added to the denominator to avoid division by zero, >= 0. A larger value shortens the
            steps where gradients are small. Default 1e-8.
        eps_root: Added to the second moment under the square root, >= 0. The paper does not have
            it. Default 0.
        weight_decay: Decoupled weight decay, >= 0, or a schedule `count -> weight decay`. Each step
            shrinks theta by the fraction learning_rate * weight_decay. Default 0.
        moments: Storage format of m and v: "full" (default), "bfloat16" or "int8", which take 8, 4
            and 2 bytes per float32 parameter; or a `Full`, `BFloat16` or `Int8` object. Pass what
            was given to `init_rows`.
        rounding: How a 16-bit parameter is rounded when it takes a step, as it was given to
            `init_rows`: "nearest" (default), "stochastic", "compensated" or "split".
        eps_placement: Where eps is added: "after_correction" (default) adds it to sqrt(v_hat),
            "before_correction" to sqrt(v), as TensorFlow and Keras do.

    Returns:
        `(table, state)`, with state.extra["last"] equal to `state.count` everywhere. `count` does
        not change, and rows without missed steps keep every bit.

    Raises:
        ValueError: as `update_rows` does, or for catch_up="lazy", which has nothing to catch up.
        TypeError: as `update_rows` does.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> table = jnp.ones((3, 1))
        >>> state = fa.init_rows(table)
        >>> how = dict(learning_rate=0.1, weight_decay=0.5, catch_up="dense")
        >>> row, grad = jnp.array([2]), jnp.ones((1, 1))
        >>> table, state = fa.update_rows(grad, row, state, table, **how)
        >>> table, state = fa.flush_rows(state, table, **how)
        >>> table.ravel().round(6)  # the other rows have caught up on weight decay
        Array([0.95, 0.95, 0.85], dtype=float32)
    """
    if catch_up == "lazy":
        raise ValueError(
            'catch_up must be "moments" or "dense" to flush; with "lazy" rows miss nothing, so '
            "the table is always up to date."
        )
    settings = _settings(
        catch_up,
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        moments=moments,
        rounding=rounding,
        eps_placement=eps_placement,
    )
    whole = read(settings, state, table)
    count = jnp.asarray(state.count)
    return written(state, compiled(flush_table, settings, catch_up, whole, count), count)


def _settings(catch_up: Any, *, eps_placement: Any, **arguments: Any) -> Settings:
    settings = make_settings(with_eps(ADAM, eps_placement), **arguments)
    chosen = _check.choice("catch_up", catch_up, CATCH_UPS)
    why_not = refused(settings) if chosen == "dense" else None
    if why_not is not None:
        raise ValueError(why_not)
    return settings
