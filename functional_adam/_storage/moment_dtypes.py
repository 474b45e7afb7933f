"""The dtypes of moments: which may be asked for, and which a state may have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._hints import restored
from functional_adam._types import arithmetic_dtype, below_16bit, real_dtype


def asked_for(name: str, value: Any, *, real: bool) -> np.dtype[Any] | None:
    """None, or a float (unless `real`: or complex) dtype that JAX will keep as it is."""
    if value is None:
        return None
    kind = jnp.floating if real else jnp.inexact
    try:
        dtype = None if isinstance(value, jax.Array | np.ndarray | np.generic) else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, kind) or below_16bit(dtype):
        raise TypeError(
            f"{name} must be None or a float dtype of at least 16 bits, such as 'bfloat16'; got "
            f"{_check.show(value)}. (Under "
            "optax.inject_hyperparams write a string: it calls classes such as jnp.bfloat16.)"
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{name}={dtype} needs 64-bit mode, or JAX would halve its precision: "
            "call jax.config.update('jax_enable_x64', True) first."
        )
    return dtype


def fitting(path: str, mu: Any, nu: Any, mu_dtype: Any, nu_dtype: Any) -> np.dtype[Any]:
    """The dtype that arithmetic with these moments needs, once they are what the caller expects.

    A moment of 16 bits must have been asked for: in bfloat16 `nu` stops moving, in float16 small
    ones are 0, and nothing but its dtype tells a state that was cast from one that is meant.
    """
    found = _check.leaf_dtype("state.mu" + path, mu), _check.leaf_dtype("state.nu" + path, nu)
    _check.same_shape("state.nu" + path, nu, mu, "state.mu" + path)
    wanted = ("mu", mu_dtype), ("nu", nu_dtype)
    for (name, want), have in zip(wanted, found, strict=True):
        if want is not None and have != want:
            raise ValueError(
                f"state.{name}{path} is {have}, but {name}_dtype={want} was asked for. Make the "
                f"state with init(params, {name}_dtype=...) or by the same factory.{restored.CAST}"
            )
        if want is None and jnp.finfo(have).bits < 32:
            raise ValueError(
                f"state.{name}{path} is {have}, where at least 32 bits belong unless {name}_dtype "
                f'asks for fewer: pass {name}_dtype="{have}" if it is meant.{restored.CAST}'
            )
    if mu_dtype is nu_dtype is None and real_dtype(found[0]) != found[1]:
        raise ValueError(
            f"state.mu{path} is {found[0]} and state.nu{path} {found[1]}: without mu_dtype and "
            f"nu_dtype both have one precision.{restored.CAST}"
        )
    return arithmetic_dtype(*found)
