"""Metrics as one JSON object a line, so that a run can be followed, resumed and read by anything."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tll_jax import processes
from tll_jax.files import write_whole

TIMING_FIELDS = ("seconds", "images_per_second", "data_wait_share")
"""Fields that differ from run to run; everything else repeats exactly."""


def read(path: Path) -> list[dict[str, Any]]:
    """All complete records of a file; a line that a killed run left half written is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Records:
    """Appends metrics to a file whose records past `start_step`, left by a run that went further than its last
    checkpoint, are dropped first. Of several processes the first writes; what the others say is dropped."""

    def __init__(self, path: Path, *, start_step: int) -> None:
        self.path = path
        if not processes.is_first():
            return
        kept = [record for record in read(path) if record["step"] <= start_step]
        write_whole(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def values(self, metric: str) -> list[float]:
        """All recorded values of a metric that are numbers."""
        return [record[metric] for record in read(self.path) if record.get(metric) is not None]

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one record; numbers that JSON has no word for (NaN, infinity) become null."""
        if not processes.is_first():
            return
        record = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.path.open("a") as file:
            file.write(f"{json.dumps(record)}\n")
