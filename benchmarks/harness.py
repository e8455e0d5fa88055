"""Shared parts of the benchmarks: photos, and results as a file that names the hardware and versions."""

import json
import os
import zipfile
from collections.abc import Iterator
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


def imagenette_photos(count: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of `count` photos of `imagenette-128.zip` in TLL_DATA, at even distances in the order of
    folders and names."""
    with zipfile.ZipFile(Path(os.environ["TLL_DATA"]) / "imagenette-128.zip") as archive:
        members = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for member in members[:: len(members) // count][:count]:
            yield member, archive.read(member)
