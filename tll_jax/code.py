"""Of which code results are: a hash of the syntax trees of what trains, embeds and ranks."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TRAINING_CODE = (
    "augment",
    "losses",
    "models",
    "objectives",
    "systems",
    "training",
    "data/folder.py",
    "data/geometry.py",
    "data/imaging.py",
    "data/pairs.py",
    "data/pipeline.py",
    "data/resizing.py",
    "data/splits.py",
    "evaluation/embed.py",
    "ranking",
    "studies",
    "study/evaluate.py",
    "study/networks.py",
    "study/train.py",
)
"""Folders and files of this package whose code changes the ranks that a study comes to; statistics of ranks and
reports are made again from the ranks that are kept."""

UNKNOWN = "unknown"
"""In place of a hash, of what was made before there were any."""


@cache
def training_code() -> str:
    """Twelve hexadecimal digits that change with any code in `TRAINING_CODE`, and not with comments, docstrings or
    how it is laid out."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for place in TRAINING_CODE:
        path = root / place
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            digest.update(
                f"{file.relative_to(root).as_posix()} {tree_hash(file.read_text(encoding='utf-8'))}\n".encode()
            )
    return digest.hexdigest()[:12]


def tree_hash(source: str) -> str:
    """The hash of a module's syntax tree without the strings that stand alone, which are docstrings."""
    return hashlib.sha256("".join(_written(ast.parse(source))).encode()).hexdigest()


def _written(node: object) -> Iterator[str]:
    """A tree as text, the same for every version of Python: `ast.dump` shows fields that only some have."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                yield f"({name}="
                yield from _written(value)
                yield ")"
    elif isinstance(node, list):
        for child in node:
            if not _is_docstring(child):
                yield from _written(child)
                yield ","
    else:
        yield repr(node)


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
