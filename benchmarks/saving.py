"""Cost of a checkpoint to training: the copy that steps wait for, and the slowdown of those that follow.

python benchmarks/saving.py [--steps 40] [--rounds 7] [--out benchmarks/results/saving.json]

The steps are those of the demo's Barlow Twins pretraining on one batch on the device. Turns of `--steps` steps
that begin with a save, and turns that do not, alternate; the difference of their medians is a save's whole cost, set
against the time of the 200 steps that the loop puts between two saves. Written in the background counts as what it
slows the steps by.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from harness import show, write_results
from pretraining import open_pretraining

from tll_jax.devices import batch_sharded, keep_compiled_programs, replicated, to_devices
from tll_jax.program import start_with_huge_pages
from tll_jax.study.settings import Loop
from tll_jax.training.checkpoint import Checkpoints


def measure(*, steps: int, rounds: int) -> dict[str, object]:
    """The row of the demo's pretraining."""
    opened = open_pretraining("emoji")
    start, step = opened.start, opened.step
    state = jax.device_put(start, replicated(opened.mesh), may_alias=False)
    batch = to_devices(next(opened.batches(num_threads=1)), batch_sharded(opened.mesh))
    turns: dict[str, list[float]] = {"save": [], "waited": [], "none": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for number in range(2 * rounds + 2):
            saves = number % 2 == 0
            jax.block_until_ready(state)
            started = time.perf_counter()
            if saves:
                checkpoints.save("last", state)
                turns["waited"].append(time.perf_counter() - started)
            for _ in range(steps):
                state, _metrics = step(state, batch)
            jax.block_until_ready(state)
            turns["save" if saves else "none"].append(time.perf_counter() - started)
            checkpoints.finish()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2
        checkpoints.close()
    # The first turn of each kind compiles.
    with_save, without, waited = (statistics.median(turns[kind][1:]) for kind in ("save", "none", "waited"))
    between = Loop(num_steps=1, batch_size=1).save_every * without / steps
    return {
        "benchmark": "saving",
        "row": "emoji, Barlow Twins",
        "step_seconds": round(without / steps, 4),
        "save_seconds": round(with_save - without, 4),
        "waited_seconds": round(waited, 4),
        "share_of_200_steps": round((with_save - without) / between, 4),
        "checkpoint_mib": round(size / 2**20, 1),
        "parameters": int(sum(jnp.size(leaf) for leaf in jax.tree.leaves(start.params))),
        "all_turns": {kind: [round(seconds, 3) for seconds in found] for kind, found in turns.items()},
    }


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_compiled_programs()
    start_with_huge_pages()
    row = measure(steps=arguments.steps, rounds=arguments.rounds)
    show(row)
    write_results(arguments.out, rows=[row])


if __name__ == "__main__":
    main()
