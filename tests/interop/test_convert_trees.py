"""A live state carried over to another format: further trees, None and scalars, and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from converted import B1, B2, converted, gradients

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


def test_amsgrads_tree_goes_along_in_bfloat16_and_not_in_8_bits():
    grads = gradients(5)["w"]
    tx = fa.amsgrad(b1=B1, b2=B2)
    state = tx.init(grads[0])
    for g in grads:
        _, state = tx.update(jnp.asarray(g), state)
    short = converted(state, "bfloat16", grads[0])
    assert list(short.extra) == ["nu_max"]
    assert short.extra["nu_max"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float32(short.extra["nu_max"]), state.extra["nu_max"], rtol=2.0**-7
    )
    _, after_one = fa.amsgrad(b1=B1, b2=B2, moments="bfloat16").update(jnp.asarray(g), short)
    assert int(after_one.count) == 6
    with pytest.raises(ValueError, match=r"cannot store the trees \['nu_max'\]"):
        fa.convert_moments(state, grads[0], moments=CODES)


def test_a_slow_mean_goes_along_like_mu_and_a_maximum_like_nu():
    params, small_mu = {"w": jnp.linspace(-1, 2, 6)}, fa.Full(mu_dtype="bfloat16")
    for tx, name in ((fa.ademamix(b1=B1, b2=B2), "mu_slow"), (fa.amsgrad(b1=B1, b2=B2), "nu_max")):
        _, state = tx.update(params, tx.init(params), params)
        found = converted(state, small_mu, params)
        like = found.mu if name == "mu_slow" else found.nu
        assert found.extra[name]["w"].dtype == like["w"].dtype
    assert (found.mu["w"].dtype, found.nu["w"].dtype) == (jnp.bfloat16, jnp.float32)


def test_none_leaves_and_scalars_pass():
    params = {"a": None, "b": jnp.float32(2.0), "c": jnp.zeros((0, 3))}
    grads = {"a": None, "b": jnp.float32(0.37), "c": jnp.zeros((0, 3))}
    _, state = fa.update(grads, fa.init(params), b1=0.6, b2=0.9)
    small = converted(state, "int8", params)
    assert small.mu["a"] is None
    back = converted(small, "full", params)
    np.testing.assert_allclose(back.nu["b"], 0.1 * 0.37**2, rtol=1 / 15)
    np.testing.assert_allclose(back.mu["b"], 0.4 * 0.37, rtol=0.1)  # r = 1.26 has steps of 1/16
    assert back.mu["c"].shape == (0, 3)


def test_what_is_no_state_or_no_such_tree_is_refused():
    params = {"w": jnp.ones((3, 256))}
    full = fa.init(params)
    for state in ({"mu": params}, (full,)):
        with pytest.raises(TypeError, match="state must be an AdamState"):
            fa.convert_moments(state, params, moments=CODES)
    with pytest.raises(ValueError, match="moments must be 'full' or"):
        fa.convert_moments(full, params, moments="int4")
    with pytest.raises(ValueError, match=r"state.mu"):
        fa.convert_moments(full, {"v": params["w"]}, moments=CODES)
    with pytest.raises(ValueError, match=r"state.mu\['w'\] has shape \(3, 256\), but params"):
        fa.convert_moments(full, {"w": jnp.ones((256, 3))}, moments=CODES)
    with pytest.raises(TypeError, match=r"params\['w'\] is complex64, but moments="):
        fa.convert_moments(full, {"w": jnp.ones((3, 256), jnp.complex64)}, moments="bfloat16")
