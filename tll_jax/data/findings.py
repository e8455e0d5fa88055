"""What is looked for in pictures once and kept, by picture content, in a file that people can read and edit."""

import contextlib
import fcntl
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tqdm

from tll_jax.cache import keeping
from tll_jax.devices import num_cores
from tll_jax.errors import DamagedFile
from tll_jax.files import read_json, write_whole
from tll_jax.typing import Image

logger = logging.getLogger(__name__)

FLUSH_EVERY = 200
"""After how many pictures the findings are written, so that a run that is killed loses little."""


def find_once(
    make_finder: Callable[[], Callable[[Image], Any]],
    images: Sequence[Image],
    hashes: Sequence[str],
    path: Path,
    *,
    what: str,
    check: Callable[[Any], None] = lambda finding: None,
) -> list[Any]:
    """What the finder says of each picture, asked in threads unless `path` holds it already.

    `path` is a JSON file of findings by content hash. It is written while pictures are looked at and when that is
    interrupted; where it has changed meanwhile, what it says stands. A file that cannot be read is set aside, for a
    person may have edited it, and a finding in it that cannot be is looked for again; both with a warning. Where
    nothing can be kept, findings are still returned.

    Args:
      what: the findings in words, for the progress bar and messages.
      check: raises ValueError for a finding that cannot be.
    """
    known: dict[str, Any] = {}
    with keeping(), contextlib.ExitStack() as stack:
        # A cache that cannot be written may still be read.
        with contextlib.suppress(OSError):
            stack.enter_context(_alone(path))
        known = _read(path, what, check)
    new = {content: index for index, content in enumerate(hashes) if content not in known}
    if not new:
        return [known[content] for content in hashes]
    find = make_finder()
    found: dict[str, Any] = {}

    def look(item: tuple[str, int]) -> None:
        content, index = item
        found[content] = find(images[index])

    def keep() -> None:
        with keeping(), _alone(path):
            known.update(_read(path, what, check))
            write_whole(path, json.dumps(found | known, indent=0, sort_keys=True) + "\n")

    pool = ThreadPoolExecutor(num_cores())
    try:
        looked = pool.map(look, new.items())
        for done, _ in enumerate(tqdm.tqdm(looked, what, len(new), disable=not sys.stderr.isatty()), 1):
            if done % FLUSH_EVERY == 0:
                keep()
    finally:
        pool.shutdown(cancel_futures=True)
        keep()
    return [(found | known)[content] for content in hashes]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes from reading and writing the file at `path` in between; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        # Without locks, as on some network file systems, two processes may each lose what the other has found.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, what: str, check: Callable[[Any], None]) -> dict[str, Any]:
    """The findings in a file, without those that cannot be."""
    try:
        findings = read_json(path)
        if not isinstance(findings, dict):
            raise DamagedFile(f"{path} holds no findings by content")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except DamagedFile:
        _set_aside(path, what)
        return {}
    wrong = {}
    for content, finding in findings.items():
        try:
            check(finding)
        except ValueError as error:
            wrong[content] = str(error)
    if wrong:
        first = next(iter(wrong))
        logger.warning(
            "%s: %d of the %s cannot be, such as that of %s (%s): they are looked for again",
            path,
            len(wrong),
            what,
            first,
            wrong[first],
        )
    return {content: finding for content, finding in findings.items() if content not in wrong}


def _set_aside(path: Path, what: str) -> None:
    """Renames a damaged file, over no earlier one, for a person may have edited it."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    logger.warning("the %s in %s are damaged: the file is now %s, and they are looked for again", what, path, aside)
