"""Names for the types in public annotations, and the choice of dtypes for arithmetic."""

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

# A NumPy array of any dtype and shape.
NumPyArray: TypeAlias = NDArray[np.generic]

# A value that may be a Python or NumPy number, or a concrete or traced array of shape ().
Scalar: TypeAlias = chex.Numeric

# count -> value, as in Optax; the count is the one before the step, so 0 at the first.
Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
ScalarOrSchedule: TypeAlias = float | jax.Array | Schedule

# A tree, or prefix of a tree, of booleans; or a function from the parameters to one.
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree]

# Arguments for some leaves: (regular expression for their paths, arguments), or a function from a
# path and the leaf's shape and dtype to arguments.
Arguments: TypeAlias = Mapping[str, ScalarOrSchedule | None]
Overrides: TypeAlias = (
    Sequence[tuple[str | re.Pattern[str], Arguments]]
    | Callable[[str, jax.ShapeDtypeStruct], Arguments]
)

# Whether something is done before or after the bias correction of the second moment.
Placement: TypeAlias = Literal["after_correction", "before_correction"]

# How 16-bit parameters are rounded when they take a step.
ParameterRounding: TypeAlias = Literal["nearest", "stochastic", "compensated", "split"]

if TYPE_CHECKING:
    # Type checkers see Optax's own class, so that `optax.chain(optax.clip(1.0), fa.adam())`
    # checks; at run time Optax is never imported.
    from optax import GradientTransformation as GradientTransformation  # noqa: PLC0414 (re-export)
else:

    def _optax_class(name: str, otherwise: type) -> type:
        """A class of Optax if someone else has imported Optax; this package never does."""
        return getattr(sys.modules.get("optax"), name, otherwise)

    class _LikeOptax(type):
        """Makes Optax's transformations instances of this package's class, too."""

        def __instancecheck__(cls, instance: object) -> bool:
            theirs = _optax_class("GradientTransformation", cls)
            return issubclass(type(instance), (cls, theirs))

    class GradientTransformation(
        namedtuple("GradientTransformation", ["init", "update"]), metaclass=_LikeOptax
    ):
        """A pair of pure functions, with the contract and the field order of Optax.

        `init(params)` returns a state. `update(updates, state, params=None, **extra_args)` returns
        `(updates, state)`. There are exactly two fields, because `optax.chain` and users unpack the
        pair.

        A factory such as `adamw` raises `ValueError` for an argument out of range and `TypeError`
        for one of a wrong type. The two functions raise the same errors as this package's `init`
        and `update`: they refuse trees and masks that do not fit, and states that were made with
        another `moments`, `mu_dtype`, `nu_dtype` or `rounding`.

        Once Optax is imported, a transformation is also an instance of
        `optax.GradientTransformation` and, since `update` takes extra arguments, of
        `optax.GradientTransformationExtraArgs`. Optax's transformations are instances of this
        class.

        Equal calls of one factory make transformations that are equal and have the same hash. A
        `jax.jit` with `static_argnames="tx"` therefore compiles once for both. Arrays, schedules
        and mask functions among the arguments are equal only if they are the same object.

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
            # `isinstance` reads this attribute if the type alone gives no answer. A real subclass
            # would need Optax at import, and instances made earlier would not belong to it.
            return _optax_class("GradientTransformationExtraArgs", GradientTransformation)

        def __reduce__(self) -> tuple[Any, ...]:
            # Pickle by default compares `__class__` with the type and fails.
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
    """The dtype to compute in: at least float32, with 64 bits if any of `dtypes` has them."""
    wide = any(jnp.finfo(dtype).bits > 32 for dtype in dtypes)
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return np.dtype(np.complex128 if wide else np.complex64)
    return np.dtype(np.float64 if wide else np.float32)


def wider(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """The narrowest dtype that holds both; for bfloat16 and float16 that is float32."""
    return a if a == b else arithmetic_dtype(a, b)


def below_16bit(dtype: Any) -> bool:
    """Whether a float dtype has too few bits to train in: 8 bits lose a step of Adam."""
    return jnp.finfo(dtype).bits < 16
