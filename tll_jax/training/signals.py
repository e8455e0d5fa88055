"""Ctrl-C and SIGTERM as a request that the training loop looks at between steps, the same step in all processes."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A run was asked to stop, has saved its state, and will go on when the same command is run again."""


class StopRequest:
    """Whether a signal asked the run to stop, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def is_due(self) -> bool:
        """Asked once a step: whether to save and stop after it."""
        return self.signal_name is not None


class SharedStopRequest(StopRequest):
    """A stop that JAX's preemption service lets all processes come to at the same step, whichever got the signal."""

    points = itertools.count(1)
    """One a step over all trainings of this program: processes that are in different ones still find a common one."""

    def is_due(self) -> bool:
        # `main` imports this file for its exception, and --help does not wait for JAX.
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(self.points)):
            self.signal_name = signal.Signals.SIGTERM.name
        return super().is_due()


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block SIGINT and SIGTERM only ask to stop; a second Ctrl-C ends the process as usual."""
    from tll_jax import processes

    several = processes.count() > 1
    request = SharedStopRequest() if several else StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # JAX has taken SIGTERM where it runs several processes.
    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, _frame: FrameType | None) -> None:
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            request.signal_name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
