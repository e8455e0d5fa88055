"""Files that a reader sees whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another path to write at, which takes the place of `path` once all went well; makes folders as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    yield partial
    partial.replace(path)


def write_whole(path: Path, content: str | np.ndarray) -> None:
    """Writes UTF-8 text or an array (.npy), making folders as needed: a reader sees the old file or the new one, never
    half of it."""
    with replacing(path) as partial, partial.open("wb") as file:
        if isinstance(content, str):
            file.write(content.encode())
        else:
            np.save(file, content)
