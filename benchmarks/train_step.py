"""Images per second of our training steps and of inference, beside PyTorch on the same CPU cores.

pip install -e '.[bench]'
python benchmarks/train_step.py [--rows 'resnet18 64px'] [--out benchmarks/results/train_step.json]

A step is forward, backward, BatchNorm in training and LARS, in fp32, as the configs put them together; ours is the real
`make_step` with a real objective, metrics included. Images are resident and not augmented on either side. The peer is
written here as PyTorch users write it: channels_last, eager and under torch.compile; the faster of the two counts. Each
is a process of its own; both may use the same cores, written to the results, and have a thread for each and huge pages
(`program.start_with_huge_pages`). A batch of N holds N pairs of views, so 2 N images pass the network. Runs take
turns, each of as many steps as fill `--seconds`, after two steps that do not count; the median of `--rounds` counts.
CPU-seconds of either side and the load of the machine are written beside it. A run with the same `--out` is kept beside
the runs that are in it, and the lower ratio counts; remove the file to begin anew.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beside_torch import Peer, beside_torch, compared
from harness import show, write_results
from steps import Row, Run, our_run, random_batch

from tll_jax.devices import keep_compiled_programs
from tll_jax.program import start_with_huge_pages

Sides = Callable[[Any], tuple[Callable[[], Run], Peer]]

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


def sides(row: Row) -> tuple[Callable[[], Run], Peer]:
    """A function that makes our run of a row, and the peer beside it."""
    batch = random_batch(row)
    return partial(our_run, row, batch), Peer("make_run", (row, batch), [])


def measure(row: Any, sides: Sides, peers: list[str], *, rounds: int, seconds: float) -> dict[str, Any]:
    make, peer = sides(row)
    rates = beside_torch(make, peer._replace(names=peers), units=row.images, rounds=rounds, seconds=seconds)
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


def main(description: str, rows: Sequence[Any], sides: Sides) -> None:
    """Measures every row, prints one JSON line each and the table.

    Args:
      rows: have `name` and `images`, the number that a step counts as.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run, at least one step")
    parser.add_argument("--eager-only", action="store_true", help="do not wait for torch.compile")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start_with_huge_pages()
    keep_compiled_programs()
    before = json.loads(arguments.out.read_text())["rows"] if arguments.out and arguments.out.exists() else []
    measured: list[dict[str, Any]] = []
    names = [row.name for row in rows]
    for row in rows:
        if any(part in row.name for part in arguments.rows):
            peers = ["eager"] if arguments.eager_only else ["eager", "compiled"]
            measured.append(measure(row, sides, peers, rounds=arguments.rounds, seconds=arguments.seconds))
            show(measured[-1])
            write_results(
                arguments.out,
                versions={"torch": version("torch"), "jax": version("jax")},
                cores=sorted(os.sched_getaffinity(0)),
                rows=merged(names, before, measured),
            )
    if not measured:
        raise SystemExit(f"no row contains {' or '.join(arguments.rows)}; there are: {', '.join(names)}")
    print(table(merged(names, before, measured)))


def merged(names: list[str], before: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of both, in the order of the names."""
    runs = {name: [run for one in [*before, *measured] if one["row"] == name for run in one["runs"]] for name in names}
    return [{"row": name, "runs": found} for name, found in runs.items() if found]


if __name__ == "__main__":
    main(__doc__, ROWS, sides)
