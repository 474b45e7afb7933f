"""Bytes on each device for models of 1, 8 and 70 billion parameters: arithmetic, nothing runs.

    python benchmarks/zero.py                        # the tables of docs/distributed.md
    python benchmarks/zero.py --picture docs/zero.png

The shapes are those of the Llama 3 family (Meta 2024, "The Llama 3 Herd of Models", table 3).
Sizes come from `memory_report` with the shardings of `state_shardings`, on a mesh that has no
devices behind it. Activations and gradients come on top.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.figure import Figure

import functional_adam as fa

GB = 1e9
DEVICES = (8, 64)


class Model(NamedTuple):
    """Widths of a decoder: of the stream, of keys and values, of the MLP."""

    layers: int
    width: int
    keys: int
    inner: int
    vocabulary: int = 128_256
    tied: bool = False

    def shapes(self, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The parameters, those of all layers in one array."""
        of_layer = {
            "q": (self.width, self.width),
            "k": (self.width, self.keys),
            "v": (self.width, self.keys),
            "o": (self.width, self.width),
            "gate": (self.width, self.inner),
            "up": (self.width, self.inner),
            "down": (self.inner, self.width),
            "norms": (2, self.width),
        }
        found = {name: (self.layers, *shape) for name, shape in of_layer.items()}
        found |= {"embedding": (self.vocabulary, self.width), "norm": (self.width,)}
        if not self.tied:
            found["head"] = (self.width, self.vocabulary)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in found.items()}


MODELS = {
    "1 B": Model(16, 2048, 512, 8192, tied=True),
    "8 B": Model(32, 4096, 1024, 14336),
    "70 B": Model(80, 8192, 1024, 28672),
}
BF16 = jnp.bfloat16
SETTINGS = {
    "full": (jnp.float32, dict(moments="full")),
    "bfloat16": (jnp.float32, dict(moments="bfloat16")),
    "int8": (jnp.float32, dict(moments="int8")),
    "int8, bfloat16 weights compensated": (BF16, dict(moments="int8", rounding="compensated")),
}


def sizes(model: Model, setting: str, devices: int) -> tuple[float, float, float]:
    """GB on a device: the parameters, the state whole, and the state by ZeRO-1."""
    dtype, options = SETTINGS[setting]
    params = model.shapes(dtype)
    whole = NamedSharding(AbstractMesh((devices,), ("data",)), P())
    tx = fa.adamw(**options)
    reports = [
        fa.memory_report(tx, params, fa.state_shardings(tx, params, whole, zero_axis=axis))
        for axis in (None, "data")
    ]
    on_device = [report.state_bytes_per_device or 0 for report in reports]
    return reports[0].parameter_bytes / GB, on_device[0] / GB, on_device[1] / GB


def rows() -> list[list[str]]:
    """A row a model and setting."""
    found = []
    for name, model in MODELS.items():
        for setting in SETTINGS:
            weights, whole, _ = sizes(model, setting, DEVICES[0])
            divided = [sizes(model, setting, n)[2] for n in DEVICES]
            found.append([name, setting, *(f"{x:.3g}" for x in (weights, whole, *divided))])
    return found


def table() -> str:
    """The rows in Markdown."""
    head = ["model", "setting", "weights", "state, whole"]
    head += [f"state, ZeRO-1 on {n}" for n in DEVICES]
    lines = [head, ["---"] * len(head), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(path: Path) -> None:
    """Weights and state on one of 8 devices, whole and divided."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, len(MODELS)), MODELS.items(), strict=True):
        found = [sizes(model, setting, DEVICES[0]) for setting in SETTINGS]
        labels = [f"{setting}{end}" for setting in SETTINGS for end in ("", ", ZeRO-1")]
        weights = [w for w, _, _ in found for _ in range(2)]
        states = [s for _, whole, divided in found for s in (whole, divided)]
        axes.barh(labels, weights, color="lightsteelblue", label="weights")
        bars = axes.barh(labels, states, left=weights, color="orange", label="Adam's state")
        sums = [f"{w + s:.3g}" for w, s in zip(weights, states, strict=True)]
        axes.bar_label(bars, sums, padding=3, fontsize=8)
        axes.set(title=name, xlabel="GB on each of 8 devices")
        axes.set_xlim(0, 1.2 * max(w + s for w, s in zip(weights, states, strict=True)))
        axes.tick_params(axis="y", labelsize=8)
        axes.invert_yaxis()
        if name != next(iter(MODELS)):
            axes.set_yticklabels([])
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, format="png", dpi=110)


def main() -> None:
    """Print the table; draw, if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it there")
    args = parser.parse_args()
    print(table())
    if args.picture:
        draw(args.picture)


if __name__ == "__main__":
    main()
