"""Images per second of vision transformers on a CPU, beside PyTorch on the same cores: inference and training steps.

    pip install -e '.[bench]'
    python benchmarks/vit.py [--rows 'lora'] [--out benchmarks/results/vit.json]

All in fp32, on resident images without augmentation. `torch_vit` has the peer: scaled_dot_product_attention, eager and
under torch.compile, of which the faster counts. Adapters (LoRA, rank 8) are on attention and MLPs, trained by InfoNCE
and AdamW; PyTorch's are beside frozen layers, too. Runs are interleaved, each of as many steps as fill `--seconds`; the
median of `--rounds` counts. `benchmarks/gpu.py --group transformers` measures the same on a GPU, in bfloat16.
"""

import argparse
import json
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vit_steps
from beside_torch import Peer, beside_torch, compared
from harness import show, write_results
from vit_steps import VitRow

from tll_jax.devices import keep_compiled_programs, keep_freed_memory

ROWS = [
    VitRow(task="inference", network="vit-s/14", batch=16),
    VitRow(task="inference", network="vit-b/32", batch=32),
    VitRow(task="barlow", network="vit-s/14", batch=8),
    VitRow(task="lora", network="vit-b/32", batch=16),
]


def measure(row: VitRow, peers: list[str], *, rounds: int, seconds: float) -> dict[str, Any]:
    peer = Peer("make_run", (row,), peers, module="torch_vit")
    rates = beside_torch(vit_steps.OurRun(row), peer, units=row.images, rounds=rounds, seconds=seconds)
    return {"row": row.name, **compared(rates, unit="images/s")}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| row | ours | PyTorch | which | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        which = row["peer_name"].removeprefix("PyTorch, ")
        lines.append(f"| {row['row']} | {row['ours']:,.1f} | {row['peer']:,.1f} | {which} | {row['ratio']:.2f} |")
    mean = statistics.geometric_mean([row["ratio"] for row in rows])
    return "\n".join([*lines, f"| geometric mean | | | | {mean:.2f} |"])


def main() -> None:
    """Measures the rows, prints one JSON line each and the table; other rows stay in `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run, at least one step")
    parser.add_argument("--eager-only", action="store_true", help="do not wait for torch.compile")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    keep_compiled_programs()
    is_known = arguments.out is not None and arguments.out.exists()
    known = {row["row"]: row for row in json.loads(arguments.out.read_text())["rows"]} if is_known else {}
    for row in ROWS:
        if arguments.rows in row.name:
            peers = ["eager"] if arguments.eager_only else ["eager", "compiled"]
            known[row.name] = measure(row, peers, rounds=arguments.rounds, seconds=arguments.seconds)
            show(known[row.name])
            rows = [known[one.name] for one in ROWS if one.name in known]
            versions = {name: version(name) for name in ("torch", "jax")}
            write_results(arguments.out, versions=versions, rows=rows)
    print(table(rows))


if __name__ == "__main__":
    main()
