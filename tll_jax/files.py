"""Atomic writing of files, file names for ids, and locks on folders."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, MissingFile, UserError

if TYPE_CHECKING:
    # NumPy is imported where it is used, so that the commands' --help is fast.
    import numpy as np

logger = logging.getLogger(__name__)

MAX_NAME_BYTES = 120
"""Longest file name for an id; longer ones are cut. File systems allow 255 bytes, some of which suffixes need."""
LOCK = ".lock"
PARTIAL = ".partial"

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Starts of cells that spreadsheets evaluate as formulas, also after apostrophes that `csv_cell` has added."""
_NOT_UTF8 = re.compile(r"\\u(dc[89a-f][0-9a-f])")
"""The escape of a byte that is not valid UTF-8."""

_MENDS = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there: the quota is used up",
    errno.EACCES: "Get permission to write there, or give another folder",
    errno.EPERM: "Get permission to write there, or give another folder",
    errno.EROFS: "Give a folder that can be written",
    errno.EISDIR: "It is a folder: give the name of a file",
    errno.ENOTDIR: "A part of the path is a file: give another folder",
    errno.EEXIST: "A part of the path is a file: give another folder",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.EIO: "Look after the disk",
}
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers that only writing can have."""
_OF_CONTENT = (ValueError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of reading a damaged .npz file; a RuntimeError if it seems to be encrypted."""
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Error numbers of file systems without locks."""


def file_name(identity: str) -> str:
    """The file name of an id: one path component, valid on every file system, different for every id.

    Letters, digits and ` ._-+=,()` stay, other bytes become `%XX`; so do a leading dot and a trailing space or dot. A
    name longer than `MAX_NAME_BYTES` is cut, with `~` and a hash of the whole id at the end. `identity_of` is the
    inverse, except for cut names.

    Examples:
      >>> file_name("../a b/ü")
      '%2E.%2Fa b%2F%C3%BC'
    """
    data = identity.encode("utf-8", "surrogateescape")
    quoted = quote_from_bytes(data, safe=" ._-+=,()").replace("~", "%7E")
    if not quoted:
        return "%"
    if quoted[0] == ".":
        quoted = f"%2E{quoted[1:]}"
    if quoted[-1] in " .":
        quoted = f"{quoted[:-1]}%{ord(quoted[-1]):02X}"
    if len(quoted) <= MAX_NAME_BYTES:
        return quoted
    return f"{quoted[: MAX_NAME_BYTES - 33]}~{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def identity_of(name: str) -> str:
    """The id of a file name, the inverse of `file_name`.

    Raises:
      ValueError: the name was cut, so the id cannot be restored.
    """
    if "~" in name:
        raise InvalidValue(f"{name!r} is the short name of an id; the id itself is not in it")
    return "" if name == "%" else unquote_to_bytes(name).decode("utf-8", "surrogateescape")


def spelled_out(text: str) -> str:
    """Text that UTF-8 can encode: undecodable bytes of file names (surrogates) become `\\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode()


def csv_cell(text: str) -> str:
    """Text as a CSV cell: with an apostrophe before formulas, and `spelled_out`. `text_of_cell` is the inverse.

    Examples:
      >>> csv_cell("=1+1"), csv_cell("'=1+1"), csv_cell("a=1")
      ("'=1+1", "''=1+1", 'a=1')
    """
    cell = spelled_out(text)
    return f"'{cell}" if _FORMULA.match(cell) else cell


def text_of_cell(cell: str) -> str:
    """The text of a CSV cell, the inverse of `csv_cell`; cells of other programs stay as they are."""
    text = cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
    return _NOT_UTF8.sub(lambda found: chr(int(found[1], 16)), text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` atomically, and flushed to disk, if the block succeeds.

    Parent folders are made. If the block fails, the temporary file is removed and `path` is unchanged. If `path` is a
    link, its target is replaced; devices and pipes are written to directly.

    Raises:
      OSError: the disk is full, or the place cannot be written; names the path and the fix.
    """
    with _writing(path, anything=True):
        is_special = path.exists() and not path.is_file() and not path.is_dir()
        place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if is_special:
        with _writing(path):
            yield path
        return
    partial = place.with_name(f"{place.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        with _writing(path, anything=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        with _writing(path):
            yield partial
        with _writing(path, anything=True):
            _flush(partial)
            partial.replace(place)
            _flush(place.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def _writing(path: Path, *, anything: bool = False) -> Iterator[None]:
    """Turns errors of writing at `path` into a `FileProblem`; with `anything`, every OSError."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if anything or error.errno in _OF_WRITING:
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError) -> FileProblem:
    """The error for a path that cannot be written, with the reason and the fix."""
    mend = _MENDS.get(error.errno or 0, "Look after the disk")
    problem = FileProblem(
        f"{path} cannot be written: {error.strerror or error}. {mend}; then run the same command again"
    )
    problem.errno = error.errno
    return problem


def check_writable(path: Path) -> None:
    """Checks before minutes of work that a file can be written; creates nothing.

    Raises:
      OSError: `path` is a folder or cannot be written; names it and the fix.
    """
    with _writing(path, anything=True):
        if path.is_dir():
            raise _error(errno.EISDIR)
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise _error(errno.ENOTDIR)
        if not os.access(above, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(above).f_flag & os.ST_RDONLY
            raise _error(errno.EROFS if is_read_only else errno.EACCES)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _flush(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush folders.
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: "str | bytes | np.ndarray") -> None:
    """Writes UTF-8 text, bytes or an array (.npy) atomically: readers see the old file or the new one.

    Characters that UTF-8 cannot encode (undecodable bytes of file names) are written as `\\udcXX`.

    Raises:
      OSError: the disk is full, or the place cannot be written; names the path and the fix.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        if isinstance(content, str | bytes):
            file.write(spelled_out(content).encode() if isinstance(content, str) else content)
        else:
            import numpy as np

            # Given the file itself, NumPy drops the errno of an error, such as of a full disk.
            np.save(SimpleNamespace(write=file.write), content, allow_pickle=False)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def write_arrays(path: Path, *, compressed: bool = False, **arrays: Any) -> None:
    """Writes named arrays (.npz) atomically."""
    import numpy as np

    with replacing(path) as partial, partial.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedFile: it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFile(_damaged(path, error)) from error


def read_arrays(path: Path) -> "dict[str, np.ndarray]":
    """Reads the arrays of an .npz file by name.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedFile: it is not a whole .npz file of numbers and text; names the file.
    """
    import numpy as np

    try:
        # Opened here: NumPy leaves a damaged file that it opened itself to the garbage collector.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is no .npz file")
            with loaded:
                return dict(loaded)
    except _OF_CONTENT as error:
        raise DamagedFile(_damaged(path, error)) from error
    except OSError as error:
        # EINVAL comes of seeking before the start of a truncated file.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedFile(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return f"{path} is damaged ({reason}): delete it and run the command that wrote it again"


def remove_partials(folder: Path) -> None:
    """Removes temporary files of killed processes below `folder`, which must be locked."""
    for path in folder.rglob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextmanager
def locked(folder: Path, *, identity: str, command: str, name: str = LOCK) -> Iterator[int]:
    """Locks a folder, which is made if missing, until the block ends or the process dies.

    Yields the lock's descriptor; processes that inherit it hold the lock as well.

    A process of equal `identity` waits until the folder is free. On file systems without locks the block runs, after a
    warning.

    Args:
      identity: a fingerprint of the work; processes of other identities are refused.
      command: shown to those.
      name: of the lock file, for folders with several locks.

    Raises:
      ValueError: a process of another identity works in the folder; names its command.
      OSError: the folder cannot be written; names it and the fix.
    """
    path = folder / name
    with _writing(folder, anything=True):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _wait_for(descriptor, folder, identity)
        facts = {"identity": identity, "command": command, "process": os.getpid(), "host": os.uname().nodename}
        with _writing(path, anything=True):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(facts).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _warn_of_no_locks(folder: Path, error: OSError) -> None:
    logger.warning("%s cannot be locked (%s): start no second command in it", folder, error.strerror)


def _wait_for(descriptor: int, folder: Path, identity: str) -> None:
    has_warned = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _warn_of_no_locks(folder, error)
            return
        who = f"process {holder.get('process', '?')} on {holder.get('host', 'this machine')}"
        if holder and holder["identity"] != identity:
            raise InvalidValue(
                f"another command works in {folder}: `{holder['command']}`, {who}. Wait for its end, or give another "
                "folder"
            )
        if not has_warned:
            logger.warning("%s is in use by %s, with the same command: waiting for its end", folder, who)
            has_warned = True
        # Polled: the holder may not have written its name yet, and a stop signal must be noticed.
        threading.Event().wait(0.5)


def _holder(descriptor: int) -> dict[str, Any]:
    """The facts that a lock's holder has written; empty if it has not written them yet."""
    try:
        facts = json.loads(os.pread(descriptor, 2**16, 0))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) and {"identity", "command"} <= facts.keys() else {}


def given_path(text: str) -> Path:
    """A path from the command line, with a leading `~` expanded, which shells leave as it is in `--workdir=~/runs`.

    Raises:
      ValueError: the text is empty, or there is no such home.
    """
    if not text.strip():
        raise InvalidValue("a path is empty; it must name a file or folder ('.' is the one you are in)")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidValue(f"path is {text!r}, and there is no home of that name; write the whole path") from error


def expand(path: str) -> Path:
    """A path with `~` and environment variables expanded; one that exists as written is returned unchanged, for names
    may contain a `$`.

    Raises:
      FileNotFoundError: the path is empty, names a variable that is not set, or a user without a home.
    """
    if not path.strip():
        raise MissingFile(f"the path {path!r} is empty: give the path of a file or folder")
    if os.path.lexists(path):
        return Path(path)
    expanded = os.path.expandvars(os.path.expanduser(path))
    # An empty variable would change the path; an unset one is part of the name.
    if os.path.lexists(expanded) and all(os.environ.get(name, name) for name in _variables(path)):
        return Path(expanded)
    for name in _variables(path):
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise MissingFile(f"the path {path} uses ${name}, which is {state}: export {name}=FOLDER first")
    if expanded.startswith("~"):
        raise MissingFile(f"the path {path} begins with {expanded.split('/')[0]}, a home that is not known here")
    return Path(expanded)


def _variables(path: str) -> list[str]:
    return re.findall(r"\$\{?(\w+)", path)
