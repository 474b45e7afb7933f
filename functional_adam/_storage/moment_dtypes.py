"""The dtypes of moments: which ones a caller may ask for and which ones a state may have."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._hints import restored
from functional_adam._types import arithmetic_dtype, below_16bit, real_dtype


def asked_for(name: str, value: Any, *, real: bool) -> np.dtype[Any] | None:
    """None, or a float dtype that JAX does not narrow; a complex one too, unless `real`."""
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
            "optax.inject_hyperparams pass a string: it calls classes such as jnp.bfloat16.)"
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{name}={dtype} needs 64-bit mode, without which JAX would halve its precision: "
            "call jax.config.update('jax_enable_x64', True) first."
        )
    return dtype


def fitting(path: str, mu: Any, nu: Any, mu_dtype: Any, nu_dtype: Any) -> np.dtype[Any]:
    """The dtype for arithmetic with these moments; raises if theirs are not the expected ones.

    16-bit moments must have been asked for. In bfloat16 `nu` stops moving, in float16 small values
    become 0, and only the dtype shows that a state was cast by mistake.
    """
    found = _check.leaf_dtype("state.mu" + path, mu), _check.leaf_dtype("state.nu" + path, nu)
    _check.same_shape("state.nu" + path, nu, mu, "state.mu" + path)
    wanted = ("mu", mu_dtype), ("nu", nu_dtype)
    for (name, want), have in zip(wanted, found, strict=True):
        if want is not None and have != want:
            raise ValueError(
                f"state.{name}{path} is {have}, but {name}_dtype={want} was given. Make the state "
                f"with init(params, {name}_dtype=...) or with the same factory.{restored.CAST}"
            )
        if want is None and jnp.finfo(have).bits < 32:
            raise ValueError(
                f"state.{name}{path} is {have}, but moments have at least 32 bits unless "
                f'{name}_dtype asks for fewer: pass {name}_dtype="{have}" if you want that.'
                f"{restored.CAST}"
            )
    if mu_dtype is nu_dtype is None and real_dtype(found[0]) != found[1]:
        raise ValueError(
            f"state.mu{path} is {found[0]} and state.nu{path} is {found[1]}, but without mu_dtype "
            f"and nu_dtype both must have the same precision.{restored.CAST}"
        )
    return arithmetic_dtype(*found)
