"""Collectives and memory traffic of a compiled XLA program, parsed from its text."""

import math
import re

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
"""Instructions without memory traffic. Those that end in -done have none either: it is counted at their start."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")


def read_collectives(program: str, *, num_devices: int) -> dict[str, dict[str, int]]:
    """Count and bytes of each kind of collective in a program.

    Bytes are of one device: the operands of all-reduce, all-to-all, permutation and reduce-scatter (over all
    `num_devices`), and the results of all-gather and broadcast. A collective in a loop counts once.
    """
    found: dict[str, dict[str, int]] = {}
    for _, result, operation, _ in _INSTRUCTION.findall(program):
        # An asynchronous collective is counted at its end, where its shape is that of the result only.
        kind = operation.removesuffix("-done")
        if kind in COLLECTIVES:
            total = found.setdefault(kind, {"count": 0, "bytes": 0})
            total["count"] += 1
            total["bytes"] += sum(_sizes(result)) * (num_devices if kind == "reduce-scatter" else 1)
    return found


def read_memory_traffic(program: str) -> int:
    """Bytes between chip and memory (HBM) in one run of a TPU program.

    Every instruction reads its operands once and writes its results once. Arrays in on-chip memory are free; prefetches
    into it count once, whereas `cost_analysis` counts them three times (read, written and read again). Padding is
    left out, and loops count once.
    """
    entry = program[program.index("\nENTRY ") :].split("\n", 2)[2]
    in_memory: dict[str, int] = {}
    total = 0
    for name, result, operation, rest in _INSTRUCTION.findall(entry):
        in_memory[name] = sum(_sizes(result, in_memory=True))
        if operation == "slice-start":
            # The result type lists the sliced array, of which as much is read as is written, and the written one.
            sliced, written, *_ = _sizes(result, in_memory=True)
            total += written + (_sizes(result)[1] if sliced else 0)
        elif operation == "copy-start":
            # The result type lists the written and the read array.
            total += in_memory[name]
        elif operation not in FREE and not operation.endswith("-done"):
            operands = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
            total += in_memory[name] + sum(in_memory.get(operand, 0) for operand in operands)
    return total


def _sizes(text: str, *, in_memory: bool = False) -> list[int]:
    """Bytes of each array type in the text; with `in_memory`, 0 for those in on-chip memory (spaces from 1 on)."""
    return [
        0
        if in_memory and re.search(r"S\([1-9]", layout)
        else math.prod(map(int, filter(None, dimensions.split(",")))) * max(int(bits or 8), 8) // 8
        for bits, dimensions, layout in _ARRAY.findall(text)
    ]
