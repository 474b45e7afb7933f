"""All checks of a user's hyperparameters, dtypes and leaves. (`_trees` checks trees.)

A failed check raises a `ValueError` or `TypeError`. It names the argument or the leaf's path, what
was given and what would be right. Only Python and NumPy numbers are checked by value: a JAX array
may be traced, and reading a concrete one would force a transfer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functional_adam._hints import argument_hints, restored, tree_hints, words
from functional_adam._types import below_16bit

T = TypeVar("T")


def show(value: object) -> str:
    """Value and type on one line, cut if it is long."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{text} of type {type_name(value)}"


def type_name(value: object) -> str:
    kind = type(value)
    return (
        kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    )


def _scalar_dtype(value: object) -> np.dtype[Any] | None:
    """The dtype of a Python or NumPy number or 0-d array; None for anything else."""
    if isinstance(value, bool | int | float | np.generic | np.ndarray) and np.ndim(value) == 0:
        return np.asarray(value).dtype
    return None


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _is_schedule(value: Any) -> bool:
    """Whether `value` is callable and not a model, which can be callable too."""
    return callable(value) and not argument_hints.is_model(value)


def scalar(
    name: str,
    value: Any,
    below: float = math.inf,
    *,
    at_least: float = 0.0,
    above: float = -math.inf,
    schedule: bool = False,
    tiny: float = 1.0,
) -> Any:
    """A hyperparameter in [at_least, below): a number as float; a JAX array or schedule unchanged.

    With `above`, a number must be larger than that instead.

    The dtype of a JAX array must hold numbers as small as `tiny`, and as close to `below` as decay
    rates are to 1. This is checked for traced arrays too.
    """
    lowest = f"> {above:g}" if above >= at_least else f">= {at_least:g}"
    finite = f"a finite number {lowest}"
    wanted = f"a number in [{at_least:g}, {below:g})" if below < math.inf else finite
    wanted += ", a JAX scalar or a schedule (count -> value)" if schedule else " or a JAX scalar"
    if schedule and _is_schedule(value):
        return value
    if isinstance(value, jax.Array):
        if value.shape != ():
            wanted += argument_hints.not_parameters(name, value)
            raise ValueError(
                f"{name} must be {wanted}; got an array of shape {value.shape}."
                f"{argument_hints.array(name, value)}"
            )
        if not _is_number(value.dtype):
            raise TypeError(f"{name} must be {wanted}; got an array of dtype {value.dtype}.")
        _fine_enough(name, value.dtype, below, tiny)
        return value
    dtype = _scalar_dtype(value)
    if dtype is None or not _is_number(dtype):
        wanted += argument_hints.not_parameters(name, value)
        raise TypeError(
            f"{name} must be {wanted}; got {show(value)}.{argument_hints.scalar(name, value)}"
        )
    number = float(value)
    if not (at_least <= number < below and number > above):
        raise ValueError(f"{name} must be {wanted}; got {value!r}.")
    return number


def _fine_enough(name: str, dtype: np.dtype[Any], below: float, tiny: float) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        return
    info = jnp.finfo(dtype)
    if info.tiny > tiny or (below < math.inf and info.bits < 32):
        raise TypeError(f"{name} must not be {dtype}, {argument_hints.coarse(name)}")


def fitting(name: str, value: float, dtype: np.dtype[Any]) -> np.generic:
    """`value` in `dtype`; raises if it overflows there."""
    if value > float(jnp.finfo(dtype).max):
        raise ValueError(
            f"{name}={value!r} is infinite in {dtype}, the dtype in which it is used. Pass a "
            "smaller number."
        )
    return dtype.type(value)


def flag(name: str, value: Any) -> bool:
    """A Python bool."""
    if not isinstance(value, bool):
        hint = argument_hints.flag(name, value)
        raise TypeError(f"{name} must be True or False; got {show(value)}.{hint}")
    return value


def multiple(name: str, value: Any, of: int) -> int:
    """A positive multiple of `of`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive multiple of {of}; got {show(value)}.")
    if value <= 0 or value % of:
        raise ValueError(f"{name} must be a positive multiple of {of}; got {value}.")
    return value


def whole(name: str, value: Any, at_least: int = 0, because: str = "") -> int:
    """An integer >= `at_least`; `because` ends the message with the reason."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {at_least}; got {show(value)}.")
    if value < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}; got {value}.{because}")
    return value


def measured(name: str, value: Any) -> jax.Array:
    """A number that a run has measured, as an array: any real scalar, NaN and infinity too."""
    dtype = getattr(value, "dtype", None) or _scalar_dtype(value)
    if not _is_dtype(dtype) or not _is_number(dtype):
        raise TypeError(f"{name} must be a real number; got {show(value)}.")
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be one number; got an array of shape {np.shape(value)}. Take its mean, "
            "or for a batch of runs jax.vmap over the update."
        )
    return jnp.asarray(value)


def choice(name: str, value: Any, options: Mapping[str, T]) -> T:
    """The option whose name is `value`."""
    wanted = f"{name} must be {' or '.join(map(repr, options))}"
    if not isinstance(value, str):
        hint = words.choice(name, value, options)
        raise TypeError(f"{wanted}; got {show(value)}.{hint}")
    if value not in options:
        raise ValueError(f"{wanted}; got {value!r}.{words.choice(name, value, options)}")
    return options[value]


def leaf_dtype(path: str, leaf: Any) -> np.dtype[Any]:
    """The inexact dtype that `leaf` has as a JAX array; raises if Adam cannot train it."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else None
    if dtype is None and isinstance(leaf, bool | int | float | complex):
        dtype = jnp.result_type(leaf)
    if not _is_dtype(dtype):
        raise TypeError(
            f"{path} must be an array; got {show(leaf)}.{tree_hints.no_array(path, leaf)}"
        )
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    if not inexact or below_16bit(dtype):
        given = "float0" if dtype == jax.dtypes.float0 else dtype
        wanted = "a float array of at least 16 bits" if inexact else "a float or complex array"
        raise TypeError(
            f"{path} must be {wanted}; got dtype {given}.{tree_hints.frozen(path, dtype)}"
        )
    return jax.dtypes.canonicalize_dtype(dtype)


def _is_dtype(dtype: Any) -> TypeGuard[np.dtype[Any]]:
    """Whether JAX knows this dtype; PyTorch and TensorFlow have their own."""
    if dtype is None:
        return False
    try:
        jnp.issubdtype(dtype, jnp.inexact)
    except TypeError:
        return False
    return True


def same_shape(path: str, leaf: Any, like: Any, whose: str, advice: str = "") -> None:
    if np.shape(leaf) != np.shape(like):
        raise ValueError(
            f"{path} has shape {np.shape(leaf)}, but {whose} has shape {np.shape(like)}."
            f"{advice or tree_hints.shape(path)}"
        )


def leaf_like(
    path: str, leaf: Any, like: Any, whose: str, *, may_be_real: bool = False, advice: str = ""
) -> jax.Array:
    """`leaf` as an array, once it fits `like`: same shape, both real or both complex.

    With `may_be_real` a real leaf fits a complex one too.
    """
    dtype = leaf_dtype(path, leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{path} must be an array; got {show(leaf)}.{tree_hints.no_array(path, leaf)}"
        )
    same_shape(path, leaf, like, whose, advice)
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    if is_complex != jnp.iscomplexobj(like) and (is_complex or not may_be_real):
        raise TypeError(
            f"{path} is {dtype}, but {whose} is {like.dtype}: gradient, parameter and first moment "
            "must be all real or all complex (leave mu_dtype None for complex parameters)."
        )
    return jnp.asarray(leaf)


def codes(
    path: str, leaf: Any, dtype: Any, shape: tuple[int, ...], because: str, advice: str
) -> None:
    """Raise unless a leaf of codes has exactly this dtype and shape."""
    found = getattr(leaf, "dtype", None)
    if found != dtype or leaf.shape != shape:
        given = f"{found or type(leaf).__name__} of shape {np.shape(leaf)}"
        advice = advice if found in (dtype, None) else restored.CAST.strip()
        raise ValueError(
            f"{path} must be {np.dtype(dtype)} of shape {shape} {because}; got {given}. {advice}"
        )


def residual(
    path: str, kept: Any, dtype: np.dtype[Any], wanted: jax.ShapeDtypeStruct | None
) -> None:
    """Raise unless a leaf of `state.residual` fits its parameter's dtype, unchanged since `init`.

    For a 16-bit parameter the leaf holds codes like `wanted`, or a zero of the dtype if that is
    None.
    """
    short = jnp.finfo(dtype).bits == 16
    if kept is None and short:
        raise ValueError(
            f"params{path} is {dtype}, but state.residual{path} is None: the parameter was wider "
            f'at init, or the state was made with rounding="nearest".{tree_hints.other_dtype()}'
        )
    if kept is None:
        return
    is_zero = jnp.issubdtype(kept.dtype, jnp.inexact)
    if not short or (is_zero and kept.dtype != dtype):
        before = kept.dtype if is_zero else "a float of 16 bits"
        raise ValueError(
            f"params{path} is {dtype} now; it was {before} at init.{tree_hints.other_dtype()}"
        )
    held, right = ("a zero" if is_zero else "codes"), ("a zero" if wanted is None else "codes")
    if wanted is not None and {kept.dtype, wanted.dtype} == {np.dtype("int8"), np.dtype("int16")}:
        held, right = f"{kept.dtype} codes", f"{wanted.dtype} codes"
    if held != right:
        raise ValueError(
            f"state.residual{path} must be {right}; got {held}: the state was made with another "
            f"rounding.{tree_hints.other_rounding()}"
        )
    if wanted is not None:
        advice, because = "Make the state with the same rounding.", "(like the parameter)"
        codes("state.residual" + path, kept, wanted.dtype, wanted.shape, because, advice)


def kept_like(path: str, leaf: Any, moment: Any) -> None:
    """Raise unless a leaf of `state.extra` has the shape and dtype of the moment beside it."""
    dtype = leaf_dtype(path, leaf)
    same_shape(path, leaf, moment, "the moment")
    if dtype != moment.dtype:
        like = f"must have the dtype of its moment, {moment.dtype}"
        raise ValueError(f"{path} is {dtype}, but {like}.{restored.CAST}")
