"""Files that a reader sees whole."""

import os
from pathlib import Path

import numpy as np


def write_whole(path: Path, content: str | np.ndarray) -> None:
    """Writes UTF-8 text or an array (.npy), making folders as needed: a reader sees the old file or the new one, never
    half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        if isinstance(content, str):
            file.write(content.encode())
        else:
            np.save(file, content)
    partial.replace(path)
