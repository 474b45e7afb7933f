"""How the kernel is called: where, how often, with what memory, under JAX's transformations."""

import threading

import functional_adam_native
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from both_ways import CALL, HYPER, assert_same_bits, calls, jitted, stepped, trees
from jax import export

import functional_adam as fa
from functional_adam.__main__ import versions
from functional_adam._kernels import native

CODES = fa.Int8(min_size=0)
SHAPE = {"w": (64, 512)}


def program(monkeypatch, tx, shapes, dtype=jnp.float32, way="on"):
    params, (g,) = trees(shapes, dtype, 1)
    step = jitted(monkeypatch, way, lambda p, s, g: fa.step(tx, g, s, p), donate_argnums=(0, 1))
    return step.lower(params, tx.init(params), g).compile()


@pytest.mark.parametrize("moments", ["full", "bfloat16", CODES])
def test_a_donated_step_is_one_call_in_place(moments, monkeypatch):
    tx = fa.adamw(**HYPER, moments=moments, rounding="compensated")
    shapes = {"a": (256, 1024), "b": (512, 512)}
    memory = (compiled := program(monkeypatch, tx, shapes, jnp.bfloat16)).memory_analysis()
    assert calls(compiled) == 2
    given = memory.argument_size_in_bytes - 2 * 2 * 2**18  # but for gradients
    assert memory.alias_size_in_bytes >= given - 64
    assert memory.temp_size_in_bytes < 4096


def test_small_leaves_go_together(monkeypatch):
    shapes = {f"{n:03}": (100,) for n in range(300)} | {"large": (2**16,)}
    assert calls(program(monkeypatch, fa.adam(**_no_decay()), shapes)) == 3  # 256, 44 and 1


def _no_decay():
    return {k: v for k, v in HYPER.items() if k != "weight_decay"}


@pytest.mark.parametrize(
    "tx",
    [
        fa.amsgrad(0.1),
        fa.lamb(0.1),
        fa.adopt(0.1),
        fa.radam(0.1),
        fa.adabelief(0.1),
        fa.cautious(fa.adam(0.1)),
        fa.ademamix(0.1),
        fa.adamax(0.1),
        fa.yogi(0.1),
    ],
)
def test_others_keep_their_form(tx, monkeypatch):
    assert calls(program(monkeypatch, tx, SHAPE)) == 0


@pytest.mark.parametrize(
    "tx",
    [
        fa.adamw(**HYPER, independent_weight_decay=True),
        fa.nadamw(**HYPER, momentum_decay=4e-3),
        fa.adam(0.1, eps_placement="before_correction"),
    ],
)
def test_scalars_may_be_what_they_like(tx, monkeypatch):
    assert calls(program(monkeypatch, tx, SHAPE)) == 1


def test_long_blocks_keep_their_form(monkeypatch):
    tx = fa.adam(0.1, moments=fa.Int8(block_size=2048, min_size=0))
    assert calls(program(monkeypatch, tx, {"w": (4, 4096)})) == 0
    assert calls(program(monkeypatch, tx, {"w": (16, 1024)})) == 1


def test_other_dtypes_keep_their_form(monkeypatch):
    assert calls(program(monkeypatch, fa.adam(0.1), SHAPE, jnp.float16)) == 0
    assert calls(program(monkeypatch, fa.adam(0.1), SHAPE, jnp.complex64)) == 0


def test_one_switch_turns_it_off(monkeypatch):
    tx = fa.adam(0.1)
    assert calls(program(monkeypatch, tx, SHAPE)) == 1
    assert calls(program(monkeypatch, tx, SHAPE, way="off")) == 0
    monkeypatch.setenv("FUNCTIONAL_ADAM_KERNELS", "off")
    assert calls(program(monkeypatch, tx, SHAPE)) == 0
    monkeypatch.delenv("FUNCTIONAL_ADAM_KERNELS")
    with pytest.raises(ValueError, match='FUNCTIONAL_ADAM_NATIVE must be "on" or "off"; got'):
        program(monkeypatch, tx, SHAPE, way="no")


def test_what_is_not_donated_stays(monkeypatch):
    tx = fa.adamw(**HYPER, moments=CODES)
    params, (g,) = trees(SHAPE, jnp.float32, 1)
    state = tx.init(params)
    before = jax.tree.map(np.array, (params, state, g))
    step = jitted(monkeypatch, "on", lambda p, s, g: fa.step(tx, g, s, p))
    first, second = step(params, state, g), step(params, state, g)
    assert_same_bits((params, state, g), before)
    assert_same_bits(first, second)


def test_in_a_scan(monkeypatch):
    tx = fa.adamw(**HYPER, moments=CODES)
    params, grads = trees(SHAPE, jnp.float32, 4)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *grads)

    def run(params, state, grads):
        body = lambda carry, g: (fa.step(tx, g, carry[1], carry[0]), None)  # noqa: E731
        return jax.lax.scan(body, (params, state), grads)[0]

    scanned = jitted(monkeypatch, "on", run)
    assert calls(scanned.lower(params, tx.init(params), stacked).compile()) == 1
    found = scanned(params, tx.init(params), stacked)
    assert_same_bits(found, stepped(monkeypatch, "off", tx, params, grads))


def test_vmap_takes_xlas_form(monkeypatch):
    tx = fa.adamw(**HYPER)
    params, (g,) = trees({"w": (3, 40)}, jnp.float32, 1)
    step = jitted(monkeypatch, "on", jax.vmap(lambda p, s, g: fa.step(tx, g, s, p)))
    states = jax.vmap(tx.init)(params)
    assert calls(step.lower(params, states, g).compile()) == 0
    found, _ = step(params, states, g)
    alone, _ = stepped(monkeypatch, "on", tx, {"w": params["w"][1]}, [{"w": g["w"][1]}])
    np.testing.assert_allclose(found["w"][1], alone["w"], rtol=1e-6)


def test_meta_gradients_are_those_of_the_formula(monkeypatch):
    """The first step of Adam is alpha g / (|g| + eps): slope g / (|g| + eps) in alpha."""
    params, grads = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])

    def end(rate, grads):
        tx = fa.adam(rate, eps=0.25)
        return fa.step(tx, grads, tx.init(params), params)[0].sum()

    slopes = jitted(monkeypatch, "on", jax.grad(end, argnums=(0, 1)))(0.1, grads)
    np.testing.assert_allclose(slopes[0], -(0.5 / 0.75 + 3.0 / 3.25), rtol=1e-6)
    np.testing.assert_allclose(slopes[1], -0.1 * 0.25 / (np.array([0.75, 3.25]) ** 2), rtol=1e-5)
    tx = fa.adam(0.1, moments="bfloat16")
    with pytest.raises(TypeError, match=r'Cannot differentiate through moments="int8"'):
        jax.grad(lambda g: fa.step(tx, g, tx.init(params), params)[0].sum())(grads)


def test_without_jit(monkeypatch):
    tx = fa.adamw(**HYPER)
    params, (g,) = trees(SHAPE, jnp.float32, 1)
    monkeypatch.setenv(native.SWITCH, "on")
    found = fa.step(tx, g, tx.init(params), params)
    monkeypatch.setenv(native.SWITCH, "off")
    wanted = fa.step(tx, g, tx.init(params), params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)


def test_an_export_runs_where_no_kernel_is(monkeypatch):
    tx = fa.adam(0.1)
    params, (g,) = trees(SHAPE, jnp.float32, 1)
    step = jitted(monkeypatch, "on", lambda p, s, g: fa.step(tx, g, s, p))
    assert CALL not in export.export(step)(params, tx.init(params), g).mlir_module()


def test_threads_do_not_meet(monkeypatch):
    """Steps of several programs at once, all on XLA's one pool."""
    tx = fa.adamw(**HYPER, moments=CODES)
    params, grads = trees({"a": (512, 1024), "b": (100,)}, jnp.float32, 3)
    wanted = stepped(monkeypatch, "off", tx, params, grads)
    step = jitted(monkeypatch, "on", lambda p, s, g: fa.step(tx, g, s, p))
    step(params, tx.init(params), grads[0])
    found = []

    def run():
        for _ in range(5):
            end = params, tx.init(params)
            for g in grads:
                end = step(*end, g)
            found.append(end)

    threads = [threading.Thread(target=run) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 20
    for end in found:
        assert_same_bits(end, wanted)


def test_another_contract_is_refused(monkeypatch):
    native.version.cache_clear()
    monkeypatch.setattr(functional_adam_native, "CONTRACT", 99)
    with pytest.raises(ImportError, match=r"contract is 99, not \d+. Install both from"):
        native.version()


def test_a_damaged_library_says_the_way_out(monkeypatch):
    def damaged():
        raise OSError("invalid ELF header")

    native.version.cache_clear()
    monkeypatch.setattr(functional_adam_native, "library", damaged)
    with pytest.raises(OSError, match="invalid ELF header") as found:
        native.version()
    assert f"{native.SWITCH}=off" in found.value.__notes__[0]


def test_the_self_check_says_whether_it_is_there(monkeypatch):
    found = functional_adam_native.__version__
    assert versions()["functional_adam_native"] in (found, "unknown")
    monkeypatch.setenv(native.SWITCH, "off")
    assert versions()["functional_adam_native"].endswith(" (off)")
