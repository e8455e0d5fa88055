"""Images per second of our training steps and of inference, beside PyTorch on the same CPU cores.

pip install -e '.[bench]'
python benchmarks/train_step.py [--rows 'resnet18 64px'] [--out benchmarks/results/train_step.json]

A step is forward, backward, BatchNorm in training and LARS, in fp32, as the configs put them together; ours is the real
`make_step` with a real objective, metrics included. Images are resident and not augmented on either side. The peer is
written here as PyTorch users write it: channels_last, eager and under torch.compile; the faster of the two counts. Each
is a process of its own; both have the same threads and keep freed memory (`devices.keep_freed_memory`). A batch of
N holds N pairs of views, so 2 N images pass the network. Runs are interleaved, each of as many steps as fill
`--seconds`; the median of `--rounds` counts.
"""

import argparse
import json
import statistics
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
    return {"benchmark": "train_step", "row": row.name, **compared(rates, unit="images/s")}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| row | ours | PyTorch | which | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        which = row["peer_name"].removeprefix("PyTorch, ")
        lines.append(f"| {row['row']} | {row['ours']:,.1f} | {row['peer']:,.1f} | {which} | {row['ratio']:.2f} |")
    mean = statistics.geometric_mean([row["ratio"] for row in rows])
    return "\n".join([*lines, f"| geometric mean | | | | {mean:.2f} |"])


def main() -> None:
    """Measures every row, prints one JSON line each and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name contains this; others stay in --out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run, at least one step")
    parser.add_argument("--eager-only", action="store_true", help="do not wait for torch.compile")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    keep_compiled_programs()
    rows = []
    for row in ROWS:
        if arguments.rows in row.name:
            peers = ["eager"] if arguments.eager_only else ["eager", "compiled"]
            measured = measure(row, peers, rounds=arguments.rounds, seconds=arguments.seconds)
            show(measured)
            rows.append(measured)
            if arguments.out is not None:
                write(rows, arguments.out)
    if not rows:
        raise SystemExit(f"no row contains {arguments.rows!r}; there are: {', '.join(row.name for row in ROWS)}")
    print(table(rows if arguments.out is None else merged(rows, arguments.out)))


def write(rows: list[dict[str, Any]], out: Path) -> None:
    versions = {"torch": version("torch"), "jax": version("jax")}
    write_results(out, versions=versions, rows=merged(rows, out))


def merged(rows: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The new rows, and those of an earlier run that were not measured now, in the order of `ROWS`."""
    known = {one["row"]: one for one in json.loads(out.read_text())["rows"]} if out.exists() else {}
    known |= {one["row"]: one for one in rows}
    return [known[row.name] for row in ROWS if row.name in known]


if __name__ == "__main__":
    main()
