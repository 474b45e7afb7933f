"""The examples `train_small_memory.py` and `train_sharded.py`: bytes as computed, losses alike."""

import argparse
import math
import re

import numpy as np
import pytest
from running import assert_png, example, rows_of, run_here


def bytes_by_hand(weights, moments, residual):
    """What weights, gradients and state are for a model 32 wide; `moments` in bytes a number."""
    shapes = [(256, 32), (64, 32), (32, 256), (32,), (3, 32), (3, 32)]
    shapes += [(3, 32, 96), (3, 32, 32), (3, 32, 128), (3, 128, 32)]
    count = sum(math.prod(shape) for shape in shapes)
    assert count == 55_520
    # With 8 bits two bytes for each row: no last axis is longer than a block but that of 256.
    blocks = 256 + 64 + 2 * 32 + 1 + 3 + 3 + 3 * (32 + 32 + 32 + 128) if moments == 2 else 0
    state = (moments + residual) * count + 2 * blocks + 4  # 4: the counter
    return [weights * count, weights * count, state], count


def test_bytes_are_those_of_the_shapes():
    module = example("train_small_memory")
    args = argparse.Namespace(seed=0, width=32, steps=20, learning_rate=0.1)
    windows = np.zeros((2, module.CONTEXT + 1), np.uint8)
    by_hand = {
        "float32": bytes_by_hand(4, 8, 0),
        "bf16-moments": bytes_by_hand(4, 4, 0),
        "int8-moments": bytes_by_hand(4, 2, 0),
        "nearest": bytes_by_hand(2, 8, 0),
        "everything": bytes_by_hand(2, 2, 1),
    }
    assert by_hand.keys() == module.SETTINGS.keys()
    for name, (sizes, count) in by_hand.items():
        found = module.cost(module.SETTINGS[name], windows, args)
        np.testing.assert_allclose(found * count, sizes, rtol=1e-12)


def test_small_memory_trains_like_float32(tmp_path):
    args = ["--steps", 20, "--width", 32, "--settings", "float32", "everything"]
    rows = rows_of(run_here("train_small_memory.py", *args, "--output", "m.png", cwd=tmp_path))
    assert [row[0] for row in rows] == args[-2:]
    for row, (sizes, count) in zip(
        rows, (bytes_by_hand(4, 8, 0), bytes_by_hand(2, 2, 1)), strict=True
    ):
        assert row[1:5] == [f"{size / count:.3f}" for size in (*sizes, sum(sizes))]
        first, last = map(float, row[5:])
        assert 5.5 < first < 7  # log 256 = 5.55
        assert 3 < last < 4.5
    assert float(rows[1][-1]) == pytest.approx(float(rows[0][-1]), abs=0.01)
    assert_png(tmp_path / "m.png")
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def values_of(output):
    """{what: value} of the table that train_sharded.py prints."""
    rows = re.findall(r"│ (.+?) +│ +([\d.,]+) │", output)
    return {name: float(value.replace(",", "")) for name, value in rows}


def test_devices_hold_their_part_and_train_alike(tmp_path):
    args = ["--devices", 4, "--steps", 20, "--width", 32]
    runs = {
        name: values_of(run_here("train_sharded.py", *args, *more, cwd=tmp_path))
        for name, more in {
            "whole": [],
            "divided": ["--zero"],
            "int8": ["--zero", "--moments", "int8"],
        }.items()
    }
    (_, _, state), count = bytes_by_hand(4, 8, 0)
    # The first axis of every leaf is a multiple of 4, or the next one is.
    assert runs["whole"]["on a device, found"] == state
    assert runs["divided"]["on a device, found"] == 8 * count / 4 + 4
    for values in runs.values():
        assert values["on a device, computed"] == values["on a device, found"]
        assert values["parameters"] == count
        assert values["loss of the last steps"] < values["loss of the first steps"] - 0.5
    last = [values["loss of the last steps"] for values in runs.values()]
    assert last[1] == pytest.approx(last[0], abs=2e-4)
    assert last[2] == pytest.approx(last[0], abs=0.01)
    # Two bytes a number and two for each block of a row, 32 wide but in three leaves.
    assert 2 * count / 4 < runs["int8"]["on a device, found"] < 2.1 * count / 4
