"""Moments as floats, in full or in bfloat16."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from functional_adam import _check
from functional_adam._equations.family import Variant
from functional_adam._equations.operands import Moments, Scalars
from functional_adam._storage import moment_dtypes
from functional_adam._storage.leaf_state import LeafState, refuse_other_format, refuse_wide
from functional_adam._storage.noise import RandomBits
from functional_adam._storage.rounding import stochastic, undifferentiable
from functional_adam._types import arithmetic_dtype, real_dtype


@dataclasses.dataclass(frozen=True)
class Full:
    """Full-precision moments: the format of `moments="full"`, 8 bytes per float32 parameter.

    `mu_dtype` and `nu_dtype` choose other dtypes. Moments narrower than float32 are rounded to
    nearest, which can lose their small changes: see `init`.

    Args:
        mu_dtype: Dtype of m: a float or complex dtype of at least 16 bits. None (default): float32,
            or the parameter's dtype if that is wider.
        nu_dtype: Dtype of v: a float dtype of at least 16 bits. None (default): float32, or float64
            for parameters of 64-bit precision.

    Raises:
        TypeError: An argument is not such a dtype.
        ValueError: A 64-bit dtype is given without JAX's 64-bit mode.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> fa.init(jnp.zeros(2), moments=fa.Full(mu_dtype="bfloat16")).mu.dtype
        dtype(bfloat16)
    """

    name: ClassVar[str] = "full"
    is_random: ClassVar[bool] = False
    has_scale: ClassVar[bool] = False
    mu_dtype: DTypeLike | None = None
    nu_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Turn both into NumPy dtypes, so that equal formats compare equal."""
        for name, real in (("mu_dtype", False), ("nu_dtype", True)):
            dtype = moment_dtypes.asked_for(name, getattr(self, name), real=real)
            object.__setattr__(self, name, dtype)

    def incompatibility(self, variant: Variant, b1: Any, b2: Any) -> str | None:
        """None: this format can store any moments."""
        del variant, b1, b2

    def of(self, stored: LeafState) -> Full:
        """The same format for every leaf."""
        del stored
        return self

    def fresh(self, path: str, leaf: Any) -> LeafState:
        """Zeros, sharded like the leaf."""
        dtype = arithmetic_dtype(_check.leaf_dtype(path, leaf))
        mu = jnp.zeros_like(leaf, dtype=self.mu_dtype or dtype)
        return LeafState(mu, jnp.zeros_like(leaf, dtype=self.nu_dtype or real_dtype(dtype)), {})

    def check(self, path: str, stored: LeafState) -> np.dtype[Any]:
        """The dtype of the arithmetic; raises if the leaf does not fit."""
        refuse_other_format(self, path, stored)
        return moment_dtypes.fitting(path, stored.m, stored.v, self.mu_dtype, self.nu_dtype)

    def load(self, stored: LeafState) -> Moments:
        """The moments as they are stored."""
        return Moments(stored.m, stored.v, stored.extra)

    def store(self, new: Moments, old: LeafState, bits: Any, s: Scalars | None) -> LeafState:
        """The new moments, rounded to nearest."""
        del s, bits
        cast = jax.tree.map(lambda a, b: a.astype(b.dtype), new, self.load(old))
        return old._replace(**cast._asdict())


@dataclasses.dataclass(frozen=True)
class BFloat16:
    """Moments in bfloat16: the format of `moments="bfloat16"`, 4 bytes per parameter.

    Everything is rounded stochastically. In a step, `nu` moves by the fraction 1 - b2 of the way to
    the squared gradient. This is usually less than half the distance to the next bfloat16 number,
    so rounding to nearest would lose it. It would also stop `mu` early: with a constant gradient,
    2 % short. The random bits are a function of the count, the leaf's path and the element's place.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> state = fa.init(jnp.zeros((2, 3)), moments=fa.BFloat16())
        >>> state.mu.dtype, state.nu.dtype
        (dtype(bfloat16), dtype(bfloat16))
    """

    name: ClassVar[str] = "bfloat16"
    is_random: ClassVar[bool] = True
    has_scale: ClassVar[bool] = False

    def incompatibility(self, variant: Variant, b1: Any, b2: Any) -> str | None:
        """None: this format can store any moments."""
        del variant, b1, b2

    def of(self, stored: LeafState) -> BFloat16:
        """The same format for every leaf."""
        del stored
        return self

    def fresh(self, path: str, leaf: Any) -> LeafState:
        """Zeros, sharded like the leaf."""
        refuse_wide(self, path, leaf)
        mu, nu = (jnp.zeros_like(leaf, dtype=jnp.bfloat16) for _ in "mv")
        return LeafState(mu, nu, {})

    def check(self, path: str, stored: LeafState) -> np.dtype[Any]:
        """The dtype of the arithmetic; raises if the leaf does not fit."""
        refuse_other_format(self, path, stored)
        _check.same_shape("state.nu" + path, stored.v, stored.m, "state.mu" + path)
        return np.dtype(np.float32)

    def load(self, stored: LeafState) -> Moments:
        """The moments as they are stored."""
        return Moments(stored.m, stored.v, stored.extra)

    def store(self, new: Moments, old: LeafState, bits: RandomBits, s: Scalars | None) -> LeafState:
        """The new moments, rounded stochastically; a running maximum is rounded down."""
        del s
        new = jax.tree.map(undifferentiable, new)  # one by one: each depends on itself alone

        def rounded(x: jax.Array, random: jax.Array) -> jax.Array:
            return stochastic(x.astype(jnp.float32), np.dtype(jnp.bfloat16), random)

        down = jnp.zeros((), jnp.uint32)
        extra = {name: rounded(x, bits.extra.get(name, down)) for name, x in new.extra.items()}
        return old._replace(m=rounded(new.m, bits.mu), v=rounded(new.v, bits.nu), extra=extra)
