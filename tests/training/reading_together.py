"""Two processes that restore checkpoints together while reading fails in the second of them; run by a test."""

import sys
from pathlib import Path

import jax
import numpy as np

from tests.training.walk import first_state
from tll_jax import processes
from tll_jax.devices import make_mesh, place, replicated
from tll_jax.errors import FileProblem
from tll_jax.training import checkpoint

if __name__ == "__main__":
    address, process, output = sys.argv[1:]
    processes.start(coordinator=address, num_processes=2, process_id=int(process))
    sharding = replicated(make_mesh())
    shardings = jax.tree.map(lambda _: sharding, first_state())
    checkpoints = checkpoint.Checkpoints(Path(output).parent / "checkpoints")
    for number in (1, 2, 3):
        values = jax.tree.map(lambda leaf, number=number: np.asarray(leaf) + number, first_state())
        checkpoints.save("last", place(values, shardings))
    target = place(jax.tree.map(np.asarray, first_state()), shardings)
    checkpoint._WAITS_SECONDS = (0.0, 0.0, 0.0)
    read_once, failures = checkpoint._read_once, []

    def failing(*arguments):
        if processes.is_first() or not failures:
            return read_once(*arguments)
        raise failures.pop()

    checkpoint._read_once = failing
    found, problem = [], None
    for errors in ([OSError(5, "Input/output error")], [ValueError("half"), ValueError("half")]):
        failures.extend(errors)
        found.append(checkpoints.restore("last", target))
    failures.extend(OSError(5, "Input/output error") for _ in range(4))
    try:
        checkpoints.restore("last", target)
    except FileProblem as error:
        problem = error
    np.savez(
        output,
        steps=[int(state.step) for state in found],
        values=[float(state.params["walked"][0]) for state in found],
        kept=checkpoints.steps("last"),
        problem=str(problem),
    )
