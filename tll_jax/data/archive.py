"""A folder and a zip file seen alike: names, and bytes by name."""

import os
import threading
import zipfile
import zlib
from functools import cached_property
from pathlib import Path, PurePosixPath


class Archive:
    """The files below a folder, or in a zip, by their names relative to it with forward slashes.

    Reading is safe from several threads; an archive can be pickled and opens its file anew where it arrives.

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: the file is not a zip, or a zip cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"no data at {self.path}: give the path of a folder or of a zip file")
        self._local = threading.local()
        _ = self.names

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.path = state["path"]
        self._local = threading.local()

    @cached_property
    def names(self) -> list[str]:
        """All file names, sorted, without what macOS adds to folders and zips."""
        if self.path.is_dir():
            found = (
                (Path(folder) / name).relative_to(self.path).as_posix()
                for folder, _, names in os.walk(self.path)
                for name in names
            )
            return sorted(name for name in found if not _is_from_macos(name))
        return sorted(n for n in self._zip().namelist() if not (n.endswith("/") or _is_from_macos(n)))

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
          OSError: it cannot be read, or is damaged inside the zip.
        """
        if self.path.is_dir():
            return (self.path / PurePosixPath(name)).read_bytes()
        try:
            return self._zip().read(name)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise OSError(f"damaged inside {self.path} ({error})") from error

    def size(self, name: str) -> int:
        """Bytes of one file, without reading it."""
        if self.path.is_dir():
            return (self.path / PurePosixPath(name)).stat().st_size
        return self._zip().getinfo(name).file_size

    def _zip(self) -> zipfile.ZipFile:
        opened = getattr(self._local, "zip", None)
        if opened is None:
            try:
                opened = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise ValueError(
                    f"{self.path} is not a complete zip file ({error}): download or copy it again"
                ) from error
            self._local.zip = opened
        return opened


def _is_from_macos(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name.startswith("._") or path.parts[0] == "__MACOSX"


def expand(path: str) -> Path:
    """`path` with `~` and environment variables filled in.

    Raises:
      FileNotFoundError: the path names a variable that is not set.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        variable = expanded[expanded.index("$") :].split("/")[0]
        raise FileNotFoundError(
            f"the data path {path} uses {variable}, which is not set: export {variable.strip('${}')}=FOLDER first"
        )
    return Path(expanded)
