"""The pictures in folders, zip files and single files, by name, size, time and inode.

Neither JAX nor NumPy is imported, and no picture is opened: a command that finds nothing changed ends after this.
"""

import fnmatch
import functools
import hashlib
import importlib.util
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal, NamedTuple

from tll_jax.errors import FileProblem, InvalidValue, MissingFile, UserError

ALWAYS_EXCLUDED = frozenset(
    (
        *(".git", "@eadir", "node_modules", "__macosx", "#recycle", "#snapshot", "$recycle.bin"),
        *("system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)
"""Names, in small letters, of what programs and drives put beside pictures."""
RESULT_FOLDERS = frozenset(("thumbnails", "maps"))
"""Folders of pictures that a result of `tll find` has beside its `find.json`; they are left out."""
_PLAIN = ".jpg .jpeg .jpe .jif .jfif .mpo .png .apng .webp .gif .bmp .tif .tiff .avif"
HEIC = ".heic .heif .hif"
RAW = (
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .raf .pef .srw .x3f .3fr .iiq .erf .mrw .kdc .dcr .mos .rwl"
)
_OTHERS = ".jxl .jp2 .j2k .jpx .psd .svg .ico .tga .ppm .pgm .pbm .pnm .exr .hdr .qoi .dds .xcf"
_PACKAGES = {"heic": "pi_heif", "raw": "rawpy"}
"""Packages that read a kind of file, by the extra that installs them."""
_SUFFIXES = dict.fromkeys(_PLAIN.split(), "") | dict.fromkeys(HEIC.split(), "heic") | dict.fromkeys(RAW.split(), "raw")
"""The extra that reads a suffix; none for what is always read."""
_UNREAD = frozenset(_OTHERS.split())
_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|GIF8[79]a|II[*+]\0|MM\0[*+]|.{4}ftyp(avi|hei|hev|mif1|msf1)",
    re.DOTALL,
)
"""First bytes of pictures, for names without a suffix."""
UNREACHABLE = "cannot be"
"""How reasons begin that are no fault of a file, so that it is tried again in the next run."""
CONVERT = "convert them to JPEG or PNG"


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """Choice of the files of a folder."""

    exclude: tuple[str, ...] = ()
    """Patterns of names or of paths relative to the folder, as shells have them."""
    hidden: bool = False
    """Whether names that begin with a dot are looked at."""
    links: Literal["follow", "skip"] = "follow"


@dataclass(frozen=True, kw_only=True)
class Root:
    """A place that was given: a folder, a zip file, or the folder of a single picture."""

    path: str
    """Absolute."""
    only: str | None = None
    """The name of the single picture."""
    is_zip: bool = False


class File(NamedTuple):
    """A picture's file under one of its names."""

    root: int
    """Index into `Scan.roots`."""
    path: str
    """Relative to the root, with `/`; bytes that are not UTF-8 as surrogates."""
    size: int
    mtime_ns: int
    """In a zip the CRC-32, which says more of a member than its time."""
    device: int
    inode: int


@dataclass(kw_only=True)
class Scan:
    """Files with the suffix, or the first bytes, of a picture, in the order of their roots and paths."""

    roots: tuple[Root, ...]
    files: list[File] = field(default_factory=list)
    aliases: dict[File, list[File]] = field(default_factory=dict)
    """Further names (links) of a file, none of which is in `files`."""
    skipped: Counter[str] = field(default_factory=Counter)
    """How many pictures are not read, by suffix."""
    left_out: list[tuple[int, str, str]] = field(default_factory=list)
    """Root, path and reason of what could not be listed."""

    def facts(self) -> str:
        """A fingerprint of all names with sizes, times and inodes."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr([(root.path, root.only) for root in self.roots]).encode("utf-8", "surrogatepass"))
        for group in (self.files, *self.aliases.values()):
            for one in group:
                line = f"{one.root}\0{one.path}\0{one.size} {one.mtime_ns} {one.device} {one.inode}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        digest.update(repr((sorted(self.skipped.items()), sorted(self.left_out))).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def roots_of(places: Sequence[str]) -> tuple[Root, ...]:
    """The places that were given, each once.

    Raises:
      MissingFile: nothing is there.
      InvalidValue: a pipe or a device.
    """
    roots = []
    for place in places:
        path = os.path.abspath(os.path.expanduser(place))
        if not os.path.lexists(path):
            raise MissingFile(f"{place} is not there: give a folder, a zip file or a picture")
        if os.path.isdir(path) or _is_zip(path):
            roots.append(Root(path=path, is_zip=not os.path.isdir(path)))
        elif os.path.isfile(path):
            roots.append(Root(path=os.path.dirname(path), only=os.path.basename(path)))
        else:
            raise InvalidValue(f"{place} is no regular file: give a folder, a zip file or a picture")
    return tuple(dict.fromkeys(roots))


def _is_zip(path: str) -> bool:
    return path.lower().endswith(".zip") and os.path.isfile(path)


def scan(roots: Sequence[Root], options: ScanOptions) -> Scan:
    """Lists the pictures. A file that several names lead to counts once, under its first name that is no link.

    Raises:
      FileProblem: a root cannot be listed.
      InvalidValue: a zip is not whole.
    """
    found = Scan(roots=tuple(roots))
    listing = _Listing(found, options)
    for number, root in enumerate(roots):
        if root.is_zip:
            listing.members(number, root)
        elif root.only is not None:
            listing.single(number, root)
        else:
            listing.folder(number, root)
    listing.finish()
    return found


@functools.cache
def readers() -> frozenset[str]:
    """The extras among `heic` and `raw` whose packages are installed."""
    return frozenset(extra for extra, package in _PACKAGES.items() if importlib.util.find_spec(package) is not None)


def mend(suffix: str) -> str:
    """Command that makes pictures of a suffix readable."""
    extra = _SUFFIXES.get(suffix)
    return f"pip install 'tll_jax[{extra}]'" if extra else CONVERT


class _Listing:
    """State of a running scan."""

    def __init__(self, found: Scan, options: ScanOptions) -> None:
        self.found = found
        self.options = options
        self.seen_folders: set[tuple[int, int]] = set()
        self.listed: list[tuple[bool, File]] = []
        """Whether a name is a link, and the file."""
        self.excluded = [re.compile(fnmatch.translate(pattern.rstrip("/"))) for pattern in options.exclude]

    def folder(self, number: int, root: Root) -> None:
        """Walks a folder; folders reached by links come last, so that a loop, or a second way, ends at once."""
        waiting: list[tuple[str, bool]] = [("", False)]
        while waiting:
            # The last that is no link, else the last.
            at = next((at for at in range(len(waiting) - 1, -1, -1) if not waiting[at][1]), len(waiting) - 1)
            folder, is_linked = waiting.pop(at)
            place = os.path.join(root.path, folder)
            try:
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in self.seen_folders:
                    continue
                self.seen_folders.add((status.st_dev, status.st_ino))
                with os.scandir(place) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                if not folder:
                    raise FileProblem(
                        f"{root.path} cannot be listed ({error.strerror}): give a folder that can"
                    ) from error
                self.found.left_out.append((number, folder, f"{UNREACHABLE} listed ({error.strerror})"))
                continue
            is_result = any(entry.name == "find.json" for entry in listed)
            for entry in listed:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if self._is_excluded(entry.name, path) or (is_result and entry.name in RESULT_FOLDERS):
                    continue
                is_link = entry.is_symlink()
                if is_link and self.options.links == "skip":
                    continue
                try:
                    if entry.is_dir():
                        waiting.append((path, is_link or is_linked))
                    elif self._is_candidate(path, functools.partial(_start, entry.path)):
                        self._add(number, path, entry.stat(), is_link=is_link or is_linked)
                except OSError as error:
                    self.found.left_out.append((number, path, f"{UNREACHABLE} reached ({error.strerror})"))

    def single(self, number: int, root: Root) -> None:
        """A picture that was named itself is looked at whatever its suffix is."""
        assert root.only is not None
        place = os.path.join(root.path, root.only)
        try:
            self._add(number, root.only, os.stat(place), is_link=os.path.islink(place))
        except OSError as error:
            raise MissingFile(f"{place} cannot be reached ({error.strerror})") from error

    def members(self, number: int, root: Root) -> None:
        """Lists a zip; names that point out of it are left out."""
        try:
            with zipfile.ZipFile(root.path) as archive:
                infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
                for stored, info in sorted(infos.items()):
                    path = PurePosixPath(stored.replace("\\", "/"))
                    if path.is_absolute() or ".." in path.parts or PureWindowsPath(stored).drive:
                        self.found.left_out.append((number, stored, "the name points out of the zip"))
                    elif _is_plain(info) and not self._is_member_excluded(path.parts):
                        start = functools.partial(_member_start, archive, info)
                        if self._is_candidate(stored, start):
                            self.listed.append((False, File(number, stored, info.file_size, info.CRC, 0, 0)))
        except UserError:
            raise
        except OSError as error:
            raise FileProblem(f"{root.path} cannot be read ({error.strerror})") from error
        except Exception as error:
            # What a damaged zip raises has no common class.
            raise InvalidValue(
                f"{root.path} is not a complete zip file ({error}): download or copy it again"
            ) from error

    def _is_member_excluded(self, parts: Iterable[str]) -> bool:
        path = ""
        for part in parts:
            path = f"{path}/{part}" if path else part
            if self._is_excluded(part, path):
                return True
        return False

    def _is_excluded(self, name: str, path: str) -> bool:
        if name.lower() in ALWAYS_EXCLUDED or (name.startswith(".") and not self.options.hidden):
            return True
        return any(pattern.match(name) or pattern.match(path) for pattern in self.excluded)

    def _is_candidate(self, path: str, start: "functools.partial[bytes]") -> bool:
        suffix = os.path.splitext(path)[1].lower()
        if not suffix:
            return bool(_STARTS.match(start()))
        extra = _SUFFIXES.get(suffix)
        is_read = extra == "" or extra in readers()
        if not is_read and (extra or suffix in _UNREAD):
            self.found.skipped[suffix] += 1
        return is_read

    def _add(self, number: int, path: str, status: os.stat_result, *, is_link: bool) -> None:
        if stat.S_ISREG(status.st_mode):
            file = File(number, path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
            self.listed.append((is_link, file))

    def finish(self) -> None:
        """Sorts the files, and separates links from them."""
        first: dict[tuple[int, int], File] = {}
        for _, file in sorted(self.listed):
            place = (file.device, file.inode)
            if file.inode and place in first:
                self.found.aliases.setdefault(first[place], []).append(file)
            else:
                first[place] = file
                self.found.files.append(file)
        self.found.files.sort()


def _is_plain(info: zipfile.ZipInfo) -> bool:
    return stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def _member_start(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(64)
