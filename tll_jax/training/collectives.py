"""What a step sends between devices: read from its compiled program, and the least that it could be."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax

from tll_jax.contracts import Objective
from tll_jax.models.network import Network
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classify
from tll_jax.objectives.vicreg import VicReg

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
FLOAT_BYTES = 4

# An asynchronous collective is counted where it ends: there its shape is the result's alone.
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(?:-done)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def read_collectives(program: str, *, num_devices: int) -> dict[str, dict[str, int]]:
    """Count and bytes of every kind of collective in the text of a program that XLA has compiled.

    Bytes are of one device: what goes into an all-reduce, all-to-all or permutation, what comes out of an all-gather or
    a broadcast, and what goes into a reduce-scatter over all `num_devices`. A collective in a loop counts once.
    """
    found: dict[str, dict[str, int]] = {}
    for result, kind in _INSTRUCTION.findall(program):
        size = sum(
            math.prod(map(int, filter(None, dimensions.split(",")))) * max(int(bits or 8), 8) // 8
            for bits, dimensions in _ARRAY.findall(result)
        )
        total = found.setdefault(kind, {"count": 0, "bytes": 0})
        total["count"] += 1
        total["bytes"] += size * (num_devices if kind == "reduce-scatter" else 1)
    return found


@dataclass(kw_only=True)
class Calls:
    """What a step asks of its network, seen while it is traced."""

    normalized_channels: list[int] = field(default_factory=list)
    """The channels of every batch normalization that computes the batch's statistics, one entry a call."""
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    """The shape `[rows, dim]` of the head's output, one entry a call."""


def watch_calls(trace: Callable[[], Any]) -> Calls:
    """Runs `trace`, which traces a step for the first time, and says which calls it made."""
    calls = Calls()

    def watch(call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*arguments, **keywords)
        if context.method_name == "__call__":
            if isinstance(context.module, nn.BatchNorm) and not context.module.use_running_average:
                calls.normalized_channels.append(arguments[0].shape[-1])
            elif isinstance(context.module, Network):
                calls.outputs.append(result[1].shape)
        return result

    with nn.intercept_methods(watch):
        trace()
    return calls


def minimum_bytes(objective: Objective, params: Any, calls: Calls, *, num_metrics: int) -> dict[str, int]:
    """The least that data-parallel training must sum over the devices, in bytes of fp32, by what it is for.

    - gradients: every parameter once.
    - batch statistics: each call of each batch normalization sums two numbers a channel on the way forward (mean and
      mean square) and two on the way back (the gradient, and the gradient times the normalized value).
    - loss: of Barlow Twins the matrix of correlations, and as for a batch normalization the statistics of each view; of
      VICReg the covariances of each view and its statistics; of classification nothing; of objectives that compare
      each row with all others every row, on the way forward and back.
    - metrics: one number each.
    """
    rows = sum(shape[0] * shape[1] for shape in calls.outputs)
    width = calls.outputs[0][1]
    if isinstance(objective, BarlowTwins):
        loss = width**2 + 4 * width * len(calls.outputs)
    elif isinstance(objective, VicReg):
        loss = (width**2 + 4 * width) * len(calls.outputs)
    elif isinstance(objective, Classify):
        loss = 0
    else:
        loss = 2 * rows
    counted = {
        "gradients": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch statistics": 4 * sum(calls.normalized_channels),
        "loss": loss,
        "metrics": num_metrics,
    }
    return {name: FLOAT_BYTES * count for name, count in counted.items()}
