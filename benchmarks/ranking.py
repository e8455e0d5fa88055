"""Seconds and memory of exact top-25 search, beside faiss-cpu and scikit-learn, on the same threads.

pip install -e '.[bench]'
python benchmarks/ranking.py [--queries 1000] [--rounds 5] [--out benchmarks/results/ranking.json]

Random unit vectors of 512 dimensions; 2,000, 20,000 and 200,000 candidates. Ours searches vectors that lie on the
device, as a faiss index holds its own; queries come from the host. Two rows more: the ranks of pairs both ways, beside
two searches of faiss, which counts no ranks; and few queries by distance, beside its IndexFlatL2. faiss is told to use
all usable cores, as XLA does, scikit-learn as many BLAS threads. The OpenBLAS of faiss-cpu does not know CPUs younger
than itself and takes kernels of 2004 for them, so the benchmark names the kernels that fit. Runs are interleaved, the
median counts; CPU seconds are summed over cores, and faiss's threads that wait for each other count in them. A turn
repeats its search for a quarter of a second, after one search that does not count: the threads of the system before it
still wait actively, and freed memory has been taken back meanwhile. Peak memory (on Linux) is measured in a process of
its own for each system: what it takes beyond its imports, one search included, the vectors too.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX" if "avx512f" in Path("/proc/cpuinfo").read_text() else "Haswell")

import faiss
import jax
import numpy as np
import sklearn
from harness import show, write_results
from peak_memory import peak_kib, peak_mib
from sklearn.neighbors import NearestNeighbors

from tll_jax.devices import make_mesh
from tll_jax.ranking import embedding_top_k, inner_product, pair_ranks

DIM, K = 512, 25
NUM_CANDIDATES = (2_000, 20_000, 200_000)
NUM_PAIRS = (2_000, 20_000)
FEW = (8, 100_000)
TURN_SECONDS = 0.25
SYSTEMS = ("ours", "faiss", "sklearn")
Search = Callable[[np.ndarray], np.ndarray]


def unit_vectors(num: int, *, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num, DIM), dtype=np.float32)
    vectors /= np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return vectors


def searcher(system: str, candidates: np.ndarray) -> Search:
    if system == "faiss":
        index = faiss.IndexFlatIP(DIM)
        index.add(candidates)
        return lambda queries: index.search(queries, K)[1]
    if system == "sklearn":
        neighbors = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(candidates)
        return lambda queries: neighbors.kneighbors(queries, return_distance=False)
    mesh, resident = make_mesh(), jax.device_put(candidates)
    return lambda queries: embedding_top_k(queries, resident, K, mesh=mesh, score=inner_product)


def print_memory(system: str, num_candidates: int, num_queries: int) -> None:
    before = peak_kib()
    queries = unit_vectors(num_queries, seed=1)
    searcher(system, unit_vectors(num_candidates, seed=0))(queries)
    print((peak_kib() - before) / 1024)


def in_turns(searches: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and CPU seconds of a search of each system, the means of its turns."""
    repeats = {}
    for name, search in searches.items():
        search()
        started = time.perf_counter()
        search()
        repeats[name] = max(1, round(TURN_SECONDS / (time.perf_counter() - started)))
    taken: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            search()
            started, cpu_started = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                search()
            taken[name]["seconds"].append((time.perf_counter() - started) / repeats[name])
            taken[name]["cpu_seconds"].append((time.process_time() - cpu_started) / repeats[name])
    return taken


def compared(taken: dict[str, dict[str, list[float]]], peer: str, *, units: int, unit: str) -> dict[str, Any]:
    """Fields of a row: rates by the median of seconds."""
    median = {name: statistics.median(taken[name]["seconds"]) for name in ("ours", peer)}
    return {
        "ours": round(units / median["ours"], 1),
        "peer": round(units / median[peer], 1),
        "ratio": round(median[peer] / median["ours"], 3),
        "ratio_of_cpu_seconds": round(
            statistics.median(taken[peer]["cpu_seconds"]) / statistics.median(taken["ours"]["cpu_seconds"]), 3
        ),
        "unit": unit,
        "threads": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "all_seconds": {name: [round(value, 4) for value in taken[name]["seconds"]] for name in ("ours", peer)},
    }


def one_way(num_queries: int, num_candidates: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each peer."""
    queries, candidates = unit_vectors(num_queries, seed=1), unit_vectors(num_candidates, seed=0)
    searches = {system: searcher(system, candidates) for system in SYSTEMS}
    found = {system: search(queries) for system, search in searches.items()}
    taken = in_turns({system: partial(search, queries) for system, search in searches.items()}, rounds)
    del searches
    memory = {system: round(peak_mib(__file__, system, num_candidates, num_queries)) for system in SYSTEMS}
    return [
        {
            "benchmark": "ranking",
            "row": f"{num_queries} queries, {num_candidates} candidates",
            "peer_name": name,
            **compared(taken, peer, units=num_queries, unit="queries/s"),
            "same_neighbors": round(float(np.mean(found["ours"] == found[peer])), 5),
            "embeddings_mib": round((num_candidates + num_queries) * DIM * 4 / 2**20),
            "peak_mib": {"ours": memory["ours"], "peer": memory[peer]},
        }
        for peer, name in (("faiss", "faiss IndexFlatIP"), ("sklearn", "scikit-learn brute force"))
    ]


def both_ways(num_pairs: int, rounds: int) -> list[dict[str, Any]]:
    """Ranks of the matches of all pairs, left to right and right to left, beside a search each way."""
    sides = [unit_vectors(num_pairs, seed=seed) for seed in (0, 1)]
    ways = [(searcher("faiss", sides[way]), sides[1 - way]) for way in (0, 1)]
    mesh = make_mesh()
    searches = {
        "ours": lambda: pair_ranks(*sides, mesh=mesh),
        "faiss": lambda: [search(queries) for search, queries in ways],
    }
    fields = compared(in_turns(searches, rounds), "faiss", units=2 * num_pairs, unit="queries/s")
    return [
        {
            "benchmark": "ranking",
            "row": f"both ways, {num_pairs} pairs",
            "peer_name": "two of faiss IndexFlatIP",
            **fields,
        }
    ]


def few_queries(num_queries: int, num_candidates: int, rounds: int) -> list[dict[str, Any]]:
    """The nearest by distance."""
    queries, candidates = unit_vectors(num_queries, seed=1), unit_vectors(num_candidates, seed=0)
    index = faiss.IndexFlatL2(DIM)
    index.add(candidates)
    mesh, resident = make_mesh(), jax.device_put(candidates)
    searches = {
        "ours": lambda: embedding_top_k(queries, resident, K, mesh=mesh),
        "faiss": lambda: index.search(queries, K)[1],
    }
    fields = compared(in_turns(searches, rounds), "faiss", units=num_queries, unit="queries/s")
    name = f"{num_queries} queries by distance, {num_candidates} candidates"
    return [{"benchmark": "ranking", "row": name, "peer_name": "faiss IndexFlatL2", **fields}]


def main() -> None:
    """Measures every row and prints one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--candidates", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(threads)
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.candidates, arguments.queries)
        return
    rows: list[dict[str, Any]] = []
    versions = {"jax": jax.__version__, "faiss": faiss.__version__, "scikit-learn": sklearn.__version__}

    def add(new: list[dict[str, Any]]) -> None:
        for row in new:
            show(row)
            rows.append(row)
        write_results(arguments.out, versions=versions, kernels=os.environ["OPENBLAS_CORETYPE"], rows=rows)

    for num_pairs in NUM_PAIRS:
        add(both_ways(num_pairs, arguments.rounds))
    add(few_queries(*FEW, arguments.rounds))
    for num_candidates in NUM_CANDIDATES:
        add(one_way(arguments.queries, num_candidates, arguments.rounds))


if __name__ == "__main__":
    main()
