"""How fast a training goes, and what its devices wait for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from tll_jax.training.feed import Feed

NOTABLE_SHARE = 0.05
"""Of the time: where the devices had less to do without, the progress line gives no advice."""


class Pace:
    """Measures from one record to the next, without waiting for the devices.

    The devices have nothing to do from the end of the newest step until the next is dispatched. Its end is seen by
    asking whether its loss is there: before and after each batch is taken and each step dispatched, and every
    millisecond while a batch is waited for. It is put halfway between the last look that found the step under way and
    the first that found it done.
    """

    def __init__(self, images_a_step: int) -> None:
        self._images_a_step = images_a_step
        self._since, self._num_steps = time.perf_counter(), 0
        self._idle, self._idle_for_data = 0.0, 0.0
        # `is_ready` is missing from JAX's stubs.
        self._newest: Any = None
        """The loss of the step dispatched last."""
        self._busy_at, self._asked, self._got = 0.0, 0.0, 0.0
        self._idle_since: float | None = None

    def next_batch(self, feed: Feed) -> Any:
        """The next batch for the step that is dispatched after this."""
        self._asked = self._look()
        batch = feed.take(self._is_busy)
        self._got = self._look()
        return batch

    def dispatched(self, loss: jax.Array) -> None:
        """A step was handed to the devices; `loss` is one of its results."""
        now = self._look()
        if self._idle_since is not None:
            self._idle += now - self._idle_since
            self._idle_for_data += max(0.0, self._got - max(self._asked, self._idle_since))
        self._newest, self._busy_at, self._idle_since = loss, now, None
        self._num_steps += 1

    def drained(self) -> None:
        """All steps dispatched so far are done, as of now."""
        if self._idle_since is None:
            self._idle_since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block nothing trains; its time does not count."""
        before = time.perf_counter()
        if self._idle_since is not None:
            self._idle += before - self._idle_since
        yield
        now = time.perf_counter()
        self._since += now - before
        self._idle_since = now

    def record(self) -> dict[str, float]:
        """The rate since the record before, and the shares of the time in which the devices had nothing to do: of all,
        and of that in which the loop waited for a batch; the rest of it the loop itself took."""
        now = time.perf_counter()
        seconds = now - self._since
        values = {
            "seconds": round(seconds, 3),
            "images_per_second": round(self._images_a_step * self._num_steps / seconds, 1),
            "device_idle_fraction": round(min(1.0, self._idle / seconds), 3),
            "device_idle_for_data_fraction": round(min(1.0, self._idle_for_data / seconds), 3),
        }
        self._since, self._num_steps, self._idle, self._idle_for_data = now, 0, 0.0, 0.0
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
    """The words of the progress line for a `record`, with the setting that mends what keeps the devices waiting."""
    idle, for_data = values["device_idle_fraction"], values["device_idle_for_data_fraction"]
    words = f"{values['images_per_second']:.0f} images/s, device idle {idle:.0%}"
    if idle < NOTABLE_SHARE:
        return words
    if for_data >= idle / 2:
        return f"{words}: waiting for pictures, more --config.num_workers would help"
    return f"{words}: waiting for the loop, a larger batch_size or --config.num_workers in place of threads would help"
