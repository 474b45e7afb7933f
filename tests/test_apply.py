"""apply_updates: sums, types, None leaves, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_adam as fa

pytestmark = pytest.mark.usefixtures("strict")


def test_it_adds_leaf_by_leaf():
    params = {"a": jnp.array([1.0, -2.5]), "b": [jnp.array(3.0)]}
    updates = {"a": jnp.array([0.25, 0.7]), "b": [jnp.array(-5.0)]}
    new = fa.apply_updates(params, updates)
    np.testing.assert_allclose(new["a"], [1.25, -1.8])
    np.testing.assert_allclose(new["b"][0], -2.0)


@pytest.mark.parametrize("update", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("param", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_a_parameter_keeps_its_dtype(param, update):
    new = fa.apply_updates(jnp.full((3,), 0.5, param), jnp.full((3,), 0.25, update))
    assert new.dtype == param
    np.testing.assert_array_equal(np.complex64(new), 0.75)


def test_the_sum_is_rounded_once():
    # 1 + 2**-8 is a tie in bfloat16 and goes to even, 1; the update breaks it, if it is not
    # itself rounded to bfloat16 (to 2**-8) first.
    p, u = jnp.ones(1, jnp.bfloat16), jnp.full((1,), 2**-8 + 2**-20, jnp.float32)
    assert fa.apply_updates(p, u)[0] == 1 + 2**-7
    # And 2**-10 on 1 is below half a unit: lost.
    assert fa.apply_updates(p, jnp.full((1,), 2**-10, jnp.float32))[0] == 1


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_parameter_keeps_its_weak_type(shape):
    strong = jnp.full(shape, 0.3, jnp.float32)
    for weak in (jnp.full(shape, 1.5), jnp.full(shape, 1.5) + 0.0):
        assert weak.weak_type
        for apply in (fa.apply_updates, jax.jit(fa.apply_updates)):
            new = apply(weak, strong)
            assert new.weak_type
            assert new.shape == shape
            np.testing.assert_allclose(new, 1.8, rtol=1e-7)
        assert not fa.apply_updates(strong, weak).weak_type


def test_python_numbers_and_none_pass():
    new = fa.apply_updates(
        {"a": 1.5, "b": None, "c": jnp.ones(2)}, {"a": 2.0, "b": None, "c": None}
    )
    assert new["a"] == 3.5
    assert new["b"] is None
    np.testing.assert_array_equal(new["c"], 1)


def test_frozen_integers_pass():
    steps = jnp.array([3, 4])
    for update in (None, np.zeros(2, jax.dtypes.float0), jnp.zeros(2, jnp.int32)):
        new = fa.apply_updates({"n": steps, "w": jnp.ones(1)}, {"n": update, "w": jnp.ones(1)})
        np.testing.assert_array_equal(new["n"], steps)
        assert new["n"].dtype == steps.dtype
    flags = jnp.array([True, False])
    np.testing.assert_array_equal(fa.apply_updates(flags, jnp.zeros(2, bool)), flags)


def test_errors_name_the_leaf():
    ones = jnp.ones(3)
    for params, updates, error, message in [
        ({"k": ones}, {"k": jnp.ones((3, 1))}, ValueError, r"updates\['k'\] has shape \(3, 1\)"),
        ({"k": ones}, {"j": ones}, ValueError, r"updates\['j'\] does not belong"),
        ({"k": None}, {"k": ones}, ValueError, r"updates\['k'\] is an array.* None"),
        ({"k": jax.random.key(0)}, {"k": ones}, TypeError, r"params\['k'\] must be a float"),
        ({"k": jnp.arange(3)}, {"k": ones}, TypeError, r"params\['k'\] must be a float"),
        ({"k": ones}, {"k": ones.astype(jnp.complex64)}, TypeError, r"updates\['k'\] is complex64"),
        ({"k": ones}, {"k": "x"}, TypeError, r"updates\['k'\] must be an array"),
    ]:
        with pytest.raises(error, match=message):
            fa.apply_updates(params, updates)
