"""State of a finished run, kept beside its result, so that the same command on unchanged files ends at once.

Neither JAX nor LanceDB is imported.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tll_jax.errors import InvalidValue, UserError
from tll_jax.files import read_json, write_json
from tll_jax.gallery.result import RESULT
from tll_jax.gallery.scan import Scan, mend
from tll_jax.model_files import is_model_file, model_path, read_model_file

STATE = ".state.json"
MODEL_PARTS = (".json", ".jsonl", ".safetensors", ".bin", ".pth", ".pt")
"""Suffixes of files on which the model in a folder may depend."""
PAGE = "index.html"


def fingerprint(scans: Mapping[str, Scan], model: str, options: Mapping[str, Any]) -> str:
    """Hash of all inputs of a result: files by name, size, time and inode, the model, and the options."""
    facts = {role: scanned.facts() for role, scanned in scans.items()}
    parts = json.dumps([facts, _model_facts(model), options], sort_keys=True, default=str)
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _model_facts(model: str) -> object:
    path = model_path(model)
    if is_model_file(path):
        try:
            return read_model_file(path).fingerprint
        except InvalidValue:
            # Perhaps pretrained weights, which have no fingerprint of their own.
            pass
    # A weight file depends on the configs in its folder.
    folder, suffixes = (path.parent, (".json",)) if path.is_file() else (path, MODEL_PARTS)
    inside = sorted(one for one in folder.iterdir() if one.suffix in suffixes) if folder.is_dir() else []
    return [str(path.absolute()), *((one.name, _stamp(one)) for one in [path, *inside] if one.is_file())]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def remember(out: Path, found: str, line: Mapping[str, Any]) -> None:
    """Records that the result in `out` is of this fingerprint; `line` holds the `counts` that `summary` takes."""
    write_json(out / STATE, {"fingerprint": found, "result": _stamp(out / RESULT), "line": dict(line)})


def remembered(out: Path, found: str) -> dict[str, Any] | None:
    """The `line` of the result in `out` if that is of this fingerprint and still there as it was written."""
    try:
        state = read_json(out / STATE)
        is_there = state["result"] == list(_stamp(out / RESULT) or ()) and (out / PAGE).exists()
        is_same = is_there and state["fingerprint"] == found
        if not is_same:
            return None
        # Nothing is new this time.
        return state["line"] | {"counts": state["line"]["counts"] | {"embedded": 0, "renamed": 0}}
    except (UserError, OSError, KeyError, TypeError):
        return None


def summary(
    out: Path,
    *,
    images: int,
    embedded: int,
    renamed: int,
    broken: int,
    skipped: Mapping[str, int],
) -> str:
    """The last line of every run."""
    parts = [f"{images - embedded - broken:,} kept", f"{embedded:,} embedded"]
    parts += [f"{renamed:,} renamed"] if renamed else []
    parts += [f"{broken:,} broken"] if broken else []
    words = f"{images:,} image{'' if images == 1 else 's'}: {', '.join(parts)} ({out / PAGE})"
    mends: dict[str, list[str]] = {}
    for suffix, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])):
        mends.setdefault(mend(suffix), []).append(f"{count:,} {suffix}")
    return ", ".join([words, *(f"{', '.join(counted)} not read: {how}" for how, counted in mends.items())])
