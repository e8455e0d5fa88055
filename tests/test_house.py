"""Limits on function lengths and parameters, and required module docstrings."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tll_jax"


def test_no_function_is_longer_than_eighty_lines():
    long = [
        f"{path.relative_to(PACKAGE.parent)}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        # The template comments every field of a study.
        if path.name != "template.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80
    ]
    assert long == []


def test_no_function_has_more_than_six_parameters():
    wide = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                entries = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                names = [entry.arg for entry in entries if entry is not None and entry.arg not in ("self", "cls")]
                if len(names) > 6:
                    wide.append(f"{path.relative_to(PACKAGE.parent)}: {node.name}")
    assert wide == []


def test_every_module_has_a_docstring():
    silent = [
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []
