"""Cache of values computed once per image, such as face counts: an editable JSON file keyed by content hash."""

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

from tll_jax.cache import ignoring_cache_errors
from tll_jax.devices import num_cores
from tll_jax.errors import DamagedFile
from tll_jax.files import read_json, write_whole
from tll_jax.typing import Image

logger = logging.getLogger(__name__)

FLUSH_EVERY = 200
"""Number of images after which new values are written, so that a killed run loses little."""


def cached_findings(
    make_finder: Callable[[], Callable[[Image], Any]],
    images: Sequence[Image],
    hashes: Sequence[str],
    path: Path,
    *,
    what: str,
    check: Callable[[Any], None] = lambda finding: None,
) -> list[Any]:
    """Value of the finder for each image, from the cache at `path` or computed in threads.

    `path` is a JSON file of values by content hash. It is saved at intervals and on interruption; values that another
    process has written meanwhile take precedence. A damaged file is renamed rather than overwritten, because a person
    may have edited it, and invalid values are computed again; both with a warning. If the cache cannot be written, the
    values are still returned.

    Args:
      make_finder: called once, if any value is missing; returns the function from an image to its value.
      hashes: content hashes of `images`, in the same order.
      what: name of the values, for the progress bar and messages.
      check: raises ValueError for an invalid value.
    """
    known: dict[str, Any] = {}
    with ignoring_cache_errors(), contextlib.ExitStack() as stack:
        # A read-only cache can still be read.
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
        with ignoring_cache_errors(), _alone(path):
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
    """File lock that excludes other processes from reading and writing `path`; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        # Some network file systems have no locks: there, concurrent processes may lose each other's values.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, what: str, check: Callable[[Any], None]) -> dict[str, Any]:
    """Valid values in a cache file."""
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
    """Renames a damaged file without replacing an earlier one, because a person may have edited it."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    logger.warning("the %s in %s are damaged: the file is now %s, and they are looked for again", what, path, aside)
