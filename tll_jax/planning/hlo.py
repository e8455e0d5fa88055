"""What the text of a compiled XLA program says: what it sends to other devices, and how much memory it moves."""

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
"""Instructions that move nothing; so do those that end in -done, which are counted where they start."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")


def read_collectives(program: str, *, num_devices: int) -> dict[str, dict[str, int]]:
    """Count and bytes of every kind of collective in a program.

    Bytes are of one device: what goes into an all-reduce, all-to-all or permutation, what comes out of an all-gather or
    a broadcast, and what goes into a reduce-scatter over all `num_devices`. A collective in a loop counts once.
    """
    found: dict[str, dict[str, int]] = {}
    for _, result, operation, _ in _INSTRUCTION.findall(program):
        # An asynchronous collective is counted where it ends: there its shape is the result's alone.
        kind = operation.removesuffix("-done")
        if kind in COLLECTIVES:
            total = found.setdefault(kind, {"count": 0, "bytes": 0})
            total["count"] += 1
            total["bytes"] += sum(_sizes(result)) * (num_devices if kind == "reduce-scatter" else 1)
    return found


def read_memory_traffic(program: str) -> int:
    """Bytes that one run of a TPU program moves between the chip and its memory (HBM).

    Every instruction reads its operands once and writes its results once. What lies in on-chip memory is free, and what
    is fetched into it ahead of its use counts where it is fetched; `cost_analysis` counts that three times, read,
    written and read again. Padding is left out, and loops count once.
    """
    entry = program[program.index("\nENTRY ") :].split("\n", 2)[2]
    in_memory: dict[str, int] = {}
    total = 0
    for name, result, operation, rest in _INSTRUCTION.findall(entry):
        in_memory[name] = sum(_sizes(result, in_memory=True))
        if operation == "slice-start":
            # The result names what is sliced, of which as much is read as is written, and what is written.
            sliced, written, *_ = _sizes(result, in_memory=True)
            total += written + (_sizes(result)[1] if sliced else 0)
        elif operation == "copy-start":
            # The result names what is written and what is read.
            total += in_memory[name]
        elif operation not in FREE and not operation.endswith("-done"):
            operands = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
            total += in_memory[name] + sum(in_memory.get(operand, 0) for operand in operands)
    return total


def _sizes(text: str, *, in_memory: bool = False) -> list[int]:
    """Bytes of every array type in the text; with `in_memory` 0 for those in on-chip memories, spaces from 1 on."""
    return [
        0
        if in_memory and re.search(r"S\([1-9]", layout)
        else math.prod(map(int, filter(None, dimensions.split(",")))) * max(int(bits or 8), 8) // 8
        for bits, dimensions, layout in _ARRAY.findall(text)
    ]
