"""On eight devices each takes the part that it has, nothing is sent, bits are those of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from both_ways import HYPER, assert_same_bits, calls, jitted, stepped, trees
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functional_adam as fa

P = PartitionSpec
CODES = fa.Int8(min_size=0)
CASES = {
    "rows": ((64, 256), P("x", None)),
    "columns": ((48, 1024), P(None, "y")),
    "both": ((64, 1024), P("x", "y")),
    "heads": ((6, 16, 8, 128), P(None, None, "y")),
    "layers": ((8, 24, 256), P(("x", "y"))),
    "not": ((40, 256), P()),
}
SENT = ("all-gather", "all-reduce", "collective-permute", "all-to-all")


def on_mesh(kind, params, grads, spec):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    there = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.device_put(x, there), (params, grads))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("moments", "rounding"),
    [("full", "nearest"), ("bfloat16", "stochastic"), (CODES, "compensated")],
)
def test_each_takes_its_part(kind, case, moments, rounding, monkeypatch):
    shape, spec = CASES[case]
    tx = fa.adamw(**HYPER, moments=moments, rounding=rounding)
    params, grads = trees({"w": shape}, jnp.float32 if rounding == "nearest" else jnp.bfloat16, 3)
    wanted = stepped(monkeypatch, "off", tx, params, grads)
    there, gs = on_mesh(kind, params, grads, spec)
    step = jitted(monkeypatch, "on", lambda p, s, g: fa.step(tx, g, s, p))
    text = step.lower(there, tx.init(there), gs[0]).compile()
    assert calls(text) == 1
    assert not any(word in text.as_text() for word in SENT)
    assert_same_bits(stepped(monkeypatch, "on", tx, there, gs), wanted)


def test_an_axis_that_does_not_divide_its_leaf(monkeypatch):
    tx = fa.adamw(**HYPER, moments=CODES)
    params, grads = trees({"w": (24, 200), "b": (24,)}, jnp.float32, 2)
    wanted = stepped(monkeypatch, "off", tx, params, grads)
    there, gs = on_mesh(AxisType.Auto, params, grads, P("x"))
    assert_same_bits(stepped(monkeypatch, "on", tx, there, gs), wanted)


def test_in_a_shard_map_of_ones_own(monkeypatch):
    tx = fa.adamw(**HYPER)
    params, (g,) = trees({"w": (64, 96)}, jnp.float32, 1)
    wanted = stepped(monkeypatch, "off", tx, params, [g])
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    states = jax.tree.map(lambda x: P("x") if x.ndim else P(), tx.init(params))
    step = jax.shard_map(
        lambda p, s, g: fa.step(tx, g, s, p),
        mesh=mesh,
        in_specs=(P("x"), states, P("x")),
        out_specs=(P("x"), states),
    )
    step = jitted(monkeypatch, "on", step)
    assert calls(step.lower(params, tx.init(params), g).compile()) == 1
    assert_same_bits(step(params, tx.init(params), g), wanted)


def test_where_some_axes_are_a_shard_maps(monkeypatch):
    """There XLA's form: nobody could say how to divide the rest."""
    tx = fa.adamw(**HYPER)
    params, (g,) = trees({"w": (64, 96)}, jnp.float32, 1)
    wanted = stepped(monkeypatch, "off", tx, params, [g])
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    states = jax.tree.map(lambda x: P("x") if x.ndim else P(), tx.init(params))
    step = jax.shard_map(
        lambda p, s, g: fa.step(tx, g, s, p),
        mesh=mesh,
        axis_names={"x"},
        in_specs=(P("x"), states, P("x")),
        out_specs=(P("x"), states),
    )
    found = jitted(monkeypatch, "on", step)(params, tx.init(params), g)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_max_ulp(np.asarray(a, np.float32), np.asarray(b, np.float32), 1)
