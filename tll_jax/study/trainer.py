"""A process that trains and evaluates for a study, one task after the other; started by `side_by_side`."""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from tll_jax.errors import GOES_ON, UserError
from tll_jax.training.signals import NUMBERS


def serve(connection: Connection, *, platform: str) -> None:
    """Opens the study that it is sent, and does what it is told, until it is told None; saves and ends if the study's
    process is gone.

    Args:
      connection: brings the study and the number of processes such as this one, then names of tasks.
      platform: that of the study's own process.
    """
    # Before the imports, so that the study's process need not wait for them.
    messages = _received(connection)

    import logging
    import pickle

    from tll_jax import processes, program
    from tll_jax.data.pipeline import open_readers
    from tll_jax.devices import make_mesh, platform_of
    from tll_jax.main import prepare
    from tll_jax.study.run import Run

    with program.exiting_at_once(), program.ending("tll_jax", stopped_status=program.GOES_ON):
        prepare()
        # The study's process has said all that there is to say about settings, data and finished stages.
        logging.disable()
        with contextlib.suppress(RuntimeError):
            # A GPU takes a second to start; what is wrong with it is said below.
            make_mesh()
        if (opening := messages.get()) is None:
            program.end(0)
        payload, at_once = opening
        study, workdir, stages, data = pickle.loads(payload)
        mesh = make_mesh()
        if platform_of(mesh) != platform:
            raise UserError(
                f"JAX finds no {platform} in a process that trains beside others, only {platform_of(mesh)}: perhaps "
                "one process alone may use it (compute mode of nvidia-smi). --parallel=1 trains one after the other"
            )
        with (
            processes.failing_together(workdir),
            open_readers(
                mesh, num_threads=study.num_threads, num_workers=study.num_workers, sharing=at_once
            ) as readers,
        ):
            if readers.workers is not None:
                readers.workers.start()
            run = Run.open(study, workdir, stages, readers, data)
            logging.disable(logging.NOTSET)
            logging.getLogger("tll_jax.study.train").setLevel(logging.WARNING)
            while (name := messages.get()) is not None:
                run.do(name)
                connection.send(name)
    # All is written; Python's own end takes seconds, for which the study's process would wait.
    program.end(0)


def _received(connection: Connection) -> "queue.SimpleQueue[Any]":
    """A queue of what comes, up to None, for which a thread waits."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while (message := connection.recv()) is not None:
                messages.put(message)
            messages.put(None)
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=receive, daemon=True).start()
    return messages


def _end_if_stopped() -> None:
    """Ends this process at a signal, also at one that came since it was started, until `program.ending` handles them.

    An exception instead would be lost where Python discards it, as in a callback of the garbage collector.
    """
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: os._exit(GOES_ON))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def main() -> None:
    """Takes module paths, cores, the platform and the connection's descriptor from the command line."""
    _end_if_stopped()
    path, cores, platform, descriptor = json.loads(sys.argv[1])
    sys.path[:] = path
    # Before XLA makes a thread for each core.
    os.sched_setaffinity(0, cores)
    serve(Connection(descriptor), platform=platform)


if __name__ == "__main__":
    main()
