"""Rates and times on one NVIDIA GPU, beside PyTorch on the same GPU; a group takes at most eight minutes on an H100.

pip install -e '.[cuda,bench]'
python benchmarks/gpu.py --group GROUP [--rows 'resnet18 64px'] [--out benchmarks/results/gpu.json]

  steps: training steps on resident images, eager and (where they name it) under torch.compile.
  transformers: cuDNN's attention beside the plain one; inference, a Barlow Twins step and one of adapters (LoRA) of
    vision transformers. `attention_calls` counts cuDNN's attention in our compiled program.
  loop: the training loop from JPEG files at 224 pixels (decoding, two crops, workers) over its bare step, beside a
    DataLoader with OpenCV; and what decoding and cropping alone would give, with nothing to do for the GPU.
  study: configs/emoji.py with three fine-tuning seeds from its start to the report, with an empty cache and with the
    one that this leaves.
  search: inference, SmoothGrad of 25 samples, and the 25 nearest of 1,000,000 vectors beside torch.topk.

bf16 is autocast on PyTorch's side, channels_last, cuDNN's benchmark on. float32 may be computed as TF32 on both sides;
`float32_error`, of a product of 1024 x 1024, says what it was: about 1e-7 in float32, 1e-4 in TF32. Runs take turns,
the median of `--rounds` counts; `start_seconds` reach from making what runs to its third step. What the time of a
group does not suffice for is left out and said. Results of other groups and rows stay in `--out`. The script needs no
network and no data; `--tiny` tries it on a CPU at sizes that say nothing.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from harness import show

# PyTorch runs beside JAX on the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import vit_steps
from absl import flags
from beside_torch import Peer, beside_torch, compared
from loop_overhead import measure as measure_loop
from pretraining import Pretraining, prepare
from steps import Finish, Row, Run, our_run, random_batch

from tll_jax.augment.recipes import barlow_view_a, barlow_view_b
from tll_jax.data.folder import ImageFolder
from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.devices import hardware, keep_compiled_programs, make_mesh
from tll_jax.models.heads import Identity
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.program import start_with_huge_pages
from tll_jax.ranking import embedding_top_k, inner_product
from tll_jax.study.settings import Loop, Model, Pretrain
from tll_jax.training.optimizers import Lars

GROUP_SECONDS = 480
ALL, EAGER = ["eager", "compiled"], ["eager"]
ROOT = Path(__file__).parents[1]


class Options(NamedTuple):
    """Command-line options of a run."""

    rows: str
    tiny: bool
    rounds: int
    seconds: float
    peers: bool
    deadline: float
    """By `time.monotonic()`."""

    def wants(self, name: str) -> bool:
        """Whether a row is asked for and there is time for it."""
        if self.rows not in name:
            return False
        has_time = time.monotonic() < self.deadline
        if not has_time:
            print(f"left out, for the time of the group is over: {name}", file=sys.stderr, flush=True)
        return has_time


def step_rows(tiny: bool) -> Iterator[tuple[Row, list[str]]]:
    """Rows of `steps`, the most important first, each with the names of its peers."""
    large, small = (8, 4) if tiny else (256, 512)
    pixels = {50: 32 if tiny else 224, 18: 32 if tiny else 64}
    resnet18 = functools.partial(Row, depth=18, size=pixels[18], batch=small)
    if not tiny:
        yield Row(task="barlow", depth=50, size=pixels[50], batch=large, dtype="bfloat16"), ALL
    yield resnet18(task="barlow", dtype="bfloat16"), ALL
    yield resnet18(task="barlow", dtype="bfloat16", is_augmented=True), EAGER
    yield resnet18(task="barlow"), EAGER
    yield resnet18(task="classification", dtype="bfloat16"), EAGER
    yield resnet18(task="triplet", dtype="bfloat16"), EAGER


def embedding_rows(tiny: bool) -> Iterator[tuple[Row, list[str]]]:
    """Inference and explanations."""
    depth, size, batch = (18, 32, 4) if tiny else (50, 224, 256)
    for dtype in ("bfloat16", "float32"):
        yield Row(task="inference", depth=depth, size=size, batch=batch, dtype=dtype), ALL
    yield Row(task="smoothgrad", depth=18, size=32 if tiny else 224, batch=2 if tiny else 8, dtype="float32"), EAGER


def measured(rows: Iterator[tuple[Row, list[str]]], options: Options) -> Iterator[dict[str, Any]]:
    for row, peers in rows:
        if options.wants(row.name):
            batch = random_batch(row)
            peer = Peer("make_run", (row, batch), peers)
            yield beside(row.name, functools.partial(our_run, row, batch), peer, row.images, "images/s", options)


def beside(name: str, make: Callable[[], Run], peer: Peer, units: int, unit: str, options: Options) -> dict[str, Any]:
    """One row beside PyTorch."""
    rates = beside_torch(
        make,
        peer if options.peers else peer._replace(names=[]),
        units=units,
        rounds=options.rounds,
        seconds=options.seconds,
        deadline=options.deadline,
    )
    errors = {"ours": our_float32_error(), "peer": next(iter(rates.peer_float32_error), None)}
    return {"row": name, **compared(rates, unit=unit), "float32_error": errors}


@functools.cache
def our_float32_error() -> float:
    """As `torch_peer.float32_error`, with JAX's default precision."""
    a, b = (np.random.default_rng(seed).standard_normal((1024, 1024)).astype(np.float32) for seed in (0, 1))
    exact = a.astype(np.float64) @ b
    return float(np.abs(np.asarray(jnp.asarray(a) @ jnp.asarray(b)) - exact).max() / np.abs(exact).max())


def steps(options: Options) -> Iterator[dict[str, Any]]:
    yield from measured(step_rows(options.tiny), options)


def transformers(options: Options) -> Iterator[dict[str, Any]]:
    *first, odd = vit_steps.ATTENTION_SHAPES
    if options.wants("attention"):
        yield from (vit_steps.attention_row(*shape) for shape in first)
    for row in vit_steps.rows(options.tiny):
        if options.wants(row.name):
            make = vit_steps.OurRun(row)
            peer = Peer("make_run", (row,), ["compiled", "eager"], module="torch_vit")
            yield beside(row.name, make, peer, row.images, "images/s", options) | {
                "attention_calls": make.attention_calls()
            }
    if options.wants("attention"):
        yield vit_steps.attention_row(*odd)


def search(options: Options) -> Iterator[dict[str, Any]]:
    yield from measured(embedding_rows(options.tiny), options)
    num_candidates, num_queries = (5_000, 20) if options.tiny else (1_000_000, 1_000)
    dim, k, block = 256, 25, 65_536
    name = f"ranking, {num_queries} queries, {num_candidates} x {dim}"
    if options.wants(name):
        make = functools.partial(our_search, num_candidates, dim, num_queries, k)
        peer = Peer("make_search", (num_candidates, dim, num_queries, k, block), EAGER)
        yield beside(name, make, peer, num_queries, "queries/s", options)


def our_search(num_candidates: int, dim: int, num_queries: int, k: int) -> Run:
    """Candidates lie on the device; queries come from the host."""
    rng, mesh = np.random.default_rng(0), make_mesh(jax.devices()[:1])
    candidates, queries = (rng.standard_normal((num, dim), dtype=np.float32) for num in (num_candidates, num_queries))
    resident = jax.device_put(candidates)

    def run() -> Finish:
        found = embedding_top_k(queries, resident, k, mesh=mesh, score=inner_product)
        return lambda: found

    return run


def write_photographs(folder: Path, num: int) -> None:
    """JPEG files of 500 x 375 pixels and about 100 KB, as those of ImageNet, of smooth noise and grain."""

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        smooth = cv2.resize(
            rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC
        )
        image = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 85])

    # Nearly all of it is NumPy's and OpenCV's, which let other threads run.
    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(num)))


def loop(options: Options) -> Iterator[dict[str, Any]]:
    """One row: the loop over its bare step, the limit of decoding and cropping, and PyTorch's loop."""
    size, batch_size, depth = (32, 4, 18) if options.tiny else (224, 256, 50)
    workers = len(os.sched_getaffinity(0))
    name = f"loop from JPEG files, resnet{depth} {size}px batch {batch_size} bf16"
    if not options.wants(name):
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photographs(folder, 16 if options.tiny else 4096)
        opened = prepare(
            Model(
                backbone=ResNet(depth=depth),
                head=Identity(normalize=False),
                pretrain=Pretrain(
                    images=ImageFolder(path=str(folder)),
                    objective=BarlowTwins(projector=(64, 64) if options.tiny else (8192, 8192, 8192)),
                    geometry=RandomResizedCrop(size=size, scale=(0.08, 1.0)),
                    augment_a=barlow_view_a(),
                    augment_b=barlow_view_b(),
                    optimizer=Lars(),
                    loop=Loop(num_steps=1000, batch_size=batch_size, dtype="bfloat16"),
                ),
            ),
        )
        # Turns so long that the batches which workers have ready at their start do not count.
        num_steps, rounds = (2, 1) if options.tiny else (150, 3)
        row = measure_loop(opened, name, threads=2, workers=workers, steps=num_steps, rounds=rounds)
        del row["benchmark"]
        limit = reading_rate(opened, workers, num_batches=4 if options.tiny else 150)
        row |= {"workers": workers, "limit": limit, "ratio_to_limit": round(row["loop"] / limit, 3)}
        if options.peers and options.wants(name):
            torch_row = Row(
                task="barlow", depth=depth, size=size, batch=batch_size, dtype="bfloat16", is_augmented=True
            )
            rates = beside_torch(
                None,
                Peer("make_loop", (torch_row, str(folder), workers), EAGER),
                units=torch_row.images,
                rounds=rounds,
                seconds=0 if options.tiny else 10,
                deadline=options.deadline,
            )
            peer = {"all_rounds": row["all_rounds"] | rates.rounds, "problems": rates.problems}
            if rates.rounds:
                peer |= {
                    "peer": statistics.median(rates.rounds["eager"]),
                    "peer_name": "PyTorch DataLoader, eager step",
                }
            row |= peer
        yield row


def reading_rate(opened: Pretraining, workers: int, *, num_batches: int) -> float:
    """Views a second of the same batches with nothing to do for the device."""
    batches = opened.batches(num_threads=2, num_workers=workers)
    for _ in range(num_batches // 2):
        next(batches)
    started = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    rate = 2 * num_batches * opened.settings.loop.batch_size / (time.perf_counter() - started)
    batches.close()
    return round(rate, 1)


def study(options: Options) -> Iterator[dict[str, Any]]:
    """Seconds of the demo's study as a user starts it, the imports included."""
    config = "tests/configs/smallest.py" if options.tiny else "configs/emoji.py"
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "full"):
            name = f"{config}, 3 seeds, {cache} cache"
            if not options.wants(name):
                continue
            command = [sys.executable, "-m", "tll_jax.main", f"--config={config}", f"--workdir={folder}/{cache}"]
            command.append("--config.seeds=(0, 1, 2)")
            started = time.monotonic()
            environment = os.environ | {"TLL_CACHE": f"{folder}/cache"}
            # As users start it; memory on demand is for the processes that share the GPU with PyTorch.
            environment.pop("XLA_PYTHON_CLIENT_PREALLOCATE")
            left = options.deadline - started
            try:
                subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=sys.stderr, timeout=left)
                yield {"row": name, "ours": round(time.monotonic() - started, 1), "unit": "s"}
            except subprocess.TimeoutExpired:
                yield {"row": name, "ours": None, "unit": "s", "problems": {"ours": f"not finished after {left:.0f} s"}}


GROUPS: dict[str, Callable[[Options], Iterator[dict[str, Any]]]] = {
    "steps": steps,
    "transformers": transformers,
    "loop": loop,
    "study": study,
    "search": search,
}


def merged(out: Path, group: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `out` with these rows of a group in place of those of the same names."""
    content = json.loads(out.read_text()) if out.exists() else {}
    known = {row["row"]: row for row in content.get(group, {}).get("rows", [])} | {row["row"]: row for row in rows}
    measured_on = {"hardware": hardware(), "versions": versions()}
    return content | {group: {**measured_on, "rows": list(known.values())}}


def versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(content: dict[str, Any]) -> str:
    lines = [
        "| row | ours | PyTorch | which | ratio | start, s: ours, PyTorch's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group in content.values():
        for row in group["rows"]:
            ours, peer = row.get("ours", row.get("loop")), row.get("peer")
            starts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in row.get("start_seconds", {}).items())
            cells = [
                row["row"],
                f"{ours:,.1f} {row['unit']}" if ours else row.get("note") or "; ".join(row["problems"].values()),
                f"{peer:,.1f}" if peer else "",
                (row.get("peer_name") or "").removeprefix("PyTorch, "),
                f"{ours / peer:.2f}" if ours and peer else "",
                starts,
            ]
            lines.append(f"| {' | '.join(cells)} |")
            if "bare_step" in row:
                of_reading = f"{row['ratio_to_limit']:.2f} of reading alone, {row['limit']:,.1f}"
                lines.append(
                    f"| of the bare step | {row['ratio']:.2f} of {row['bare_step']:,.1f}; {of_reading} | | | | |"
                )
    return "\n".join(lines)


def main() -> None:
    """Measures a group, prints one JSON line a row and the table of all groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=GROUPS, required=True)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run, at least one step")
    parser.add_argument("--limit", type=float, default=GROUP_SECONDS, help="seconds after which no row begins")
    parser.add_argument("--no-peers", action="store_true", help="ours alone; needs no PyTorch")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU can do in a minute, to try the script")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start_with_huge_pages()
    if not arguments.tiny and jax.default_backend() != "gpu":
        raise SystemExit(f"JAX finds no GPU here, only {jax.devices()[0].platform}; --tiny tries the script on a CPU")
    # Worker processes of grain read absl's flags.
    flags.FLAGS.mark_as_parsed()
    keep_compiled_programs()
    options = Options(
        rows=arguments.rows,
        tiny=arguments.tiny,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        peers=not arguments.no_peers,
        deadline=time.monotonic() + arguments.limit,
    )
    rows: list[dict[str, Any]] = []
    for row in GROUPS[arguments.group](options):
        show(row)
        rows.append(row)
        if arguments.out is not None:
            content = merged(arguments.out, arguments.group, rows)
            arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table({arguments.group: {"rows": rows}} if arguments.out is None else json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
