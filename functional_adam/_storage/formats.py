"""How moments are kept between steps: the formats, and of them that in 8 bits.

A format is a value that knows what a fresh state is, what fits it, how to read a leaf's moments
into the arithmetic and how to write them back. The formulas know of none of this.
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
    """Both moments in 8 bits, 2.02 bytes a parameter: what `moments="int8"` means.

    Leaves of fewer than `min_size` elements get float32 moments and no scales: in most models norms
    and biases, 0.1 % of all parameters. `init` and `convert_moments` decide by the size of the leaf
    that they see; `update` takes each leaf as the state holds it.

    `nu` holds codes (uint8) of sqrt(v) on a piecewise linear logarithm over 27.5 octaves of v below
    the end of the octave of the block's largest v. `mu` holds codes (int8) of m / sqrt(v), which by
    Cauchy and Schwarz is at most (1 - b1) / sqrt((1 - b2) (1 - b1**2 / b2)) (7.3 at the defaults),
    in a unit just above the block's largest; -128 is NaN. `nu_scale` holds both, octave and unit,
    as biased exponents in the lower and the upper byte of a uint16, one for each block along the
    last axis: its shape is (*leading axes, blocks); short trailing axes are merged first. Codes are
    rounded stochastically. A spike in up to three elements of a block saturates, and its neighbours
    keep their precision; columns of different sizes are followed. See docs/memory.md.

    Args:
        block_size: elements that share a scale, a multiple of 16; default 128.
        min_size: a leaf of fewer elements has float32 moments, an integer >= 0; default 4096. 0 has
            all leaves in 8 bits.
        chunked: True makes an update pass over a leaf piece by piece: half the peak memory or less,
            more time. For leaves on one device, or under shard_map.

    Raises:
        TypeError: a size that is not an integer, or `chunked` not True or False.
        ValueError: a size out of range.

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
    chunked: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check.flag("chunked", self.chunked)
        _check.multiple("block_size", self.block_size, 16)
        _check.whole("min_size", self.min_size)

    @property
    def reductions(self) -> Reductions:
        """What the code makes of a block as a whole; kernels have forms of their own."""
        return PLAIN

    def incompatibility(self, variant: Variant, b1: Any, b2: Any) -> str | None:
        """Why these moments cannot be kept so."""
        if not variant.ratio_is_bounded:
            return (
                f'moments="int8" keeps m relative to sqrt(v) and nothing else, and {variant.name} '
                'bounds no such ratio or keeps further trees; use moments="bfloat16" or "full".'
            )
        if self.chunked and variant.whole_leaf:
            return (
                f"Int8(chunked=True) takes leaves piece by piece, and a step of {variant.name} "
                "depends on its whole leaf; leave chunked False."
            )
        known = isinstance(b1, float) and isinstance(b2, float)
        if (isinstance(b2, float) and not b2) or (known and b1 * b1 >= b2):
            return (
                'moments="int8" keeps m / sqrt(v), which is bounded only for b1**2 < b2; got '
                f'b1={b1!r}, b2={b2!r}. Use a larger b2, or moments="bfloat16".'
            )
        return None

    def of(self, stored: LeafState) -> Full | Int8:
        """Float32 for a small leaf that has that; else this one, also for few codes.

        Under `jax.shard_map` and `jax.vmap` an update may see a small part of a leaf with codes.
        """
        dtypes = getattr(stored.m, "dtype", None), getattr(stored.v, "dtype", None)
        if dtypes != (np.float32, np.float32) or stored.scale is not None:
            return self
        return _SMALL if self._is_small(stored.m) else self

    def _is_small(self, leaf: Any) -> bool:
        return math.prod(np.shape(leaf)) < self.min_size

    def fresh(self, path: str, leaf: Any) -> LeafState:
        """Codes of zeros, sharded like the leaf; zeros for a small one."""
        refuse_wide(self, path, leaf)
        if self._is_small(leaf):
            return _SMALL.fresh(path, leaf)
        mu, nu = (jnp.zeros_like(leaf, dtype=d) for d in (jnp.int8, jnp.uint8))
        return LeafState(mu, nu, {}, jnp.zeros(int8.blocks(mu.shape, self.block_size), jnp.uint16))

    def check(self, path: str, stored: LeafState) -> np.dtype[Any]:
        """The dtype of the arithmetic, if the leaf fits."""
        size = math.prod(np.shape(stored.m))
        because = f" (this leaf has {size} elements, no fewer than min_size={self.min_size})"
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
        """w and m / w, each on average; without the scalars of a step, a state being converted."""
        new = undifferentiable(new)
        shape, blocks = old.v.shape, old.scale.shape
        split = functools.partial(int8.split, scales=blocks)
        m, v = (split(x.astype(jnp.float32)) for x in (new.m, new.v))
        if s is None:  # an infinite v stops its coordinate, and its code is finite: NaN says so
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
        # Both are so already. But an operation of the leaf's own shape ties codes to moments: XLA
        # lays them out alike on a mesh, also where a device holds no whole number of blocks.
        m = jnp.where(is_nan(new.m.astype(jnp.float32)), jnp.int8(int8.NAN), m)
        v = jnp.where(bits_of(new.v.astype(jnp.float32)) == 0, jnp.uint8(0), v)
        return old._replace(m=m, v=v, scale=int8.packed(scales, units, blocks))


_SMALL = Full("float32", "float32")  # of leaves that `Int8.min_size` leaves out

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
            raise ValueError(f'{name} goes with moments="full" alone; got moments={moments!r}.')
    if isinstance(format, Full):
        return Full(format.mu_dtype or mu_dtype, format.nu_dtype or nu_dtype)
    if isinstance(format, BFloat16 | Int8):
        return format
    raise TypeError(
        f"moments must be {' or '.join(map(repr, FORMATS))}, or a Full, BFloat16 or Int8 "
        f"object; got {_check.show(moments)}.{argument_hints.moments(moments, FORMATS)}"
    )
