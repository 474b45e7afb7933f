"""Names for the types of the public annotations, and the dtypes that arithmetic is done in."""

from __future__ import annotations

import re
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

# `chex.ArrayTree` rejects what users pass (Equinox modules, Flax states), and JAX has no
# recursive alias of its own: a tree is anything that `jax.tree` can walk.
PyTree: TypeAlias = Any

# A NumPy array of whatever dtype and shape.
NumPyArray: TypeAlias = NDArray[np.generic]

# A value that may be a Python or NumPy number, or a concrete or traced array of shape ().
Scalar: TypeAlias = chex.Numeric

# count -> value, as in Optax; the count is that before the step, 0 first.
Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
ScalarOrSchedule: TypeAlias = float | jax.Array | Schedule

# A tree, or prefix of a tree, of booleans; or a function from the parameters to one.
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree]

# What some leaves have of their own: (regular expression, arguments) for their paths, or a function
# from a path and the leaf's shape and dtype to arguments.
Arguments: TypeAlias = Mapping[str, ScalarOrSchedule | None]
Overrides: TypeAlias = (
    Sequence[tuple[str | re.Pattern[str], Arguments]]
    | Callable[[str, jax.ShapeDtypeStruct], Arguments]
)

# Where, relative to the bias correction of the second moment, something is done.
Placement: TypeAlias = Literal["after_correction", "before_correction"]

# How parameters of 16 bits take their steps.
ParameterRounding: TypeAlias = Literal["nearest", "stochastic", "compensated", "split"]

if TYPE_CHECKING:
    # Type checkers see Optax's own class, so that `optax.chain(optax.clip(1.0), fa.adam())`
    # checks; at run time Optax is never imported.
    from optax import GradientTransformation as GradientTransformation  # noqa: PLC0414 (re-export)
else:

    def _optax_class(name: str, otherwise: type) -> type:
        """A class of Optax where something has imported it; nothing here ever does."""
        return getattr(sys.modules.get("optax"), name, otherwise)

    class _LikeOptax(type):
        """Makes Optax's transformations instances of this package's class too."""

        def __instancecheck__(cls, instance: object) -> bool:
            theirs = _optax_class("GradientTransformation", cls)
            return issubclass(type(instance), (cls, theirs))

    class GradientTransformation(
        namedtuple("GradientTransformation", ["init", "update"]), metaclass=_LikeOptax
    ):
        """A pair of pure functions, with Optax's contract and field order.

        `init(params)` gives the state; `update(updates, state, params=None, **extra_args)` gives
        `(updates, state)`. Exactly two fields, because `optax.chain` and users unpack it.

        A factory such as `adamw` raises `ValueError` for an argument out of range and `TypeError`
        for one of a wrong type. The two functions raise what `init` and `update` of this package
        raise: they refuse trees and masks that do not fit, and states that were made with another
        `moments`, `mu_dtype`, `nu_dtype` or `rounding`.

        Wherever Optax is imported, it is an instance of `optax.GradientTransformation` too (and, as
        `update` takes extra arguments, of `optax.GradientTransformationExtraArgs`), and Optax's
        transformations are instances of this class.

        Transformations from equal calls of one factory are equal and have one hash, so that a
        `jax.jit` with `static_argnames="tx"` compiles once for both. Arrays, schedules and mask
        functions among the arguments are equal only where they are the same object.

        Example:
            >>> import functional_adam as fa
            >>> init, update = fa.adam(1e-3)
            >>> fa.adamw(3e-4, b2=0.95, mu_dtype="bfloat16")
            adamw(learning_rate=0.0003, b2=0.95, mu_dtype='bfloat16')
            >>> fa.adamw(3e-4) == fa.adamw(learning_rate=0.0003)
            True
        """

        __slots__ = ()

        init: Callable[[PyTree], PyTree]
        update: Callable[..., tuple[PyTree, PyTree]]

        @property
        def __class__(self) -> type:
            # `isinstance` asks for this attribute where the type alone does not answer. A real
            # subclass would need Optax at import, and would not reach what was made before.
            return _optax_class("GradientTransformationExtraArgs", GradientTransformation)

        def __reduce__(self) -> tuple[Any, ...]:
            # Pickle's own way compares `__class__` with the type.
            return GradientTransformation, tuple(self)

        def __repr__(self) -> str:
            call = getattr(self.update, "call", None)
            if isinstance(call, str):
                return call
            return f"GradientTransformation(init={self.init!r}, update={self.update!r})"


def takes_extra_args(tx: object) -> bool:
    """Whether `tx.update` takes arguments of any name: decided as Optax does, where it is there."""
    own = GradientTransformation
    theirs: Any = getattr(sys.modules.get("optax"), "GradientTransformationExtraArgs", own)
    return isinstance(tx, theirs)


def real_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the real part."""
    return jnp.finfo(dtype).dtype


def arithmetic_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """What to compute in: at least float32, 64 bits where any of `dtypes` has them."""
    wide = any(jnp.finfo(dtype).bits > 32 for dtype in dtypes)
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return np.dtype(np.complex128 if wide else np.complex64)
    return np.dtype(np.float64 if wide else np.float32)


def wider(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that holds both: for bfloat16 and float16 that is float32."""
    return a if a == b else arithmetic_dtype(a, b)


def below_16bit(dtype: Any) -> bool:
    """Whether a float dtype has too few bits to train in: a step of Adam is lost in 8 of them."""
    return jnp.finfo(dtype).bits < 16
