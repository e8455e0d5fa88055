"""Seconds of each part of a training run's start, from the imports to the first step; then of a step.

python benchmarks/first_step.py [--config emoji] [--out benchmarks/results/first_step.json]

The Barlow Twins pretraining of configs/<config>.py on JAX's default devices, with an empty compilation cache. A step is
that of a batch which lies on the devices. `compiler` counts what the compiled program consists of: on GPUs each fusion
and each custom call (a convolution of cuDNN, a product of cuBLAS) is a kernel that a step launches.
"""

# ruff: noqa: E402 (the clock starts before the imports)

import time

STARTED = time.perf_counter()

import argparse
import re
from pathlib import Path
from typing import Any

import jax
from harness import show, write_results
from pretraining import CONFIGS, prepare

from tll_jax.config_files import load_study
from tll_jax.devices import batch_sharded, replicated, to_devices

STEPS = 50


class Laps:
    """Seconds since the lap before, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = STARTED

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._since, 2)
        self._since = now


def measure(config: str, *, num_steps: int = STEPS) -> dict[str, Any]:
    """One row for a config's pretraining."""
    laps = Laps()
    laps.lap("imports")
    opened = prepare(load_study(str(CONFIGS / f"{config}.py")).models["barlow"], laps.lap)
    state = jax.device_put(opened.start, replicated(opened.mesh), may_alias=False)
    laps.lap("initial state")
    batches = opened.batches(num_threads=2)
    batch = to_devices(next(batches), batch_sharded(opened.mesh))
    batches.close()
    laps.lap("first batch")
    (key,) = opened.step.args
    traced = opened.step.func.trace(key, state, batch)
    laps.lap("tracing")
    lowered = traced.lower()
    laps.lap("lowering")
    step = lowered.compile()
    laps.lap("compiling")
    state, metrics = step(key, state, batch)
    float(metrics["loss"])
    laps.lap("first step")
    for _ in range(num_steps):
        state, metrics = step(key, state, batch)
    float(metrics["loss"])
    laps.lap("steps")
    text = step.as_text()
    return {
        "row": f"configs/{config}.py, pretraining",
        "seconds": laps.seconds,
        "milliseconds_a_step": round(1e3 * laps.seconds["steps"] / num_steps, 2),
        "compiler": {
            "lines": lowered.as_text().count("\n"),
            "fusions": len(re.findall(r" fusion\(", text)),
            "custom_calls": len(re.findall(r" custom-call\(", text)),
        },
    }


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="emoji")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    row = measure(arguments.config, num_steps=arguments.steps)
    show(row)
    write_results(arguments.out, rows=[row])


if __name__ == "__main__":
    main()
