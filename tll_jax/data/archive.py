"""A folder and a zip file seen alike: names, and bytes by name."""

import logging
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tll_jax.contracts import Skipped
from tll_jax.errors import FileProblem, InvalidValue, MissingFile

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_BYTES = 2**30
"""Larger files are not read: a few kilobytes in a zip can unpack to any size."""
NUM_NAMED = 10
"""How many of the things left out or skipped a message names."""


class Archive:
    """The files below a folder, or in a zip, by their names relative to it with forward slashes.

    Links to folders are followed, except to a folder that the link stands in. Nothing is ever extracted; names in a
    zip that point out of it are left out all the same, and so are folders that cannot be listed: `left_out` says why.
    Reading is safe from several threads; an archive can be pickled and opens its file anew where it arrives.

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: the file is not a zip, or a zip cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise MissingFile(f"no data at {self.path}: give the path of a folder or of a zip file")
        self._is_folder = self.path.is_dir()
        self._local = threading.local()
        self.left_out: list[Skipped] = []
        found = self._walk() if self._is_folder else self._members()
        self.names = sorted(name for name in found if not _is_from_macos(name))
        """All files, without what macOS adds to folders and zips."""
        if self.left_out:
            logger.warning("%s: left out are %s", self.path, named(self.left_out))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _local=threading.local())

    @property
    def images(self) -> list[str]:
        """The names that end like an image's, sorted."""
        return [name for name in self.names if name.lower().endswith(IMAGE_SUFFIXES)]

    @property
    def summary(self) -> str:
        """What is here, in words: the end of a message about what is not."""
        return f"{len(self.names)} files, such as {', '.join(self.names[:3]) or 'none'}"

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
          OSError: it cannot be read, is damaged or encrypted inside the zip, or larger than `MAX_BYTES`.
        """
        try:
            if self.size(name) > MAX_BYTES:
                raise FileProblem(f"{self.size(name):,} bytes; at most {MAX_BYTES:,} are read")
            return (self.path / name).read_bytes() if self._is_folder else self._zip().read(name)
        except OSError:
            raise
        except Exception as error:
            # What a damaged zip raises has no common class: BadZipFile, zlib.error, RuntimeError, EOFError, ...
            raise FileProblem(f"damaged or encrypted inside {self.path} ({error})") from error

    def size(self, name: str) -> int:
        """Bytes of one file, without reading it; 0 where it cannot be reached, as by a link to nothing."""
        if self._is_folder:
            try:
                return os.stat(os.path.join(self.path, name)).st_size
            except OSError:
                return 0
        return self._zip().getinfo(name).file_size

    def _zip(self) -> zipfile.ZipFile:
        opened = getattr(self._local, "zip", None)
        if opened is None:
            try:
                opened = zipfile.ZipFile(self.path)
            except OSError:
                raise
            except Exception as error:
                raise InvalidValue(
                    f"{self.path} is not a complete zip file ({error}): download or copy it again"
                ) from error
            self._local.zip = opened
        return opened

    def _members(self) -> Iterator[str]:
        # A zip that was added to may name a file twice; the later one counts.
        for name in dict.fromkeys(self._zip().namelist()):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                self.left_out.append(Skipped(name, "the name points out of the zip"))
            elif not name.endswith("/"):
                yield name

    def _walk(self) -> Iterator[str]:
        def note(error: OSError) -> None:
            self.left_out.append(Skipped(str(error.filename), f"cannot be listed ({error.strerror})"))

        # For every folder to come, where it and those it stands in really are: a link to one of them is a loop.
        above = {str(self.path): frozenset([os.path.realpath(self.path)])}
        for folder, subfolders, names in os.walk(self.path, followlinks=True, onerror=note):
            inside = os.path.relpath(folder, self.path).replace(os.sep, "/")
            yield from (name if inside == "." else f"{inside}/{name}" for name in names)
            places = above.pop(folder)
            real = {name: os.path.realpath(os.path.join(folder, name)) for name in subfolders}
            subfolders[:] = [name for name in subfolders if real[name] not in places]
            above |= {os.path.join(folder, name): places | {real[name]} for name in subfolders}


def _is_from_macos(name: str) -> bool:
    return name.rpartition("/")[2].startswith("._") or name.startswith("__MACOSX/")


def named(skipped: Sequence[Skipped]) -> str:
    """The first few with their reasons, and how many more there are, for a message."""
    return first_few([f"{name} ({reason})" for name, reason in skipped], separator="; ")


def first_few(texts: Sequence[str], *, separator: str = ", ") -> str:
    """The first `NUM_NAMED`, and how many more there are, for a message."""
    more = f" and {len(texts) - NUM_NAMED} more" if len(texts) > NUM_NAMED else ""
    return printable(separator.join(texts[:NUM_NAMED])) + more


def printable(text: str) -> str:
    """File names may hold line breaks, and bytes that are no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expand(path: str) -> Path:
    """`path` with `~` and environment variables filled in.

    Raises:
      FileNotFoundError: the path names a variable that is not set.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        variable = expanded[expanded.index("$") :].split("/")[0]
        raise MissingFile(
            f"the data path {path} uses {variable}, which is not set: export {variable.strip('${}')}=FOLDER first"
        )
    return Path(expanded)
