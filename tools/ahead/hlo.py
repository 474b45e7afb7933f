"""Reads from HLO text what a compiled program moves: its kernels and their bytes of main memory.

XLA's own "bytes accessed" is of no use for a TPU: it also counts what stays on the chip.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

SIZES = {
    **{"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
# f32[4096,4096]{1,0:T(8,128)S(1)}: dtype, dimensions and layout, where S(1) is memory on the chip.
ARRAY = re.compile(rf"\b({'|'.join(SIZES)})\[([\d,]*)\](\{{[^}}]*\}})?")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
COMMENT = re.compile(r"/\*.*?\*/")
MOVES_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"),
    *("replica-id", "after-all", "copy-done", "slice-done", "async-done", "async-update"),
    *("fusion-done",),
}
TRANSFERS = ("copy-start", "slice-start")  # between main memory and the chip, while kernels run


class Kernel(NamedTuple):
    """One instruction of the entry computation that computes or moves something."""

    name: str
    opcode: str
    bytes: float  # of operands and results in main memory
    is_transfer: bool
    is_collective: bool


class Instruction(NamedTuple):
    """A line of the entry computation."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    line: str


def kernels(hlo: str) -> list[Kernel]:
    """The kernels of a program, in order."""
    instructions = _entry(hlo)
    shapes = {x.name: x.shape for x in instructions}
    return [_kernel(x, shapes) for x in instructions if _does_something(x)]


def trips(hlo: str) -> tuple[list[float], list[float]]:
    """The bytes of each copy from the host's memory to the device's, and of each back."""
    over: list[float] = []
    back: list[float] = []
    instructions = _entry(hlo)
    shapes = {x.name: x.shape for x in instructions}
    for x in instructions:
        if x.opcode not in ("copy-start", "copy"):
            continue
        # A copy-start has the shape (target, source, …); the source of a plain copy is its operand.
        arrays = [match.group(0) for match in ARRAY.finditer(x.shape)]
        there, here = (*arrays, shapes.get(x.operands[0], ""))[:2]
        if _on_host(here) != _on_host(there):
            (over if _on_host(here) else back).append(_bytes(there, everywhere=True))
    return over, back


def _on_host(shape: str) -> bool:
    return "S(5)" in shape


def _does_something(x: Instruction) -> bool:
    return x.opcode not in MOVES_NOTHING and 'custom_call_target="ConcatBitcast"' not in x.line


def _kernel(x: Instruction, shapes: dict[str, str]) -> Kernel:
    is_transfer = x.opcode in TRANSFERS
    if is_transfer:
        # (target, source, …) for a copy, (source, target, …) for a slice. The target's bytes move.
        first, second = [match.group(0) for match in ARRAY.finditer(x.shape)][:2]
        source, target = (second, first) if x.opcode == "copy-start" else (first, second)
        moved = _bytes(target, everywhere=True) * sum(_bytes(a) > 0 for a in (source, target))
    else:
        moved = _bytes(x.shape) + sum(_bytes(shapes[name]) for name in x.operands if name in shapes)
    is_collective = bool(re.match(r"all-|collective-|reduce-scatter|send|recv", x.opcode))
    return Kernel(x.name, x.opcode, moved, is_transfer, is_collective)


def _bytes(shape: str, *, everywhere: bool = False) -> float:
    """The bytes of the arrays in a shape: of those in main memory, or of all with `everywhere`."""
    return sum(
        SIZES[dtype] * math.prod(int(n) for n in dimensions.split(",") if n)
        for dtype, dimensions, layout in ARRAY.findall(shape)
        if everywhere or not re.search(r"S\([1-9]", layout)
    )


def _entry(hlo: str) -> list[Instruction]:
    found = []
    for line in hlo[hlo.index("\nENTRY ") :].splitlines()[1:]:
        if line.startswith("}"):
            break
        match = INSTRUCTION.match(COMMENT.sub("", line))
        if match:
            name, shape, opcode, rest = match.groups()
            operands = re.findall(r"%([\w.\-]+)", rest[: _closing(rest)])
            found.append(Instruction(name, shape, opcode, operands, line))
    return found


def _closing(text: str) -> int:
    """The position at which the bracket opened just before `text` is closed."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return at
    return len(text)
