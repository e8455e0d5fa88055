"""Images per second of the real training loop over those of its bare compiled step.

export TLL_DATA=FOLDER_WITH_THE_ZIPS
python benchmarks/loop_overhead.py [--steps 20] [--rounds 5] [--out benchmarks/results/loop_overhead.json]

The loop is that of a study, with its reading threads, cropping, metrics, progress bar and checkpoints; the bare step is
the same compiled program, augmentation included, on one batch that lies on the device already. Settings are those of
the configs' Barlow Twins pretraining. The two take turns within one process: the loop pauses where it would evaluate,
and the bare step runs meanwhile; the median of the rounds' ratios counts. Checkpoints are timed on their own and
counted as often as the config saves them. `--threads 0` shows what the reading threads hide.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from harness import show, write_results
from pretraining import Pretraining, open_pretraining

from tll_jax.devices import batch_sharded, keep_compiled_programs, replicated, to_devices
from tll_jax.program import start_with_huge_pages
from tll_jax.training import loop, records

NAMES = ("emoji", "tll_pretraining")


class Turns:
    """The loop's step and its evaluator, which together see when the loop works, when it saves and when it waits."""

    def __init__(self, step: Any, bare: Any, steps: int) -> None:
        self._step, self._bare, self._steps = step, bare, steps
        self.loop_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.save_seconds: list[float] = []
        self._working_since: float | None = None
        self._saving_since: float | None = None

    def step(self, state: Any, batch: Any) -> Any:
        """The first step after a pause starts the clock of the loop's turn."""
        now = time.perf_counter()
        if self._saving_since is not None:
            self.save_seconds.append(now - self._saving_since)
            self._saving_since = None
        if self._working_since is None:
            self._working_since = now
        return self._step(state, batch)

    def evaluate(self, _variables: Any) -> dict[str, float]:
        """Called when all steps so far are done: the bare step's turn. The readers fill their buffers first."""
        assert self._working_since is not None
        self.loop_seconds.append(time.perf_counter() - self._working_since)
        time.sleep(1)
        self.bare_seconds.append(self._bare(self._steps))
        self._working_since, self._saving_since = None, time.perf_counter()
        return {}


def measure(
    opened: Pretraining, name: str, *, threads: int, steps: int, rounds: int, workers: int = 0
) -> dict[str, Any]:
    """One row: the loop and the bare step of a pretraining, `rounds` turns of `steps` steps each."""
    settings, mesh, step, state = opened.settings, opened.mesh, opened.step, opened.start
    batch_size = settings.loop.batch_size
    batches = opened.batches(num_threads=threads, num_workers=workers)
    resident = to_devices(next(batches), batch_sharded(mesh))
    bare_state = jax.device_put(state, replicated(mesh), may_alias=False)

    def bare(steps: int) -> float:
        nonlocal bare_state
        started = time.perf_counter()
        for _ in range(steps):
            bare_state, metrics = step(bare_state, resident)
        jax.block_until_ready((bare_state, metrics))
        return time.perf_counter() - started

    bare(2)
    turns = Turns(step, bare, steps)
    # One turn more than counted: the first starts the readers.
    short = dataclasses.replace(
        settings.loop, num_steps=(rounds + 1) * steps, save_every=steps, evaluate_every=steps, log_every=20
    )
    with tempfile.TemporaryDirectory() as folder:
        training = loop.Training(
            step=turns.step,
            make_batches=lambda _start: batches,
            settings=short,
            folder=Path(folder),
            mesh=mesh,
            label=name,
            evaluator=turns.evaluate,
        )
        training.run(state)
        logged = [r for r in records.read(Path(folder) / "metrics.jsonl") if "device_idle_fraction" in r]
    saving = statistics.median(turns.save_seconds) / settings.loop.save_every
    looped = [seconds / steps + saving for seconds in turns.loop_seconds[1:]]
    stepped = [seconds / steps for seconds in turns.bare_seconds[1:]]
    rates = {
        "loop": [round(2 * batch_size / seconds, 1) for seconds in looped],
        "bare_step": [round(2 * batch_size / seconds, 1) for seconds in stepped],
    }
    return {
        "benchmark": "loop_overhead",
        "row": name,
        "loop": statistics.median(rates["loop"]),
        "bare_step": statistics.median(rates["bare_step"]),
        "ratio": round(statistics.median(b / a for a, b in zip(looped, stepped, strict=True)), 3),
        "unit": "images/s",
        "device_idle_fraction": round(statistics.median(r["device_idle_fraction"] for r in logged), 3),
        "checkpoint_fraction": round(saving / statistics.median(looped), 4),
        "batch_size": batch_size,
        "steps_a_round": steps,
        "all_rounds": rates,
    }


def main() -> None:
    """Measures every row and prints one JSON line each, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=20, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_compiled_programs()
    start_with_huge_pages()
    rows = []
    for name in arguments.configs:
        for threads in arguments.threads:
            label = f"{name}, {threads} reading threads"
            row = measure(
                open_pretraining(name), label, threads=threads, steps=arguments.steps, rounds=arguments.rounds
            )
            show(row)
            rows.append(row)
    print("\n| row | loop, images/s | bare step, images/s | ratio | device idle | checkpoints |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['row']} | {row['loop']:,.0f} | {row['bare_step']:,.0f} | {row['ratio']:.2f} | "
            f"{row['device_idle_fraction']:.0%} | {row['checkpoint_fraction']:.1%} |"
        )
    write_results(arguments.out, rows=rows)


if __name__ == "__main__":
    main()
