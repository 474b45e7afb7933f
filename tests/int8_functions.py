"""The functions of the 8-bit code, with exponents of blocks as a state stores them."""

import functools

import jax
import jax.numpy as jnp

from functional_adam._storage import int8


def beside(exponents):
    """Exponents of blocks (..., length) as the functions of `int8` take them: (..., 1)."""
    return jnp.asarray(exponents, jnp.int32)[..., None]


def bytes_of(exponents):
    """And back."""
    return exponents[..., 0].astype(jnp.uint8)


@jax.jit
def root(codes, scales):
    return int8.root(codes, beside(scales))


@jax.jit
def root_code(w, scales, bits):
    return int8.root_code(w, beside(scales), bits)


@jax.jit
def ratio(codes, units):
    return int8.ratio(codes, beside(units))


@jax.jit
def ratio_code(r, units, bound, bits):
    return int8.ratio_code(r, beside(units), bound, bits)


@functools.partial(jax.jit, static_argnames="lasting")
def scale(v, old, *, lasting=False):
    return bytes_of(int8.scale(v, beside(old), lasting=lasting))


@jax.jit
def unit(m, v, scales):
    return bytes_of(int8.unit(m, v, beside(scales)))


@jax.jit
def divisor(w, scales):
    return int8.divisor(w, beside(scales))
