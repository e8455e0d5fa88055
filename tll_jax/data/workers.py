"""Pool of worker processes that make batches, shared by all data sets that a program reads."""

import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np

from tll_jax import processes
from tll_jax.data.imaging import quiet_opencv
from tll_jax.errors import InvalidValue

BATCHES_AHEAD = 2
"""Number of batches that each worker prefetches, so that none idles until its next turn."""
MAX_BYTES_AHEAD = 2**33
"""Maximum size in bytes of the prefetched batches of one reading; two batches are always allowed."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from tll_jax.data.workers import serve; serve(int(sys.argv[2]))"
)


class WorkerLost(InvalidValue):
    """Error for a worker process that ended unexpectedly."""


@dataclass(kw_only=True)
class _Worker:
    """State of one worker process: its functions and the use of its shared memory."""

    process: subprocess.Popen[bytes]
    connection: Connection
    opened: set[int] = field(default_factory=set)
    """Numbers of the readings whose function the worker has."""
    memory: dict[int, np.ndarray] = field(default_factory=dict)
    """Memory shared with the process, by slot number."""
    free: list[int] = field(default_factory=list)
    """Unused slots."""
    num_slots: int = 0


@dataclass(kw_only=True)
class _Result:
    """Result of one task."""

    failed: bool
    value: Any
    """A batch, or an exception."""
    size: int
    """Size in bytes."""


class Workers:
    """Pool of `num_workers` processes that all readings share, from `start` or the first request until `close`.

    Batches are transferred through anonymous shared memory, which is freed however this process ends; the workers end
    with it.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._started: list[_Worker] = []
        self._arrived: dict[int, dict[int, _Result]] = {}
        """Results of each open reading that have arrived and were not taken yet, by task number."""
        self._num_readings = 0
        # Batches are taken by the training's thread and by evaluations between its steps, and an abandoned reading is
        # closed in whichever thread the garbage collector runs.
        self._lock = threading.RLock()

    def read(self, make: Callable[[int], Any], indices: Iterable[int]) -> Iterator[Any]:
        """`make(index)` for every index, in order; workers prefetch the following ones.

        Args:
          make: function of the index alone that `cloudpickle` can pickle; each worker has a copy.

        Raises:
          WorkerLost: a worker has ended, for example killed by the system for lack of memory.
          Exception: any exception raised by `make`.
        """
        reading = self._num_readings
        self._num_readings += 1
        function = cloudpickle.dumps(make)
        left = enumerate(indices)
        num_sent, num_ahead = 0, BATCHES_AHEAD
        try:
            self.start()
            with self._lock:
                self._arrived[reading] = {}
            for number in range(sys.maxsize):
                with self._lock:
                    while num_sent < number + num_ahead and (task := next(left, None)) is not None:
                        self._ask(reading, function, *task)
                        num_sent += 1
                    if number == num_sent:
                        return
                    result = self._wait_for(reading, number)
                if result.failed:
                    raise result.value
                most = BATCHES_AHEAD * self.num_workers
                num_ahead = min(most, max(BATCHES_AHEAD, MAX_BYTES_AHEAD // result.size))
                yield result.value
                del result
        finally:
            with self._lock:
                self._arrived.pop(reading, None)
                for worker in self._started:
                    if reading in worker.opened:
                        worker.opened.remove(reading)
                        self._send(worker, ("forget", reading))

    def close(self) -> None:
        """Ends the worker processes."""
        for worker in self._started:
            worker.connection.close()
            worker.process.kill()
            worker.process.wait()
        self._started.clear()

    def start(self) -> None:
        """Starts the processes, unless they are; without it, the first request does, and waits for their imports."""
        with self._lock:
            if not self._started:
                self._launch()

    def _launch(self) -> None:
        # Workers import JAX for its types only, and must not claim the devices.
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        # A program whose workers end first could not save its state.
        with processes.signals_wait():
            for _ in range(self.num_workers):
                ours, theirs = socket.socketpair()
                with theirs:
                    process = subprocess.Popen(
                        [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno())],
                        pass_fds=[theirs.fileno()],
                        stdin=subprocess.DEVNULL,
                        env=environment,
                    )
                self._started.append(_Worker(process=process, connection=Connection(ours.detach())))

    def _ask(self, reading: int, function: bytes, number: int, index: int) -> None:
        worker = self._started[number % self.num_workers]
        if reading not in worker.opened:
            worker.opened.add(reading)
            self._send(worker, ("open", reading, function))
        if not worker.free:
            worker.free.append(worker.num_slots)
            worker.num_slots += 1
        self._send(worker, ("make", reading, number, index, worker.free.pop()))

    def _wait_for(self, reading: int, number: int) -> "_Result":
        arrived, worker = self._arrived[reading], self._started[number % self.num_workers]
        while number not in arrived:
            try:
                from_reading, from_number, slot, sizes, new_size, failed = worker.connection.recv()
                if new_size:
                    descriptor = reduction.recv_handle(worker.connection)
                    with open(descriptor, "rb", closefd=True) as file:
                        worker.memory[slot] = np.frombuffer(
                            mmap.mmap(file.fileno(), new_size, access=mmap.ACCESS_READ), np.uint8
                        )
            except (EOFError, OSError) as error:
                raise self._lost(worker) from error
            # Copied, so that the slot can be reused however long the batch is kept.
            content = worker.memory[slot][: sum(sizes)].copy()
            worker.free.append(slot)
            if from_reading in self._arrived:
                *buffers, pickled = np.split(content, np.cumsum(sizes)[:-1])
                value = pickle.loads(pickled.tobytes(), buffers=buffers)
                self._arrived[from_reading][from_number] = _Result(failed=failed, value=value, size=content.size)
        return arrived.pop(number)

    def _send(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        try:
            worker.connection.send(message)
        except OSError as error:
            raise self._lost(worker) from error

    def _lost(self, worker: _Worker) -> WorkerLost:
        status = worker.process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return WorkerLost(
            f"a process that reads pictures ended {how}; where memory was short, fewer of them, "
            "--config.num_workers, need less"
        )


def serve(descriptor: int) -> None:
    """Main loop of a worker process: serves tasks until the socket's other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    quiet_opencv()
    connection = Connection(descriptor)
    functions: dict[int, Any] = {}
    memory: dict[int, np.ndarray] = {}
    try:
        while True:
            kind, reading, *rest = connection.recv()
            if kind == "open":
                functions[reading] = rest[0]
            elif kind == "forget":
                functions.pop(reading)
            else:
                number, index, slot = rest
                parts, failed = _make(functions, reading, index)
                descriptor, sizes, new_size = _share(parts, memory, slot)
                # Small messages, so that sending never blocks while the other end is blocked too.
                connection.send((reading, number, slot, sizes, new_size, failed))
                if new_size:
                    reduction.send_handle(connection, descriptor, os.getppid())
                    os.close(descriptor)
    except (EOFError, OSError):
        # Skips cleanup, because other threads may be busy.
        os._exit(0)


def _make(functions: dict[int, Any], reading: int, index: int) -> tuple[list[Any], bool]:
    """Runs one task.

    Returns:
      The buffers of the batch's arrays followed by the batch pickled without them, or a pickled exception; and whether
      it is an exception.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        if isinstance(functions[reading], bytes):
            functions[reading] = pickle.loads(functions[reading])
        pickled = pickle.dumps(functions[reading](index), protocol=5, buffer_callback=buffers.append)
    except Exception as error:
        return [_pickled_error(error)], True
    return [*(buffer.raw() for buffer in buffers), pickled], False


def _share(parts: list[Any], memory: dict[int, np.ndarray], slot: int) -> tuple[int, list[int], int]:
    """Copies the parts one after the other into a slot of shared memory.

    Returns:
      A file descriptor (-1 if the slot was large enough), the sizes of the parts, and the size of the newly allocated
      memory (0 if the slot was large enough); sizes in bytes.
    """
    arrays = [np.frombuffer(part, np.uint8) for part in parts]
    sizes = [array.size for array in arrays]
    descriptor, new_size = -1, 0
    if slot not in memory or memory[slot].size < sum(sizes):
        descriptor, new_size = _anonymous_memory(sum(sizes)), sum(sizes)
        memory[slot] = np.frombuffer(mmap.mmap(descriptor, new_size), np.uint8)
    np.concatenate(arrays, out=memory[slot][: sum(sizes)])
    return descriptor, sizes, new_size


def _pickled_error(error: Exception) -> bytes:
    where = "".join(traceback.format_exception(error))
    error.add_note(f"in a process that reads pictures:\n{where}")
    try:
        pickled = cloudpickle.dumps(error)
        pickle.loads(pickled)
        return pickled
    except Exception:
        # Some exceptions cannot be unpickled.
        return pickle.dumps(RuntimeError(f"in a process that reads pictures:\n{where}"))


def _anonymous_memory(size: int) -> int:
    """File descriptor of anonymous shared memory of `size` bytes, freed with its last user."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("batch")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
