"""A hash of the code that trains, embeds and ranks, by which results are recognized as those of other code."""

import ast
import hashlib
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
"""Folders and files of this package whose code affects ranks. Statistics and reports are left out: they can be made
again from stored ranks."""
LEFT_OUT = ("training/signals.py",)
"""Files in those folders whose code does not affect ranks."""

UNKNOWN = "unknown"
"""In place of the hash for results of versions without one."""


@cache
def training_code() -> str:
    """A hash, twelve hexadecimal digits, of the code in `TRAINING_CODE` without `LEFT_OUT`, comments and docstrings."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for place in TRAINING_CODE:
        path = root / place
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            name = file.relative_to(root).as_posix()
            if name not in LEFT_OUT:
                digest.update(f"{name} {tree_hash(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def tree_hash(source: str) -> str:
    """The hash of a module's syntax tree without docstrings."""
    pieces: list[str] = []
    _write(ast.parse(source), pieces)
    return hashlib.sha256("".join(pieces).encode()).hexdigest()


def _write(node: object, pieces: list[str]) -> None:
    """Appends a syntax tree as text, equal under every version of Python, unlike `ast.dump`."""
    if isinstance(node, ast.AST):
        pieces.append(type(node).__name__)
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                pieces.append(f"({name}=")
                _write(value, pieces)
                pieces.append(")")
    elif isinstance(node, list):
        for child in node:
            if not _is_docstring(child):
                _write(child, pieces)
                pieces.append(",")
    else:
        pieces.append(repr(node))


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
