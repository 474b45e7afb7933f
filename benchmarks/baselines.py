"""What `low_memory.py` compares, and on what: formats of the state, two tasks, streams.

Beside this library's formats stand two published kinds of 8-bit code, as baselines: float32 Adam
whose moments are replaced by what their codes would give back after each update. They are written
from the methods' descriptions and share nothing with this library's own code.
"""

from __future__ import annotations

import functools
import itertools
import math
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import functional_adam as fa

# ---- Contestants ----


class Contestant(NamedTuple):
    """`keep` replaces (m, v) by what storage keeps of them; `state_bytes` is then by hand."""

    moments: str | fa.Int8 = "full"
    rounding: str = "nearest"
    short_weights: bool = False
    nudged: bool = False  # first weights multiplied by 1 + 1e-6 N: what chaos alone makes of a run
    keep: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    state_bytes: float | None = None

    def first_weights(self, task: Task, seed: int) -> Any:
        params = task.init(jax.random.key(seed))
        if self.nudged:
            noise = lambda p: 1e-6 * jax.random.normal(jax.random.key(1), p.shape)  # noqa: E731
            params = jax.tree.map(lambda p: p * (1 + noise(p)), params)
        dtype = jnp.bfloat16 if self.short_weights else jnp.float32
        return jax.tree.map(lambda p: p.astype(dtype), params)

    def init(self, params: Any) -> fa.AdamState:
        return fa.init(params, moments=self.moments, rounding=self.rounding)

    def update(self, grads: Any, state: fa.AdamState, params: Any, learning_rate: Any, b2: float):
        updates, state = fa.update(
            grads,
            state,
            params,
            learning_rate=learning_rate,
            b2=b2,
            moments=self.moments,
            rounding=self.rounding,
        )
        if self.keep:
            kept = jax.tree.map(self.keep, state.mu, state.nu)
            mu, nu = jax.tree.transpose(jax.tree.structure(grads), None, kept)
            state = state._replace(mu=mu, nu=nu)
        return updates, state

    def second_moment(self, state: fa.AdamState) -> Any:
        """v as float32, decoded."""
        shapes = jax.tree.map(lambda m: jnp.zeros(m.shape), state.mu)
        return fa.convert_moments(state, shapes, moments="full").nu


def relative_to_largest(x: jax.Array, size: int, coded: Callable[[jax.Array], jax.Array]):
    """`coded` of x / max|x|, for blocks of the flattened leaf, times that maximum."""
    count = math.ceil(x.size / size)
    blocks = jnp.pad(x.ravel(), (0, count * size - x.size)).reshape(count, size)
    largest = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    blocks = coded(blocks / jnp.where(largest > 0, largest, 1)) * largest
    return blocks.ravel()[: x.size].reshape(x.shape)


def dynamic(x: jax.Array, first: int) -> jax.Array:
    """Nearest value of the dynamic map (Dettmers et al. 2022): +-1, 0, and seven decades.

    The decade below 10**-d holds first * 64 / 2**d values, equally spaced between 0.1 and 1 of
    it: `first` is 1 where a bit is the sign's, 2 where none is.
    """
    size = jnp.abs(x)
    d = jnp.clip(jnp.floor(-jnp.log10(jnp.maximum(size, 1e-30))), 0, 6)

    def value(d: jax.Array, cell: jax.Array) -> jax.Array:
        cells = first * 64 * 0.5**d
        return 10.0**-d * (0.1 + 0.9 * (jnp.clip(cell, 0, cells - 1) + 0.5) / cells)

    own = value(d, jnp.floor((size * 10.0**d - 0.1) / 0.9 * first * 64 * 0.5**d))
    below = jnp.where(d < 6, value(d + 1, jnp.inf), 0)  # the last of the next decade, or 0
    near = jnp.where(size - below < own - size, below, own)
    near = jnp.where(1 - size < jnp.abs(size - near), 1, near)
    return jnp.copysign(near, x)


def companded_m(x: jax.Array) -> jax.Array:
    """127 steps of 2x / (1 + |x|), to nearest."""
    y = jnp.round(127 * 2 * x / (1 + jnp.abs(x))) / 127
    return y / (2 - jnp.abs(y))


def companded_v(x: jax.Array) -> jax.Array:
    """255 steps of sqrt(x), to nearest."""
    return (jnp.round(255 * jnp.sqrt(x)) / 255) ** 2


def keep_dynamic(m: jax.Array, v: jax.Array):
    signed = relative_to_largest(m, 256, lambda x: dynamic(x, 1))
    return signed, relative_to_largest(v, 256, lambda x: dynamic(x, 2))


def keep_companded(m: jax.Array, v: jax.Array):
    return relative_to_largest(m, 32, companded_m), relative_to_largest(v, 32, companded_v)


CONTESTANTS = {
    "float32": Contestant(),
    "float32, nudged": Contestant(nudged=True),
    "bfloat16": Contestant("bfloat16"),
    "int8": Contestant("int8"),
    "dynamic 8-bit": Contestant(keep=keep_dynamic, state_bytes=2 + 2 * 4 / 256),
    "companded 8-bit": Contestant(keep=keep_companded, state_bytes=2 + 2 * 2 / 32),
    "bf16 weights, nearest": Contestant(rounding="nearest", short_weights=True),
    "bf16 weights, stochastic": Contestant(rounding="stochastic", short_weights=True),
    "bf16 weights, compensated": Contestant(rounding="compensated", short_weights=True),
    "bf16 weights, split": Contestant(rounding="split", short_weights=True),
    "everything": Contestant("int8", "compensated", short_weights=True),
}
MOMENTS = [name for name, c in CONTESTANTS.items() if not c.short_weights]
FORMATS = [name for name in MOMENTS if name != "float32, nudged"]


# ---- Tasks ----


class Task(NamedTuple):
    init: Callable[[jax.Array], Any]
    logits: Callable[[Any, jax.Array], jax.Array]
    load: Callable[[], tuple[Any, Any]]  # (training data, held-out inputs and targets)
    batch: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    steps: int
    rates: tuple[float, float]

    def loss(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mean cross-entropy in nats, computed in float32 whatever the weights are."""
        inputs, targets = batch
        logits = self.logits(jax.tree.map(lambda p: p.astype(jnp.float32), params), inputs)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
        return -chosen.mean()


def cnn_init(key: jax.Array) -> Any:
    he = jax.nn.initializers.he_normal()
    shapes = {"a": (3, 3, 1, 16), "b": (3, 3, 16, 32), "c": (3, 3, 32, 32), "out": (512, 10)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"w": he(k, shape), "b": jnp.zeros(shape[-1])}
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def convolved(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 3 x 3 convolution, as one product: inside a scan, XLA's own is slow on CPUs."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ends = x.shape[1:3]
    shifted = [
        padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
        for i, j in itertools.product(range(3), repeat=2)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def cnn_logits(params: Any, images: jax.Array) -> jax.Array:
    x = images.reshape(-1, 8, 8, 1)
    for name, stride in (("a", 1), ("b", 2), ("c", 1)):
        x = jax.nn.relu(convolved(x, params[name]["w"], stride) + params[name]["b"])
    return x.reshape(len(x), -1) @ params["out"]["w"] + params["out"]["b"]


def digits() -> tuple[Any, Any]:
    found = load_digits()
    images, labels = np.float32(found.data / 16), np.int32(found.target)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return tuple(parts[0::2]), tuple(parts[1::2])


def some_digits(data: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    chosen = jax.random.randint(key, (32,), 0, len(data[1]))
    return data[0][chosen], data[1][chosen]


WIDTH, BLOCKS, HEADS, CONTEXT = 128, 3, 4, 64


def transformer_init(key: jax.Array) -> Any:
    keys = iter(jax.random.split(key, 3 + 4 * BLOCKS))

    def normal(*shape: int, std: float = 0.02) -> jax.Array:
        return std * jax.random.normal(next(keys), shape)

    out = 0.02 / (2 * BLOCKS) ** 0.5
    blocks = [
        {
            "norms": jnp.ones((2, WIDTH)),
            "qkv": normal(WIDTH, 3 * WIDTH),
            "proj": normal(WIDTH, WIDTH, std=out),
            "up": normal(WIDTH, 4 * WIDTH),
            "bias": jnp.zeros(4 * WIDTH),
            "down": normal(4 * WIDTH, WIDTH, std=out),
        }
        for _ in range(BLOCKS)
    ]
    embeddings = {"bytes": normal(256, WIDTH), "places": normal(CONTEXT, WIDTH)}
    return embeddings | {"blocks": blocks, "out": normal(WIDTH, 256), "norm": jnp.ones(WIDTH)}


def normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * jax.nn.standardize(x, epsilon=1e-5)


def transformer_logits(params: Any, text: jax.Array) -> jax.Array:
    x = params["bytes"][text] + params["places"]
    for block in params["blocks"]:
        qkv = normalised(x, block["norms"][0]) @ block["qkv"]
        q, k, v = jnp.split(qkv.reshape(*text.shape, HEADS, -1), 3, axis=-1)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x += mixed.reshape(x.shape) @ block["proj"]
        inner = normalised(x, block["norms"][1]) @ block["up"] + block["bias"]
        x += jax.nn.gelu(inner) @ block["down"]
    return normalised(x, params["norm"]) @ params["out"]


def library() -> tuple[Any, Any]:
    """Every file of the standard library's top level, in order: 2 MB; each tenth held out."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts = [b"".join(f.read_bytes() for i, f in enumerate(files) if (i % 10 == 9) == held)
             for held in (False, True)]  # fmt: skip
    text, held_out = (np.frombuffer(part[:2_000_000], np.uint8) for part in parts)
    starts = np.linspace(0, len(held_out) - CONTEXT - 1, 256).astype(int)
    windows = held_out[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
    return text, (windows[:, :-1], windows[:, 1:])


def some_text(data: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    starts = jax.random.randint(key, (8, 1), 0, len(data) - CONTEXT - 1)
    windows = data[starts + jnp.arange(CONTEXT + 1)].astype(jnp.int32)
    return windows[:, :-1], windows[:, 1:]


TASKS = {
    "cnn": Task(cnn_init, cnn_logits, digits, some_digits, 300, (2e-3, 6e-3)),
    "transformer": Task(
        transformer_init, transformer_logits, library, some_text, 300, (1e-3, 3e-3)
    ),
}


@functools.cache
def data_of(task: str) -> tuple[Any, Any]:
    return jax.tree.map(jnp.asarray, TASKS[task].load())


# ---- Streams ----


def streams(steps: int = 2500, size: int = 512) -> dict[str, np.ndarray]:
    """Gradients (steps, size). The first nine are the plain ones."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((steps, size))
    time, place = np.arange(steps)[:, None], np.arange(size)
    level = rng.choice([-1, 1], size) * np.exp(rng.uniform(-1, 1, size))
    decades = 10 ** rng.permutation(np.linspace(-8, 2, size))
    found = {
        "constant": np.broadcast_to(level, noise.shape),
        "+-1": np.sign(noise),
        "1 + 0.1 N": 1 + 0.1 * noise,
        "N": noise,
        "growing": noise * np.exp(2 * time / steps),
        "shrinking": noise * np.exp(-2 * time / steps),
        **{f"every {k}": noise * (time % k == 0) for k in (55, 89, 233)},
        "1e-8 to 1e2": noise * decades,
        "4 decades in 32": noise * 10 ** (-4 * (place % 32) / 31),
        "2 % fire": noise * (rng.random(noise.shape) < 0.02),
        "drifting scales": noise * 10 ** (2 * np.sin(2 * np.pi * (time / steps + place / size))),
        "Student t(2)": rng.standard_t(2, noise.shape),
    }
    return {name: np.float32(stream) for name, stream in found.items()}


CHUNK = 20  # steps of one call
B2S = (0.999, 0.95)
PLAIN = list(streams(2, 2))[:9]
