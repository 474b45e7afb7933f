"""What a state holds of a leaf, and errors about what it holds.

A state does not name its format: its dtypes do.
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
    """What a state holds of a leaf."""

    m: Any
    v: Any
    extra: dict[str, Any]
    scale: Any = None
    residual: Any = None


class Named(Protocol):
    """A format, as far as errors go: the word that `moments=` takes."""

    name: ClassVar[str]


def holds_codes(nu_scale: Any) -> bool:
    """Whether any leaf has 8-bit moments, in a state whose scales these are."""
    return bool(jax.tree.leaves(nu_scale))


def format_of(mu: Any, nu: Any) -> str:
    """The name of the format that two leaves of a state have."""
    dtypes = getattr(mu, "dtype", None), getattr(nu, "dtype", None)
    if dtypes == (np.int8, np.uint8):
        return "int8"
    return "bfloat16" if dtypes == (jnp.bfloat16, jnp.bfloat16) else "full"


def refuse_other_format(format: Named, path: str, stored: LeafState, because: str = "") -> None:
    """Raise for moments that another format keeps, or none."""
    found = format_of(stored.m, stored.v)
    both_given = None not in (getattr(format, name, None) for name in ("mu_dtype", "nu_dtype"))
    if found == format.name or (found == "bfloat16" and both_given):
        return
    held = f"state.mu{path} is {stored.m.dtype} and state.nu{path} {stored.v.dtype}"
    if stored.scale is not None:
        raise ValueError(
            f"{held}, but beside state.nu_scale they are codes, int8 and uint8.{restored.CAST}"
        )
    hint = ""
    if found == "bfloat16" and format.name == "full":
        hint = ', or mu_dtype="bfloat16", nu_dtype="bfloat16" to round both to nearest'
    raise ValueError(
        f'{held}, that is moments="{found}", but moments="{format.name}" was asked for{because}. '
        f'Pass moments="{found}"{hint}, or change the state with convert_moments.{restored.CAST}'
    )


def refuse_wide(format: Named, path: str, leaf: Any) -> None:
    """Raise for a leaf whose arithmetic is wider than float32, or complex."""
    dtype = _check.leaf_dtype(path, leaf)
    if arithmetic_dtype(dtype) != np.float32:
        raise TypeError(
            f'{path} is {dtype}, but moments="{format.name}" is for real parameters of up to 32 '
            'bits; use moments="full".'
        )
