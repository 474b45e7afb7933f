"""`skip_spikes` among others: Optax's inside of it and around it, and all that reads states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import quick_jit
from same_bits import assert_same_bits

import functional_adam as fa

GUARD = dict(factor=4.0, window=6, warmup=3)
PARAMS = {"w": jnp.float32([[0.3, -2.0], [1.5, 0.7]]), "b": jnp.float32([-0.4])}
LOSSES = [2.0, 2.1, 1.9, 90.0, 2.0, np.nan, 1.8]
GOOD = [i for i, loss in enumerate(LOSSES) if loss < 3]


def grads_of(i):
    return jax.tree.map(lambda p: jnp.float32(np.cos(3.0 * i + np.asarray(p))), PARAMS)


def one_step(tx, way, params, state, grads, loss):
    if way == "step":
        return fa.step(tx, grads, state, params, value=loss)
    updates, state = tx.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state


def run(tx, rows, way="update"):
    step = quick_jit(functools.partial(one_step, tx, way))
    params, state = PARAMS, tx.init(PARAMS)
    for i in rows:
        params, state = step(params, state, grads_of(i), LOSSES[i])
    return params, state


ADAM = fa.adamw(0.03, b1=0.8, b2=0.97, weight_decay=0.1)
INSIDE = {
    "clipped": (optax.chain(optax.clip_by_global_norm(0.5), ADAM), "step"),
    "optax": (optax.adamw(0.03, b1=0.8), "step"),
    "injected": (optax.inject_hyperparams(optax.adamw)(0.03, b1=0.8), "update"),
    "masked": (optax.masked(ADAM, {"w": True, "b": False}), "update"),
    "partition": (optax.partition({"x": ADAM, "y": fa.lamb(0.1)}, {"w": "x", "b": "y"}), "step"),
    "noise": (optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), ADAM), "update"),
    "microbatches": (optax.MultiSteps(ADAM, 2).gradient_transformation(), "update"),
    "polyak": (optax.chain(optax.sgd(0.1), optax.scale_by_polyak()), "update"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside_of_it_a_skipped_step_has_not_been(name):
    inner, way = INSIDE[name]
    tx = fa.skip_spikes(inner, judge="loss", **GUARD)
    (params, state), (wanted, clean) = run(tx, range(7), way), run(tx, GOOD, way)
    assert_same_bits(params, wanted)
    inner_states = (state.inner_state, clean.inner_state)
    keyless = [
        [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        for tree in inner_states
    ]
    assert_same_bits(*keyless)
    assert (state.skipped, clean.skipped) == (2, 0)


def test_around_it_others_hand_on_the_loss():
    alone = fa.skip_spikes(ADAM, judge="loss", **GUARD)
    wanted, _ = run(alone, range(7))
    for tx in (
        optax.chain(optax.identity(), alone),
        optax.named_chain(("guarded", alone)),
        optax.apply_if_finite(alone, 3),
        optax.masked(alone, {"w": True, "b": True}),
    ):
        params, state = run(tx, range(7))
        assert_same_bits(params, wanted)
        assert optax.tree.get(state, "skipped") == 2


def test_of_accumulated_gradients_the_mean_is_judged():
    tx = optax.MultiSteps(fa.skip_spikes(ADAM, judge="grad_norm", **GUARD), 2)
    params, state = PARAMS, tx.init(PARAMS)
    step = quick_jit(functools.partial(one_step, tx, "update"))
    for i in range(12):
        grads = grads_of(0)
        if i == 9:
            grads["b"] = grads["b"] * 1e4
        before, (params, state) = params, step(params, state, grads, 1.0)
        if i == 9:
            assert_same_bits(params, before)
    assert (state.inner_opt_state.skipped, state.inner_opt_state.accepted) == (1, 5)
    assert state.inner_opt_state.inner_state.count == 5


def test_what_reads_states_finds_the_one_within():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    adam = fa.adamw(0.03, moments="bfloat16", rounding="compensated")
    tx = fa.skip_spikes(adam, **GUARD)
    update = quick_jit(lambda state, loss: tx.update(half, state, half, value=loss))
    updates, state = update(tx.init(half), 2.0)
    inner, watch = state.inner_state, quick_jit(fa.diagnostics)
    assert_same_bits(watch(updates, state, half), watch(updates, inner, half))
    assert_same_bits(fa.master_params(half, state), fa.master_params(half, inner))
    report, alone = fa.memory_report(tx, half), fa.memory_report(adam, half)
    assert report.leaves == alone.leaves
    # Four counters, a flag, and 6 losses and norms.
    assert report.other == alone.other + 4 * 4 + 1 + 2 * 6 * 4
    updates, state = update(state, np.nan)
    assert watch(updates, state, half)["update_norm"] == 0
    full = fa.convert_moments(state.inner_state, half, moments="full")
    wider = fa.skip_spikes(fa.adamw(0.03, rounding="compensated"), **GUARD)
    _, state = wider.update(half, state._replace(inner_state=full), half, value=2.0)
    assert (state.accepted, state.skipped, state.inner_state.count) == (2, 1, 2)


def test_a_state_is_stored_and_comes_back():
    tx = fa.skip_spikes(ADAM, judge="loss", **GUARD)
    params, state = run(tx, range(5))
    tree = {"params": params, "state": state}
    flat = fa.to_state_dict(tree, tx=tx)
    target = jax.eval_shape(lambda: {"params": PARAMS, "state": tx.init(PARAMS)})
    again = fa.from_state_dict(flat, target, tx=tx)
    assert_same_bits(again, tree)
    with pytest.raises(
        ValueError, match=r"flat has a state of .* at target\['state'\]\.inner_state, but"
    ):
        fa.from_state_dict(flat, target, tx=fa.skip_spikes(fa.amsgrad(), judge="loss", **GUARD))
    on, wanted = (
        one_step(tx, "step", x["params"], x["state"], grads_of(6), 1.8) for x in (again, tree)
    )
    assert_same_bits(on, wanted)


def test_orbax_stores_it(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = fa.skip_spikes(ADAM, judge="loss", **GUARD)
    _, state = run(tx, range(5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    assert isinstance(again, fa.SkipSpikesState)
    assert_same_bits(again, state)


def test_a_run_crosses_from_optax_with_it():
    old, new = (
        fa.skip_spikes(x, judge="loss", **GUARD) for x in (optax.adamw(0.03), fa.adamw(0.03))
    )
    _, opt_state = run(old, range(5))
    state = fa.from_optax(opt_state, like=new.init(PARAMS))
    assert_same_bits((state.losses, state.skipped), (opt_state.losses, opt_state.skipped))
    assert_same_bits(state.inner_state.mu, opt_state.inner_state[0].mu)
    back = fa.to_optax(state, like=old.init(PARAMS))
    assert_same_bits(back, opt_state)


def test_optaxs_functions_on_trees_see_parameters_alone():
    tx = fa.skip_spikes(ADAM, **GUARD)
    state = tx.init(PARAMS)
    mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert_same_bits(mapped.inner_state.mu, jax.tree.map(jnp.ones_like, PARAMS))
    rest = mapped._replace(inner_state=None), state._replace(inner_state=None)
    assert_same_bits(*rest)
    assert optax.tree.get(state, "skipped") == 0


def test_flaxs_optimizer_hands_on_the_loss():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, fa.skip_spikes(ADAM, **GUARD), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    before = np.asarray(model.kernel[...])
    optimizer.update(model, grads, value=jnp.float32(np.nan))
    np.testing.assert_array_equal(model.kernel[...], before)
    optimizer.update(model, grads, value=jnp.float32(1.0))
    assert np.all(np.asarray(model.kernel[...]) != before)
    assert (optimizer.opt_state.skipped[...], optimizer.opt_state.accepted[...]) == (1, 1)
