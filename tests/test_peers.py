"""The same numbers as the peers: PyTorch's on record (`record_torch.py`), Optax's live."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import record_torch

import functional_adam as fa

STEPS = 60


# ---- PyTorch ----


@functools.cache
def recording():
    return record_torch.load()


@pytest.mark.parametrize("dtype", record_torch.DTYPES)
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_recorded_torch_trajectory_is_ours(kind, dtype, request):
    """float32: each update to 1e-5 of a step; float64: the parameters to 1e-12 of a step."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    hyper = recording()["about"]["hyperparameters"][kind]
    grads, start = recording()["grads"], recording()["params"]
    theirs = recording()["runs"][kind][dtype]
    ours = record_torch.run_ours(kind, dtype, hyper, grads, start)
    worst = record_torch.differences(ours, theirs, dtype, hyper["learning_rate"], start)
    allowed = record_torch.tolerances(dtype, hyper)
    assert all(worst[key] <= allowed[key] for key in allowed), f"{worst}, allowed {allowed}"


def test_recording_has_no_degenerate_values():
    """Nothing at its default, nothing at rest: such a recording would agree with wrong code."""
    for kind, hyper in recording()["about"]["hyperparameters"].items():
        defaults = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
        assert all(hyper[name] != value for name, value in defaults.items())
        assert ("weight_decay" in hyper) == (kind == "adamw")
        for run in recording()["runs"][kind].values():
            assert all(len(p) == record_torch.STEPS for p in run["params"].values())
    zeros = recording()["grads"]["sparse"] == 0
    assert zeros.all(axis=0).any()
    assert 0.5 < zeros.mean() < 1
    assert all((g != 0).all() for name, g in recording()["grads"].items() if name != "sparse")


# ---- Optax ----


def schedule(count):
    return 3e-3 / (1 + 0.07 * count)


def decay_schedule(count):
    return 0.037 + 0.011 * count


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


ODD = {"b1": 0.83, "b2": 0.9973, "eps": 1e-6}
CONFIGURATIONS = {
    "adam": ("adam", ODD | {"learning_rate": 3e-3}),
    "b1 = 0": ("adam", ODD | {"learning_rate": 3e-3, "b1": 0.0}),
    "eps_root": ("adam", ODD | {"learning_rate": 3e-3, "eps_root": 1.7e-7}),
    "schedule": ("adam", ODD | {"learning_rate": schedule}),
    "nesterov": ("adam", ODD | {"learning_rate": 3e-3, "nesterov": True, "eps_root": 1.7e-7}),
    "adamw": ("adamw", ODD | {"learning_rate": 3e-3, "weight_decay": 0.037}),
    "adamw, default decay": ("adamw", ODD | {"learning_rate": 3e-3}),
    "mask": ("adamw", ODD | {"learning_rate": 3e-3, "weight_decay": 0.37, "mask": matrices}),
    "adamw, schedules": (
        "adamw",
        ODD | {"learning_rate": schedule, "weight_decay": decay_schedule},
    ),
    "adamw, nesterov": (
        "adamw",
        ODD | {"learning_rate": schedule, "weight_decay": 0.037, "nesterov": True},
    ),
    "scale_by_adam": ("scale_by_adam", ODD | {"eps_root": 1.7e-7}),
    "scale_by_adam, nesterov": ("scale_by_adam", ODD | {"nesterov": True}),
}


def data(dtype):
    """Gradients (one row a step) and parameters; scales from far above eps to below it."""
    rng = np.random.default_rng(7)
    shapes = {"a": ((), 1.9), "b": ((5,), 23.0), "w": ((3, 7), 0.017), "z": ((2, 1, 4), 4.1e-7)}
    grads, params = {}, {}
    for name, (shape, scale) in shapes.items():
        grads[name] = (scale * rng.standard_normal((STEPS, *shape))).astype(dtype)
        params[name] = np.asarray(rng.standard_normal(shape), dtype)
    grads["w"][:, 1] *= rng.random((STEPS, 7)) < 0.2
    grads["w"][:, 0, 0] = 0
    return grads, params


def trajectory(library, kind, hyper, dtype):
    """(updates, mu, nu, count) after each step, the parameters being trained along."""
    tx = getattr(library, kind)(**hyper)
    grads, params = data(dtype)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        named = state if hasattr(state, "mu") else state[0]  # Optax: a chain, Adam first
        row = updates, named.mu, named.nu, named.count
        return (library.apply_updates(params, updates), state), row

    carry = jax.tree.map(jnp.asarray, params), tx.init(params)
    _, rows = jax.jit(lambda carry, grads: jax.lax.scan(step, carry, grads))(carry, grads)
    return jax.tree.map(np.asarray, rows)


def assert_trees_close(ours, theirs, rtol, atol=0.0):
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        np.testing.assert_allclose(ours[name], theirs[name], rtol, atol, err_msg=name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_optax_in_float64_is_ours(name, x64):
    """To 1e-12: updates relative to a learning rate, both moments relative, counts equal."""
    kind, hyper = CONFIGURATIONS[name]
    ours, mu, nu, count = trajectory(fa, kind, hyper, np.float64)
    theirs, their_mu, their_nu, their_count = trajectory(optax, kind, hyper, np.float64)
    largest = 1.0 if kind == "scale_by_adam" else 3e-3
    assert_trees_close(ours, theirs, 1e-12, 1e-12 * largest)
    for leaf in mu:  # mu cancels: its scale is that of the gradients, sqrt(nu)
        assert (np.abs(mu[leaf] - their_mu[leaf]) <= 1e-12 * np.sqrt(their_nu[leaf])).all(), leaf
    assert_trees_close(nu, their_nu, 1e-12)
    assert count.dtype == their_count.dtype
    assert (count == their_count).all()
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((ours, mu, nu)))


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_optax_moments_in_float32_are_ours(kind):
    """To what Optax's own rounding leaves: see `record_torch.tolerances`."""
    hyper = ODD | {"learning_rate": 3e-3, "b2": 0.97}
    allowed = record_torch.tolerances("float32", hyper)
    _, mu, nu, count = trajectory(fa, kind, hyper, np.float32)
    _, their_mu, their_nu, their_count = trajectory(optax, kind, hyper, np.float32)
    for leaf in mu:
        difference = np.abs(mu[leaf].astype(np.float64) - their_mu[leaf])
        assert (difference <= allowed["mu"] * np.sqrt(their_nu[leaf])).all(), leaf
    assert_trees_close(nu, their_nu, allowed["nu"])
    assert (count == their_count).all()
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((mu, nu)))
