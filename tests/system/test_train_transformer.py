"""The examples with a transformer: bytes as computed, losses alike, bad batches left out."""

import argparse
import math
import re

import numpy as np
import pytest
from running import QUICKLY_COMPILED, assert_png, example, rows_of, run, run_here

COUNT = 55_520  # of parameters, 32 wide


def bytes_by_hand(weights, moments, residual):
    """What weights, gradients and state are for a model 32 wide; `moments` in bytes a number."""
    shapes = [(256, 32), (64, 32), (32, 256), (32,), (3, 32), (3, 32)]
    shapes += [(3, 32, 96), (3, 32, 32), (3, 32, 128), (3, 128, 32)]
    count = sum(math.prod(shape) for shape in shapes)
    assert count == COUNT
    state = residual * count + 4  # 4: the counter
    for shape in shapes:
        size = math.prod(shape)
        if moments == 2 and size < 4096:
            state += 8 * size  # small leaves are in float32
        elif moments == 2:  # two bytes for each block: no last axis but that of 256 is longer
            state += 2 * size + 2 * size // min(shape[-1], 128)
        else:
            state += moments * size
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


def check_small_memory(folder, way, **bytes_each):
    """Train with these settings; check all that is printed, and return the last losses."""
    args = ["--steps", 20, "--width", 32, "--settings", *bytes_each, "--output", "m.png"]
    rows = rows_of(way("train_small_memory.py", *args, cwd=folder))
    assert [row[0] for row in rows] == list(bytes_each)
    for row, each in zip(rows, bytes_each.values(), strict=True):
        sizes, count = bytes_by_hand(*each)
        assert row[1:5] == [f"{size / count:.3f}" for size in (*sizes, sum(sizes))]
        first, last = map(float, row[5:])
        assert 5.5 < first < 7  # log 256 = 5.55
        assert 3 < last < 4.5
    assert_png(folder / "m.png")
    assert [path.name for path in folder.iterdir()] == ["m.png"]
    return [float(row[-1]) for row in rows]


def test_small_memory_trains(tmp_path):
    check_small_memory(tmp_path, run_here, float32=(4, 8, 0))


@pytest.mark.slow
def test_small_memory_trains_like_float32(tmp_path):
    losses = check_small_memory(tmp_path, run, float32=(4, 8, 0), everything=(2, 2, 1))
    assert losses[1] == pytest.approx(losses[0], abs=0.01)


def values_of(output):
    """{what: value} of the table that train_sharded.py prints."""
    rows = re.findall(r"│ (.+?) +│ +([\d.,]+) │", output)
    return {name: float(value.replace(",", "")) for name, value in rows}


def check_devices(folder, *args, **environment):
    """Train on four devices; return what is printed of state and losses."""
    args = ["--devices", 4, "--steps", 20, "--width", 32, *args]
    values = values_of(run("train_sharded.py", *args, cwd=folder, **environment))
    assert values["on a device, computed"] == values["on a device, found"]
    assert values["parameters"] == COUNT
    assert values["loss of the last steps"] < values["loss of the first steps"] - 0.5
    return values["on a device, found"], values["loss of the last steps"]


# The first axis of every leaf is a multiple of 4, or the next one is.
DIVIDED = 8 * COUNT / 4 + 4


def test_devices_hold_their_part(tmp_path):
    args = ["--zero", "--batch-size", 4]
    found, _ = check_devices(tmp_path, *args, **QUICKLY_COMPILED)
    assert found == DIVIDED


@pytest.mark.slow
def test_devices_hold_their_part_and_train_alike(tmp_path):
    whole, loss = check_devices(tmp_path)
    assert whole == bytes_by_hand(4, 8, 0)[0][2]
    divided, loss_divided = check_devices(tmp_path, "--zero")
    assert divided == DIVIDED
    assert loss_divided == pytest.approx(loss, abs=2e-4)
    int8, loss_int8 = check_devices(tmp_path, "--zero", "--moments", "int8")
    assert int8 == (bytes_by_hand(4, 2, 0)[0][2] - 4) / 4 + 4  # all but the counter is divided
    assert loss_int8 == pytest.approx(loss, abs=0.01)


def check_skip_spikes(folder, way, **options):
    """Train in several ways; check what is printed of each, and return the last losses."""
    args = [x for name, value in options.items() for x in (f"--{name}", value)]
    rows = rows_of(way("skip_spikes.py", *args, "--output", "s.png", cwd=folder))
    assert_png(folder / "s.png")
    largest = {name: float(norm) for name, _, _, norm, _ in rows}
    usual = largest.pop("no bad batches")
    for name, taken, skipped, *_ in rows:
        assert int(taken) + int(skipped) == options["steps"]
        if name == "skip_spikes":  # the bad ones, and perhaps an outlier
            assert 3 <= int(skipped) <= 3 + options["steps"] // 40
        else:
            assert skipped == "0"
    assert min(largest.values()) > 100 * usual
    return {name: float(loss) for name, *_, loss in rows}


def test_bad_batches_are_left_out(tmp_path, monkeypatch):
    module = example("skip_spikes")
    ways = {name: module.WAYS[name] for name in ("no bad batches", "skip_spikes")}
    monkeypatch.setattr(module, "WAYS", ways)
    losses = check_skip_spikes(tmp_path, run_here, steps=40, width=16, window=16)
    assert abs(losses["skip_spikes"] - losses["no bad batches"]) < 0.1


@pytest.mark.slow
def test_bad_batches_do_not_hurt(tmp_path):
    losses = check_skip_spikes(tmp_path, run, steps=200, width=32)
    assert list(losses) == ["no bad batches", "bad batches", "clipped", "skip_spikes"]
    assert abs(losses["skip_spikes"] - losses["no bad batches"]) < 0.05
    assert losses["bad batches"] > losses["skip_spikes"] + 0.3
