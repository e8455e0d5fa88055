"""Images per second of our training steps and of inference, beside PyTorch on the same CPU cores.

pip install -e '.[bench]'
python benchmarks/train_step.py [--rows 'resnet18 64px'] [--out benchmarks/results/train_step.json]

A step is forward, backward, BatchNorm in training and LARS, in fp32, as the configs put them together; ours is the real
`make_step` with a real objective, metrics included. Images are resident and not augmented on either side. The peer is
written here as PyTorch users write it: channels_last, eager and under torch.compile; the faster of the two counts. Each
is a process of its own; both may use the same cores, written to the results, have a thread for each, and keep freed
memory (`devices.keep_freed_memory`). A batch of N holds N pairs of views, so 2 N images pass the network. Runs take
turns, each of as many steps as fill `--seconds`; the median of `--rounds` counts. CPU-seconds of either side and the
load of the machine are written beside it. A run with the same `--out` is kept beside the runs that are in it, and
the lower ratio counts; remove the file to begin anew.
"""

import argparse
import json
import os
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beside_torch import Peer, beside_torch, compared
from harness import show, write_results
from steps import Row, our_run, random_batch

from tll_jax.devices import keep_compiled_programs, keep_freed_memory

ROWS = [
    *(
        Row(task=task, depth=18, size=size, batch=batch)
        for size in (32, 64, 96)
        for batch in (64, 256)
        for task in ("barlow", "classification", *(["triplet"] if size == 64 else []))
    ),
    *(Row(task=task, depth=50, size=224, batch=16) for task in ("barlow", "classification")),
    *(Row(task="inference", depth=depth, size=224, batch=32) for depth in (50, None)),
]


def measure(row: Row, peers: list[str], *, rounds: int, seconds: float) -> dict[str, Any]:
    batch = random_batch(row)
    rates = beside_torch(
        lambda: our_run(row, batch),
        Peer("make_run", (row, batch), peers),
        units=row.images,
        rounds=rounds,
        seconds=seconds,
    )
    measured = {"time": datetime.now(UTC).isoformat(timespec="minutes"), **compared(rates, unit="images/s")}
    return {"row": row.name, "runs": [measured]}


def table(rows: list[dict[str, Any]]) -> str:
    """The run of the lower ratio for each row, with the spread over its rounds and the ratios of all runs."""
    lines = [
        "| row | ours | PyTorch | which | ratio | rounds | all runs | CPU ms an image |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lowest = []
    for row in rows:
        low = min(row["runs"], key=lambda run: run["ratio"])
        lowest.append(low["ratio"])
        which, cpu = low["peer_name"].removeprefix("PyTorch, "), low["cpu_milliseconds"]
        rounds = f"{min(low['ratios']):.2f} to {max(low['ratios']):.2f}"
        runs = ", ".join(f"{run['ratio']:.2f}" for run in row["runs"])
        lines.append(
            f"| {row['row']} | {low['ours']:,.1f} | {low['peer']:,.1f} | {which} | {low['ratio']:.2f} | {rounds} "
            f"| {runs} | {cpu['ours']:.1f}, {cpu[which]:.1f} |"
        )
    return "\n".join([*lines, f"| geometric mean | | | | {statistics.geometric_mean(lowest):.2f} | | | |"])


def main() -> None:
    """Measures every row, prints one JSON line each and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run, at least one step")
    parser.add_argument("--eager-only", action="store_true", help="do not wait for torch.compile")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    keep_compiled_programs()
    before = json.loads(arguments.out.read_text())["rows"] if arguments.out and arguments.out.exists() else []
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        if any(part in row.name for part in arguments.rows):
            peers = ["eager"] if arguments.eager_only else ["eager", "compiled"]
            rows.append(measure(row, peers, rounds=arguments.rounds, seconds=arguments.seconds))
            show(rows[-1])
            write_results(
                arguments.out,
                versions={"torch": version("torch"), "jax": version("jax")},
                cores=sorted(os.sched_getaffinity(0)),
                rows=merged(before, rows),
            )
    if not rows:
        raise SystemExit(
            f"no row contains {' or '.join(arguments.rows)}; there are: {', '.join(row.name for row in ROWS)}"
        )
    print(table(merged(before, rows)))


def merged(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of both, in the order of `ROWS`."""
    runs = {
        row.name: [run for one in [*before, *rows] if one["row"] == row.name for run in one["runs"]] for row in ROWS
    }
    return [{"row": name, "runs": found} for name, found in runs.items() if found]


if __name__ == "__main__":
    main()
