"""Moments in 8 bits and in bfloat16: which variants have them, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from codes import CODES, format_named
from format_runs import SMALL, normal, rms, scanned, slow

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


# Variants -----------------------------------------------------------------------------------------

BOUNDED = [fa.adam, fa.nadam, fa.radam, fa.lamb]
OTHERS = [fa.amsgrad, fa.adamax, fa.adamaxw, fa.adabelief, fa.yogi, fa.adopt, fa.ademamix]


QUICK = [fa.nadam, fa.lamb, fa.amsgrad, fa.ademamix]  # with and without a bound and extra trees


@pytest.mark.parametrize(
    "factory",
    [pytest.param(f, marks=() if f in QUICK else slow, id=f.__name__) for f in BOUNDED + OTHERS],
)
def test_every_variant_runs_in_bfloat16_and_those_with_a_bound_in_8_bits(factory):
    grads = 0.3 + normal(200, 2, 128, seed=21)
    params = jnp.asarray(normal(2, 128, seed=22))
    formats = ["full", "bfloat16"] + ["int8"] * (factory in BOUNDED)
    txs = [factory(3e-3, moments=format_named(moments)) for moments in formats]

    def update(g, states, params):
        both = [tx.update(g, s, params) for tx, s in zip(txs, states, strict=True)]
        return [u for u, _ in both], [s for _, s in both]

    together = optax.GradientTransformation(lambda p: [tx.init(p) for tx in txs], update)
    (updates, _), _ = scanned(together, grads, params)
    for u in updates[1:]:
        assert np.isfinite(u).all()
        assert rms(u - updates[0]) <= 0.1 * rms(updates[0])


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.81), (0.95, 0.9), (0.3, 0.0), (0.0, 0.0)])
def test_8_bits_need_a_bounded_ratio(b1, b2):
    with pytest.raises(ValueError, match=r"bounded only if b1\*\*2 < b2; got b1="):
        fa.adam(b1=b1, b2=b2, moments=CODES)
    with pytest.raises(ValueError, match=r"bounded only if b1\*\*2 < b2; got b1="):
        fa.update(jnp.ones(3), fa.init(jnp.ones(3), moments=CODES), b1=b1, b2=b2, moments=CODES)


def test_traced_rates_are_not_checked_and_do_not_explode():
    grads = jnp.asarray(normal(20, seed=23))

    @jax.jit
    def two(b1, b2):
        state = fa.init(grads, moments=CODES)
        _, state = fa.update(grads, state, b1=b1, b2=b2, moments=CODES)
        return fa.update(grads, state, b1=b1, b2=b2, moments=CODES, learning_rate=1.0)[0]

    assert np.isfinite(two(0.9, 0.7)).all()
    want = reference.adam([grads, grads], learning_rate=1.0, b1=0.3, b2=0.97).updates[1]
    np.testing.assert_allclose(two(0.3, 0.97), want, rtol=0.1)


@pytest.mark.parametrize("factory", OTHERS, ids=lambda f: f.__name__)
def test_8_bits_refuse_variants_without_a_bound(factory):
    with pytest.raises(ValueError, match=r'stores only m / sqrt\(v\) .* Use moments="bfloat16"'):
        factory(moments=CODES)


@pytest.mark.parametrize("moments", SMALL)
def test_wide_and_complex_leaves_are_refused_by_name(moments, x64):
    for dtype in (jnp.complex64, jnp.float64):
        params = {"a": [jnp.ones(2, jnp.float16), jnp.ones(3, dtype)]}
        message = rf"params\['a'\]\[1\] is {np.dtype(dtype).name}, but moments=\"{moments}\""
        with pytest.raises(TypeError, match=message):
            fa.init(params, moments=moments)  # "int8" refuses small ones too


@pytest.mark.parametrize("moments", SMALL)
@pytest.mark.parametrize("name", ["mu_dtype", "nu_dtype"])
def test_a_dtype_beside_a_format_is_refused(moments, name):
    with pytest.raises(ValueError, match=f'{name} needs moments="full"; got moments='):
        fa.adam(moments=format_named(moments), **{name: "bfloat16"})


def test_a_state_of_another_format_is_refused_naming_both():
    g = jnp.ones(3)
    states = {moments: fa.init(g, moments=format_named(moments)) for moments in ("full", *SMALL)}
    for held, state in states.items():
        for asked in states:
            if held == asked or (held, asked) == ("full", "full"):
                continue
            with pytest.raises(ValueError, match=f'moments="{asked}" was given'):
                fa.update(g, state, moments=format_named(asked))
    with pytest.raises(ValueError, match=r'the format moments="bfloat16", but .*convert_moments'):
        fa.update(g, states["bfloat16"])
    with pytest.raises(ValueError, match=r'the format moments="int8".*convert_moments'):
        fa.update(g, states["int8"])


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="moments must be 'full' or 'bfloat16' or 'int8'; got"):
        fa.adam(moments="int4")
    with pytest.raises(TypeError, match="moments must be 'full' or 'bfloat16' or 'int8', or a "):
        fa.adam(moments=3)
    with pytest.raises(ValueError, match="moments must be 'full'"):
        fa.init(jnp.ones(2), moments="int4")


def test_arguments_of_the_8_bit_format_are_checked():
    for size in (100, -16, 0):
        with pytest.raises(
            ValueError, match=f"block_size must be a positive multiple of 16; got {size}"
        ):
            fa.Int8(block_size=size)
    for size in (True, 16.0, "128"):
        with pytest.raises(TypeError, match="block_size must be a positive multiple of 16"):
            fa.Int8(block_size=size)
    with pytest.raises(ValueError, match="min_size must be an integer >= 0; got -1"):
        fa.Int8(min_size=-1)
    for size in (True, 4096.0, None):
        with pytest.raises(TypeError, match="min_size must be an integer >= 0; got"):
            fa.Int8(min_size=size)


def test_a_state_with_another_block_size_is_refused():
    g = {"w": jnp.ones((2, 256))}
    state = fa.init(g, moments=fa.Int8(block_size=64, min_size=0))
    with pytest.raises(ValueError, match=r"nu_scale\['w'\] must be uint16 of shape \(2, 2\) for"):
        fa.update(g, state, moments=CODES)
    _, after = fa.update(g, state, moments=fa.Int8(block_size=64, min_size=0))
    assert after.nu_scale["w"].shape == (2, 4)


@pytest.mark.parametrize("moments", SMALL)
def test_a_derivative_through_small_moments_raises(moments):
    def loss(x):
        _, state = fa.update(
            x, fa.init(x, moments=format_named(moments)), moments=format_named(moments)
        )
        return fa.update(x, state, moments=format_named(moments))[0].sum()

    with pytest.raises(TypeError, match="Cannot differentiate through moments="):
        jax.grad(loss)(jnp.array([0.3, -2.0]))
