"""Several processes that run one program: how they find each other, agree, and leave files to the first of them."""

import contextlib
import json
import logging
import os
import re
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
"""How long processes wait at the end for the first one, which evaluates alone."""
FAILURE, FAILURE_SECONDS = ".failure.json", 3
"""Where a process says why it ends, and how long the others look there: a network's disk may show it late."""


def start(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> None:
    """Joins this process to the others before JAX looks for devices; without arguments Slurm, Open MPI, a TPU VM or
    Kubernetes tells who they are.

    A process that cannot find the others in `timeout_seconds` says so and ends with status 1: JAX itself would abort
    it with a stack trace.

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
    """How many processes run this program."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes results."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """The first process's `value`, anything that JSON can say, on every process; all must ask at the same point."""
    if count() == 1:
        return value
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
    content = np.zeros(length, np.uint8)
    if is_first():
        content[:] = payload
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def check_equal_settings(facts: Mapping[str, Any]) -> None:
    """Raises ValueError where this process has other `facts` (versions, settings, data) than the first one."""
    for name, expected in from_first(dict(facts)).items():
        if facts[name] != expected:
            raise InvalidValue(
                f"process {jax.process_index()} has another {name} than process 0: {facts[name]!r}, not {expected!r}; "
                "all processes need the same command, software and data"
            )


def wait_for_all(name: str) -> None:
    """Returns when every process has come here; `name` is used once a program.

    The coordinator keeps the wait, not a collective, whose patience would end before the first process has evaluated.
    """
    if count() > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(name, timeout=LONGEST_WAIT_SECONDS, processes=set(range(count())))


LOST_STATUSES = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED")
OWN_STATUSES = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
"""Of errors that a process has by itself, whatever the others do."""
LOST_WORDS = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket (closed|error)|timed? ?out|heartbeat|coordination service"
    r"|remote process exited|network error",
    re.IGNORECASE,
)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone: by its status, or else by its words, for the transports of
    CPUs (Gloo) and GPUs (NCCL) have no status of their own for that."""
    text = str(error)
    transport = "Gloo" in text or "NCCL" in text
    if not (isinstance(error, jax.errors.JaxRuntimeError) or transport):
        return False
    status = text.partition(":")[0].strip()
    if status in OWN_STATUSES:
        return False
    return status in LOST_STATUSES or bool(LOST_WORDS.search(text))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the host does not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")
    )


@contextmanager
def failing_together(folder: Path) -> Iterator[None]:
    """Of several processes that run the block, the first to fail leaves word in `folder`, which all of them see and one
    has locked, so that the others, which lose it, know that starting again would not help.

    Raises:
      Interrupted: another process is gone that did not say why.
      UserError: another one failed, or memory does not suffice.
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
            if told := _failure_told(folder / FAILURE, run):
                raise UserError(f"process {told['process']} of this run failed: {told['message']}") from error
            raise Interrupted(
                f"another process of this run is gone ({first_line}). Start all of them again with the same command: "
                "the run goes on from its last save"
            ) from error
        if count() > 1 and (folder / LOCK).exists():
            told = {"run": run, "process": jax.process_index(), "message": first_line}
            with contextlib.suppress(OSError):
                write_json(folder / FAILURE, told)
        if is_out_of_memory(error):
            raise UserError(
                f'out of memory: {first_line}. Lower loop.batch_size, or see "When memory is short" in docs/pod.md'
            ) from error
        raise


def _failure_told(path: Path, run: str) -> dict[str, Any] | None:
    """What a process of this run left at `path` before it ended, if it comes to be seen in time."""
    for _ in range(FAILURE_SECONDS * 5):
        with contextlib.suppress(OSError, DamagedFile):
            if (told := read_json(path))["run"] == run:
                return told
        time.sleep(0.2)
    return None


def gathered(array: jax.Array) -> np.ndarray:
    """A global array, split over processes or not, as a whole on every one of them."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
