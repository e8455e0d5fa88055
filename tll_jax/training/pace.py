"""Throughput of a training run, and the idle time of its devices."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from tll_jax.training.feed import Feed

NOTABLE_SHARE = 0.05
"""Idle fraction of the time below which the progress line gives no advice."""

NOTABLE_DISPATCH = 0.25
"""The same for the fraction in which steps are dispatched, during which the devices may well work."""


class Pace:
    """Measurements from one record to the next, without waiting for the devices.

    The devices are idle from the end of the newest step until the dispatch of the next one begins. The end is found by
    polling whether the step's loss is ready: before and after each batch is taken, when a step has been dispatched, and
    every millisecond while waiting for a batch. It is estimated as the midpoint between the last poll at which the step
    was running and the first at which it was done.

    During a dispatch that begins on idle devices, they work on no more than the kernels launched so far, so a step of
    many small kernels takes as long as its dispatch. That time is measured apart, for how much of it the devices work
    is not known.
    """

    def __init__(self, images_a_step: int) -> None:
        self._images_a_step = images_a_step
        self._since, self._num_steps = time.perf_counter(), 0
        self._idle, self._idle_for_data, self._dispatching = 0.0, 0.0, 0.0
        # `is_ready` is missing from JAX's stubs.
        self._newest: Any = None
        """Loss of the step dispatched last."""
        self._busy_at, self._asked, self._got = 0.0, 0.0, 0.0
        self._idle_since: float | None = None

    def next_batch(self, feed: Feed) -> Any:
        """Take the batch of the step that is dispatched next."""
        self._asked = self._look()
        batch = feed.take(self._is_busy)
        self._got = self._look()
        return batch

    def dispatched(self, loss: jax.Array) -> None:
        """Record that a step, of the batch taken last, was dispatched; `loss` is one of its outputs."""
        now = self._look()
        if self._idle_since is not None:
            self._idle += max(0.0, self._got - self._idle_since)
            self._idle_for_data += max(0.0, self._got - max(self._asked, self._idle_since))
            self._dispatching += now - max(self._got, self._idle_since)
        # A step that is done when its dispatch ends has run during it.
        self._newest, self._busy_at = loss, now
        self._idle_since = now if self._newest.is_ready() else None
        self._num_steps += 1

    def drained(self) -> None:
        """Record that all dispatched steps are done as of now."""
        if self._idle_since is None:
            self._idle_since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context without training, whose time is left out."""
        before = time.perf_counter()
        if self._idle_since is not None:
            self._idle += before - self._idle_since
        yield
        now = time.perf_counter()
        self._since += now - before
        self._idle_since = now

    def record(self) -> dict[str, float]:
        """Throughput and idle fractions of the devices since the previous record.

        `device_idle_fraction` is the idle fraction of the time, `device_idle_for_data_fraction` the part of it during
        which the loop waited for a batch; the loop itself took the rest. `dispatch_fraction` is the fraction of the
        time during which a step was dispatched and no earlier one was running.
        """
        now = time.perf_counter()
        seconds = now - self._since
        values = {
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images_a_step * self._num_steps / seconds, 1),
            "device_idle_fraction": round(min(1.0, self._idle / seconds), 3),
            "device_idle_for_data_fraction": round(min(1.0, self._idle_for_data / seconds), 3),
            "dispatch_fraction": round(min(1.0, self._dispatching / seconds), 3),
        }
        self._since, self._num_steps = now, 0
        self._idle, self._idle_for_data, self._dispatching = 0.0, 0.0, 0.0
        return values

    def _look(self) -> float:
        self._is_busy()
        return time.perf_counter()

    def _is_busy(self) -> bool:
        if self._newest is None or self._idle_since is not None:
            return False
        is_done, now = self._newest.is_ready(), time.perf_counter()
        if is_done:
            self._idle_since = (self._busy_at + now) / 2
        else:
            self._busy_at = now
        return not is_done


def describe(values: dict[str, float]) -> str:
    """Text of the progress line for a `record`, with advice if the devices are often idle."""
    idle, for_data = values["device_idle_fraction"], values["device_idle_for_data_fraction"]
    dispatch = values["dispatch_fraction"]
    words = f"{values['images_per_second']:.0f} images/s, device idle {idle:.0%}"
    if dispatch > max(idle, NOTABLE_DISPATCH):
        return f"{words}, launching {dispatch:.0%}: a larger batch_size would take hardly more time"
    if idle < NOTABLE_SHARE:
        return words
    if for_data >= idle / 2:
        return f"{words}: waiting for pictures, more --config.num_workers would help"
    return f"{words}: waiting for the loop, a larger batch_size or --config.num_workers in place of threads would help"
