"""Parameters in Flax's boxes on 8 devices, and a state's conversion there."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded import EXPLICIT, HALF, MODES, differing, lies_as, mesh_of, one_step

import functional_adam as fa

# No number of blocks here is a multiple of 4: scales cannot be divided as the names say.
BOXED = {"w": (64, 256), "head": (64, 8), "kernel": (64, 3, 8)}


def start_of(name):
    rng = np.random.default_rng(len(name))
    return jnp.asarray(rng.normal(size=BOXED[name]), jnp.float32 if name == "head" else HALF)


def spec_of(name):
    return (None,) * (len(BOXED[name]) - 1) + ("model",)


def boxed_loss(weights):
    return sum((x.astype(jnp.float32) ** 2).mean() for x in weights)


def without_boxes(tx, steps=3):
    """The same run on one device, and the loss before its last step."""
    params = {name: start_of(name) for name in BOXED}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: boxed_loss(p.values()))(params)
        return *one_step(tx, params, state, grads), loss

    for _ in range(steps):
        params, state, loss = step(params, state)
    return params, loss


class Boxed(nnx.Module):
    def __init__(self):
        for name in BOXED:
            setattr(self, name, nnx.Param(start_of(name), out_sharding=spec_of(name)))

    def __call__(self):
        return boxed_loss(getattr(self, name)[...] for name in BOXED)


SLOW = pytest.mark.slow
KINDS = [
    ("bfloat16 stochastic", "Auto", "eager"),
    ("int8 compensated", "Explicit" if EXPLICIT else "Auto", "jitted"),
]
WAYS = ("get_sharding", "get_partition_spec", "state_shardings")
LINEN = [
    ("full stochastic", "get_sharding"),
    ("bfloat16 nearest", "get_partition_spec"),
    ("int8 compensated", "state_shardings"),
]
# All formats and roundings; each of the other choices meets every format.
MORE_KINDS = [(mode, "Auto", "eager") for mode in MODES] + [
    (mode, "Explicit", "eager")
    for mode in ("full compensated", "bfloat16 stochastic", "int8 compensated", "int8 nearest")
    if EXPLICIT
]
MORE_LINEN = [(mode, WAYS[(i + i // 3) % 3]) for i, mode in enumerate(MODES)]


def and_slow(cases, more):
    """These cases, then those of `more` that are not among them, for `make test-all`."""
    return [*cases, *(pytest.param(*case, marks=SLOW) for case in more if case not in cases)]


@pytest.mark.parametrize(("mode", "kind", "first"), and_slow(KINDS, MORE_KINDS))
def test_nnx_recipe(mode, kind, first):
    tx = MODES[mode]
    wanted, _ = without_boxes(tx)
    with jax.set_mesh(mesh_of("2x4", kind)):
        model = Boxed()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: model())(model))

        jitted = nnx.jit(step)
        (step if first == "eager" else jitted)(model, optimizer)
        for _ in range(2):
            jitted(model, optimizer)
        state = nnx.as_pure(optimizer.opt_state)
        assert state.count == 3
        for name, want in wanted.items():
            leaf = getattr(model, name)[...]
            assert tuple(leaf.sharding.spec) == tuple(state.mu[name].sharding.spec) == spec_of(name)
            np.testing.assert_allclose(
                np.float32(leaf), np.float32(want), atol=2e-6 if name == "head" else 0.04
            )


class LinenBoxed(nn.Module):
    @nn.compact
    def __call__(self):
        return boxed_loss(
            self.param(name, nn.with_partitioning(lambda _, n=name: start_of(n), spec_of(name)))
            for name in BOXED
        )


@pytest.mark.parametrize(("mode", "shardings_by"), and_slow(LINEN, MORE_LINEN))
def test_linen_recipe(mode, shardings_by):
    tx, mesh, model = MODES[mode], mesh_of("2x4"), LinenBoxed()
    wanted, loss = without_boxes(tx)

    def create():
        params = model.init(jax.random.key(0))["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    shapes = jax.eval_shape(create)
    shardings = nn.get_sharding(shapes, mesh)
    if shardings_by == "get_partition_spec":
        specs = nn.get_partition_spec(shapes)
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    if shardings_by == "state_shardings":
        places = fa.state_shardings(tx, shapes.params, shardings.params)
        shardings = shardings.replace(opt_state=places)
    state = jax.jit(create, out_shardings=shardings)()

    @functools.partial(jax.jit, out_shardings=(shardings, None))
    def step(state):
        loss, grads = jax.value_and_grad(lambda p: model.apply({"params": p}))(state.params)
        return state.apply_gradients(grads=grads), loss

    for _ in range(3):
        state, found = step(state)
    assert step._cache_size() == 1
    # A leaf's path, and so its random bits, has the box's `.value` in it: a rounding or two apart.
    assert float(found) == pytest.approx(float(loss), rel=1e-3)
    for name, want in wanted.items():
        leaf, mu = state.params[name].value, state.opt_state.mu[name].value
        assert tuple(leaf.sharding.spec) == tuple(mu.sharding.spec) == spec_of(name)
        moments, rounding = mode.split()
        far = {"full": 2e-6}.get(moments, 2e-3) if name == "head" else 0.04
        far = 0.1 if rounding == "stochastic" and name != "head" else far  # units of 1/64 at most
        np.testing.assert_allclose(np.float32(leaf), np.float32(want), atol=far)


@pytest.mark.skipif(not EXPLICIT, reason="explicit axes came with jax 0.7.2")
def test_moments_are_converted_on_explicit_axes():
    mesh, tx = mesh_of("2x4", "Explicit"), MODES["full nearest"]
    params = {name: start_of(name) for name in ("w", "kernel")}
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    wanted = fa.convert_moments(state, params, moments=CODES)
    places = {name: NamedSharding(mesh, P(*spec_of(name))) for name in params}
    there = jax.device_put(params, places)
    on_mesh = state._replace(
        mu=jax.device_put(state.mu, places), nu=jax.device_put(state.nu, places)
    )
    found = fa.convert_moments(on_mesh, there, moments=CODES)
    assert differing(found, wanted) == {}
    assert lies_as(found.mu, places)
    back = fa.convert_moments(found, there, moments="full")
    assert lies_as(back.nu, places)
    updates = jax.tree.map(jnp.ones_like, params)
    watch = jax.jit(fa.diagnostics)
    seen = watch(jax.device_put(updates, places), found, there)
    for name, want in watch(updates, wanted, params).items():
        np.testing.assert_allclose(seen[name], want, rtol=1e-5)
