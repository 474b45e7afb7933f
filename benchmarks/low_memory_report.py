"""Tables and pictures of what `low_memory.py` found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from baselines import B2S, CHUNK, CONTESTANTS, FORMATS, PLAIN, TASKS, streams
from matplotlib.figure import Figure


def table(title: str, rows: list[dict[str, str]]) -> None:
    """Markdown: it is what docs/measurements-memory.md quotes."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[row.get(column, "") for column in columns] for row in rows]
    print(f"\n{title}\n")
    for line in (columns, ["---"] * len(columns), *lines):
        print(f"| {' | '.join(line)} |")


def bytes_rows() -> list[dict[str, str]]:
    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    rows = []
    for name, c in CONTESTANTS.items():
        params = c.first_weights(TASKS["transformer"], 0)
        count = sum(x.size for x in jax.tree.leaves(params))
        parts = [size(params) / count] * 2
        parts += [c.state_bytes or size(jax.eval_shape(c.init, params)) / count]
        names = ("weights", "gradients", "state", "sum")
        cells = (f"{x:.2f}" for x in (*parts, sum(parts)))
        rows += [{"": name} | dict(zip(names, cells, strict=True))]
    return [row for row in rows if "nudged" not in row[""]]


def mean_and_error(x: np.ndarray, unit: float, digits: int) -> str:
    error = f"{x.std(ddof=1) / len(x) ** 0.5 / unit:.{digits}f}" if len(x) > 1 else "?"
    return f"{x.mean() / unit:+.{digits}f} ± {error}"


def train_tables(rows: list[dict[str, Any]]) -> None:
    cells = defaultdict(lambda: defaultdict(dict))
    for job, found in rows:
        cell = job["task"], job["b2"], job["rate"], job["steps"]
        cells[cell][job["contestant"]][job["seed"]] = found
    for (task, b2, rate, steps), runs in sorted(cells.items(), key=lambda x: (x[0][0], -x[0][1])):
        base = {seed: found["held_out"] for seed, found in runs["float32"].items()}
        values = np.array(list(base.values()))
        sd = values.std(ddof=1) if len(values) > 1 else np.nan
        title = f"{task}, {steps} steps, b2 = {b2}, rate {rate:g}: held-out loss of float32 "
        title += f"{values.mean():.4f}, sd over {len(base)} seeds {sd:.4f}"
        table(
            title, [row for name in CONTESTANTS if name in runs for row in gap_rows(name, runs, sd)]
        )


def gap_rows(name: str, runs: Any, sd: float) -> list[dict[str, str]]:
    own, base, rows = runs[name], runs["float32"], []
    seeds = sorted(set(own) & set(base))
    keys = ("held_out", "held_out_master") if "held_out_master" in own[seeds[0]] else ("held_out",)
    for key in keys:
        gaps = np.array([own[s][key] - base[s]["held_out"] for s in seeds])
        last = np.array([own[s]["last"] - base[s]["last"] for s in seeds])
        kept = np.nan_to_num(gaps, nan=np.inf) < 0.5
        label = f"{name}, float32 weights" if key == "held_out_master" else name
        row = {"": label, "seeds": str(len(seeds))}
        if name != "float32" and kept.all():
            row |= {"held-out gap, sd": mean_and_error(gaps, sd, 3)}
            row |= {"its median": f"{np.median(gaps) / sd:+.3f}"}
            row |= {"training gap, 1e-3 nats": mean_and_error(1e3 * last, 1, 2)}
        elif not kept.all():
            row |= {"held-out gap, sd": f"diverges: {(~kept).sum()} of {len(seeds)} seeds"}
        if not CONTESTANTS[name].short_weights:
            row |= {"worst update / rate": f"{max(own[s]['worst'] for s in seeds):.4g}"}
        rows.append(row)
    return rows


def replay_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {"task": job["task"], "b2": str(job["b2"]), "": name}
        | {"update error": f"{100 * f['error']:.3g} %", "rms ratio": f"{f['rms_ratio']:.4g}"}
        | {"worst update / rate": f"{f['worst']:.4g}", "log2 bias of v": f"{f['bias']:+.4f}"}
        | {"v lost": f"{100 * f['lost']:.2g} %"}
        for job, found in rows
        for name, f in ((name, found["contestants"][name]) for name in FORMATS)
    ]


def stream_rows(found: dict[Any, Any], key: str, show: Callable[[float], str]):
    """A row a stream, a column a format, both b2."""
    rows = []
    for stream in streams(2, 2):
        row = {"stream": f"**{stream}**" if stream in PLAIN else stream}
        for name in FORMATS if key == "worst" else FORMATS[1:]:
            row[name] = " / ".join(show(found[stream, name, b2][key]) for b2 in B2S)
        rows.append(row)
    return rows


def decade_rows(found: dict[Any, Any]) -> list[dict[str, str]]:
    """The least and the median movement of the coordinates of each decade."""
    rows = []
    for stream, low in (("4 decades in 32", -4), ("1e-8 to 1e2", -10)):
        size = np.sqrt((streams()[stream].astype(np.float64) ** 2).mean(0))
        place = np.log10(size / size.max())
        for high in range(0, low, -1):
            row = {"stream": stream, "below the largest": f"1e{high - 1} to 1e{high}"}
            here = (place <= high) & (place > high - 1.05)
            for name in FORMATS[1:]:
                moved = [np.array(found[stream, name, b2]["moved"])[here] for b2 in B2S]
                row[name] = " / ".join(f"{m.min():.2g} ({np.median(m):.2g})" for m in moved)
            rows.append(row)
    return rows


STYLES = {
    "float32": {"color": "lightgrey", "linewidth": 6},
    "bfloat16": {"color": "tab:blue", "linestyle": "--"},
    "int8": {"color": "tab:red", "linewidth": 1.2},
}


def draw_losses(path: Path, rows: list[dict[str, Any]]) -> None:
    runs = {(job["contestant"], job["seed"]): np.array(found["losses"]) for job, found in rows}
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, seed), losses in runs.items():
        style = STYLES[name] | {"label": name if seed == 0 else None}
        steps = CHUNK * (np.arange(len(losses)) + 1)
        if seed == 0:
            left.plot(steps, losses, **style)
        if name != "float32" and ("float32", seed) in runs:
            smooth = np.convolve(losses - runs["float32", seed], np.ones(10) / 10, "valid")
            right.plot(steps[9:], smooth, **style)
    left.set(title="Training loss of a byte transformer", xlabel="step", ylabel="nats a byte")
    right.set(title="Means of 200 steps, less float32's", xlabel="step", ylabel="nats a byte")
    right.axhline(0, color="grey", linewidth=0.8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


MARKS = {"bfloat16": "o", "int8": "s", "dynamic 8-bit": "^", "companded 8-bit": "v"}


def draw_streams(path: Path, found: dict[Any, Any]) -> None:
    names = list(streams(2, 2))
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for i, (name, mark) in enumerate(MARKS.items()):
        y = np.arange(len(names)) + 0.2 * (i - 1.5)
        for axes, key in zip(panels, ("rms_ratio", "error"), strict=True):
            x = [found[stream, name, 0.999][key] for stream in names]
            axes.plot(x, y, mark, label=name, alpha=0.8)
    panels[0].set(title="Size of the updates, b2 = 0.999", xlabel="rms over float32's")
    panels[1].set(title="Error of the updates, b2 = 0.999", xlabel="rms over float32's updates")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    for axes in panels:
        axes.set_xscale("log")
        axes.axhline(len(PLAIN) - 0.5, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
    panels[0].axvline(1, color="grey", linewidth=0.8)
    panels[1].legend(loc="upper right")
    figure.savefig(path, dpi=120)


def report(rows: list[dict[str, Any]], directory: Path) -> None:
    parts = defaultdict(list)
    for row in rows:
        parts[row["job"]["part"]].append((row["job"], row["found"]))
    table("Bytes a parameter (transformer)", bytes_rows())
    train_tables(parts["train"] + parts["long"])
    table("Updates on the gradients of float32's training", replay_rows(parts["replay"]))
    found = {(j["stream"], j["contestant"], j["b2"]): f for j, f in parts["streams"]}
    if found:
        both = f"b2 = {B2S[0]} / {B2S[1]}; plain streams in bold"
        table(
            f"Size of the updates (rms) in float32's, {both}",
            stream_rows(found, "rms_ratio", "{:.4g}".format),
        )
        table(f"Mean log2 bias of v, {both}", stream_rows(found, "bias", "{:+.3f}".format))
        table(
            f"Error of the updates (rms) in float32's size, {both}",
            stream_rows(found, "error", "{:.3g}".format),
        )
        table(f"Worst update / rate, {both}", stream_rows(found, "worst", "{:.4g}".format))
        table(
            f"Movement (rms) in float32's: least (median) of a decade's coordinates, {both}",
            decade_rows(found),
        )
        draw_streams(directory / "memory_streams.png", found)
    if parts["long"]:
        draw_losses(directory / "memory_loss.png", parts["long"])
