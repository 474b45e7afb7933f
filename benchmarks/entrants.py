"""Trees of parameters, and the optimizers that `step.py` and `family.py` time on them."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from workloads import Shapes, gpt2, mlp

import functional_adam as fa

OURS, OPTAX, CONTROL = "functional_adam", "optax", "optax again"
NATIVE = "functional_adam, native kernel"  # in the rounds where it is installed
HAS_NATIVE = importlib.util.find_spec("functional_adam_native") is not None
HYPERPARAMETERS = {"learning_rate": 3e-4, "b1": 0.87, "b2": 0.993, "eps": 1e-7}


# ---- Trees ----


TREES: dict[str, Shapes] = {
    "mlp": mlp(),
    "leaf20": {"w": (2**20,)},
    "leaf22": {"w": (2**22,)},
    "leaf24": {"w": (2**24,)},
    "gpt2": gpt2(),
    "leaves1000": {f"{i:03}": (100,) for i in range(1000)},
}
CEILINGS = {"leaves1000": 1.10}
COMPILE_CEILING = 1.10


def size(tree: str) -> int:
    return sum(int(np.prod(shape)) for shape in TREES[tree].values())


def abstract(tree: str, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    return {k: jax.ShapeDtypeStruct(shape, dtype) for k, shape in TREES[tree].items()}


def normal(tree: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(shape, dtype=np.float32) for k, shape in TREES[tree].items()}


# ---- Optimizers, as functions that make n steps and return when they are done ----


class Entrant(NamedTuple):
    library: Any  # whose `apply_updates` goes with it
    make: Callable[[], Any]  # a new transformation every time


class Pair(NamedTuple):
    ours: Entrant
    theirs: Entrant
    against: str  # what theirs is called
    ceiling: float = 1.0  # of the ratio of times
    compile_ceiling: float = COMPILE_CEILING
    alone: bool = False  # `update` without applying it, nothing donated
    dtype: Any = jnp.float32  # of our parameters; theirs are float32


def pair_of(kind: str, **arguments: Any) -> Pair:
    """The factories of that name, here and in Optax."""
    theirs = getattr(optax, kind, None) or getattr(optax.contrib, kind)
    bound = [functools.partial(f, **arguments) for f in (getattr(fa, kind), theirs)]
    return Pair(Entrant(fa, bound[0]), Entrant(optax, bound[1]), f"{OPTAX} {kind}")


PAIRS = {
    "adam": pair_of("adam", **HYPERPARAMETERS),
    "adamw": pair_of("adamw", **HYPERPARAMETERS, weight_decay=0.037),
}


def small(ceiling: float, moments: str, rounding: str = "nearest") -> Pair:
    """Ours with small moments against Optax's float32 Adam."""
    full = PAIRS["adam"]
    make = functools.partial(full.ours.make, moments=moments, rounding=rounding)
    dtype = jnp.float32 if rounding == "nearest" else jnp.bfloat16
    ours = Entrant(fa, make)
    return full._replace(ours=ours, ceiling=ceiling, compile_ceiling=6.0, dtype=dtype)


SMALL = {
    "bfloat16": small(1.4, "bfloat16"),
    "int8": small(3.4, "int8"),
    "int8-compensated": small(5.0, "int8", "compensated"),
}
PAIRS |= SMALL
PAIRS |= {f"{name}-alone": pair._replace(alone=True) for name, pair in SMALL.items()}


def entrant(name: str, pair: Pair) -> Entrant:
    return pair.ours if name in (OURS, NATIVE) else pair.theirs


def dtype_of(name: str, pair: Pair) -> Any:
    """Of parameters and gradients."""
    return pair.dtype if name in (OURS, NATIVE) else jnp.float32


def held(pair: Pair, tree: str) -> float:
    """Bytes a parameter of what a step replaces, parameter and moments; the counter rounds away."""
    params = abstract(tree, pair.dtype)
    replaced = jax.tree.leaves((params, jax.eval_shape(pair.ours.make().init, params)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in replaced) / size(tree)


def jitted_step(name: str, pair: Pair) -> Any:
    """Optimizer, function and jit all fresh: nothing is cached."""
    library, make = entrant(name, pair)
    tx = make()

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        os.environ["FUNCTIONAL_ADAM_NATIVE"] = "on" if name == NATIVE else "off"  # read here
        if pair.alone:
            return tx.update(grads, state, params)
        if library is fa:
            return fa.step(tx, grads, state, params)
        updates, state = tx.update(grads, state, params)
        return library.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=() if pair.alone else (0, 1))


def jax_stepper(name: str, pair: Pair, params: Any, grads: Any) -> Callable[[int], int]:
    dtype = dtype_of(name, pair)
    own = jax.tree.map(lambda x: jnp.array(x, dtype), params)  # a copy, since it is donated
    grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), grads)
    carry = own, jax.jit(entrant(name, pair).make().init)(own)
    step = jitted_step(name, pair)

    def run(steps: int) -> int:
        nonlocal carry
        out = carry
        for _ in range(steps):
            out = step(*carry, grads)
            carry = (own, out[1]) if pair.alone else out
        jax.block_until_ready(out)
        return step._cache_size()  # compilations so far

    return run


def torch_stepper(fused: bool | None, params: Any, grads: Any) -> Callable[[int], None]:
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    tensors = {name: torch.tensor(p, device=device) for name, p in params.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(np.asarray(grads[name]), device=device)
    lr, b1, b2, eps = HYPERPARAMETERS.values()
    optimizer = torch.optim.Adam(tensors.values(), lr, (b1, b2), eps, fused=fused)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def steppers(pair: Pair | None, tree: str) -> dict[str, Callable[[int], Any]]:
    """Of a pair and its control; None stands for our Adam and torch's."""
    params, grads = normal(tree, seed=1), jax.device_put(normal(tree, seed=2))
    names = ours() if pair is None else (*ours(), OPTAX, CONTROL)
    found = {name: jax_stepper(name, pair or PAIRS["adam"], params, grads) for name in names}
    if pair is not None:
        return found
    torch = {"torch": None, "torch fused": True}
    return found | {name: torch_stepper(fused, params, grads) for name, fused in torch.items()}


def ours() -> tuple[str, ...]:
    return (OURS, NATIVE) if HAS_NATIVE else (OURS,)
