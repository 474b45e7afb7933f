"""Wrappers that hold steps back: each does with our transformations what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_runs import (
    ADAM,
    ADAMW,
    GRADS,
    PARAMS,
    STEPS,
    adam_state,
    assert_close,
    assert_equal,
    assert_state,
    dropped,
    keep_all_but_bias,
    kept,
    oracle,
    rounded,
    row,
    run,
)
from quick import quick_jit

import functional_adam as fa

SLOW = pytest.mark.slow


@pytest.fixture(params=["x32", "x64"])
def either_precision(request):
    """JAX's 64-bit mode off, then on; the arrays are what they are."""
    if request.param == "x64":
        request.getfixturevalue("x64")


def _means(grads, k):
    """The mean of each k gradients, in float64."""
    return [
        jax.tree.map(lambda *g: np.mean(np.float64(g), axis=0), *grads[i : i + k])
        for i in range(0, len(grads), k)
    ]


def test_multi_steps_is_one_step_on_the_mean_gradient():
    k = 3
    steps = run(optax.MultiSteps(fa.adamw(**ADAMW), every_k_schedule=k), PARAMS, GRADS)
    truth = oracle(_means(GRADS, k), PARAMS, **ADAMW)
    for t in range(STEPS):
        done = (t + 1) // k
        assert_state(steps.states[t], truth, done)
        assert_close(steps.params[t], row(truth.params, done - 1) if done else PARAMS)
        if (t + 1) % k:
            assert_equal(steps.updates[t], jax.tree.map(np.zeros_like, PARAMS))
        else:
            assert_close(steps.updates[t], row(truth.updates, done - 1), 0.013)


def test_multi_steps_skips_gradients_that_are_not_finite():
    bad = jax.tree.map(lambda g: g * np.float32(np.nan), GRADS[0])
    tx = optax.MultiSteps(
        fa.adamw(**ADAMW), every_k_schedule=2, should_skip_update_fn=optax.skip_not_finite
    )
    steps = run(tx, PARAMS, [GRADS[0], bad, GRADS[1], bad, bad, GRADS[2], GRADS[3]])
    truth = oracle(_means(GRADS[:4], 2), PARAMS, **ADAMW)
    assert_close(steps.updates[2], row(truth.updates, 0), 0.013)
    assert_close(steps.updates[6], row(truth.updates, 1), 0.013)
    for t, count in enumerate([0, 0, 1, 1, 1, 1, 2]):
        assert_state(steps.states[t], truth, count)


def _spoil(tree, value):
    """`tree` with `value` in one place of its matrix."""
    matrix, rest = tree["layers"]
    return {**tree, "layers": [jnp.asarray(matrix).at[1, 2].set(value), rest]}


# Both precisions, and every dtype, once; the other pairs in `make test-all`.
FINITE = [
    ("x32", "bfloat16", "bfloat16"),
    ("x32", "float16", "float16"),
    ("x64", "float32", "float32"),
    ("x64", "bfloat16", "float32"),
]
FINITE += [
    pytest.param("x64" if x == "x32" else "x32", *dtypes, marks=SLOW) for x, *dtypes in FINITE
]


@pytest.mark.parametrize(
    ("either_precision", "params_dtype", "grads_dtype"), FINITE, indirect=["either_precision"]
)
@pytest.mark.usefixtures("either_precision")
def test_apply_if_finite_leaves_the_state_untouched(params_dtype, grads_dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, params_dtype), PARAMS)
    grads = [jax.tree.map(lambda x: jnp.asarray(x, grads_dtype), g) for g in GRADS[:5]]
    bad = _spoil(grads[0], np.nan), _spoil(grads[1], -np.inf)
    steps = run(
        optax.apply_if_finite(fa.adam(**ADAM), max_consecutive_errors=3),
        params,
        [*grads[:2], *bad, *grads[2:], bad[0]],
    )
    truth = oracle(grads, params, **ADAM)
    precision = {"float32": 2e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}[grads_dtype]
    for t, count in enumerate([1, 2, 2, 2, 3, 4, 5, 5]):
        assert_state(steps.states[t], truth, count)
        if t in {2, 3, 7}:
            assert_equal(adam_state(steps.states[t]), adam_state(steps.states[t - 1]))
            assert_equal(steps.updates[t], jax.tree.map(jnp.zeros_like, grads[0]))
        else:
            assert_close(steps.updates[t], row(truth.updates, count - 1), 0.013, precision)


CONDITION = [True, False, True, True, False, False, True, False, True]
BRANCHING = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step < 2),
}


@pytest.mark.parametrize(
    "library", [pytest.param(optax, id="optax", marks=SLOW), pytest.param(fa, id="ours")]
)
@pytest.mark.parametrize("wrapper", BRANCHING)
def test_gradients_of_fewer_bits_are_cast_outside_of_wrappers_that_branch(wrapper, library):
    # Their other branch gives back gradients or zeros in the gradients' dtype.
    make = BRANCHING[wrapper](library.adam(**ADAM))
    grads = [jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), g) for g in GRADS[:2]]
    with pytest.raises(TypeError, match="branches must have equal output types"):
        make.update(grads[0], make.init(PARAMS), PARAMS)
    widen = optax.stateless(
        lambda g, params: jax.tree.map(lambda x, p: x.astype(p.dtype), g, params)
    )
    steps = run(optax.chain(widen, make), PARAMS, grads)
    assert_close(steps.params[-1], row(oracle(grads, PARAMS, **ADAM).params, -1))


def test_conditionally_transform_passes_gradients_where_it_does_nothing():
    tx = optax.conditionally_transform(fa.adam(**ADAM), lambda step: jnp.array(CONDITION)[step])
    steps = run(tx, PARAMS, GRADS)
    truth = oracle([g for g, do in zip(GRADS, CONDITION, strict=True) if do], PARAMS, **ADAM)
    for t, do in enumerate(CONDITION):
        done = sum(CONDITION[: t + 1])
        assert_state(steps.states[t], truth, done)
        if do:
            assert_close(steps.updates[t], row(truth.updates, done - 1), 0.013)
        else:
            assert_equal(steps.updates[t], GRADS[t])


def test_conditionally_mask_skips_steps():
    tx = optax.conditionally_mask(fa.adamw(**ADAMW), lambda step: jnp.array(CONDITION)[step])
    steps = run(tx, PARAMS, GRADS)
    truth = oracle([g for g, do in zip(GRADS, CONDITION, strict=True) if do], PARAMS, **ADAMW)
    for t, do in enumerate(CONDITION):
        done = sum(CONDITION[: t + 1])
        assert_state(steps.states[t], truth, done)
        assert_close(steps.params[t], row(truth.params, done - 1))
        if not do:
            assert_equal(steps.updates[t], jax.tree.map(np.zeros_like, PARAMS))


@pytest.mark.parametrize(
    ("either_precision", "dtype"),
    [
        ("x32", "bfloat16"),
        ("x64", "float32"),
        pytest.param("x32", "float32", marks=SLOW),
        pytest.param("x64", "bfloat16", marks=SLOW),
    ],
    indirect=["either_precision"],
)
@pytest.mark.usefixtures("either_precision")
def test_nested_wrappers_are_a_valid_scan_carry(dtype):
    make = optax.inject_hyperparams(fa.adamw, static_args=("mask",), hyperparam_dtype=jnp.float32)
    tx = optax.chain(optax.clip(1.1), make(**ADAMW, mask=keep_all_but_bias))
    tx = optax.apply_if_finite(tx, 2) if dtype == "float32" else tx
    tx = optax.MultiSteps(tx, every_k_schedule=3)
    grads = [jax.tree.map(lambda x: jnp.asarray(x, dtype), g) for g in GRADS]

    @quick_jit
    def train(params, state, grads):
        def body(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), grads)[0]

    params, state = train(PARAMS, tx.init(PARAMS), jax.tree.map(lambda *g: jnp.stack(g), *grads))
    means = [
        jax.tree.map(lambda x: np.clip(x, -1.1, 1.1), g)
        for g in _means([jax.tree.map(np.float64, g) for g in grads], 3)
    ]
    decaying, plain = (oracle(means, PARAMS, **rounded(h)) for h in (ADAMW, ADAM))
    # MultiSteps rounds the mean to the gradients' dtype.
    tolerance = {"float32": 2e-6, "bfloat16": 2.0**-8}[dtype]
    close = functools.partial(assert_close, tolerance=tolerance)
    close(kept(params), kept(row(decaying.params, -1)), 0.05)
    close(dropped(params), dropped(row(plain.params, -1)), 0.05)
    inner = adam_state(state)
    assert int(inner.count) == 3
    close((inner.mu, inner.nu), row((plain.mu, plain.nu), -1))
