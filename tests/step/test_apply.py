"""apply_updates: sums, types, None leaves, errors; master_params wherever the state is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


# ---- Master weights ----

# bfloat16 has 7 bits: the unit of 1.5 is 2**-7, and a code 2**-15.
HALVES = {
    "w": jnp.full((2, 3), 1.5, jnp.bfloat16),
    "b": jnp.full(3, 1.5, jnp.bfloat16),
    "s": jnp.float32(0.7),
}
CODES = {"w": 64, "b": -3}
WEIGHTS = {"w": 1.5 + 64 * 2**-15, "b": 1.5 - 3 * 2**-15, "s": np.float32(0.7)}
KINDS = {"w": "matrix", "b": "vector", "s": "vector"}


def compensated():
    return fa.adam(1e-3, b1=0.83, rounding="compensated")


def with_codes(state, at=lambda path: path[-1].key):
    """`state` with a code of `CODES` in each residual that is needed."""

    def coded(path, x):
        return jnp.full_like(x, CODES[at(path)]) if x.dtype == jnp.int8 and x.size else x

    return jax.tree_util.tree_map_with_path(coded, state)


def assert_weights(found, **wanted):
    assert set(found) == set(wanted)
    for name, x in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], np.float32(x))


WRAPPERS = {
    "alone": compensated,
    "chain": lambda: optax.chain(optax.clip(1.0), compensated()),
    "named_chain": lambda: optax.named_chain(("c", optax.clip(1.0)), ("a", compensated())),
    "masked": lambda: optax.masked(compensated(), True),
    "partition": lambda: optax.partition({"matrix": compensated(), "vector": compensated()}, KINDS),
    "MultiSteps": lambda: optax.MultiSteps(compensated(), 3).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(fa.adam, ("rounding",))(
        1e-3, rounding="compensated"
    ),
    "nested": lambda: optax.apply_if_finite(optax.chain(optax.masked(compensated(), True)), 3),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_master_params_finds_the_residuals_in(name):
    with jax.numpy_dtype_promotion("standard"):  # inject_hyperparams mixes dtypes
        state = with_codes(WRAPPERS[name]().init(HALVES))
    assert_weights(fa.master_params(HALVES, state), **WEIGHTS)


def test_master_params_of_other_groups_are_the_parameters():
    """Of 16 bits, in the hands of another transformation or rounded otherwise: all there is."""
    for other in (optax.sgd(0.1), fa.adam(1e-3)):
        tx = optax.partition({"matrix": compensated(), "vector": other}, KINDS)
        found = fa.master_params(HALVES, with_codes(tx.init(HALVES)))
        assert_weights(found, w=WEIGHTS["w"], b=1.5, s=WEIGHTS["s"])


def test_master_params_reads_nnx():
    """Boxes of other kinds around the same leaves; and residuals that lie outside of boxes."""
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            for name, x in HALVES.items():
                setattr(self, name, nnx.Param(x))

    model = Model()
    params = nnx.state(model, nnx.Param)
    state = nnx.Optimizer(model, compensated(), wrt=nnx.Param).opt_state
    state = with_codes(state, lambda path: path[-2].key)
    plain = with_codes(compensated().init(HALVES)).residual
    for residual in (state.residual, plain):
        found = fa.master_params(params, state._replace(residual=residual))
        assert_weights({name: x.get_value() for name, x in found.items()}, **WEIGHTS)


def test_master_params_names_what_is_missing():
    good, two = compensated().init(HALVES), optax.chain(compensated(), compensated())
    for params, state, message in [
        (HALVES, optax.adam(1e-3).init(HALVES), "state must hold an AdamState; found none.*partit"),
        (HALVES, optax.chain(fa.adam()).init(HALVES), r"state\[0\].residual is None: only roun"),
        (
            HALVES,
            fa.init(HALVES, rounding="stochastic"),
            r"state.residual is made of zeros: only rounding=",
        ),
        (HALVES, two.init(HALVES), r"two residuals for params\['b'\], the second in state\[1\]"),
        ({"w": HALVES["w"]}, good, r"residual for params\['.'\], which is not in params"),
        (HALVES | {"n": HALVES["b"]}, good, r"^state holds nothing for params\['n'\]: pass"),
        (HALVES, good._replace(residual={}), "state.residual has 0 leaves, but mu of .* has 3"),
        (
            HALVES | {"s": jnp.ones((), jnp.bfloat16)},
            good,
            r"params\['s'\] is bfloat16, but state.residual\['s'\] is None: the parameter was",
        ),
        (
            HALVES | {"w": jnp.ones((2, 3))},
            good,
            r"params\['w'\] is float32 now; it was a float of 16",
        ),
        (HALVES | {"w": HALVES["b"]}, good, r"state.residual\['w'\] must be int8 of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            fa.master_params(params, state)
