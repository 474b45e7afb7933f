"""Code as users write it, for pyright in strict mode (`make types`). It is never run."""

import re
from collections.abc import Callable
from typing import NamedTuple, assert_type

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

import functional_adam as fa

Params = dict[str, jax.Array]


class Model(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def loss_of(params: Params, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["w"] + params["b"]) ** 2)


def a_training_loop(params: Params, batches: list[jax.Array]) -> Params:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)
    tx = fa.adamw(schedule, b2=0.95, weight_decay=0.1, mask={"w": True, "b": False})
    state = tx.init(params)

    @jax.jit
    def step(params: Params, state: optax.OptState, x: jax.Array) -> tuple[Params, optax.OptState]:
        grads: Params = jax.grad(loss_of)(params, x)
        updates, state = tx.update(grads, state, params)
        return fa.apply_updates(params, updates), state

    for x in batches:
        params, state = step(params, state, x)
    return params


def two_functions(params: Model, grads: Model) -> Model:
    state = fa.init(params, moments="int8", rounding="compensated")
    assert_type(state, fa.AdamState)
    updates, state = fa.update(
        grads, state, params, learning_rate=jnp.float32(3e-4), b2=np.float32(0.95), moments="int8"
    )
    assert_type(state, fa.AdamState)
    assert_type(state.count, chex.Array)
    return fa.apply_updates(params, updates)


def every_factory(
    rate: float | Callable[[jax.Array], jax.Array],
) -> list[fa.GradientTransformation]:
    del rate
    return [
        fa.adam(),
        fa.adam(1e-3, 0.9, 0.99, 1e-8, l2=1e-2, nesterov=True),
        fa.adamw(1e-3, moments=fa.Int8(block_size=64)),
        fa.nadam(2e-3, momentum_decay=4e-3),
        fa.nadamw(2e-3),
        fa.amsgrad(1e-3, maximum="before_correction"),
        fa.adamax(2e-3),
        fa.adamaxw(2e-3),
        fa.radam(1e-3, eps_placement="before_correction"),
        fa.adabelief(1e-3),
        fa.yogi(1e-2),
        fa.lamb(1e-3),
        fa.adopt(1e-3),
        fa.ademamix(1e-3),
        fa.simplified_ademamix(1e-5, alpha=lambda count: 1.0 + count),
        fa.laprop(1e-3, weight_decay=0.1),
        fa.adam_atan2(1e-3, a=1.0, b=2.0),
        fa.radam(1e-3, weight_decay=0.1, mask={"w": True, "b": False}),
        fa.cautious(fa.adamw(1e-3)),
        fa.cautious_weight_decay(fa.adamw(1e-3)),
        fa.clip_update_rms(fa.adamw(1e-3), 1.5, stacked={"w": 1, "b": 0}),
        fa.hyperball(fa.adam(1e-3), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        fa.scale_by_adam(b2=0.95),
        fa.adam(moments=fa.Full(mu_dtype="bfloat16")),
        fa.adam(moments=fa.BFloat16(), rounding="stochastic"),
    ]


def schedules() -> None:
    fa.adam(optax.constant_schedule(1e-3))
    fa.adamw(lambda count: 1e-3 / (1 + count), weight_decay=lambda count: 0.1 / (1 + count))
    fa.adam(jnp.float32(1e-3))


def some_leaves(params: Params, state_dict: dict[str, object], grads: Params) -> None:
    def by_shape(path: str, leaf: jax.ShapeDtypeStruct) -> dict[str, float]:
        return {"learning_rate": 1e-3 / leaf.shape[0]} if leaf.ndim == 2 and path else {}

    schedule = optax.constant_schedule(1e-3)
    rules = [(r"b$", dict(weight_decay=0.0)), (r"w", {"b1": 0.8, "eps": jnp.float32(1e-6)})]
    fa.adamw(overrides=rules)
    fa.adamw(overrides=[(r"b$", dict(weight_decay=0.0, learning_rate=schedule))])
    fa.adamw(overrides=((re.compile("B", re.I), {"learning_rate": lambda n: 2 * schedule(n)}),))
    fa.cautious(fa.lamb(overrides=by_shape))
    fa.scale_by_radam(overrides=lambda path, leaf: {"threshold": 4.0 + leaf.ndim})
    fa.update(grads, fa.init(params), params, overrides=by_shape)
    fa.adamw(overrides=fa.overrides_from_torch(state_dict, params, decay="weight_decay"))


def with_optax(params: Params, grads: Params) -> None:
    tx = optax.chain(optax.clip(1.0), fa.adam())
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    optax.apply_updates(params, updates)
    optax.masked(fa.adam(), {"w": True, "b": False})
    optax.partition({"train": fa.adamw(1e-3), "freeze": optax.set_to_zero()}, {"w": "train"})
    optax.MultiSteps(fa.adamw(1e-3), every_k_schedule=4)
    optax.apply_if_finite(fa.adam(), max_consecutive_errors=3)
    optax.inject_hyperparams(fa.adamw, static_args=("mask",))(learning_rate=1e-3)


def without_spikes(params: Params, grads: Params, loss: jax.Array) -> jax.Array:
    tx = fa.skip_spikes(optax.chain(optax.clip(1.0), fa.adam()), factor=4.0, judge="loss", warmup=9)
    params, state = fa.step(tx, grads, tx.init(params), params, value=loss)
    guarded: fa.SkipSpikesState = state
    return guarded.skipped + guarded.forced


def the_rest(params: Params, state: fa.AdamState, updates: Params) -> None:
    assert_type(fa.diagnostics(updates, state, params), dict[str, jax.Array])
    assert_type(fa.convert_moments(state, params, moments="bfloat16"), fa.AdamState)
    assert_type(fa.to_state_dict(state), dict[str, NDArray[np.generic]])
    report = fa.memory_report(fa.adam(moments="int8"), params)
    assert_type(report.state_bytes, int)
    mesh = Mesh(np.array(jax.devices()), "data")
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    shardings = fa.state_shardings(fa.adam(), placed, zero_axis="data")
    offloaded = fa.offload(fa.adam(), placed, shardings, leaves=["layers", 2**20, 0.5])
    assert_type(offloaded.tx, fa.GradientTransformation)
    fa.offload(fa.adam(), placed, leaves=lambda path, leaf: "w" in path and leaf.ndim > 1)
    host_bytes = fa.memory_report(fa.adam(), placed, offloaded.shardings).state_bytes_on_host
    assert_type(host_bytes, int | None)
    fa.master_params(params, state)
    restored: fa.AdamState = fa.from_state_dict(fa.to_state_dict(state), state)
    fa.extend_state(fa.adam(), restored, params, params, restart=["params['w']"])


def rows_of_a_table(table: jax.Array, grads: jax.Array, tokens: jax.Array) -> None:
    state = fa.init_rows(table, moments="bfloat16")
    how = fa.update_rows(grads, tokens, state, table, moments="bfloat16", catch_up="dense")
    assert_type(how, tuple[jax.Array, fa.AdamState])
    fa.update_rows(grads, np.array([3, 4]), state, table, learning_rate=lambda count: 0.1)
    assert_type(fa.flush_rows(state, table, catch_up="moments")[0], jax.Array)


def mistakes(params: Params) -> None:
    # Each line must be an error: pyright reports an `ignore` that nothing needs.
    fa.adam("1e-3")  # pyright: ignore[reportArgumentType]
    fa.offload(fa.adam(), params, leaves={"w": True})  # pyright: ignore[reportArgumentType]
    fa.adam(1e-3, beta1=0.9)  # pyright: ignore[reportCallIssue]
    fa.adam(moments="int4")  # pyright: ignore[reportArgumentType]
    fa.skip_spikes(fa.adam(), judge="norm")  # pyright: ignore[reportArgumentType]
    fa.adam(rounding="up")  # pyright: ignore[reportArgumentType]
    fa.adam(overrides={"w": {"b1": 0.8}})  # pyright: ignore[reportArgumentType]
    fa.adam(overrides=[("w", 0.8)])  # pyright: ignore[reportArgumentType]
    fa.adam(overrides=lambda path: {})  # pyright: ignore[reportArgumentType]
    fa.init(params).velocity  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
    fa.flush_rows(fa.init(params), jnp.ones(3))  # pyright: ignore[reportCallIssue]
    fa.Int8(bits=4)  # pyright: ignore[reportCallIssue]
    fa.radam(1e-3, eps_placement="between")  # pyright: ignore[reportArgumentType]
