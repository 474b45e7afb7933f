"""The part of a state that belongs to one leaf, and errors about its format.

A state does not name its format; the dtypes of its leaves show it.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._hints import restored
from functional_adam._types import arithmetic_dtype


class LeafState(NamedTuple):
    """The part of a state that belongs to one leaf."""

    m: Any
    v: Any
    extra: dict[str, Any]
    scale: Any = None
    residual: Any = None


class Named(Protocol):
    """The part of a format that errors need: its name in `moments=`."""

    name: ClassVar[str]


def holds_codes(nu_scale: Any) -> bool:
    """Whether any leaf of the state with these scales has 8-bit moments."""
    return bool(jax.tree.leaves(nu_scale))


def format_of(mu: Any, nu: Any) -> str:
    """The name of the format of two leaves of `mu` and `nu`."""
    dtypes = getattr(mu, "dtype", None), getattr(nu, "dtype", None)
    if dtypes == (np.int8, np.uint8):
        return "int8"
    return "bfloat16" if dtypes == (jnp.bfloat16, jnp.bfloat16) else "full"


def refuse_other_format(format: Named, path: str, stored: LeafState, because: str = "") -> None:
    """Raise for moments in another format, or in none."""
    found = format_of(stored.m, stored.v)
    both_given = None not in (getattr(format, name, None) for name in ("mu_dtype", "nu_dtype"))
    if found == format.name or (found == "bfloat16" and both_given):
        return
    held = f"state.mu{path} is {stored.m.dtype} and state.nu{path} {stored.v.dtype}"
    if stored.scale is not None:
        raise ValueError(
            f"{held}, but state.nu_scale needs codes there, int8 and uint8.{restored.CAST}"
        )
    hint = ""
    if found == "bfloat16" and format.name == "full":
        hint = ', or mu_dtype="bfloat16", nu_dtype="bfloat16" to round both to nearest'
    raise ValueError(
        f'{held}, the format moments="{found}", but moments="{format.name}" was given{because}. '
        f'Pass moments="{found}"{hint}, or change the state with convert_moments.{restored.CAST}'
    )


def refuse_wide(format: Named, path: str, leaf: Any) -> None:
    """Raise for a leaf whose arithmetic is wider than float32, or complex."""
    dtype = _check.leaf_dtype(path, leaf)
    if arithmetic_dtype(dtype) != np.float32:
        raise TypeError(
            f'{path} is {dtype}, but moments="{format.name}" works only for real parameters of up '
            'to 32 bits. Use moments="full".'
        )
