"""Uniform read access to the files of a folder or a zip."""

import logging
import os
import stat
import threading
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from tll_jax.data.imaging import FORMATS, MAX_BYTES, START_BYTES, format_of
from tll_jax.errors import FileProblem, InvalidValue, MissingFile
from tll_jax.typing import Skipped

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *((".avif",) if "AVIF" in FORMATS else ()),
)
UNREAD_SUFFIXES = frozenset(
    [
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".jpx",
        ".psd",
        ".svg",
        ".ico",
        ".tga",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".exr",
        ".hdr",
        ".qoi",
        ".dds",
        ".xcf",
        ".dng",
        ".cr2",
        ".cr3",
        ".crw",
        ".nef",
        ".nrw",
        ".arw",
        ".sr2",
        ".srf",
        ".orf",
        ".rw2",
        ".raf",
        ".pef",
        ".srw",
        ".x3f",
        ".3fr",
        ".iiq",
        ".erf",
        ".mrw",
    ]
) - set(IMAGE_SUFFIXES)
"""Image formats that are not decoded; they are counted and reported instead of being ignored silently."""
SERVICE_NAMES = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)
"""Lower-case names of files and folders that operating systems and network drives create; names that begin with a dot
are treated the same way."""
NUM_NAMED = 10
"""Maximum number of left-out or skipped files listed in a message."""
_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link, which is not followed in a zip",
}


class Archive:
    """Files below a folder or in a zip, by relative name with forward slashes in Unicode NFC form.

    NFC because some systems store "é" as two characters; forward slashes because some zips separate folders with
    backslashes.

    Links to folders are followed unless they lead to a folder that contains them. Nothing is extracted. Zip members
    whose names point out of the zip, folders that cannot be listed, pipes and devices are left out and recorded in
    `left_out` with the reason. Hidden and service files below the top are not data; they are listed in `hidden`.
    Reading is thread-safe. An archive can be pickled; the copy reopens its file.

    Raises:
      FileNotFoundError: nothing exists at `path`.
      ValueError: the file is not a zip, or is a truncated one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise MissingFile(f"no data at {self.path}: give the path of a folder or of a zip file")
        self._is_folder = self.path.is_dir()
        if not self._is_folder and not self.path.is_file():
            raise InvalidValue(f"{self.path} is no regular file: give the path of a folder or of a zip file")
        self._local = threading.local()
        self.left_out: list[Skipped] = []
        self.hidden: list[str] = []
        """Hidden and service files; folders are listed once, without their contents."""
        self._stored = _by_plain_name(self._walk() if self._is_folder else self._members())
        self.names = sorted(self._stored)
        """All files except hidden ones, sorted."""
        self._stored = {name: stored for name, stored in self._stored.items() if name != stored}
        self.hidden = sorted(set(self.hidden))
        if self.left_out:
            logger.warning("%s: left out are %s", self.path, named(self.left_out))
        if self.not_read:
            logger.warning("%s: %s", self.path, self.not_read)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _local=threading.local())

    @cached_property
    def images(self) -> list[str]:
        """Sorted names with an image suffix, and names without a suffix whose first bytes are those of an image."""
        return [name for name in self.names if self._is_image(name)]

    def _is_image(self, name: str) -> bool:
        if name.lower().endswith(IMAGE_SUFFIXES):
            return True
        if "." in name.rpartition("/")[2]:
            return False
        try:
            return format_of(self.start(name)) in FORMATS
        except OSError:
            return False

    @property
    def not_read(self) -> str:
        """Message that counts the images of unsupported formats and suggests a remedy; empty if there are none."""
        counts = Counter(os.path.splitext(name)[1].lower() for name in self.names)
        counts = Counter({suffix: count for suffix, count in counts.items() if suffix in UNREAD_SUFFIXES})
        if not counts:
            return ""
        which = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
        update = "; Pillow reads .avif from 11.3 on" if ".avif" in counts else ""
        return f"not read are {which}: convert them to JPEG or PNG{update}"

    @property
    def summary(self) -> str:
        """Summary of the contents, for the end of messages about missing data."""
        words = [f"{len(self.names)} files, such as {', '.join(self.names[:3]) or 'none'}"]
        if self.hidden:
            words.append(f"hidden, so no data: {first_few(self.hidden)}")
        return "; ".join([*words, *filter(None, [self.not_read])])

    def read(self, name: str) -> bytes:
        """Bytes of one file.

        Raises:
          OSError: the file cannot be read, is damaged or encrypted inside the zip, or is larger than `MAX_BYTES`.
        """
        stored = self._stored.get(name, name)
        try:
            if self.size(name) > MAX_BYTES:
                raise FileProblem(f"{self.size(name):,} bytes; at most {MAX_BYTES:,} are read")
            return (self.path / stored).read_bytes() if self._is_folder else self._unpack(stored)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            # The exceptions of a damaged zip have no common class: BadZipFile, zlib.error, RuntimeError, EOFError, ...
            raise FileProblem(f"damaged or encrypted inside {self.path} ({error})") from error

    def start(self, name: str) -> bytes:
        """First `START_BYTES` bytes of one file; raises OSError as `read` does."""
        stored = self._stored.get(name, name)
        try:
            with (self.path / stored).open("rb") if self._is_folder else self._zip().open(stored) as file:
                return file.read(START_BYTES)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise FileProblem(f"damaged or encrypted inside {self.path} ({error})") from error

    def size(self, name: str) -> int:
        """Size of one file in bytes, without reading it; 0 if it cannot be reached, as through a broken link."""
        stored = self._stored.get(name, name)
        if self._is_folder:
            try:
                return os.stat(os.path.join(self.path, stored)).st_size
            except OSError:
                return 0
        return self._zip().getinfo(stored).file_size

    def _unpack(self, stored: str) -> bytes:
        """Bytes of a zip member; unpacking stops at the size in its header, so that a zip bomb cannot fill memory."""
        info = self._zip().getinfo(stored)
        with self._zip().open(info) as file:
            if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                return file.read(info.file_size + 1)
            # For other compression methods zipfile unpacks everything it has read at once, and bzip2 packs 46 MB into
            # 40 bytes.
            file.MIN_READ_SIZE = 64  # type: ignore[attr-defined]
            return b"".join(iter(lambda: file.read(64), b""))

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

    def _members(self) -> Iterator[tuple[str, str]]:
        # A zip that was appended to may list a name twice; the last entry counts.
        for stored in dict.fromkeys(self._zip().namelist()):
            name = stored.replace("\\", "/")
            path = PurePosixPath(name)
            kind = stat.S_IFMT(self._zip().getinfo(stored).external_attr >> 16)
            hidden = next((index for index, part in enumerate(path.parts) if _is_hidden(part)), None)
            if path.is_absolute() or ".." in path.parts or (name != stored and PureWindowsPath(stored).drive):
                self.left_out.append(Skipped(stored, "the name points out of the zip"))
            elif hidden is not None:
                self.hidden.append("/".join(path.parts[: hidden + 1]))
            elif kind in _SPECIAL:
                self.left_out.append(Skipped(stored, _SPECIAL[kind]))
            elif not name.endswith("/"):
                yield path.as_posix(), stored

    def _walk(self) -> Iterator[tuple[str, str]]:
        # Each pending folder is kept with the real paths of itself and its parents: a link to one of these is a loop.
        waiting = [("", frozenset([os.path.realpath(self.path)]))]
        while waiting:
            folder, places = waiting.pop()
            try:
                with os.scandir(os.path.join(self.path, folder)) as listed:
                    entries = list(listed)
            except OSError as error:
                self.left_out.append(Skipped(str(error.filename), f"cannot be listed ({error.strerror})"))
                continue
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                kind = _kind(entry)
                if _is_hidden(entry.name):
                    self.hidden.append(name)
                elif kind == stat.S_IFDIR:
                    real = os.path.realpath(entry.path)
                    if real not in places:
                        waiting.append((name, places | {real}))
                elif kind in _SPECIAL:
                    self.left_out.append(Skipped(name, _SPECIAL[kind]))
                else:
                    yield name, name


def _kind(entry: os.DirEntry[str]) -> int:
    """File type of an entry, or of the target of a link, as an `S_IF*` constant of `stat`; 0 for a broken link."""
    try:
        # `is_file` and `is_dir` usually need no further system call.
        if entry.is_file():
            return stat.S_IFREG
        return stat.S_IFDIR if entry.is_dir() else stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return 0


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part not in (".", "..")) or part.lower() in SERVICE_NAMES


def _by_plain_name(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Mapping from NFC names to stored names; of two with the same NFC name, the one stored in that form gets it."""
    plain, others = {}, []
    for name, stored in names:
        if as_listed(name) == stored:
            plain[stored] = stored
        else:
            others.append((as_listed(name), stored))
    for name, stored in others:
        plain[stored if name in plain else name] = stored
    return plain


def as_listed(name: str) -> str:
    """NFC form of a name, the form in which an archive lists it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def named(skipped: Sequence[Skipped]) -> str:
    """First few names with their reasons and the number of the others, for a message."""
    return first_few([f"{name} ({reason})" for name, reason in skipped], separator="; ")


def first_few(texts: Sequence[str], *, separator: str = ", ") -> str:
    """First `NUM_NAMED` texts and the number of the others, for a message."""
    more = f" and {len(texts) - NUM_NAMED} more" if len(texts) > NUM_NAMED else ""
    return printable(separator.join(texts[:NUM_NAMED])) + more


def printable(text: str) -> str:
    """Text with non-printable characters escaped: file names may contain line breaks and undecodable bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
