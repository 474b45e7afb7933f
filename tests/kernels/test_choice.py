"""Which form of a step a program has: by platform, by the switch, under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codes import CODES
from jax import export
from quick import quick_jit

import functional_adam as fa
from functional_adam._kernels.choice import HAS_KERNELS, SWITCH

pytestmark = pytest.mark.skipif(not HAS_KERNELS, reason="kernels need jax 0.7.2")

SHAPE = (4, 256)
TX = fa.adamw(0.01, b1=0.8, b2=0.97, weight_decay=0.1, moments=CODES)
PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
GRADS = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)


def step(params, state, g):
    return fa.step(TX, g, state, params)


def step_again():
    """`step` as a function that JAX has not traced yet, as the switch is read in a trace."""
    return lambda params, state, g: step(params, state, g)  # noqa: PLW0108


def exported(platform):
    found = export.export(
        jax.jit(step_again()),
        platforms=[platform],
        disabled_checks=[export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
    )(PARAMS, TX.init(PARAMS), GRADS)
    return found.mlir_module()


@pytest.mark.parametrize(
    ("platform", "call"), [("cuda", "triton"), ("tpu", "tpu_custom_call"), ("cpu", None)]
)
def test_each_platform_has_its_form(platform, call):
    if platform == "cuda" and jax.__version_info__ >= (0, 12):  # asks a GPU what it is
        with pytest.raises(RuntimeError, match="No supported GPU") as found:
            exported(platform)
        assert f"{SWITCH}=off" in "".join(found.value.__notes__)
        return
    text = exported(platform)
    assert (call is not None) == ("custom_call" in text)
    assert call is None or call in text


def test_in_64_bit_mode_a_tpu_has_its_kernel(x64):
    text = exported("tpu")
    assert "tpu_custom_call" in text
    assert "f64" not in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_off_means_the_plain_form(platform, monkeypatch):
    monkeypatch.setenv(SWITCH, "off")
    assert "custom_call" not in exported(platform)


def test_the_switch_is_on_or_off(monkeypatch):
    monkeypatch.setenv(SWITCH, "no")
    with pytest.raises(ValueError, match='FUNCTIONAL_ADAM_KERNELS must be "on" or "off"; got \'no'):
        TX.update(GRADS, TX.init(PARAMS), PARAMS)


@pytest.mark.parametrize("form", ["on", "interpret gpu", "interpret tpu"])
def test_vmap_takes_the_plain_form_of_each(form, monkeypatch):
    monkeypatch.setenv(SWITCH, form)
    both = jnp.stack([PARAMS, 2 * PARAMS]), jnp.stack([GRADS, -GRADS])
    states = jax.vmap(TX.init)(both[0])
    _, mapped = quick_jit(jax.vmap(step_again()))(both[0], states, both[1])
    for i in range(2):
        _, alone = quick_jit(step_again())(both[0][i], TX.init(PARAMS), both[1][i])
        np.testing.assert_array_equal(mapped.nu[i], alone.nu)
        np.testing.assert_array_equal(mapped.mu[i], alone.mu)


def test_a_derivative_is_refused():
    state = TX.init(PARAMS)
    with pytest.raises(TypeError, match=r'Cannot differentiate through moments="int8"'):
        jax.grad(lambda g: step(PARAMS, state, g)[0].sum())(GRADS)


@pytest.mark.parametrize("form", ["on", "interpret tpu"])
def test_scan_carries_a_state(form, monkeypatch):
    monkeypatch.setenv(SWITCH, form)
    grads = jnp.stack([GRADS, -0.3 * GRADS, 2 * GRADS])
    start = PARAMS, TX.init(PARAMS)

    def body(carry, g):
        return step(*carry, g), None

    (_, state), _ = quick_jit(lambda start: jax.lax.scan(body, start, grads))(start)
    monkeypatch.setenv(SWITCH, "off")
    params, wanted = start
    for g in grads:
        params, wanted = quick_jit(step_again())(params, wanted, g)
    assert state.count == 3
    np.testing.assert_array_equal(state.nu_scale, wanted.nu_scale)
    assert np.mean(np.asarray(state.nu != wanted.nu)) < 0.01  # parameters differ in last bits


def test_a_machine_without_a_tpu_makes_kernels_of_members_and_modifiers_for_one():
    tx = fa.cautious_weight_decay(fa.adam_atan2(weight_decay=0.1, moments=CODES))
    step = jax.jit(lambda params, state, g: fa.step(tx, g, state, params))
    found = export.export(step, platforms=["tpu"])(PARAMS, tx.init(PARAMS), GRADS)
    assert "tpu_custom_call" in found.mlir_module()
