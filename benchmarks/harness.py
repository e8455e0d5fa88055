"""Shared output of the benchmarks: results as a file that names the hardware and versions."""

import json
from pathlib import Path
from typing import Any

from tll_jax.devices import hardware


def write_results(out: Path | None, **content: Any) -> None:
    """Writes the content, after the hardware, as JSON; nothing without `out`."""
    if out is not None:
        out.write_text(json.dumps({"hardware": hardware()} | content, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    """Prints a row as one line of JSON."""
    print(json.dumps(row), flush=True)
