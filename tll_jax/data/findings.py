"""What is looked for in pictures once and kept, by picture content, in a file that people can read and edit."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tqdm

from tll_jax.contracts import Image
from tll_jax.errors import InvalidValue
from tll_jax.files import write_whole

FLUSH_EVERY = 200
"""After how many pictures the findings are written, so that a run that is killed loses little."""


def find_once(
    make_finder: Callable[[], Callable[[Image], Any]],
    images: Sequence[Image],
    hashes: Sequence[str],
    path: Path,
    *,
    what: str,
    check: Callable[[str, Any], None] = lambda where, finding: None,
) -> list[Any]:
    """What the finder says of each picture, asked in threads unless `path` holds it already.

    `path` is a JSON file of findings by content hash. It is written while pictures are looked at and when that is
    interrupted; where it has changed meanwhile, what it says stands.

    Args:
      what: the findings in words, for the progress bar and messages.
      check: raises ValueError for a finding in the file that cannot be, given where it stands.

    Raises:
      ValueError: the file is damaged.
    """

    def read() -> dict[str, Any]:
        try:
            findings = json.loads(path.read_text()) if path.exists() else {}
        except json.JSONDecodeError as error:
            raise InvalidValue(f"the {what} in {path} are damaged ({error}): delete the file") from error
        for content, finding in findings.items():
            check(f"{path}: {content}", finding)
        return findings

    def keep(found: dict[str, Any]) -> dict[str, Any]:
        kept = found | read()
        write_whole(path, json.dumps(kept, indent=0, sort_keys=True) + "\n")
        return kept

    known = read()
    new = {content: index for index, content in enumerate(hashes) if content not in known}
    if new:
        find = make_finder()
        found: dict[str, Any] = {}

        def look(item: tuple[str, int]) -> None:
            content, index = item
            found[content] = find(images[index])

        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            looked = pool.map(look, new.items())
            for done, _ in enumerate(tqdm.tqdm(looked, what, len(new), disable=not sys.stderr.isatty()), 1):
                if done % FLUSH_EVERY == 0:
                    keep(found)
        finally:
            pool.shutdown(cancel_futures=True)
            known = keep(found)
    return [known[content] for content in hashes]
