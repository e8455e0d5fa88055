"""Prefetching of host batches to the devices, so that copies overlap with computation."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import NamedSharding

from tll_jax.devices import to_devices

BATCHES_AHEAD = 2
"""Batches on the devices in addition to those of the steps in flight: one for the next step, and one being copied."""
LOOK_SECONDS = 0.001


class Feed:
    """Batches of an endless iterator, read and copied to the devices by a thread until `close`."""

    def __init__(self, batches: Iterator[Any], sharding: NamedSharding) -> None:
        self._batches, self._sharding = batches, sharding
        self._room = threading.Semaphore(BATCHES_AHEAD)
        self._ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._is_closed = False
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def take(self, look: Callable[[], bool] = lambda: False) -> Any:
        """Next batch, as global arrays.

        Args:
          look: called every `LOOK_SECONDS` while waiting for the batch, until it returns False.

        Raises:
          Exception: any exception of the iterator.
        """
        while True:
            try:
                batch, error = self._ready.get(timeout=LOOK_SECONDS if look() else None)
            except queue.Empty:
                continue
            self._room.release()
            if error is not None:
                raise error
            return batch

    def close(self) -> None:
        """Stop the thread after its current batch, and close the iterator."""
        self._is_closed = True
        self._room.release()
        self._thread.join()
        while not self._ready.empty():
            self._ready.get()
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _fill(self) -> None:
        try:
            while self._room.acquire() and not self._is_closed:
                self._ready.put((to_devices(next(self._batches), self._sharding), None))
        except BaseException as error:
            self._ready.put((None, error))
