"""The example `train_large.py`: each device holds its part, and a resumed run has the same bits."""

import math
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from running import QUICKLY_COMPILED, assert_png, run

DEVICES = 8
WIDTH = 64
SHAPES = [(256, 64), (64, 64), (64, 256)]  # embeddings and logits
SHAPES += 2 * [(64, 4, 16), (64, 4, 16), (64, 4, 16), (4, 16, 64), (64, 256), (256, 64)]
NORMS = 5 * [(64,)]


def test_the_bytes_of_a_device(tmp_path):
    values = trained(tmp_path, "--steps", 2, **QUICKLY_COMPILED)
    sizes = list(map(math.prod, SHAPES)), list(map(math.prod, NORMS))
    matrices, norms = map(sum, sizes)
    assert values["parameters"] == matrices + norms
    assert values["bytes of weights on a device"] == 2 * (matrices + norms) / DEVICES
    # Codes of 2 bytes, an error code of 1; norms are below `Int8.min_size` and keep float32.
    divided = (3 * matrices + 9 * norms) / DEVICES
    scales = 2 * sum(sizes[0]) / 64  # at most: a block has at least the last axis' 64 elements
    counters = 4 * (1 + 4) + 1 + 2 * 32 * 4  # Adam's, the guard's and its two histories
    found = values["bytes of Adam's state on a device"]
    assert divided + counters < found <= divided + scales + counters
    assert values["steps taken"] == 2
    assert_png(tmp_path / "large.png")


@pytest.mark.slow
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path):
    args = "--steps", 60, "--save-every", 25
    whole = trained(tmp_path, *args)
    assert whole["loss of the last steps"] < 3
    checkpoints = tmp_path / "checkpoints"
    unbroken = arrays(checkpoints / "60")
    shutil.rmtree(checkpoints / "60")
    assert trained(tmp_path, *args, start=50)["steps taken"] == 60
    same_bits(unbroken, arrays(checkpoints / "60"))


@pytest.mark.slow
def test_moments_on_the_host_train_to_the_same_bits(tmp_path):
    args = "--steps", 10, "--save-every", 10
    whole = trained(tmp_path, *args, "--folder", "whole")
    waiting = trained(tmp_path, *args, "--folder", "waiting", "--offload")
    state = "bytes of Adam's state on a device"
    on_host = waiting["bytes of Adam's state on the host"]
    assert waiting[state] + on_host == whole[state]
    assert on_host > whole[state] / 2
    same_bits(*(arrays(tmp_path / folder / "10") for folder in ("whole", "waiting")))


def same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def trained(folder, *args, start=0, **environment):
    """Run the script on eight devices; {what: value} of the table that it prints."""
    args = ["--devices", DEVICES, "--width", WIDTH, "--batch-size", 16, *args]
    printed = run("train_large.py", *args, cwd=folder, **environment)
    assert f"Trained from step {start} to" in printed
    rows = re.findall(r"│ (.+?) +│ +([\d.,]+) │", printed)
    return {name: float(value.replace(",", "")) for name, value in rows}


def arrays(checkpoint):
    """The arrays of a checkpoint, which eight devices wrote, in this process's memory."""
    import jax

    path = checkpoint / "default"
    with ocp.StandardCheckpointer() as checkpointer:
        leaves = checkpointer.metadata(path).item_metadata.tree
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), leaves)
        return list(map(np.asarray, jax.tree.leaves(checkpointer.restore(path, like))))
