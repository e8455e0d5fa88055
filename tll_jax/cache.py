"""The cache folder, for results that are expensive to compute again. It is optional: without it they are recomputed."""

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_warned_folders: set[Path] = set()
"""Unusable cache folders that were warned of."""


def cache_folder() -> Path:
    """The path `$TLL_CACHE`, or else `tll_jax` in the user's cache folder; without a home, in the temporary folder."""
    if chosen := os.environ.get("TLL_CACHE"):
        return Path(os.path.expanduser(chosen))
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tll_jax"
    try:
        return Path.home() / ".cache" / "tll_jax"
    except RuntimeError:
        return _temporary()


def _temporary() -> Path:
    """A temporary folder that only this user may write to, because compiled programs in it are run."""
    folder = Path(tempfile.gettempdir()) / f"tll_jax-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return folder
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if is_own else Path(os.devnull) / "tll_jax"


@contextmanager
def ignoring_cache_errors() -> Iterator[None]:
    """Guards a block that uses the cache folder: an `OSError` ends the block, with a warning once a folder."""
    try:
        yield
    except OSError as error:
        warn_of_unusable_cache(os.strerror(error.errno) if error.errno else str(error))


def warn_of_unusable_cache(reason: str) -> None:
    """Warns, once a folder, that the cache folder cannot be used."""
    folder = cache_folder()
    if folder not in _warned_folders:
        _warned_folders.add(folder)
        logger.warning(
            "the cache folder %s cannot be used (%s): what it would keep is computed again in every run. Set TLL_CACHE "
            "to a folder that can be written",
            folder,
            reason,
        )
