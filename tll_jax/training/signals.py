"""Handling of Ctrl-C and SIGTERM: training saves its state first, anything else ends at once.

Training stops at the same step in all processes. Outside of training there is nothing to wait for, because all files
are written atomically.
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
"""Time for cleanup before the process is ended; a compiler, for example, ignores signals."""
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """End of the program by a signal, whose name is the argument; no `Exception`, so that handlers do not catch it."""


class StopRequest:
    """State of the request to stop training after the current step."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.num_interrupts = 0
        """Number of Ctrl-C presses."""
        self.is_looked_at = False
        """Whether training has begun; before the first step there is nothing to save."""
        self.is_known = False
        """Whether `is_due` has told of a stop."""

    def is_due(self) -> bool:
        """Whether to save and stop after this step; called once a step."""
        self.is_looked_at = True
        self.is_known = self.signal_name is not None
        return self.is_known

    def ask(self, number: int) -> None:
        """Request a stop, given the number of the signal."""
        self.signal_name = signal.Signals(number).name


class SharedStopRequest(StopRequest):
    """Stop request that stops all processes at the same step, whichever got the signal, by JAX's preemption service."""

    points = itertools.count(1)
    """Numbers of synchronization points, one per step, over all trainings of this program, so that processes in
    different trainings find a common one."""

    def is_due(self) -> bool:
        # `main` imports this file for its exceptions, and --help must not wait for the import of JAX.
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
"""Coordinator key with the name of a signal that ends a process before it can save, and its polling interval."""

_end: Callable[[str], None] | None = None
"""Function that ends this process, given a reason."""
_tell_others: Callable[[str], None] | None = None
"""With several processes: function that ends all of them, given the name of a signal."""
_is_ending = False
"""Whether a signal ends this program already. Later signals must not interrupt what it still does, such as printing its
last line; `end_when_asked` limits the time for that."""
_lingers_seconds = 0.0
"""Delay of this process's end after all were told to end. The first process needs one: it runs the coordinator, without
which the others would be aborted."""
_request: StopRequest | None = None
"""Stop request of the current training."""
_tell_preemption_service: Callable[[int], None] | None = None
"""JAX's own SIGTERM handler, if there are several processes."""
_kept: list[socket.socket] = []


def end_when_asked(end: Callable[[str], None]) -> None:
    """Install handlers that raise `Stopped` in the main thread on a signal, except while training can save.

    Args:
      end: function that ends the process, given the name of the signal; called if `Stopped` has not ended it within
        `GRACE_SECONDS`.
    """
    global _end
    _end = end
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in NUMBERS:
        # A background program ignores the terminal's Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        # Exceptions in a finalizer or a callback are discarded; `watch` ends the process.
        if unraisable.exc_type is not Stopped:
            show(unraisable)

    sys.unraisablehook = show_others

    def watch() -> None:
        # Python's handlers run only in the main thread, which may be in a compiler for minutes.
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
    # A reference keeps the descriptor open.
    _kept.append(writing)


def share_with_preemption_service() -> None:
    """Install this module's SIGTERM handler in place of JAX's, and call that one to stop several processes together."""
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
    """With several processes, make a signal that ends one before it can save end all.

    Otherwise processes in a compiler would notice the loss minutes later.
    """
    from jax._src import distributed

    global _tell_others, _lingers_seconds
    client, end = distributed.global_state.client, _end
    if client is None or end is None:
        return
    if distributed.global_state.process_id == 0:
        _lingers_seconds = GRACE_SECONDS + 0.5
    has_told = threading.Event()

    def set_key(signal_name: str) -> None:
        # Another process may have set the key already.
        with contextlib.suppress(Exception):
            client.key_value_set(TOLD_KEY, signal_name)

    def tell(signal_name: str) -> None:
        has_told.set()
        telling = threading.Thread(target=set_key, args=(signal_name,), daemon=True)
        telling.start()
        # A coordinator that does not answer must not prevent the end.
        telling.join(TOLD_SECONDS)

    def listen() -> None:
        while not has_told.wait(TOLD_SECONDS):
            try:
                signal_name = client.key_value_try_get(TOLD_KEY)
            except Exception:
                # The key is not set.
                continue
            time.sleep(_lingers_seconds)
            end(f"{signal_name} to another process")

    _tell_others = tell
    threading.Thread(target=listen, daemon=True).start()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    global _is_ending
    if _is_ending:
        return
    request = _request
    if request is not None and request.is_looked_at:
        request.num_interrupts += number == signal.SIGINT
        if request.num_interrupts < 2:
            request.ask(number)
            return
    _is_ending = _end is not None
    if _tell_others is not None:
        _tell_others(signal.Signals(number).name)
        time.sleep(_lingers_seconds)
    raise Stopped(signal.Signals(number).name)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Context in which SIGINT and SIGTERM only request a stop, from the first `is_due` on.

    A second Ctrl-C ends the process.

    Raises:
      Stopped: at the end, if a stop was requested after the last `is_due`.
    """
    global _request, _is_ending
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
        if request.signal_name is not None:
            _is_ending = _end is not None
        _request = None
        for number, handler in previous.items():
            if handler is not None:
                signal.signal(number, handler)
    if request.signal_name is not None and not request.is_known:
        raise Stopped(request.signal_name)
