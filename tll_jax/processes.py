"""Runs in several processes: initialization, agreement on settings, barriers, and failure of one of them."""

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tll_jax.errors import DamagedFile, Interrupted, InvalidValue, UserError
from tll_jax.files import LOCK, read_json, write_json

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 300
LONGEST_WAIT_SECONDS = 7 * 24 * 3600
"""Time limit of the other processes at the end, while the first one evaluates."""
FAILURE, FAILURE_SECONDS = ".failure.json", 3
"""The file in which a failing process writes its reason, and how long the others poll for it; network file systems may
show it late."""


def start(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> None:
    """Initializes `jax.distributed`, before JAX looks for devices; without arguments JAX detects Slurm, Open MPI, TPU
    VMs and Kubernetes.

    A process that cannot find the others in `timeout_seconds` prints that and exits with status 1; JAX itself would
    abort with a stack trace.

    Args:
      coordinator: HOST:PORT of process 0, the same for all.
      process_id: 0 to num_processes - 1.

    Raises:
      ValueError: some of the three were given, but not all; or they contradict each other.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if coordinator is None or num_processes is None or process_id is None:
            raise InvalidValue("--coordinator, --num_processes and --process_id go together")
        _, _, port = coordinator.rpartition(":")
        if not port.isdigit():
            raise InvalidValue(f"--coordinator is {coordinator!r}; it must be HOST:PORT of process 0")
        if not 0 <= process_id < num_processes:
            raise InvalidValue(
                f"--process_id is {process_id}; with --num_processes={num_processes} it must be 0 to less"
            )

    def give_up() -> None:
        where = f" at {coordinator}" if coordinator else ""
        print(
            f"tll_jax: the {num_processes or 'other'} processes did not find each other{where} in {timeout_seconds} "
            "seconds: start all of them, with equal --coordinator and --num_processes and each its own --process_id; "
            "process 0 must run on the coordinator's host, with the port open",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(timeout_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=timeout_seconds + 60)
    except (ValueError, RuntimeError) as error:
        raise InvalidValue(f"no other processes could be joined: {error}") from error
    finally:
        timer.cancel()


def count() -> int:
    """The number of processes of this run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, which writes results."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """Broadcasts the first process's `value`, a JSON value, to all; every process must call it at the same point."""
    if count() == 1:
        return value
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
    content = np.zeros(length, np.uint8)
    if is_first():
        content[:] = payload
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def check_equal_settings(facts: Mapping[str, Any]) -> None:
    """Raises ValueError if `facts` (versions, settings, data) of this process differ from those of the first one."""
    for name, expected in from_first(dict(facts)).items():
        if facts[name] != expected:
            raise InvalidValue(
                f"process {jax.process_index()} has another {name} than process 0: {facts[name]!r}, not {expected!r}; "
                "all processes need the same command, software and data"
            )


def wait_for_all(name: str) -> None:
    """A barrier: returns when every process has reached it.

    It uses the coordinator, not a collective, which would time out before the first process has evaluated.

    Args:
      name: unique within a program.
    """
    if count() > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(name, timeout=LONGEST_WAIT_SECONDS, processes=set(range(count())))


LOST_STATUSES = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED")
OWN_STATUSES = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
"""Statuses of errors that a process has by itself, whatever the others do."""
LOST_WORDS = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket (closed|error)|timed? ?out|heartbeat|coordination service"
    r"|remote process exited|network error",
    re.IGNORECASE,
)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Context in which SIGINT and SIGTERM do not reach this thread, nor the processes that are started in it, until
    these have handlers and unblock them. Terminals and Slurm signal the whole process group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone: by its status, or else by its message, because the
    transports of CPUs (Gloo) and GPUs (NCCL) have no status for that."""
    text = str(error)
    transport = "Gloo" in text or "NCCL" in text
    if not (isinstance(error, jax.errors.JaxRuntimeError) or transport):
        return False
    status = text.partition(":")[0].strip()
    if status in OWN_STATUSES:
        return False
    return status in LOST_STATUSES or bool(LOST_WORDS.search(text))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host is out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")
    )


@contextmanager
def failing_together(folder: Path) -> Iterator[None]:
    """Runs the block in all processes so that the failure of one is reported as a failure by the others too.

    The first process to fail writes its reason into `folder`, which all share and one has locked. The others, which
    only see a lost connection, then fail as well instead of asking to be started again.

    Raises:
      Interrupted: another process is gone without a reason.
      UserError: another process failed, or memory ran out.
    """
    if count() > 1:
        run = from_first(os.urandom(8).hex())
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if count() > 1 and is_lost(error):
            if failure := _wait_for_failure(folder / FAILURE, run):
                raise UserError(f"process {failure['process']} of this run failed: {failure['message']}") from error
            raise Interrupted(
                f"another process of this run is gone ({first_line}). Start all of them again with the same command: "
                "the run goes on from its last save"
            ) from error
        if count() > 1 and (folder / LOCK).exists():
            failure = {"run": run, "process": jax.process_index(), "message": first_line}
            with contextlib.suppress(OSError):
                write_json(folder / FAILURE, failure)
        if is_out_of_memory(error):
            raise UserError(
                f'out of memory: {first_line}. Lower loop.batch_size, or see "When memory is short" in docs/pod.md'
            ) from error
        raise


def _wait_for_failure(path: Path, run: str) -> dict[str, Any] | None:
    """The reason that another process of this run wrote to `path`; None if it does not appear in time."""
    for _ in range(FAILURE_SECONDS * 5):
        with contextlib.suppress(OSError, DamagedFile):
            if (failure := read_json(path))["run"] == run:
                return failure
        time.sleep(0.2)
    return None


def gathered(array: jax.Array) -> np.ndarray:
    """A global array, sharded over processes or not, whole on every process as a NumPy array."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
