"""Seconds, memory and error of pair attributions of a ViT-B/32 pair: 49 x 49 patches, from the last block or the image.

    python benchmarks/pair_attributions.py --out benchmarks/results/pair_attributions.json

The network is CLIP's ViT-B/32 (class token, projection to 512 dimensions at unit length) with random weights, the
pictures are noise: neither changes the work. "last block" attributes to the patch tokens that enter the last block,
"image" to the pixels of every patch. The error is that of the quadrature: how far all parts together miss the cosine.
Each row runs in a process of its own; seconds are of the second run, after compilation.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from vit_steps import vit_b32

from tll_jax.devices import hardware
from tll_jax.files import write_json
from tll_jax.models.heads import Identity
from tll_jax.models.network import Network
from tll_jax.program import start_with_huge_pages
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.pair_attributions import integrated_places, pair_attributions

SIZE, PATCHES, DEPTH = 224, 7, 12
STARTS = {"last block": DEPTH - 1, "image": None}
ROWS = (("last block", 8), ("last block", 32), ("image", 8), ("image", 32))


def measure(start: str, steps: int, chunk: int) -> dict[str, float]:
    """One row, in this process."""
    start_with_huge_pages()
    network = Network(vit_b32().build(dtype=jnp.float32), Identity().build(dtype=jnp.float32))
    left, right = jnp.asarray(np.random.default_rng(0).uniform(size=(2, SIZE, SIZE, 3)), jnp.float32)
    variables = jax.jit(lambda: network.init(jax.random.key(0), left[None], train=False))()

    @jax.jit
    def attribute(variables, left, right):
        embed = NetworkEmbedding(network=network, variables=variables)
        integrate = partial(integrated_places, grid=PATCHES, steps=steps, chunk=chunk)
        return pair_attributions(embed, left, right, stage=STARTS[start], integrate=integrate)

    started = time.perf_counter()
    compiled = attribute.lower(variables, left, right).compile()
    compile_seconds = time.perf_counter() - started
    # From the image one run of minutes is enough.
    for _ in range(2 if start == "last block" else 1):
        started, cpu = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(compiled(variables, left, right))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    pairs = np.asarray(found.parts.pairs)
    assert pairs.shape == (PATCHES,) * 4
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "compile_seconds": round(compile_seconds, 1),
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
        "cosine": float(found.similarity),
        "error": float(found.error()),
        "sum_of_pairs": float(pairs.sum()),
    }


def main() -> None:
    """Measures the rows one after another and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the rows are written, after each")
    parser.add_argument("--chunk", type=int, default=64, help="directions that pass the network together")
    parser.add_argument("--rows", default="", help="only these, such as 'last block:8,image:8'")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        start, _, steps = arguments.one.partition(":")
        print(json.dumps(measure(start, int(steps), arguments.chunk)))
        return
    rows = []
    for name in arguments.rows.split(",") if arguments.rows else [f"{start}:{steps}" for start, steps in ROWS]:
        command = [sys.executable, __file__, "--one", name, "--chunk", str(arguments.chunk)]
        outcome = subprocess.run(command, check=True, capture_output=True, text=True)
        start, _, steps = name.partition(":")
        rows.append({"from": start, "steps": int(steps), "chunk": arguments.chunk, **json.loads(outcome.stdout)})
        print(json.dumps(rows[-1]), flush=True)
        if arguments.out:
            write_json(arguments.out, {"hardware": hardware(), "rows": rows})


if __name__ == "__main__":
    main()
