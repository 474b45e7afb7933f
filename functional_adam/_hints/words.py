"""Other names for the choices of this package, as other libraries call them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

# Other names, in lower case and without punctuation.
_ALIASES = {
    "moments": {
        "full": {"fp32", "float32", "f32", "single", "float", "float64", "fp64", "none", "32"},
        "bfloat16": {"bf16", "bfloat", "float16", "fp16", "f16", "half", "16", "16bit"},
        "int8": {"8bit", "8", "i8", "uint8", "u8", "adam8bit", "adamw8bit", "fp8", "float8"},
    },
    "rounding": {
        "nearest": {"none", "false", "rne", "round"},
        "stochastic": {"sr", "random"},
        "split": {"master", "masterweights", "fp32master", "splitsgd", "float32", "fp32", "exact"},
        "compensated": {"kahan", "kahansum", "errorfeedback", "compensation"},
    },
}


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """For a value that is not one of the options of `name`."""
    text = value if isinstance(value, str) else _dtype_name(value)
    plain = "".join(c for c in text.lower() if c.isalnum())
    options = list(options)
    for option in options:
        if plain in {option.replace("_", ""), *_ALIASES.get(name, {}).get(option, ())}:
            return f' Write {name}="{option}".'
    near = difflib.get_close_matches(text.lower(), options, n=1)
    return f' Did you mean {name}="{near[0]}"?' if near else ""


def _dtype_name(value: Any) -> str:
    """The name of a dtype, PyTorch's included; anything else as text."""
    try:
        return str(value) if value is None else jnp.dtype(value).name
    except TypeError:
        return str(value).removeprefix("torch.")
