"""The storage formats of moments, and the 8-bit format among them.

A format is an object that makes a leaf's fresh state, checks a state, reads the moments for the
arithmetic and writes them back. The formulas know nothing about formats.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from functional_adam import _check
from functional_adam._equations.family import Variant
from functional_adam._equations.numerics import largest_ratio
from functional_adam._equations.operands import Moments, Scalars
from functional_adam._hints import argument_hints
from functional_adam._storage import int8
from functional_adam._storage.float_formats import BFloat16, Full
from functional_adam._storage.floats import bits_of, is_nan
from functional_adam._storage.leaf_state import LeafState, refuse_other_format, refuse_wide
from functional_adam._storage.noise import RandomBits
from functional_adam._storage.reductions import PLAIN, Reductions
from functional_adam._storage.rounding import undifferentiable


@dataclasses.dataclass(frozen=True)
class Int8:
    """Both moments in 8 bits: the format of `moments="int8"`, 2.02 bytes per parameter.

    Leaves with fewer than `min_size` elements get float32 moments and no scales. In most models
    these are norms and biases, 0.1 % of all parameters. `init` and `convert_moments` decide by the
    size of the leaf that they see; `update` takes each leaf as the state holds it.

    A leaf is divided into blocks along its last axis; short trailing axes are merged first.

    - `nu` holds uint8 codes of sqrt(v) on a piecewise linear logarithm. They cover 27.5 octaves of
      v, below the end of the octave of the largest v in the block.
    - `mu` holds int8 codes of m / sqrt(v), in a unit just above the largest in the block; -128 is
      NaN. By the Cauchy-Schwarz inequality this ratio is at most
      (1 - b1) / sqrt((1 - b2) (1 - b1**2 / b2)), which is 7.3 at the defaults.
    - `nu_scale` holds a uint16 per block, of shape (*leading axes, blocks). Its lower byte is the
      exponent of the octave, its upper byte that of the unit.

    Codes are rounded stochastically. A spike in up to three elements of a block saturates, so its
    neighbors keep their precision. The scales adapt to columns of different sizes. See
    docs/memory.md.

    Args:
        block_size: Number of elements that share a scale, a multiple of 16. Default 128.
        min_size: Number of elements from which on a leaf is stored in 8 bits, an integer >= 0. With
            0, all leaves are. Default 4096.

    Raises:
        TypeError: A size is not an integer.
        ValueError: A size is out of range.

    Example:
        >>> import functional_adam as fa, jax.numpy as jnp
        >>> params = {"w": jnp.zeros((32, 256)), "b": jnp.zeros(256)}
        >>> state = fa.init(params, moments=fa.Int8())
        >>> state.mu["w"].dtype, state.nu["w"].dtype, state.nu_scale["w"].shape
        (dtype('int8'), dtype('uint8'), (32, 2))
        >>> state.mu["b"].dtype, state.nu["b"].dtype, state.nu_scale["b"]
        (dtype('float32'), dtype('float32'), None)
    """

    name: ClassVar[str] = "int8"
    is_random: ClassVar[bool] = True
    has_scale: ClassVar[bool] = True
    block_size: int = 128
    min_size: int = 4096

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check.multiple("block_size", self.block_size, 16)
        _check.whole("min_size", self.min_size)

    @property
    def reductions(self) -> Reductions:
        """The reductions over a block; kernels replace them by forms of their own."""
        return PLAIN

    def incompatibility(self, variant: Variant, b1: Any, b2: Any) -> str | None:
        """Why this format cannot store the moments of a variant, or None."""
        if not variant.ratio_is_bounded:
            return (
                f'moments="int8" does not work with {variant.name}: it stores only m / sqrt(v) and '
                "sqrt(v), which needs a bound on that ratio and a state without further trees. Use "
                'moments="bfloat16" or "full".'
            )
        known = isinstance(b1, float) and isinstance(b2, float)
        if (isinstance(b2, float) and not b2) or (known and b1 * b1 >= b2):
            return (
                'moments="int8" stores m / sqrt(v), which is bounded only if b1**2 < b2; got '
                f'b1={b1!r}, b2={b2!r}. Use a larger b2, or moments="bfloat16".'
            )
        return None

    def of(self, stored: LeafState) -> Full | Int8:
        """Full for a small leaf with float32 moments, otherwise this format.

        A small leaf may have codes: under `jax.shard_map` and `jax.vmap` an update may see a small
        part of a large leaf.
        """
        dtypes = getattr(stored.m, "dtype", None), getattr(stored.v, "dtype", None)
        if dtypes != (np.float32, np.float32) or stored.scale is not None:
            return self
        return _SMALL if self._is_small(stored.m) else self

    def _is_small(self, leaf: Any) -> bool:
        return math.prod(np.shape(leaf)) < self.min_size

    def fresh(self, path: str, leaf: Any) -> LeafState:
        """Codes of zeros, sharded like the leaf; float32 zeros for a small leaf."""
        refuse_wide(self, path, leaf)
        if self._is_small(leaf):
            return _SMALL.fresh(path, leaf)
        mu, nu = (jnp.zeros_like(leaf, dtype=d) for d in (jnp.int8, jnp.uint8))
        return LeafState(mu, nu, {}, jnp.zeros(int8.blocks(mu.shape, self.block_size), jnp.uint16))

    def check(self, path: str, stored: LeafState) -> np.dtype[Any]:
        """The dtype of the arithmetic; raises if the leaf does not fit."""
        size = math.prod(np.shape(stored.m))
        because = f" (this leaf has {size} elements and min_size is {self.min_size})"
        refuse_other_format(self, path, stored, because if size >= self.min_size else "")
        _check.same_shape("state.nu" + path, stored.v, stored.m, "state.mu" + path)
        wanted = int8.blocks(np.shape(stored.m), self.block_size)
        because = f"for blocks of {self.block_size}"
        advice = "Make the state with the same block_size."
        _check.codes("state.nu_scale" + path, stored.scale, np.uint16, wanted, because, advice)
        return np.dtype(np.float32)

    def load(self, stored: LeafState) -> Moments:
        """m = r w and v = w**2."""
        shape, blocks = stored.v.shape, stored.scale.shape
        scales, units = int8.unpacked(stored.scale)
        w = int8.root(int8.split(stored.v, blocks), scales)
        m = int8.ratio(int8.split(stored.m, blocks), units) * w
        return Moments(int8.join(m, blocks, shape), int8.join(w * w, blocks, shape), {})

    def store(self, new: Moments, old: LeafState, bits: RandomBits, s: Scalars | None) -> LeafState:
        """Codes of w = sqrt(v) and of m / w; `s` is None when a state is converted."""
        new = undifferentiable(new)
        shape, blocks = old.v.shape, old.scale.shape
        split = functools.partial(int8.split, scales=blocks)
        m, v = (split(x.astype(jnp.float32)) for x in (new.m, new.v))
        if s is None:  # an infinite v has a finite code; NaN keeps its coordinate from moving
            m = jnp.where(jnp.isinf(m) | jnp.isinf(v), jnp.nan, m)
        scales = int8.scale(
            v, int8.unpacked(old.scale)[0], lasting=s is None, reduce=self.reductions
        )
        units = int8.unit(m, v, scales, self.reductions)
        w = jnp.sqrt(v)
        r = m / int8.divisor(w, scales)
        r = jnp.where(bits_of(w) == 0, r * 0, r)
        bound = jnp.inf if s is None else largest_ratio(s.b1, s.b2, s.t).astype(jnp.float32)
        m = int8.join(int8.ratio_code(r, units, bound, split(bits.mu)), blocks, shape)
        v = int8.join(int8.root_code(w, scales, split(bits.nu)), blocks, shape)
        # Both have these shapes already. But an operation with the leaf's shape makes XLA shard
        # codes like moments, even where a device does not hold a whole number of blocks.
        m = jnp.where(is_nan(new.m.astype(jnp.float32)), jnp.int8(int8.NAN), m)
        v = jnp.where(bits_of(new.v.astype(jnp.float32)) == 0, jnp.uint8(0), v)
        return old._replace(m=m, v=v, scale=int8.packed(scales, units, blocks))


_SMALL = Full("float32", "float32")  # for leaves smaller than `Int8.min_size`

Format: TypeAlias = Full | BFloat16 | Int8
MomentFormat: TypeAlias = Literal["full", "bfloat16", "int8"] | Format  # as users write it
FORMATS: dict[str, Callable[[], Format]] = {f.name: f for f in (Full, BFloat16, Int8)}


def make_format(moments: Any, mu_dtype: Any = None, nu_dtype: Any = None) -> Format:
    """The format that the three arguments of a factory name."""
    format = moments
    if isinstance(moments, str):
        format = _check.choice("moments", moments, FORMATS)()
    given = {"mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    for name, dtype in given.items():
        if dtype is not None and getattr(format, name, dtype) is not None:
            raise ValueError(
                f'{name} needs moments="full"; got moments={moments!r}, which sets its own dtypes.'
            )
    if isinstance(format, Full):
        return Full(format.mu_dtype or mu_dtype, format.nu_dtype or nu_dtype)
    if isinstance(format, BFloat16 | Int8):
        return format
    raise TypeError(
        f"moments must be {' or '.join(map(repr, FORMATS))}, or a Full, BFloat16 or Int8 "
        f"object; got {_check.show(moments)}.{argument_hints.moments(moments, FORMATS)}"
    )
