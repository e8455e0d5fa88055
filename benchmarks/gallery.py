"""Seconds and memory of ranking 1,000,000 x 256 embeddings that are split over devices, beside faiss-cpu.

pip install -e '.[bench]'
python benchmarks/gallery.py [--candidates 1000000] [--queries 1000] [--rounds 5] [--out FILE]

Random unit vectors, float32; a query is one of them plus noise four times its length, so that about fifty others come
before it. The top 10, and the rank of each query's match, on one device and on two virtual devices of the same cores;
faiss searches the top 10 on as many threads and counts no ranks, so both stand beside its search. Vectors lie on
the device, as a faiss index holds its own. Runs are interleaved, the median counts. CPU seconds, summed over cores,
say more than seconds where other work takes the cores, though the waiting of faiss's threads for each other is in them.
Peak memory (on Linux) is measured in a process of its own: what it takes beyond its imports, the gallery and one search
of each kind included. The projection to a billion multiplies what was measured; nothing of that size has run.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_NUM_CPU_DEVICES"] = "2"

import faiss
import jax
import numpy as np
from harness import show, write_results
from peak_memory import peak_kib, peak_mib

from tll_jax.devices import make_mesh
from tll_jax.ranking import inner_product, shard_gallery, sharded_ranks, sharded_top_k

DIM, K, NOISE = 256, 10, 4
BLOCK = 10_000
BILLION = 10**9
SYSTEMS = ("1 device", "2 devices", "faiss")
Search = Callable[[], np.ndarray]


def unit(vectors: np.ndarray) -> np.ndarray:
    vectors /= np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return vectors


class UnitVectors:
    """Random unit vectors, drawn a block at a time when they are read."""

    def __init__(self, num: int) -> None:
        self.shape = (num, DIM)

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = np.empty((rows.stop - rows.start, DIM), np.float32)
        for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
            drawn = unit(np.random.default_rng([0, block]).standard_normal((BLOCK, DIM), dtype=np.float32))
            start = block * BLOCK
            first, stop = max(rows.start, start), min(rows.stop, start + BLOCK)
            found[first - rows.start : stop - rows.start] = drawn[first - start : stop - start]
        return found


def make_queries(num: int, candidates: UnitVectors) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    matches = rng.integers(0, candidates.shape[0], num)
    noise = unit(rng.standard_normal((num, DIM), dtype=np.float32))
    own = np.concatenate([candidates[match : match + 1] for match in matches.tolist()])
    return unit(own + NOISE * noise), matches


def searches(system: str, candidates: UnitVectors, queries: np.ndarray, matches: np.ndarray) -> dict[str, Search]:
    """Measured functions of a system, by its name; each holds the gallery."""
    if system == "faiss":
        index = faiss.IndexFlatIP(DIM)
        for start in range(0, candidates.shape[0], BLOCK):
            index.add(candidates[start : min(start + BLOCK, candidates.shape[0])])
        return {"top-10": lambda: index.search(queries, K)[1]}
    mesh = make_mesh(jax.devices()[: int(system[0])])
    gallery = shard_gallery(candidates, mesh=mesh)
    return {
        "top-10": lambda: sharded_top_k(queries, gallery, K, mesh=mesh, score=inner_product),
        "ranks": lambda: sharded_ranks(queries, gallery, matches, mesh=mesh, score=inner_product),
    }


def print_memory(system: str, num_candidates: int, num_queries: int) -> None:
    before, candidates = peak_kib(), UnitVectors(num_candidates)
    for search in searches(system, candidates, *make_queries(num_queries, candidates)).values():
        search()
    print((peak_kib() - before) / 1024)


def ranks_agree(ranks: np.ndarray, matches: np.ndarray, nearest: np.ndarray) -> float:
    """The share of queries whose rank is the place of the match among faiss's nearest, or beyond them all."""
    placed = nearest == matches[:, None]
    expected = np.where(placed.any(1), placed.argmax(1) + 1, K + 1)
    return float(np.mean(np.minimum(ranks, K + 1) == expected))


def main() -> None:
    """Measures every row and prints one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    num_candidates, num_queries = arguments.candidates, arguments.queries
    threads = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(threads)
    if arguments.memory_of:
        print_memory(arguments.memory_of, num_candidates, num_queries)
        return
    memory = {system: round(peak_mib(__file__, system, num_candidates, num_queries)) for system in SYSTEMS}
    candidates = UnitVectors(num_candidates)
    queries, matches = make_queries(num_queries, candidates)
    measured = {
        (system, what): search
        for system in SYSTEMS
        for what, search in searches(system, candidates, queries, matches).items()
    }
    found = {name: search() for name, search in measured.items()}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in measured}
    cpu_seconds: dict[tuple[str, str], list[float]] = {name: [] for name in measured}
    loads = []
    for _ in range(arguments.rounds):
        for name, search in measured.items():
            loads.append(os.getloadavg()[0])
            started, cpu_started = time.perf_counter(), time.process_time()
            search()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
    cpu_median = {name: round(statistics.median(values), 2) for name, values in cpu_seconds.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    faiss_name, rows = ("faiss", "top-10"), []
    for system in SYSTEMS[:-1]:
        for what in ("top-10", "ranks"):
            name = (system, what)
            row = {
                "benchmark": "gallery",
                "row": f"{what}, {num_queries} queries, {num_candidates} candidates, {system}",
                "ours": round(num_queries / median[name], 1),
                "peer": round(num_queries / median[faiss_name], 1),
                "peer_name": "faiss IndexFlatIP" + ("" if what == "top-10" else ", its top-10 search"),
                "ratio": round(median[faiss_name] / median[name], 3),
                "unit": "queries/s",
                "threads": threads,
                "same_as_faiss": round(float(np.mean(found[name] == found[faiss_name])), 5)
                if what == "top-10"
                else ranks_agree(found[name], matches, found[faiss_name]),
                "cpu_seconds": {"ours": cpu_median[name], "peer": cpu_median[faiss_name]},
                "embeddings_mib": round(num_candidates * DIM * 4 / 2**20),
                "peak_mib": {"ours": memory[system], "peer": memory["faiss"]},
                "all_seconds": {
                    "ours": [round(value, 3) for value in seconds[name]],
                    "peer": [round(value, 3) for value in seconds[faiss_name]],
                },
            }
            show(row)
            rows.append(row)
    if arguments.out is not None:
        scale = BILLION / num_candidates * 1000 / num_queries
        projection = {
            "vectors": BILLION,
            "bytes": BILLION * DIM * 4,
            "cpu_seconds_per_1000_queries": {
                what: round(scale * cpu_median["1 device", what]) for what in ("top-10", "ranks")
            },
            "bytes_gathered_a_device_per_1000_queries": 1000 * K * 8,
        }
        write_results(
            arguments.out,
            versions={"jax": jax.__version__, "faiss": faiss.__version__},
            load_average={"least": min(loads), "most": max(loads)},
            rows=rows,
            projection=projection,
        )


if __name__ == "__main__":
    main()
