"""Which parameter a leaf of a state lies like, where its name alone does not tell: one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import functional_adam as fa

MESH = Mesh(np.array(jax.devices()[:1]), ("data",))
LYING = NamedSharding(MESH, P("data", None))
STANDING = NamedSharding(MESH, P(None, "data"))


def test_a_leaf_lies_like_the_parameter_of_its_whole_path():
    # The path of each moment of "inner" ends with that of the other "w", whose shape is the same.
    params = {"w": jnp.ones((3, 6)), "inner": {"w": jnp.ones((3, 6))}}
    shardings = {"w": LYING, "inner": {"w": STANDING}}
    for tx in (fa.adam(), optax.chain(optax.trace(0.9), fa.adam())):
        found = fa.state_shardings(tx, params, shardings)
        specs = [leaf.spec for leaf in jax.tree.leaves(found) if leaf.spec]
        assert specs == [STANDING.spec, LYING.spec] * (len(specs) // 2)
        assert len(specs) >= 4


def test_a_leaf_of_another_shape_lies_whole():
    class Rows:  # keeps a sum a row, at the path of the parameter
        init = staticmethod(lambda params: jax.tree.map(lambda p: p.sum(axis=0), params))
        update = staticmethod(lambda updates, state, params=None: (updates, state))

    tx = optax.chain(optax.GradientTransformation(Rows.init, Rows.update), fa.adam())
    rows, state = fa.state_shardings(tx, {"w": jnp.ones((3, 6))}, LYING)
    assert rows["w"].spec == P()
    assert state.mu["w"] == LYING
