"""The start and the end of a command: its memory; its last message, its exit status, and no processes left running."""

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tll_jax.errors import GOES_ON, Interrupted, UserError
from tll_jax.training import signals

STOPPED = 130
"""Exit status of a command that was stopped and saved nothing (128 plus the number of SIGINT)."""
HUGE_PAGES = "glibc.malloc.hugetlb"
"""glibc's setting (`GLIBC_TUNABLES`, from 2.35 on) for huge pages behind large blocks of memory."""


def start_with_huge_pages() -> None:
    """Starts this program again, in the same process, with huge pages for large blocks of memory; no effect if it has
    them, or a setting of its own for them, and on systems other than Linux.

    XLA on a CPU allocates its buffers anew for every step, and Linux clears each new page of 4 KiB by itself: a fifth
    of the time of embedding. Pages of 2 MiB are 512 times fewer. glibc reads the setting only when a process starts.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or HUGE_PAGES in tunables or not sys.executable:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{HUGE_PAGES}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextmanager
def ending(name: str, *, stopped_status: int, handles_signals: bool = True) -> Iterator[None]:
    """Ends the process after errors and signals in the block, with one line that gives the reason, after the traceback
    unless the error is a `UserError`.

    Args:
      name: the command's name, at the start of the line.
      stopped_status: `GOES_ON` or `STOPPED`.
      handles_signals: whether SIGINT and SIGTERM are handled from here on, for the whole process.
    """
    goes_on = "; the same command goes on with what is done" if stopped_status == GOES_ON else ""

    def end_at_once(signal_name: str) -> None:
        os.write(2, f"{name}: stopped by {signal_name}{goes_on}\n".encode())
        end(stopped_status)

    show_every_name()
    if handles_signals:
        signals.end_when_asked(end_at_once)
    try:
        with _stops_first():
            yield
            sys.stdout.flush()
    except Interrupted as stopped:
        _print_error(f"{name}: {stopped}")
        raise SystemExit(GOES_ON) from stopped
    except KeyboardInterrupt as stopped:
        _print_error(f"{name}: stopped by {stopped or 'SIGINT'}{goes_on}")
        raise SystemExit(stopped_status) from stopped
    except BrokenPipeError as closed:
        # The reader of the output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from closed
    except UserError as error:
        logging.getLogger(__name__).debug("refused", exc_info=True)
        raise SystemExit(f"{name}: {error}") from error
    except OSError as error:
        if error.errno is None or error.filename is None:
            raise
        raise SystemExit(f"{name}: {error.filename}: {error.strerror} (where: {_keep_traceback(error)})") from error


@contextmanager
def _stops_first() -> Iterator[None]:
    """Raises `Interrupted` in place of an error in the block if a stop signal has come, which may have caused it."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        before = error.__context__
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is None:
            raise
        raise before from error


@contextmanager
def exiting_at_once() -> Iterator[None]:
    """Ends this process at once after an error or a signal in the block, without waiting for threads; see `end`."""
    try:
        yield
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        if exit.code:
            end(exit.code if isinstance(exit.code, int) else 1)
        raise
    except BaseException:
        traceback.print_exc()
        end(1)


def _keep_traceback(error: BaseException) -> Path:
    """Writes the error's traceback to a file; returns its path."""
    with tempfile.NamedTemporaryFile("w", prefix="tll_jax-error-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return Path(file.name)


def _print_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show_every_name() -> None:
    """Makes standard output and error print characters that the terminal lacks as `\\xNN` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end(status: int) -> NoReturn:
    """Ends this process at once; its worker processes notice and end as well.

    Threads are not joined: those that save checkpoints may never end after a failed save, and the other processes of a
    run wait until this one is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)
