"""One of two processes that rank a gallery together, half each; tests/ranking/test_sharded.py runs both."""

import sys

import jax
import numpy as np

from tll_jax.devices import make_mesh
from tll_jax.ranking import ShardedGallery, shard_gallery, sharded_ranks, sharded_top_k

NUM_QUERIES, NUM_CANDIDATES, DIM, TOP = 30, 45, 3, 7


def vectors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, candidates and matches: small whole numbers, for many ties, and some NaN."""
    rng = np.random.default_rng(3)
    queries, candidates = (rng.integers(-2, 3, (n, DIM)).astype(np.float32) for n in (NUM_QUERIES, NUM_CANDIDATES))
    candidates[::9, 1] = np.nan
    return queries, candidates, rng.integers(0, NUM_CANDIDATES, NUM_QUERIES)


class Watched:
    """Vectors that record which rows are read."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors, self.shape, self.read = vectors, vectors.shape, []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.read += range(*rows.indices(len(self.vectors)))
        return self.vectors[rows]


def rank(output: str) -> None:
    """Writes this process's results and the rows that it read to `output`."""
    queries, candidates, matches = vectors()
    watched, mesh = Watched(candidates), make_mesh()
    gallery: ShardedGallery = shard_gallery(watched, mesh=mesh)
    np.savez(
        output,
        ranks=sharded_ranks(queries, gallery, matches, mesh=mesh),
        top=sharded_top_k(queries, gallery, TOP, mesh=mesh),
        read=sorted(watched.read),
        devices=len(jax.devices()),
    )


if __name__ == "__main__":
    address, process, output = sys.argv[1:]
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    rank(output)
