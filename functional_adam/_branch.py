"""What is done, or not, only when a program runs; outside of a trace it is Python's `if`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer

T = TypeVar("T")


def either(condition: jax.Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """What one of the two returns; the other is not run."""
    if isinstance(condition, Tracer):
        return jax.lax.cond(condition, yes, no)
    return yes() if condition else no()


def changed_if(condition: jax.Array, change: Callable[[T], T], old: T) -> T:
    """`change(old)` or `old`, in the memory of `old`.

    A loop that is run once or never. Of a branch XLA for GPUs copies all results twice, which
    takes as much memory again as they have; what a loop carries stays where it is.
    """
    if not isinstance(condition, Tracer):
        return change(old) if condition else old
    convert: Any = jax.closure_convert  # what is differentiated must be an argument of `_looped`
    change, constants = convert(change, old)
    return _looped(change, condition, constants, old)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _looped(change: Callable[..., T], condition: jax.Array, constants: list[Any], old: T) -> T:
    def body(carry: tuple[jax.Array, T]) -> tuple[jax.Array, T]:
        return carry[0] & False, change(carry[1], *constants)

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, old))[1]


@_looped.defjvp
def _looped_jvp(  # registered, never called by name
    change: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    # A loop has no derivative backwards; a branch has.
    def branched(condition: jax.Array, constants: list[Any], old: Any) -> Any:
        return jax.lax.cond(condition, lambda: change(old, *constants), lambda: old)

    return jax.jvp(branched, primals, tangents)
