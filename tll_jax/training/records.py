"""Metric records, one JSON object per line, so that any program can follow a run and a run can be resumed."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tll_jax import processes
from tll_jax.errors import FileProblem
from tll_jax.files import cannot_write, write_whole

TIMING_FIELDS = (
    "seconds",
    "images_per_second",
    "device_idle_fraction",
    "device_idle_for_data_fraction",
    "dispatch_fraction",
)
"""Fields that differ from run to run; all others are reproducible."""


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a file up to the first invalid line, which a killed run or a disk error left; none without the file.

    Raises:
      OSError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileProblem(f"{path} cannot be read: {error.strerror}. Look after it; nothing was changed") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def best(records: Sequence[Mapping[str, Any]], metric: str) -> tuple[int, float] | None:
    """Step and value of the first record with the largest value of a metric; None if no record has the metric."""
    scored = [(record["step"], record[metric]) for record in records if record.get(metric) is not None]
    return max(scored, key=lambda step_and_value: step_and_value[1], default=None)


class Records:
    """File of metric records, to which `write` appends. With several processes, only the first one writes.

    Records after `start_step` are deleted first: a run that was killed may have gone further than its last checkpoint.

    Raises:
      OSError: the file cannot be read or written, here or in `write`.
    """

    def __init__(self, path: Path, *, start_step: int) -> None:
        self.path = path
        if not processes.is_first():
            return
        kept = [record for record in read(path) if record["step"] <= start_step]
        write_whole(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one record and sync it to the disk, so that a checkpoint saved next has all its records.

        NaN and infinity, which JSON cannot represent, become null.
        """
        if not processes.is_first():
            return
        record = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            with self.path.open("ab") as file:
                file.write(f"{json.dumps(record)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
