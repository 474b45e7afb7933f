"""The Optax contract (DESIGN section 2): what a transformation is, and a script that uses one."""

import functools
import inspect
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from modes import switched
from optax_runs import (
    ADAM,
    ADAMW,
    GRADS,
    PARAMS,
    RATES,
    STEPS,
    assert_close,
    assert_equal,
    assert_state,
    dropped,
    halving,
    keep_all_but_bias,
    kept,
    oracle,
    row,
    run,
)

import functional_adam as fa

# The protocol ---------------------------------------------------------------------------------


def test_a_transformation_is_exactly_a_pair():
    for tx in fa.adam(**ADAM), fa.adamw(**ADAMW), fa.scale_by_adam(**RATES):
        init, update = tx
        assert tx._fields == ("init", "update")
        assert (init, update) == (tx.init, tx.update)


def test_the_third_argument_of_update_is_named_params():
    tx = fa.adamw(**ADAMW)
    parameters = list(inspect.signature(tx.update).parameters.values())
    assert [p.name for p in parameters[:3]] == ["updates", "state", "params"]
    assert parameters[2].default is None
    updates, state = tx.update(updates=GRADS[0], state=tx.init(PARAMS), params=PARAMS)
    truth = oracle(GRADS[:1], PARAMS, **ADAMW)
    assert_close(updates, row(truth.updates, 0), ADAM["learning_rate"])
    assert_state(state, truth, 1)


@pytest.mark.parametrize("name", ["adam", "adamw", "scale_by_adam"])
def test_signature_is_optaxs_with_additions_keyword_only(name):
    ours = inspect.signature(getattr(fa, name)).parameters
    theirs = inspect.signature(getattr(optax, name)).parameters

    def positional(parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return [(p.name, p.default) for p in parameters.values() if p.kind is kind]

    expected = [(n, 1e-3 if n == "learning_rate" else d) for n, d in positional(theirs)]
    assert positional(ours) == expected
    for parameter in ours.values():
        assert parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    for parameter in theirs.values():
        assert ours[parameter.name].kind is parameter.kind
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert ours[parameter.name].default == parameter.default


@pytest.mark.parametrize("make", [fa.adam, fa.adamw, fa.scale_by_adam])
def test_transformations_ignore_extra_arguments(make):
    tx = make(**RATES)
    state = tx.init(PARAMS)
    plain = tx.update(GRADS[0], state, PARAMS)
    with_extra = tx.update(GRADS[0], state, PARAMS, value=3.7, grad=GRADS[1], anything="at all")
    assert_equal(with_extra, plain)


def test_plain_update_refuses_extra_arguments():
    with pytest.raises(TypeError, match="value"):
        fa.update(GRADS[0], fa.init(PARAMS), PARAMS, **ADAMW, value=3.7)


def test_optax_is_never_imported_at_run_time():
    code = (
        "import sys; sys.modules['optax'] = None\n"  # any import of it now raises
        "import functional_adam as fa, jax.numpy as jnp\n"
        "import functional_adam._watch.selfcheck\n"
        "tx, p = fa.adamw(0.03), jnp.array([1.5])\n"
        "fa.apply_updates(p, tx.update(p, tx.init(p), p)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_optax_and_our_apply_updates_agree():
    updates, _ = fa.adamw(**ADAMW).update(GRADS[0], fa.init(PARAMS), PARAMS)
    assert_equal(fa.apply_updates(PARAMS, updates), optax.apply_updates(PARAMS, updates))


@pytest.mark.parametrize("params_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("grads_dtype", ["float32", "bfloat16", "float16"])
def test_updates_have_the_wider_dtype(params_dtype, grads_dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, params_dtype), PARAMS)
    grads = jax.tree.map(lambda x: jnp.asarray(x, grads_dtype), GRADS[0])
    adam, adamw = fa.adam(**ADAM), fa.adamw(**ADAMW)
    wider = jnp.promote_types(params_dtype, grads_dtype)
    for tx, given, dtype in (
        (adam, None, jnp.dtype(grads_dtype)),
        (adam, params, wider),
        (adamw, params, wider),
    ):
        updates, _ = jax.eval_shape(tx.update, grads, tx.init(params), given)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {dtype}


def test_params_that_are_given_are_looked_at_where_nothing_needs_them():
    tx = fa.adam(**ADAM)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"params must have the structure of the parameters given"):
        tx.update(GRADS[0], state, {"bias": PARAMS["bias"]})
    with pytest.raises(ValueError, match=r"params\['bias'\] has shape \(4,\), but"):
        tx.update(GRADS[0], state, PARAMS | {"bias": np.zeros(4, np.float32)})
    with pytest.raises(TypeError, match=r"params\['bias'\] must be a float or complex array; got"):
        tx.update(GRADS[0], state, PARAMS | {"bias": np.zeros(5, np.int32)})


def test_transformations_and_states_pickle():
    hyperparameters = {**ADAMW, "learning_rate": halving, "b1": jnp.float32(0.75)}
    tx = pickle.loads(pickle.dumps(fa.adamw(**hyperparameters, mask=keep_all_but_bias)))
    through_pickle = run(
        tx, PARAMS, GRADS, change_state=lambda t, state: pickle.loads(pickle.dumps(state))
    )
    hyperparameters["b1"] = 0.75
    decaying = oracle(GRADS, PARAMS, **hyperparameters)
    assert_close(kept(through_pickle.params[-1]), kept(row(decaying.params, -1)))
    not_decaying = oracle(GRADS, PARAMS, **{**hyperparameters, "weight_decay": 0.0})
    assert_close(dropped(through_pickle.params[-1]), dropped(row(not_decaying.params, -1)))
    assert_state(through_pickle.states[-1], decaying, STEPS)


# A user's script ------------------------------------------------------------------------------


def _losses(adamw, dtype):
    """A training script as Optax's documentation writes them, but for the name `adamw`."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((64, 3)).astype(dtype)
    y = np.sin(x @ rng.standard_normal((3, 2))).astype(dtype)
    params = {
        "w1": 0.5 * rng.standard_normal((3, 16)).astype(dtype),
        "b1": np.zeros(16, dtype),
        "w2": 0.5 * rng.standard_normal((16, 2)).astype(dtype),
    }
    schedule = optax.warmup_cosine_decay_schedule(0.001, 0.03, 10, 120, 0.0005)
    matrices = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        adamw(schedule, b2=0.98, weight_decay=0.02, mask=matrices),
    )
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state):
        def loss_fn(p):
            return jnp.mean((jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(120):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    return np.array(losses)


def test_optax_adamw_replaced_in_one_line_gives_the_same_losses():
    with switched("jax_enable_x64", True):
        expected = _losses(optax.adamw, np.float64)
        np.testing.assert_allclose(_losses(fa.adamw, np.float64), expected, rtol=1e-10)
    assert expected[-1] < 0.1 * expected[0]
    np.testing.assert_allclose(_losses(fa.adamw, np.float32), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_compiled_step_moves_no_more_bytes_than_optaxs(kind):
    """Up to 1 KiB in all, for scalars: the parameters are 4 MiB."""
    params = {"w": jnp.zeros((1024, 1000)), "b": jnp.zeros(1000)}

    def measured(library):
        tx = getattr(library, kind)(3e-4, b1=0.87, b2=0.993)

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return library.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        compiled = jitted.lower(params, tx.init(params), params).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        return cost["bytes accessed"], memory.temp_size_in_bytes

    (accessed, temporary), (accessed_theirs, temporary_theirs) = measured(fa), measured(optax)
    assert accessed <= accessed_theirs + 1024
    assert temporary <= temporary_theirs + 1024
