"""Branches that a compiled program decides when it runs; outside of a trace, Python's `if`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer

T = TypeVar("T")


def either(condition: jax.Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """`yes()` if the condition is true, else `no()`; only one of them runs."""
    if isinstance(condition, Tracer):
        return jax.lax.cond(condition, yes, no)
    return yes() if condition else no()


def changed_if(condition: jax.Array, change: Callable[[T], T], old: T) -> T:
    """`change(old)` if the condition is true, else `old`, in the memory of `old`.

    It is a loop that runs once or not at all. XLA for GPUs copies all results of a branch twice,
    which doubles the memory that they take. What a loop carries stays in place.
    """
    if not isinstance(condition, Tracer):
        return change(old) if condition else old
    convert: Any = jax.closure_convert  # differentiated values must be arguments of `_looped`
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
    # A while_loop cannot be differentiated in reverse mode; a branch can.
    def branched(condition: jax.Array, constants: list[Any], old: Any) -> Any:
        return jax.lax.cond(condition, lambda: change(old, *constants), lambda: old)

    return jax.jvp(branched, primals, tangents)
