"""Seconds and memory of exact top-25 search, beside faiss-cpu and scikit-learn, on the same threads.

pip install -e '.[bench]'
python benchmarks/ranking.py [--queries 1000] [--rounds 5] [--out benchmarks/results/ranking.json]

Random unit vectors of 512 dimensions; 2,000, 20,000 and 200,000 candidates. Ours searches vectors that lie on the
device, as a faiss index holds its own; queries come from the host. faiss is told to use all usable cores, as XLA does,
scikit-learn as many BLAS threads. Runs are interleaved, the median counts. Peak memory (on Linux) is measured in a
process of its own for each system: what it takes beyond its imports, one search included, the vectors too.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import jax
import numpy as np
import sklearn
from peak_memory import peak_kib, peak_mib
from sklearn.neighbors import NearestNeighbors

from tll_jax.devices import hardware, make_mesh
from tll_jax.ranking import embedding_top_k, inner_product

DIM, K = 512, 25
NUM_CANDIDATES = (2_000, 20_000, 200_000)
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
    queries, rows = unit_vectors(arguments.queries, seed=1), []
    for num_candidates in NUM_CANDIDATES:
        candidates = unit_vectors(num_candidates, seed=0)
        searches = {system: searcher(system, candidates) for system in SYSTEMS}
        found = {system: search(queries) for system, search in searches.items()}
        seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
        for _ in range(arguments.rounds):
            for system, search in searches.items():
                started = time.perf_counter()
                search(queries)
                seconds[system].append(time.perf_counter() - started)
        del searches
        median = {system: statistics.median(values) for system, values in seconds.items()}
        memory = {system: round(peak_mib(__file__, system, num_candidates, arguments.queries)) for system in SYSTEMS}
        for peer, name in (("faiss", "faiss IndexFlatIP"), ("sklearn", "scikit-learn brute force")):
            row = {
                "benchmark": "ranking",
                "row": f"{arguments.queries} queries, {num_candidates} candidates",
                "ours": round(arguments.queries / median["ours"], 1),
                "peer": round(arguments.queries / median[peer], 1),
                "peer_name": name,
                "ratio": round(median[peer] / median["ours"], 3),
                "unit": "queries/s",
                "threads": threads,
                "same_neighbors": round(float(np.mean(found["ours"] == found[peer])), 5),
                "embeddings_mib": round((num_candidates + arguments.queries) * DIM * 4 / 2**20),
                "peak_mib": {"ours": memory["ours"], "peer": memory[peer]},
                "all_seconds": {system: [round(value, 4) for value in seconds[system]] for system in ("ours", peer)},
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    if arguments.out is not None:
        versions = {"jax": jax.__version__, "faiss": faiss.__version__, "scikit-learn": sklearn.__version__}
        arguments.out.write_text(
            json.dumps({"hardware": hardware(), "versions": versions, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
