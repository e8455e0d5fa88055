"""Milliseconds of every way to compute a convolution on CPUs, forward and both gradients, by shape.

python benchmarks/convolution_lowerings.py [--out benchmarks/results/convolution_lowerings.json]

The shapes are those of ResNet-18 at 64 pixels with 128 images, some at 48 and 96, those of ResNet-50 at 224 with 32,
and the stem of EfficientNet-Lite0. `lowering_for` in
`tll_jax/models/ops/convolution.py` chooses from this table; what it chose is marked. Every number is the median of
`--rounds` runs, interleaved over the ways; fp32.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import show, write_results

from tll_jax.models.ops import convolution
from tll_jax.program import start_with_huge_pages

# Images, height and width, channels, features, kernel size, strides.
SHAPES = [
    (128, 48, 3, 16, 7, 2),
    (128, 64, 3, 32, 7, 2),
    (128, 64, 3, 64, 7, 2),
    (128, 96, 3, 64, 7, 2),
    (128, 16, 64, 64, 3, 1),
    (128, 16, 64, 128, 3, 2),
    (128, 24, 64, 64, 3, 1),
    (128, 24, 64, 128, 3, 2),
    (128, 8, 128, 128, 3, 1),
    (128, 8, 128, 256, 3, 2),
    (128, 4, 256, 256, 3, 1),
    (128, 4, 256, 512, 3, 2),
    (128, 2, 512, 512, 3, 1),
    (32, 224, 3, 32, 3, 2),
    (32, 224, 3, 64, 7, 2),
    (32, 56, 64, 256, 1, 1),
    (32, 56, 64, 64, 3, 1),
    (32, 56, 128, 128, 3, 2),
    (32, 28, 128, 128, 3, 1),
    (32, 28, 256, 256, 3, 2),
    (32, 14, 256, 256, 3, 1),
    (32, 14, 512, 512, 3, 2),
    (32, 7, 512, 512, 3, 1),
]
PARTS = ("forward", "image_gradient", "kernel_gradient")


def ways(size: int, strides: int) -> dict[str, convolution.Lowering]:
    """All that can compute it."""
    found = {"plain": convolution.plain(strides), "unfolded": convolution.unfolded(strides)}
    if size > 1:
        by_windows = partial(convolution.kernel_gradient_unfolded, strides=strides)
        found["unfolded"] = found["unfolded"]._replace(kernel_gradient=by_windows)
    if size == 7:
        found["folded"] = convolution.differentiated(convolution.convolve_folded)
    if size == 3 and strides == 1:
        found |= {"tiles of 2": convolution.by_tiles(2), "tiles of 4": convolution.by_tiles(4)}
    return found


def measure(shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    images, side, channels, features, size, strides = shape
    rng = np.random.default_rng(0)
    new_side = (side - 1) // strides + 1
    arrays = [
        jnp.asarray(rng.normal(size=sizes), jnp.float32)
        for sizes in (
            (images, side, side, channels),
            (size, size, channels, features),
            (images, new_side, new_side, features),
        )
    ]
    chosen = convolution.lowering_for(arrays[0].shape, arrays[1].shape, strides)
    rows = []
    for part in PARTS[:2] if channels == 3 else PARTS:
        part = "kernel_gradient" if channels == 3 and part == "image_gradient" else part
        arguments = arrays[:2] if part == "forward" else arrays
        programs = {"chosen": jax.jit(getattr(chosen, part))}
        programs |= {name: jax.jit(getattr(way, part)) for name, way in ways(size, strides).items()}
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds + 1):
            for name, program in programs.items():
                started = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                times[name].append(1e3 * (time.perf_counter() - started))
        medians = {name: round(statistics.median(values[1:]), 2) for name, values in times.items()}
        gigaflop = 2 * arrays[2].size * size**2 * channels / 1e9
        rows.append({"shape": shape, "part": part, "gigaflop": round(gigaflop, 2), "milliseconds": medians})
        show(rows[-1])
    return rows


def main() -> None:
    """Measures every shape and prints one JSON line for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start_with_huge_pages()
    rows = [row for shape in SHAPES for row in measure(shape, arguments.rounds)]
    write_results(arguments.out, versions={"jax": jax.__version__}, rows=rows)


if __name__ == "__main__":
    main()
