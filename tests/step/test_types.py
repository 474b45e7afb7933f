"""The dtypes that arithmetic is done in."""

import jax.numpy as jnp
import numpy as np
import pytest

from functional_adam._types import arithmetic_dtype, real_dtype

F16, B16, F32, F64, C64, C128 = (
    jnp.dtype(d) for d in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([F16], F32),
        ([B16], F32),
        ([F16, B16], F32),
        ([F32, B16], F32),
        ([F64, B16], F64),
        ([C64], C64),
        ([C64, B16], C64),
        ([C64, F64], C128),
        ([C128, F32], C128),
        ([jnp.dtype("float8_e4m3fn")], F32),
    ],
)
def test_arithmetic_has_at_least_32_bits(given, wanted):
    assert arithmetic_dtype(*given) == wanted
    assert arithmetic_dtype(*reversed(given)) == wanted


def test_real_dtype_is_that_of_the_parts():
    assert [real_dtype(d) for d in (F16, B16, F32, F64, C64, C128)] == [
        F16, B16, F32, F64, F32, F64,
    ]  # fmt: skip
    assert isinstance(real_dtype(C64), np.dtype)
