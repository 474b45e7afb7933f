"""The same numbers as other packages' for PyTorch, on record (`record_family.py`)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import record_family

import functional_adam as fa

OURS = {
    "atan2": lambda **numbers: fa.cautious_weight_decay(fa.adam_atan2(**numbers)),
    "clipped": lambda **numbers: fa.clip_update_rms(fa.adamw(**numbers)),
    "laprop": fa.laprop,
}
# adam-atan2-pytorch rounds 1 - lr * weight_decay to float32 with its mask, in every dtype.
TOLERANCES = {"atan2": 2e-7, "clipped": 1e-11, "laprop": 2e-5}
PLAIN = {"atan2": fa.adam_atan2, "clipped": fa.adamw}


@pytest.fixture(scope="module")
def recording():
    with np.load(record_family.RECORDING) as file:
        return dict(file)


def trained(tx, grads, params):
    """The parameters after each step, as `record_family.run_torch`."""

    def step(carry, g):
        params, state = carry
        params, state = fa.step(tx, g, state, params)
        return (params, state), params

    return jax.jit(lambda carry: jax.lax.scan(step, carry, grads)[1])((params, tx.init(params)))


@pytest.mark.parametrize("name", OURS)
def test_a_run_on_record_is_ours(name, recording, x64):
    case = record_family.CASES[name]

    def leaves(of):
        return {k: jnp.asarray(recording[f"{of}/{k}"], case.dtype) for k in record_family.SHAPES}

    wanted = {k: recording[f"{name}/{k}"] for k in record_family.SHAPES}
    found = trained(OURS[name](**case.numbers), leaves("grads"), leaves("params"))
    rate = case.numbers["learning_rate"]
    tolerance = TOLERANCES[name]
    for k, rows in wanted.items():
        assert rows.dtype == found[k].dtype == case.dtype
        np.testing.assert_allclose(found[k], rows, rtol=tolerance, atol=tolerance * rate)
    if name in PLAIN:  # without the modifier these are others
        other = trained(PLAIN[name](**case.numbers), leaves("grads"), leaves("params"))
        for k, rows in wanted.items():
            assert np.abs(other[k] - rows).max() > rate / 10


def test_the_recording_is_of_the_data_and_says_of_what(recording):
    grads, params = record_family.data()
    for of, tree in (("grads", grads), ("params", params)):
        for k, x in tree.items():
            np.testing.assert_array_equal(recording[f"{of}/{k}"], x)
    packages = {"torch", "adam-atan2-pytorch", "torch-optimi", "heavyball"}
    assert json.loads(str(recording["about"])).keys() == packages
