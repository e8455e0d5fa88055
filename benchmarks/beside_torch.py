"""Rates of ours beside PyTorch in a process of its own; the two take turns. For the benchmarks beside it."""

import importlib
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from steps import Run

from tll_jax.devices import keep_freed_memory


class Peer(NamedTuple):
    """PyTorch's side: `<module>.<function>(*arguments, compiled=...)`, once for each of `names`, of "eager" and
    "compiled"."""

    function: str
    arguments: tuple[Any, ...]
    names: list[str]
    module: str = "torch_peer"


class Rates(NamedTuple):
    """Measurements by the system's name; a peer that failed has a problem instead."""

    rounds: dict[str, list[float]]
    """Units a second."""
    start_seconds: dict[str, float]
    """From making it to the end of the third step, compiling included."""
    problems: dict[str, str]
    peer_float32_error: list[float]
    """`torch_peer.float32_error`, if it answered."""


def serve(connection: Connection, peer: Peer) -> None:
    """Answers (name, steps) with the seconds they took, or with what went wrong as text, until the other side ends."""
    import torch_peer

    keep_freed_memory()
    torch_peer.prepare()
    connection.send(torch_peer.float32_error())
    make, runs = getattr(importlib.import_module(peer.module), peer.function), {}
    while True:
        try:
            name, steps = connection.recv()
        except EOFError:
            return
        try:
            started = time.perf_counter()
            if name not in runs:
                runs[name] = make(*peer.arguments, compiled=name == "compiled")
            connection.send(seconds_of(runs[name], steps, since=started))
        except torch_peer.CANNOT_COMPILE as error:
            # 2.13 cannot compile the triplet loss.
            connection.send(str(error).strip().splitlines()[0])


def seconds_of(run: Run, steps: int, *, since: float) -> float:
    """Until so many steps are done, the last of which is waited for."""
    for _ in range(steps):
        finish = run()
    finish()
    return time.perf_counter() - since


class Ours:
    """PyTorch's counterpart of `serve`, in this process."""

    def __init__(self, make: Callable[[], Run]) -> None:
        self._make, self._run = make, None

    def seconds(self, steps: int) -> float:
        started = time.perf_counter()
        self._run = self._run or self._make()
        return seconds_of(self._run, steps, since=started)


def beside_torch(
    make: Callable[[], Run] | None, peer: Peer, *, units: int, rounds: int, seconds: float, deadline: float = math.inf
) -> Rates:
    """Times runs of as many steps as fill `seconds`, in turns.

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
    found = Rates({}, {}, {}, [])

    def seconds_for(name: str, steps: int) -> float:
        if name == "ours":
            return ours.seconds(steps)
        connection.send((name, steps))
        if not found.peer_float32_error:
            found.peer_float32_error.append(answer(connection, deadline))
        return answer(connection, deadline)

    try:
        steps = {}
        for name in [*(["ours"] if ours else []), *peer.names]:
            try:
                found.start_seconds[name] = seconds_for(name, 3)
                steps[name] = max(1, round(seconds / seconds_for(name, 1)))
                found.rounds[name] = []
            except PeerFailed as problem:
                found.problems[name] = str(problem)
                print(f"PyTorch, {name}: {problem}", file=sys.stderr, flush=True)
                if not problem.goes_on:
                    steps = {name: count for name, count in steps.items() if name == "ours"}
                    break
        for _ in range(rounds):
            for name, count in steps.items():
                found.rounds[name].append(count * units / seconds_for(name, count))
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


def answer(connection: Connection, deadline: float) -> float:
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
        "unit": unit,
        "all_runs": {name: [round(value, 1) for value in values] for name, values in rates.rounds.items()},
        "start_seconds": {name: round(value, 1) for name, value in rates.start_seconds.items()},
        **({"problems": rates.problems} if rates.problems else {}),
    }
