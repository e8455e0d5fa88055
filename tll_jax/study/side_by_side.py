"""Trainings and evaluations of a study side by side, in a process each: on a CPU with a share of the cores, or on a GPU
that all share.

XLA computes the steps of a small network on two cores only about 1.3 times as fast as on one, so that two trainings at
once take about two thirds of the time of one after the other. On a GPU, such steps wait for one thread that launches
their kernels, and most of a short training is work of the host: tracing, validation, saving.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tll_jax import devices, processes
from tll_jax.errors import GOES_ON, Interrupted, InvalidValue, UserError
from tll_jax.models.network import Network
from tll_jax.training.settings import Loop
from tll_jax.training.signals import StopRequest, stop_request
from tll_jax.training.state import initial_shapes

BASE_BYTES = 1.25 * 2**30
"""Memory of a training process without its step: libraries, compiled programs, decoded pictures."""
STEP_FACTOR = 4
"""Memory of a step in outputs of the network's modules: the demo takes .35 GiB for .09, EfficientNet-Lite0 at 128
pixels 9 for 2.6."""
USED_MEMORY = 0.6
"""Fraction of the memory that trainings side by side may take."""
LAUNCHED_BYTES = 2**28
"""Size of a step's module outputs up to which a GPU computes the step faster than a process launches its kernels: an
H100 takes 4 ms for the .09 GiB of the demo, of which launching is nine tenths."""
CORES_A_GPU_TRAINING = 4
"""Cores for each training on a GPU: one launches kernels, the others read pictures."""
LOOKS_SECONDS = 0.2
"""A stop signal is noticed within this time."""
RELAY_SECONDS = 5
"""How long the last messages of a process are waited for."""


class Task(NamedTuple):
    """One training, or an evaluation."""

    name: str
    """"pretrain <label>", "finetune <label>", "evaluate <row>" or "evaluate the systems"."""
    after: tuple[str, ...] = ()
    """Names of the tasks whose results it needs."""

    @property
    def kind(self) -> str:
        """The first word of the name."""
        return self.name.split()[0]


class Workload(NamedTuple):
    """The size of a training step: the network and its images."""

    network: Network
    size: int
    """Side of the images in pixels."""
    num_images: int

    @classmethod
    def of(cls, network: Network, size: int, loop: Loop) -> "Workload":
        return cls(network, size, 2 * loop.batch_size // loop.grad_accum_steps)

    def module_bytes(self) -> int:
        """Size of the outputs of all modules, without computing them."""
        num_traced = 2
        images = jax.ShapeDtypeStruct((num_traced, self.size, self.size, 3), jnp.float32)
        _, collections = jax.eval_shape(
            lambda variables, images: self.network.apply(
                variables, images, train=True, mutable=True, capture_intermediates=True
            ),
            initial_shapes(self.network, size=self.size),
            images,
        )
        outputs = jax.tree.leaves(collections["intermediates"])
        return self.num_images * sum(one.size * one.dtype.itemsize for one in outputs) // num_traced


def is_possible(mesh: Mesh) -> bool:
    """Whether several processes can train on the mesh: on one CPU, where the system assigns cores, or on one GPU."""
    has_cores = devices.platform_of(mesh) == "cpu" and hasattr(os, "sched_setaffinity")
    return mesh.size == 1 and (has_cores or _is_gpu(mesh))


def num_at_once(
    mesh: Mesh, trainings: Sequence[Task], workloads: Callable[[], Iterable[Workload]], *, parallel: int | None
) -> int:
    """The number of trainings at once: `parallel` if it is given, else as many as there are cores and memory for.

    On a GPU only small steps are taken side by side by default, those that `LAUNCHED_BYTES` describes.
    """
    most = min(_as_cores_allow(mesh, parallel), width(trainings))
    if parallel is not None or most <= 1:
        return max(1, most)
    step = max((one.module_bytes() for one in dict.fromkeys(workloads())), default=0)
    if not _is_gpu(mesh):
        return as_memory_allows(most, step, memory_bytes())
    if step > LAUNCHED_BYTES:
        return 1
    return min(as_memory_allows(most, 0, memory_bytes()), as_memory_allows(most, step, free_gpu_bytes(mesh)))


def as_memory_allows(most: int, step: int, memory: int) -> int:
    """The number of trainings, at most `most`, that `memory` bytes have room for; at least one.

    Args:
      step: size of the largest step's module outputs in bytes.
    """
    return max(1, min(most, int(USED_MEMORY * memory / (BASE_BYTES + STEP_FACTOR * step))))


def free_gpu_bytes(mesh: Mesh) -> int:
    """The memory of a GPU that this process, whose share XLA sets aside at its start, leaves to others."""
    (device,) = mesh.devices.flat
    statistics = device.memory_stats() or {}
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or 0.75)
    return int(statistics.get("bytes_limit", 0) * (1 - fraction) / fraction)


def _is_gpu(mesh: Mesh) -> bool:
    return devices.platform_of(mesh) == "gpu"


def memory_bytes() -> int:
    """The machine's memory, or the limit of this program's container."""
    total = devices.memory_bytes()
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def width(tasks: Sequence[Task]) -> int:
    """The largest number of trainings, none of which needs more than one other, that can run at once."""
    first = sum(not task.after for task in tasks)
    return max(first, len(tasks) - len({name for task in tasks for name in task.after}))


def shares(cores: Sequence[int], number: int) -> list[list[int]]:
    """Parts of the cores for `number` processes, of equal size, so that it is the same whichever trains; some cores may
    be left."""
    size = len(cores) // number
    return [list(cores[index * size : (index + 1) * size]) for index in range(number)]


def num_early(mesh: Mesh, *, parallel: int | None) -> int:
    """The number of processes to start before `num_at_once` is known; 0 on a CPU, where each gets its part of the cores
    when it starts."""
    number = _as_cores_allow(mesh, parallel) if _is_gpu(mesh) else 0
    return number if number > 1 else 0


def _as_cores_allow(mesh: Mesh, parallel: int | None) -> int:
    """The number of processes that there are cores for, at most `parallel` if it is given."""
    if parallel is not None:
        return min(parallel, devices.num_cores())
    return devices.num_cores() // (CORES_A_GPU_TRAINING if _is_gpu(mesh) else 1)


@contextlib.contextmanager
def opened_pool(mesh: Mesh, lock: int | None) -> Iterator["Pool | None"]:
    """Processes to train in, none at first, which are ended when the block is left; None where one process can train.

    Args:
      lock: descriptor of the lock on the study's folder, which is held as long as any of the processes lives; None in
        all processes but the first.
    """
    if lock is None or processes.count() > 1 or not is_possible(mesh):
        yield None
        return
    pool = Pool(devices.platform_of(mesh), lock)
    try:
        yield pool
    finally:
        pool.kill()


@dataclass(kw_only=True)
class _Trainer:
    """A process that trains one task after the other."""

    process: subprocess.Popen[str]
    connection: Connection
    relay: threading.Thread
    task: Task | None = None
    kinds: set[str] = field(default_factory=set)
    """The kinds of its tasks so far, whose programs it has compiled."""


@dataclass
class Pool:
    """Processes of a study that train and evaluate; see `opened_pool`."""

    platform: str
    """On a CPU each process has its own part of the cores; all of them have all cores otherwise."""
    lock: int
    trainers: list[_Trainer] = field(default_factory=list)
    dismissed: list[_Trainer] = field(default_factory=list)
    """Those that were started and are not needed."""

    def start(self, number: int) -> None:
        """Starts processes up to this number, which import what they need and then wait for `work`."""
        while len(self.trainers) < number:
            self.trainers.append(self._started(number))

    def keep(self, number: int) -> None:
        """Ends all processes but the first `number`."""
        for trainer in self.trainers[number:]:
            # One that has ended meanwhile has nothing left to do.
            with contextlib.suppress(OSError):
                trainer.connection.send(None)
        self.dismissed += self.trainers[number:]
        del self.trainers[number:]

    def work(self, payload: bytes, tasks: Sequence[Task], *, at_once: int, at_last: Callable[[], object]) -> None:
        """Runs all tasks in `at_once` processes, the first that can run first: one whose `after` are all done.

        Args:
          payload: what `trainer.serve` needs of the study.
          at_last: what this process does when the last task has begun; a few seconds at most, for which a stop waits.

        Raises:
          Interrupted: a stop signal was received; all states are saved.
          InvalidValue: a process has failed, and printed why; the states of the others are saved.
        """
        with stop_request() as stop:
            try:
                self.keep(at_once)
                self.start(at_once)
                for trainer in self.trainers:
                    self._send(trainer, (payload, at_once))
                self._run(list(tasks), stop, at_last)
            except (UserError, Interrupted):
                self._stop()
                raise

    def kill(self) -> None:
        """Ends all processes."""
        for trainer in [*self.trainers, *self.dismissed]:
            trainer.process.kill()
            trainer.process.wait()
            trainer.connection.close()
            trainer.relay.join(RELAY_SECONDS)

    def _run(self, waiting: list[Task], stop: StopRequest, at_last: Callable[[], object]) -> None:
        left = {task.name for task in waiting}
        while left:
            if stop.is_due():
                raise Interrupted(
                    f"trainings side by side stopped by {stop.signal_name}; their states are saved: the same "
                    "command goes on from there"
                )
            if waiting:
                self._hand_out(waiting, left)
                if not waiting:
                    at_last()
            for done in self._done():
                left.remove(done)
        self.keep(0)
        for trainer in self.dismissed:
            trainer.process.wait()

    def _hand_out(self, waiting: list[Task], left: set[str]) -> None:
        for task in [task for task in waiting if left.isdisjoint(task.after)]:
            all_idle = [trainer for trainer in self.trainers if trainer.task is None]
            if not all_idle:
                return
            idle = max(all_idle, key=lambda trainer: task.kind in trainer.kinds)
            waiting.remove(task)
            idle.task = task
            idle.kinds.add(task.kind)
            self._send(idle, task.name)

    def _send(self, trainer: _Trainer, message: object) -> None:
        try:
            trainer.connection.send(message)
        except OSError as error:
            raise self._failure(trainer) from error

    def _done(self) -> list[str]:
        """Names of the tasks that were done by now; waits `LOOKS_SECONDS` for one."""
        names = []
        by_connection = {trainer.connection: trainer for trainer in self.trainers}
        for connection in wait(list(by_connection), timeout=LOOKS_SECONDS):
            assert isinstance(connection, Connection)
            trainer = by_connection[connection]
            try:
                names.append(connection.recv())
            except (EOFError, OSError) as error:
                raise self._failure(trainer) from error
            trainer.task = None
        return names

    def _failure(self, trainer: _Trainer) -> Exception:
        status, name = trainer.process.wait(), trainer.task.name if trainer.task else "a training"
        trainer.relay.join(RELAY_SECONDS)
        if status == GOES_ON:
            return Interrupted(f"{name} was stopped; what is done is saved: the same command goes on from there")
        how = f"{name} has failed, as written above"
        if status < 0:
            how = f"the process of {name} was ended by {signal.Signals(-status).name}"
        return InvalidValue(
            f"{how}; where memory was short, --parallel=1 needs less. The same command goes on with what is done"
        )

    def _stop(self) -> None:
        """Has all processes save and end."""
        for trainer in self.trainers:
            trainer.process.terminate()
        for trainer in self.trainers:
            trainer.process.wait()

    def _started(self, at_once: int) -> _Trainer:
        cores = sorted(os.sched_getaffinity(0))
        own = shares(cores, at_once)[len(self.trainers)] if self.platform == "cpu" else cores
        ours, theirs = socket.socketpair()
        with theirs, processes.signals_wait():
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tll_jax.study.trainer"),
                    json.dumps([sys.path, own, self.platform, theirs.fileno()]),
                ],
                pass_fds=[theirs.fileno(), self.lock],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # A process takes of a GPU's memory what it needs, not three quarters for itself.
                env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ,
                text=True,
                errors="replace",
            )
        connection = Connection(ours.detach())
        assert process.stderr is not None
        relay = threading.Thread(target=_relay, args=(process.stderr,), daemon=True)
        relay.start()
        return _Trainer(process=process, connection=connection, relay=relay)


def _relay(lines: IO[str]) -> None:
    """Prints a process's messages. Through a pipe they are whole lines, without progress bars that overwrite others."""
    with lines:
        for line in lines:
            sys.stderr.write(line)
            sys.stderr.flush()
