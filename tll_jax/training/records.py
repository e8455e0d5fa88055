"""Metrics as one JSON object a line, so that a run can be followed, resumed and read by anything."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tll_jax import processes
from tll_jax.errors import FileProblem
from tll_jax.files import cannot_write, write_whole

TIMING_FIELDS = ("seconds", "images_per_second", "device_idle_fraction", "device_idle_for_data_fraction")
"""Fields that differ from run to run; everything else repeats exactly."""


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file up to the first line that is none, which a killed run left half written or a disk damaged;
    without a file none.

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
    """The step and the value of the first of the largest values of a metric; None where no record has one."""
    scored = [(record["step"], record[metric]) for record in records if record.get(metric) is not None]
    return max(scored, key=lambda step_and_value: step_and_value[1], default=None)


class Records:
    """Appends metrics to a file whose records past `start_step`, left by a run that went further than its last
    checkpoint, are dropped first. Of several processes the first writes; what the others say is dropped.

    Raises:
      OSError: the file cannot be read or written; so does `write`.
    """

    def __init__(self, path: Path, *, start_step: int) -> None:
        self.path = path
        if not processes.is_first():
            return
        kept = [record for record in read(path) if record["step"] <= start_step]
        write_whole(path, "".join(f"{json.dumps(record)}\n" for record in kept))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one record, on the disk when this returns: a checkpoint that is saved next has all its records.

        Numbers that JSON has no word for (NaN, infinity) become null.
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
