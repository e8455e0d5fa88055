"""How the time of a training step grows with batch, image size, depth and projector width, and evaluation with pairs.

python benchmarks/growth.py [--rounds 5] [--axes batch size] [--out benchmarks/results]

The step is that of Barlow Twins with LARS, augmentation included, on a batch that lies on the device already:
ResNet-18 of width 16 on 48-pixel emoji, batch 64, a projector of three layers of 256; each axis changes one of these.
Evaluation embeds both sides of N pairs and ranks each side's pictures for the other's. Along an axis runs take turns;
the median of the rounds counts. Writes growth.json and growth.png into the folder `--out`, and prints the table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import show, write_results
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tll_jax import ranking
from tll_jax.augment.recipes import barlow_view_a, barlow_view_b
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.devices import batch_sharded, keep_compiled_programs, make_mesh, replicated, to_devices
from tll_jax.evaluation.embed import Embedder, head_embedding
from tll_jax.models.heads import Projection
from tll_jax.models.network import Network
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.program import start_with_huge_pages
from tll_jax.report import style
from tll_jax.training.optimizers import Lars
from tll_jax.training.state import init_variables, make_state
from tll_jax.training.step import NetworkLoss, make_step
from tll_jax.typing import ViewBatch

BASE = {"batch": 64, "size": 48, "depth": 18, "projector": 256}
WIDTH = 16
AXES = {
    "batch": (16, 32, 64, 128, 256),
    "size": (32, 48, 64, 96, 128),
    "depth": (18, 34, 50),
    "projector": (256, 1024, 2048, 4096, 8192),
    "pairs": (500, 1000, 2000, 4000, 8000),
}
LABELS = {
    "batch": "batch",
    "size": "image size (pixels)",
    "depth": "depth (ResNet)",
    "projector": "projector width",
    "pairs": "pairs evaluated",
}

Run = Callable[[], dict[str, float]]
"""Does the work once; the seconds of its parts."""


def training_step(*, batch: int, size: int, depth: int, projector: int) -> Run:
    """The step of one setting, compiled and warm."""
    mesh = make_mesh()
    objective = BarlowTwins(projector=(projector,) * 3, scale=0.1)
    network = Network(
        backbone=ResNet(depth=depth, width=WIDTH, pooled_shortcuts=True).build(dtype=jnp.float32),
        head=objective.head(num_classes=0).build(dtype=jnp.float32),
    )
    optimizer = Lars().build(num_steps=1000, batch_size=batch)
    step = make_step(
        NetworkLoss(network, objective), (barlow_view_a(), barlow_view_b()), optimizer, state_shardings=replicated(mesh)
    )
    key = jax.random.key(0)
    state = jax.device_put(make_state(init_variables(network, size=size, seed=0), optimizer), replicated(mesh))
    images = np.random.default_rng(0).integers(0, 256, (2, batch, size, size, 3), np.uint8)
    resident = to_devices(ViewBatch(*images, np.zeros(batch, np.int32)), batch_sharded(mesh))

    def run() -> dict[str, float]:
        nonlocal state
        started = time.perf_counter()
        state, metrics = step(key, state, resident)
        jax.block_until_ready((state, metrics))
        return {"step": time.perf_counter() - started}

    run()
    return run


def evaluation(num_pairs: int) -> Run:
    """Embedding and ranking of `num_pairs` pairs; the emoji pairs over and over."""
    network = Network(
        backbone=ResNet(depth=BASE["depth"], width=WIDTH, pooled_shortcuts=True).build(dtype=jnp.float32),
        head=Projection().build(dtype=jnp.float32),
    )
    variables = init_variables(network, size=BASE["size"], seed=0)
    embedder = Embedder(
        embed=head_embedding(network), geometry=Resize(size=BASE["size"]), batch_size=256, mesh=make_mesh()
    )
    pairs = EmojiPairs().open()
    images = pairs.images(range(len(pairs)))
    sides = [list(side) * (num_pairs // len(pairs) + 1) for side in (images.left, images.right)]
    matches = np.arange(num_pairs)

    def run() -> dict[str, float]:
        started = time.perf_counter()
        left, right = (embedder(variables, side[:num_pairs]) for side in sides)
        embedded = time.perf_counter()
        for queries, candidates in ((left, right), (right, left)):
            ranking.embedding_ranks(queries, candidates, matches, mesh=embedder.mesh)
        return {"embedding": embedded - started, "ranking": time.perf_counter() - embedded}

    run()
    return run


def measure(axis: str, rounds: int) -> list[dict[str, Any]]:
    """One row for every value along an axis and every part of the work."""
    values = AXES[axis]
    runs = [evaluation(value) if axis == "pairs" else training_step(**BASE | {axis: value}) for value in values]
    taken = [[run() for run in runs] for _ in range(rounds)]
    rows = []
    for part in taken[0][0]:
        medians = [statistics.median(found[k][part] for found in taken) for k in range(len(values))]
        for k, value in enumerate(values):
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "part": part,
                    "seconds": round(medians[k], 5),
                    "times_the_first": round(medians[k] / medians[0], 2),
                    "all_rounds": [round(found[k][part], 5) for found in taken],
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for every axis and part, values and milliseconds side by side."""
    lines = ["| grows | what | milliseconds at each value |", "| --- | --- | --- |"]
    for axis, part in dict.fromkeys((row["axis"], row["part"]) for row in rows):
        found = [row for row in rows if (row["axis"], row["part"]) == (axis, part)]
        cells = ", ".join(f"{row['value']}: **{1000 * row['seconds']:,.0f}**" for row in found)
        lines.append(f"| {LABELS[axis]} | {part} | {cells} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A panel an axis, both scales logarithmic; the dashed line is what proportional growth would be."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    with style.theme(dark=False):
        figure = Figure(figsize=(2.3 * len(axes), 2.5), layout="constrained")
        for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_title(LABELS[axis])
            for part in dict.fromkeys(row["part"] for row in rows if row["axis"] == axis):
                found = [row for row in rows if (row["axis"], row["part"]) == (axis, part)]
                values, seconds = [row["value"] for row in found], [row["seconds"] for row in found]
                (line,) = panel.plot(values, seconds, marker="o", markersize=3, label=part)
                proportional = [seconds[0] * value / values[0] for value in values]
                panel.plot(values, proportional, linestyle="--", linewidth=0.8, color=line.get_color())
            panel.xaxis.set_major_locator(FixedLocator(AXES[axis]))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.tick_params(axis="x", labelsize=7)
            panel.legend()
        figure.get_axes()[0].set_ylabel("seconds")
    return figure


def main() -> None:
    """Measures every axis, prints one JSON line a row, then the table; writes JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    keep_compiled_programs()
    start_with_huge_pages()
    rows = []
    for axis in arguments.axes:
        for row in measure(axis, arguments.rounds):
            show(row)
            rows.append(row)
    print(f"\n{table(rows)}")
    if arguments.out is not None:
        style.save(draw(rows), arguments.out / "growth.png")
        write_results(arguments.out / "growth.json", base=BASE | {"width": WIDTH}, rows=rows)


if __name__ == "__main__":
    main()
