"""What a step on 8 devices costs: what it sends, what a device holds, what donation gives back."""

import re
from collections import Counter

import jax
import pytest
from jax.sharding import PartitionSpec as P
from sharded import MODES, mesh_of, numbers, prepared

import functional_adam as fa

COLLECTIVE = re.compile(
    r"= (\w+)\[.* (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
# The modes of which `cases_updates.py` compiles the program too.
COMPILED = [
    ("8", "int8 stochastic", None),
    ("2x4", "bfloat16 compensated", None),
    ("2x4", "full stochastic", "data"),
    ("2x4", "int8 nearest", "data"),
]
MORE = [
    ("2x4", mode, zero)
    for mode in ("full nearest", "bfloat16 stochastic", "int8 compensated")
    for zero in (None, "data")
]
FORMS = [*COMPILED, *(pytest.param(*form, marks=pytest.mark.slow) for form in MORE)]


def on_device_0(tree):
    return sum(
        shard.data.nbytes
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
        if shard.device.id == 0
    )


@pytest.mark.parametrize(("mesh", "mode", "zero"), FORMS)
def test_a_step_sends_nothing_but_the_updates_of_zero_and_uses_up_its_arguments(mesh, mode, zero):
    params, state, step, (of_params, of_state) = prepared(mode, mesh_of(mesh), zero)
    given, grads = jax.tree.leaves((params, state)), jax.device_put(numbers(1), of_params)
    compiled = step.lower(params, state, grads).compile()
    found = Counter(COLLECTIVE.findall(compiled.as_text()))
    if zero is None:
        assert found == Counter()
    else:
        # `matrix` is divided by all axes already; an update of each other leaf is gathered, no
        # moment.
        assert {kind for _, kind in found} == {"all-gather"}
        assert found.total() == 2
        assert {dtype for dtype, _ in found} <= {"f32", "bf16"}
        assert of_state.mu["matrix"] == of_params["matrix"]
        assert of_state.mu["half"].spec == P("data", "model")
        assert of_state.mu["vector"].spec == P("data")
    held = on_device_0((params, state))
    assert compiled.memory_analysis().alias_size_in_bytes == held
    step(params, state, grads)
    assert all(x.is_deleted() for x in given if x.size)


# Elements on one device of 2 x 4: a quarter of `half`, an eighth of `matrix`, `vector` in full;
# with ZeRO-1 an eighth, an eighth and a half. Bytes an element, and 2 for each block of 128.
HELD = {
    "full nearest": (8, 8, 0),
    "full split": (8 + 2, 8, 0),
    "bfloat16 compensated": (4 + 1, 4, 0),
    "int8 compensated": (2 + 1, 2, 2),
}
BOTH = [("full nearest", "data"), ("full split", "data"), ("bfloat16 compensated", None)]
BOTH += [("int8 compensated", zero) for zero in (None, "data")]


@pytest.mark.parametrize(("mode", "zero"), BOTH)
def test_a_device_holds_just_the_bytes_of_its_share(mode, zero):
    params, state, _, (_, of_state) = prepared(mode, mesh_of("2x4"), zero)
    half, matrix, vector = (8192, 8192, 32768) if zero else (16384, 8192, 65536)
    short, wide, scale = HELD[mode]
    wanted = short * half + wide * (matrix + vector) + scale * (half + matrix + vector) // 128 + 4
    assert on_device_0(state) == wanted
    report = fa.memory_report(MODES[mode], params, of_state)
    assert report.state_bytes_per_device == wanted
    assert report.leaves[0].per_device == short * half + scale * half // 128
    assert report.other == report.other_per_device == 4
    lines = str(report).splitlines()
    assert lines[0].split()[-2:] == ["per", "device"]
    of_leaf = report.leaves[0].per_device
    assert lines[2].split()[-1] in (f"{of_leaf:,}", f"{of_leaf / 1024:.3g}K")
    assert f"; {wanted:,} on each device" in " ".join(lines)
