"""Ctrl-C and SIGTERM: training saves first, at the same step in all processes; anything else ends at once.

What is not training leaves nothing half done behind, since files appear whole, so there is nothing to wait for.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECONDS = 2
"""How long a program that ends may take to tidy up; a compiler, for example, does not look at signals."""
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal ends the program; the argument is its name. No `Exception`, so that nothing takes it for a failure."""


class StopRequest:
    """Whether a signal asked training to stop, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.num_interrupts = 0
        """How often Ctrl-C was pressed."""
        self.is_looked_at = False
        """Before the first step there is nothing to save."""

    def is_due(self) -> bool:
        """Asked once a step: whether to save and stop after it."""
        self.is_looked_at = True
        return self.signal_name is not None

    def ask(self, number: int) -> None:
        """Asks to stop."""
        self.signal_name = signal.Signals(number).name


class SharedStopRequest(StopRequest):
    """A stop that JAX's preemption service lets all processes come to at the same step, whichever got the signal."""

    points = itertools.count(1)
    """One a step over all trainings of this program: processes that are in different ones still find a common one."""

    def is_due(self) -> bool:
        # `main` imports this file for its exceptions, and --help does not wait for JAX.
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(self.points)):
            self.signal_name = signal.Signals.SIGTERM.name
        return super().is_due()

    def ask(self, number: int) -> None:
        if _tell_preemption_service is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            _tell_preemption_service(signal.SIGTERM)


TOLD_KEY, TOLD_SECONDS = "tll_jax/stopped", 0.3
"""Where the coordinator keeps the name of a signal that ends a process before it can save, and how often the others
look there."""

_end: Callable[[str], None] | None = None
"""Ends this process, given a reason."""
_tell_others: Callable[[str], None] | None = None
"""Of several processes: has them all end, given the name of a signal."""
_lingers_seconds = 0.0
"""How long this process outlives the word that all end: of several, the first one keeps the coordinator, without which
the others would be aborted."""
_request: StopRequest | None = None
"""Of the training that runs."""
_tell_preemption_service: Callable[[int], None] | None = None
"""JAX's own handler of SIGTERM, where it runs several processes."""
_kept: list[socket.socket] = []


def end_when_asked(end: Callable[[str], None]) -> None:
    """From here on a signal raises `Stopped` in the main thread, but while training can save.

    Args:
      end: ends the process, given the name of the signal; called where `Stopped` has not ended it in `GRACE_SECONDS`.
    """
    global _end
    _end = end
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in NUMBERS:
        # A program in the background is not to be stopped by the terminal's Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        # In a finalizer or a callback nothing can be raised; `watch` ends the process.
        if unraisable.exc_type is not Stopped:
            show(unraisable)

    sys.unraisablehook = show_others

    def watch() -> None:
        # Python's handlers run in the main thread alone, which may be inside a compiler for minutes.
        num_interrupts = dict[StopRequest, int]()
        while data := reading.recv(1):
            number, request = data[0], _request
            if number not in NUMBERS:
                continue
            if request is not None and request.is_looked_at:
                num_interrupts[request] = num_interrupts.get(request, 0) + (number == signal.SIGINT)
                if num_interrupts[request] < 2:
                    continue
            if _tell_others is not None:
                _tell_others(signal.Signals(number).name)
            time.sleep(max(GRACE_SECONDS, _lingers_seconds))
            end(signal.Signals(number).name)

    threading.Thread(target=watch, daemon=True).start()
    # The descriptor would close with the object.
    _kept.append(writing)


def share_with_preemption_service() -> None:
    """Takes SIGTERM back from JAX, which has taken it to stop several processes together, and passes it on."""
    global _tell_preemption_service
    if signal.getsignal(signal.SIGTERM) is not _on_signal:
        return
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    theirs = library.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, _on_signal)
    if theirs:
        _tell_preemption_service = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)


def end_together() -> None:
    """Of several processes, a signal that ends one before it can save ends all: those that compile would notice that
    it is gone minutes later."""
    from jax._src import distributed

    global _tell_others, _lingers_seconds
    client, end = distributed.global_state.client, _end
    if client is None or end is None:
        return
    if distributed.global_state.process_id == 0:
        _lingers_seconds = GRACE_SECONDS + 0.5
    has_told = threading.Event()

    def set_key(signal_name: str) -> None:
        # Another process may have told already.
        with contextlib.suppress(Exception):
            client.key_value_set(TOLD_KEY, signal_name)

    def tell(signal_name: str) -> None:
        has_told.set()
        telling = threading.Thread(target=set_key, args=(signal_name,), daemon=True)
        telling.start()
        # A coordinator that does not answer keeps nobody from ending.
        telling.join(TOLD_SECONDS)

    def listen() -> None:
        while not has_told.wait(TOLD_SECONDS):
            try:
                signal_name = client.key_value_try_get(TOLD_KEY)
            except Exception:
                # Nothing is there.
                continue
            time.sleep(_lingers_seconds)
            end(f"{signal_name} to another process")

    _tell_others = tell
    threading.Thread(target=listen, daemon=True).start()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    request = _request
    if request is not None and request.is_looked_at:
        request.num_interrupts += number == signal.SIGINT
        if request.num_interrupts < 2:
            request.ask(number)
            return
    if _tell_others is not None:
        _tell_others(signal.Signals(number).name)
        time.sleep(_lingers_seconds)
    raise Stopped(signal.Signals(number).name)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block, once its request has been looked at, SIGINT and SIGTERM only ask to stop; a second Ctrl-C ends
    the process."""
    global _request
    from tll_jax import processes

    request = SharedStopRequest() if processes.count() > 1 else StopRequest()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in NUMBERS}
        for number in NUMBERS:
            if previous[number] not in (None, signal.SIG_IGN):
                signal.signal(number, _on_signal)
    _request = request
    try:
        yield request
    finally:
        _request = None
        for number, handler in previous.items():
            if handler is not None:
                signal.signal(number, handler)
