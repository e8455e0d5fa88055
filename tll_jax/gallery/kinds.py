"""Near-duplicates among neighbors, which are collapsed before look-alikes are ranked, and stars of pictures instead of
chains of them."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64

from tll_jax.gallery.neighbors import Neighbors

PHASH_BITS, DHASH_BITS = 10, 14
"""How many bits of both hashes may differ in near-duplicates; see `tll_jax.data.duplicates.NearDuplicates`."""


def differing_bits(a: UInt64[np.ndarray, "*shape"], b: UInt64[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Number of the 64 bits that differ (Hamming distance)."""
    return np.bitwise_count(a ^ b).astype(np.int64)


def are_near(hashes: UInt64[np.ndarray, "pairs 2"], others: UInt64[np.ndarray, "pairs 2"]) -> np.ndarray:
    """Whether pairs are near-duplicates, by the pHash and dHash of both."""
    return np.all(differing_bits(hashes, others) <= (PHASH_BITS, DHASH_BITS), axis=-1)


def near_duplicates(found: Neighbors, hashes: UInt64[np.ndarray, "pictures 2"]) -> Int[np.ndarray, "pairs 2"]:
    """The pairs of a picture and one that it lists that are near-duplicates, the smaller index first, each once."""
    pairs = [np.zeros((0, 2), np.int64)]
    for column in range(found.indices.shape[1]):
        rows = np.flatnonzero(found.indices[:, column] >= 0)
        others = found.indices[rows, column]
        near = are_near(hashes[rows], hashes[others])
        pairs.append(np.sort(np.stack([rows[near], others[near]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def stars(edges: Int[np.ndarray, "edges 2"], first: Sequence[int] | np.ndarray) -> dict[int, list[int]]:
    """Centers with those linked to them: the one with most links takes all that are free, then the next.

    No member is linked to its star by other members alone. Of equally many links the one of the least `first` goes
    first.
    """
    links: dict[int, set[int]] = defaultdict(set)
    for a, b in edges.tolist():
        links[a].add(b)
        links[b].add(a)
    found: dict[int, list[int]] = {}
    taken: set[int] = set()
    for center in sorted(links, key=lambda one: (-len(links[one]), first[one], one)):
        if center in taken:
            continue
        members = sorted(links[center] - taken)
        taken |= {center, *members}
        if members:
            found[center] = members
    return found
