"""Memory of a compiled step, and a lower bound on its time at the chip's published rates."""

from collections.abc import Mapping
from typing import Any

import jax

from tll_jax.planning.targets import Target

FREE_SHARE = 0.1
"""Fraction of a chip's memory that a step must leave free, for the next batches and the runtime."""


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a device's memory by use. Results that reuse the memory of arguments count once."""
    found: Any = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    return parts | {"all": sum(parts.values())}


def fits(needed: int, target: Target) -> bool:
    """Whether a program of `needed` bytes leaves `FREE_SHARE` of the target's memory free."""
    assert target.chip is not None
    return needed <= (1 - FREE_SHARE) * target.chip.memory_bytes


def estimate(
    *, flops: float, memory_traffic: float, collectives: Mapping[str, Mapping[str, int]], images: int, target: Target
) -> dict[str, Any]:
    """Roofline estimate: a lower bound on the time of a step, from the chip's published peak rates.

    Computation and memory traffic overlap, so the longer of the two counts; the collectives are added, as if nothing
    overlapped them. An all-reduce of B bytes over n devices sends 2 B (n - 1) / n bytes from each, an all-gather,
    reduce-scatter, all-to-all or broadcast half of that, a permutation B. Latencies are left out, and so are the
    missing links of a slice that is not a whole pod. Programs do not reach peak rates, so the likely time is longer.

    Args:
      flops, memory_traffic, collectives: of one device and step; FLOPs by the compiler's count.
      images: images of one step on all devices, with both views or sides counted.
    """
    chip = target.chip
    assert chip is not None
    num_devices = target.mesh.size
    others = (num_devices - 1) / num_devices
    sends = {"all-reduce": 2 * others, "collective-permute": 1.0}
    sent = sum(found["bytes"] * sends.get(kind, others) for kind, found in collectives.items())
    parts = {
        "compute_seconds": flops / chip.flops,
        "memory_seconds": memory_traffic / chip.memory_bandwidth,
        "collective_seconds": sent / chip.interconnect_bandwidth,
    }
    seconds = max(parts["compute_seconds"], parts["memory_seconds"]) + parts["collective_seconds"]
    return parts | {
        "step_seconds": seconds,
        "bound": max(parts, key=lambda name: parts[name]).removesuffix("_seconds"),
        "images_per_second": images / seconds,
        "flop_utilization": parts["compute_seconds"] / seconds,
    }
