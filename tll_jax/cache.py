"""Where what is expensive to find again is kept between runs. Nothing depends on it: what cannot be kept or read is
found again."""

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_told: set[Path] = set()
"""Cache folders of which a warning has said that they are of no use."""


def cache_folder() -> Path:
    """`$TLL_CACHE`, or `tll_jax` in the user's cache folder; for a user without a home in the folder for temporary
    files."""
    if chosen := os.environ.get("TLL_CACHE"):
        return Path(os.path.expanduser(chosen))
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tll_jax"
    try:
        return Path.home() / ".cache" / "tll_jax"
    except RuntimeError:
        return _temporary()


def _temporary() -> Path:
    """The user's own folder among the temporary ones. Nobody else may write to it: compiled programs in it are run."""
    folder = Path(tempfile.gettempdir()) / f"tll_jax-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return folder
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if is_own else Path(os.devnull) / "tll_jax"


@contextmanager
def keeping() -> Iterator[None]:
    """Within the block something is read from or written into the cache folder. Where that cannot be, the block ends
    there, and a warning says so, once a folder."""
    try:
        yield
    except OSError as error:
        tell_of_no_use(os.strerror(error.errno) if error.errno else str(error))


def tell_of_no_use(reason: str) -> None:
    """Warns, once a folder, that the cache folder cannot be used."""
    folder = cache_folder()
    if folder not in _told:
        _told.add(folder)
        logger.warning(
            "the cache folder %s cannot be used (%s): what it would keep is computed again in every run. Set TLL_CACHE "
            "to a folder that can be written",
            folder,
            reason,
        )
