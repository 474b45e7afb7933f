"""What crosses from PyTorch and to it: names, leaves, axes, dtypes, buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crossings import PARAMS, entry, state_dict_of

import functional_adam as fa


@pytest.mark.parametrize(
    "names",
    [
        {"b": 1, "w": 0},
        {"b": "bias", "w": "weight"},
        {"b": "bias", "w": 0, "more": "other"},
        lambda path: {"['b']": "bias", "['w']": "weight"}[path],
    ],
)
def test_names_say_which_parameter_a_leaf_is(names):
    parts = entry((2, 3)), entry((3,), seed=2), entry((3,), seed=3)
    state_dict = state_dict_of(*parts, param_names=["weight", "bias", "other"])
    state = fa.from_torch(state_dict, PARAMS, names=names)
    assert int(state.count) == 7
    for leaf, part in (("w", parts[0]), ("b", parts[1])):
        np.testing.assert_array_equal(state.mu[leaf], part["exp_avg"].astype(np.float32))
        np.testing.assert_array_equal(state.nu[leaf], part["exp_avg_sq"].astype(np.float32))
    back = fa.to_torch(state, state_dict, names=names)["state"]
    assert back[2] is parts[2]  # not named: left alone
    np.testing.assert_array_equal(back[1]["exp_avg"], np.asarray(state.mu["b"]))


def test_names_may_be_the_keys():
    """As `torch.distributed.checkpoint` has them."""
    state_dict = {"state": {"a.b": entry((3,))}, "param_groups": [{"params": ["a.b"]}]}
    state = fa.from_torch(state_dict, {"x": jnp.zeros(3)}, names={"x": "a.b"})
    np.testing.assert_allclose(state.mu["x"], state_dict["state"]["a.b"]["exp_avg"], 1e-6)


def test_a_state_from_torch_is_as_init_makes_it():
    params = PARAMS | {"n": None, "h": jnp.zeros(2, jnp.bfloat16)}
    state = fa.from_torch(state_dict_of(entry((3,)), None, entry((2, 3))), params)
    wanted = fa.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, wanted)
    assert not state.mu["h"].any()  # no state in torch
    assert state.mu["b"].all()
    none = fa.from_torch(state_dict_of(None, None, None), params)
    jax.tree.map(np.testing.assert_array_equal, none, wanted)


def test_every_leaf_from_torch_is_its_own_buffer():
    largest = np.ones((3,))
    state_dict = state_dict_of(entry((3,), max_exp_avg_sq=largest), None)
    state = fa.from_torch(state_dict, PARAMS)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    largest[:] = 2
    assert (state.extra["nu_max"]["b"] == 1).all()


def test_from_torch_keeps_the_parameters_sharding():
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    state = fa.from_torch(state_dict_of(entry()), jax.device_put(jnp.zeros((2, 3)), sharding))
    wanted = fa.init(jax.device_put(jnp.zeros((2, 3)), sharding))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert a.sharding == b.sharding


def test_to_torch_widens_bfloat16_and_leaves_state_and_like_alone():
    state = fa.init(jnp.zeros((2, 3)), mu_dtype="bfloat16")
    state = fa.update(jnp.full((2, 3), 0.3), state, mu_dtype="bfloat16")[1]
    like = state_dict_of(None, lr=0.3)
    found = fa.to_torch(state, like)
    assert found["state"][0]["exp_avg"].dtype == np.float32
    assert found["param_groups"] == like["param_groups"]
    assert like["state"] == {}
    found["state"][0]["exp_avg_sq"][:] = 5
    assert not (state.nu == 5).any()


def test_a_parameter_of_torch_is_listed_once():
    """In a group or in two, by number or by name, in both directions."""
    part, params = entry((3,)), {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    again = {"state": {0: part}, "param_groups": [{"params": [0, 0]}]}
    groups = {"state": {0: part}, "param_groups": [{"params": [0]}, {"params": [0]}]}
    named = state_dict_of(part, part, param_names=["w", "w"])
    known = {"state": {"w": part, 1: part}, "param_groups": [{"params": ["w", 1]}]}
    known["param_groups"][0]["param_names"] = ["v", "w"]
    short = state_dict_of(part, part, param_names=["w"])
    names = {"a": "w", "b": 1}
    for state_dict, chosen, message in (
        (again, None, r"\['param_groups'\] lists parameter 0 twice"),
        (groups, None, r"\['param_groups'\] lists parameter 0 twice"),
        (named, names, "has two parameters called 'w'"),
        (known, names, "has two parameters called 'w'"),
        (short, names, r"\['param_groups'\]\[0\] has 1 names for 2 parameters"),
    ):
        with pytest.raises(ValueError, match="state_dict" + ".*" + message):
            fa.from_torch(state_dict, params, names=chosen)
        with pytest.raises(ValueError, match="like.*" + message):
            fa.to_torch(fa.init(params), state_dict, names=chosen)
