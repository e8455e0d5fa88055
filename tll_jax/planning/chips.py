"""Published peak rates of accelerator chips, for estimates without the chip."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Published peak rates of one chip; real programs stay below them."""

    name: str
    flops: float
    """bfloat16 operations (multiplications and additions) per second."""
    memory_bytes: int
    memory_bandwidth: float
    """Bytes per second between the chip and its memory (HBM)."""
    interconnect_bandwidth: float
    """Bytes per second sent over all links to other chips together, while as many are received."""
    source: str
    configuration: str = "default"
    """Compiler option for the use of a chip as one device."""

    @property
    def kind(self) -> str:
        return self.name.split()[-1]


# HBM is published in GB, but the compiler's limit (15.75 of "16 GB") shows that GiB are meant. The interconnect
# bandwidth is half of the published one for both directions; for v4 it is the published all-reduce bandwidth of 4,096
# chips, 1.1 PB/s, per chip, a definition that agrees with the other one for the other chips.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip(
            name="TPU v4",
            flops=275e12,
            memory_bytes=32 * 2**30,
            memory_bandwidth=1200e9,
            interconnect_bandwidth=1.1e15 / 4096,
            source="https://docs.cloud.google.com/tpu/docs/v4",
            configuration="megacore",
        ),
        Chip(
            name="TPU v5e",
            flops=197e12,
            memory_bytes=16 * 2**30,
            memory_bandwidth=819e9,
            interconnect_bandwidth=200e9,
            source="https://docs.cloud.google.com/tpu/docs/v5e",
        ),
        Chip(
            name="TPU v5p",
            flops=459e12,
            memory_bytes=95 * 2**30,
            memory_bandwidth=2765e9,
            interconnect_bandwidth=600e9,
            source="https://docs.cloud.google.com/tpu/docs/v5p",
        ),
        Chip(
            name="TPU v6e",
            flops=918e12,
            memory_bytes=32 * 2**30,
            memory_bandwidth=1600e9,
            interconnect_bandwidth=400e9,
            source="https://docs.cloud.google.com/tpu/docs/v6e",
        ),
    )
}
"""By the name in a target, such as v5e."""
