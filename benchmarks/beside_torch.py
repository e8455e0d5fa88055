"""Rates of ours beside PyTorch in a process of its own; the two take turns. For the benchmarks beside it."""

import importlib
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
from steps import Finish, Run

NUM_UNTIMED = 2
"""Steps at the start of each turn that are not timed: a system that has waited for its turn touches memory that the
kernel, or the host of a virtual machine, has taken back meanwhile, which no step of a training does."""


class Peer(NamedTuple):
    """PyTorch's side: `<module>.<function>(*arguments, compiled=...)`, once for each of `names`, of "eager" and
    "compiled"."""

    function: str
    arguments: tuple[Any, ...]
    names: list[str]
    module: str = "torch_peer"


class Taken(NamedTuple):
    """Time of a run."""

    seconds: float
    cpu_seconds: float
    """Of all threads of its process."""


class Rates(NamedTuple):
    """Measurements by the system's name; a peer that failed has a problem instead."""

    rounds: dict[str, list[float]]
    """Units a second."""
    cpu_seconds: dict[str, list[float]]
    """CPU-seconds of all threads for a unit, in the same rounds."""
    load: list[float]
    """Mean number of busy or waiting threads of the machine in the last minute, `os.getloadavg`, after each round."""
    start_seconds: dict[str, float]
    """From making it to the end of the third step, compiling included."""
    problems: dict[str, str]
    peer_float32_error: list[float]
    """`torch_peer.float32_error`, if it answered."""


def serve(connection: Connection, peer: Peer) -> None:
    """Answers (name, untimed steps, steps) with what the latter took, or with what went wrong as text, until the other
    side ends."""
    import torch_peer

    torch_peer.prepare()
    connection.send(torch_peer.float32_error())
    make, runs = getattr(importlib.import_module(peer.module), peer.function), {}
    while True:
        try:
            name, untimed, steps = connection.recv()
        except EOFError:
            return
        try:
            since = now()
            if name not in runs:
                runs[name] = make(*peer.arguments, compiled=name == "compiled")
            connection.send(taken_by(runs[name], untimed, steps, since=since))
        except torch_peer.CANNOT_COMPILE as error:
            # 2.13 cannot compile the triplet loss.
            connection.send(str(error).strip().splitlines()[0])


def now() -> Taken:
    """The clock, and the CPU-seconds of this process so far."""
    return Taken(time.perf_counter(), time.process_time())


def taken_by(run: Run, untimed: int, steps: int, *, since: Taken) -> Taken:
    """Time from `since`, or from the end of the untimed steps if there are some, until `steps` are done; the last one
    is waited for."""
    for _ in range(untimed):
        finish = run()
    if untimed:
        finish()
        since = now()
    for _ in range(steps):
        finish = run()
    finish()
    return Taken(*(end - start for end, start in zip(now(), since, strict=True)))


def waiting(run: Run) -> Run:
    """The run, which returns when it is done."""

    def waits() -> Finish:
        finish = run()
        finish()
        return finish

    return waits


class Ours:
    """PyTorch's counterpart of `serve`, in this process."""

    def __init__(self, make: Callable[[], Run]) -> None:
        self._make, self._run = make, None

    def taken(self, untimed: int, steps: int) -> Taken:
        since = now()
        self._run = self._run or self._make()
        # As in training, no step is dispatched on a CPU before the one before is done: its buffers are allocated then.
        run = waiting(self._run) if jax.default_backend() == "cpu" else self._run
        return taken_by(run, untimed, steps, since=since)


def beside_torch(
    make: Callable[[], Run] | None, peer: Peer, *, units: int, rounds: int, seconds: float, deadline: float = math.inf
) -> Rates:
    """Times runs of as many steps as fill `seconds`, after `NUM_UNTIMED` others, in turns; every second round goes
    through the systems backwards.

    Both processes have the same cores, those of `os.sched_getaffinity`, and a thread for each.

    Args:
      make: makes ours, which is counted as its start; None for PyTorch alone.
      units: images or queries of a step.
      deadline: by `time.monotonic()`; a peer that has not answered by then is given up.
    """
    ours, context = Ours(make) if make else None, multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=serve, args=(other, peer))
    if peer.names:
        process.start()
    other.close()
    found = Rates({}, {}, [], {}, {}, [])

    def taken_for(name: str, steps: int, *, untimed: int = NUM_UNTIMED) -> Taken:
        if name == "ours":
            return ours.taken(untimed, steps)
        connection.send((name, untimed, steps))
        if not found.peer_float32_error:
            found.peer_float32_error.append(answer(connection, deadline))
        return answer(connection, deadline)

    try:
        steps = {}
        for name in [*(["ours"] if ours else []), *peer.names]:
            try:
                found.start_seconds[name] = taken_for(name, 3, untimed=0).seconds
                steps[name] = max(1, round(seconds / taken_for(name, 1).seconds))
                found.rounds[name], found.cpu_seconds[name] = [], []
            except PeerFailed as problem:
                found.problems[name] = str(problem)
                print(f"PyTorch, {name}: {problem}", file=sys.stderr, flush=True)
                if not problem.goes_on:
                    steps = {name: count for name, count in steps.items() if name == "ours"}
                    break
        for number in range(rounds):
            for name, count in list(steps.items())[:: -1 if number % 2 else 1]:
                taken = taken_for(name, count)
                found.rounds[name].append(count * units / taken.seconds)
                found.cpu_seconds[name].append(taken.cpu_seconds / (count * units))
            found.load.append(os.getloadavg()[0])
    finally:
        connection.close()
        if peer.names:
            process.join(timeout=10)
            process.kill()
            process.join()
    return found


class PeerFailed(Exception):
    """PyTorch gave no seconds."""

    def __init__(self, problem: str, *, goes_on: bool) -> None:
        super().__init__(problem)
        self.goes_on = goes_on


def answer(connection: Connection, deadline: float) -> Any:
    """Raises PeerFailed where there is none, or a problem instead."""
    left = deadline - time.monotonic()
    if not connection.poll(None if math.isinf(left) else max(0.0, left)):
        raise PeerFailed("given up: no answer in the time of this group", goes_on=False)
    try:
        received = connection.recv()
    except EOFError:
        raise PeerFailed("its process ended", goes_on=False) from None
    if isinstance(received, str):
        raise PeerFailed(received, goes_on=True)
    return received


def compared(rates: Rates, *, unit: str) -> dict[str, Any]:
    """Fields of a row: the medians of ours and of the faster peer, and all that they come from."""
    medians = {name: statistics.median(values) for name, values in rates.rounds.items() if values}
    peers = [name for name in medians if name != "ours"]
    best = max(peers, key=medians.__getitem__, default=None)
    return {
        "ours": round(medians["ours"], 1),
        "peer": round(medians[best], 1) if best else None,
        "peer_name": f"PyTorch, {best}" if best else None,
        "ratio": round(medians["ours"] / medians[best], 3) if best else None,
        "ratios": [round(a / b, 3) for a, b in zip(rates.rounds["ours"], rates.rounds[best], strict=True)]
        if best
        else [],
        "unit": unit,
        "all_runs": {name: [round(value, 1) for value in values] for name, values in rates.rounds.items()},
        "cpu_milliseconds": {
            name: round(1e3 * statistics.median(values), 2) for name, values in rates.cpu_seconds.items() if values
        },
        "load": [round(value, 1) for value in rates.load],
        "start_seconds": {name: round(value, 1) for name, value in rates.start_seconds.items()},
        **({"problems": rates.problems} if rates.problems else {}),
    }
