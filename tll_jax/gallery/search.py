"""The search for look-alikes in embeddings: contents that are collapsed, the order of pairs, and how rare each is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Int

from tll_jax.gallery.embed import Rows
from tll_jax.gallery.kinds import are_near, near_duplicates, stars
from tll_jax.gallery.known import KnownLists
from tll_jax.gallery.neighbors import (
    CSLS_NEIGHBORS,
    UNIT,
    Neighbors,
    Points,
    Ranked,
    across,
    best_columns,
    csls,
    csls_across,
    hubness,
    refill,
)
from tll_jax.gallery.result import Kind
from tll_jax.gallery.store import Table

LISTED = 64
"""Neighbors that the search keeps of each picture, at least. CSLS needs 20 and some are collapsed; the longer they are,
the fewer have to be made anew: for the ten best of 4,096 photos 24 % with 32, 14 % with 48, 8 % with 64."""
QUERY_LISTED = 100
"""Number of nearest pictures of a query by cosine that are ordered by CSLS."""
RANDOM_PICTURES = 2048
"""All pairs of at most so many pictures stand for random pairs."""
LEAST_RANDOM = 20
"""Number of random pairs below which no strength is given."""
SEED = 0
RECALL_QUERIES = 100
"""Pictures by which an index is measured."""

KINDS: tuple[Kind, ...] = ("same-file", "near-duplicate", "look-alike")
Tell = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Side:
    """Pictures to be searched: a picture a content."""

    rows: Rows
    points: Points

    @classmethod
    def of(cls, rows: Rows) -> "Side":
        return cls(rows=rows, points=Points.of(rows.embedding, rows.content))

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def contents(self) -> np.ndarray:
        return self.rows.content[self.points.starts]

    @cached_property
    def hashes(self) -> np.ndarray:
        """pHash and dHash of the first frames, uint64 `[pictures, 2]`."""
        return self.rows.hashes[self.points.starts]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of pictures, by index into the two sides, best first."""

    left: Int[np.ndarray, " pairs"]
    right: Int[np.ndarray, " pairs"]
    cosine: Float32[np.ndarray, " pairs"]
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def take(self, which: np.ndarray) -> "Pairs":
        return Pairs(left=self.left[which], right=self.right[which], cosine=self.cosine[which], score=self.score[which])


@dataclass(frozen=True, kw_only=True)
class Found:
    """Outcome of a search."""

    left: Side
    right: Side
    pairs: Pairs
    lists: Ranked
    """Neighbors of the left pictures, by CSLS."""
    back: Ranked | None
    """Neighbors of the right pictures; None if they were not searched for."""
    kept: Int[np.ndarray, " pictures"]
    """Within one side, the picture that each is collapsed into; its own index where it is not."""
    random: Float32[np.ndarray, " pairs"]
    """Cosines of random pairs, ascending."""

    @property
    def num_compared(self) -> int:
        return int(np.sum(self.kept == np.arange(len(self.kept))))

    def one_in(self, cosine: float) -> tuple[float | None, bool]:
        """Rarity of a cosine: one in how many random pairs is as alike, and whether that is a bound because none is."""
        if len(self.random) < LEAST_RANDOM:
            return None, False
        count = int(self._num_as_alike(np.array([cosine], np.float32))[0])
        return len(self.random) / max(count, 1), count == 0

    def are_as_alike(self, cosines: np.ndarray, least: float) -> np.ndarray:
        """Whether pairs of these cosines are as alike as one in `least` random pairs, or rarer."""
        if len(self.random) < LEAST_RANDOM:
            return np.full(len(cosines), least <= 0)
        return len(self.random) / np.maximum(self._num_as_alike(cosines), 1) >= least

    def _num_as_alike(self, cosines: np.ndarray) -> np.ndarray:
        return len(self.random) - np.searchsorted(self.random, cosines - np.float32(UNIT / 2))


def search_within(side: Side, top: int, known: KnownLists, tell: Tell = lambda share: None) -> Found:
    """Pairs of one side: near-duplicates are collapsed, the others listed by CSLS."""
    points, hashes = side.points, side.hashes
    kept = np.arange(len(side))
    found = known.within(side.contents, points, min(max(LISTED, 3 * top), max(1, len(side.rows) - 1)), tell)
    need = min(max(CSLS_NEIGHBORS, top), found.indices.shape[1])
    # Larger pictures are kept; equally large ones by content.
    pixels = side.rows.width[points.starts].astype(np.int64) * side.rows.height[points.starts]
    while True:
        active = kept == np.arange(len(side))
        found = _of_active(refill(found.keep(active), points, active, need), active)
        edges = near_duplicates(found, hashes)
        if not len(edges):
            break
        for center, members in stars(edges, -pixels).items():
            kept[members] = center
        kept = kept[kept]
    ranked = csls(found, points, active, top)
    return Found(
        left=side,
        right=side,
        pairs=_once(_listed(ranked), is_within=True),
        lists=ranked,
        back=ranked,
        kept=kept,
        random=random_cosines(points.take(np.flatnonzero(active))),
    )


def _of_active(found: Neighbors, active: np.ndarray) -> Neighbors:
    """Neighbor lists of the pictures that are not collapsed."""
    return Neighbors(
        indices=np.where(active[:, None], found.indices, -1).astype(np.int32),
        cosines=np.where(active[:, None], found.cosines, -np.inf).astype(np.float32),
        bound=np.where(active, found.bound, -np.inf).astype(np.float32),
    )


def search_across(left: Side, right: Side, top: int, own: np.ndarray, tell: Tell = lambda share: None) -> Found:
    """Pairs of a left and a right picture; `own[left]` is the right one that is the same file, or -1."""
    sides, back = (left.points, right.points), np.full(len(right), -1, np.int32)
    back[own[own >= 0]] = np.flatnonzero(own >= 0)
    lists = across(*sides, max(LISTED, 3 * top), own=own, tell=tell)
    ranked, their = csls_across(lists, sides, own, top), csls_across(lists[::-1], sides[::-1], back, top)
    pairs, others = _listed(ranked), _listed(their)
    both = Pairs(
        left=np.concatenate([pairs.left, others.right]),
        right=np.concatenate([pairs.right, others.left]),
        cosine=np.concatenate([pairs.cosine, others.cosine]),
        score=np.concatenate([pairs.score, others.score]),
    )
    return Found(
        left=left,
        right=right,
        pairs=_once(both, is_within=False),
        lists=ranked,
        back=their,
        kept=np.arange(len(left) + len(right)),
        random=random_cosines_across(left, right),
    )


def search_queries(queries: Side, gallery: Side, top: int, own: np.ndarray, nearest: "Nearest | None" = None) -> Found:
    """The gallery's pictures for each query, by CSLS with the gallery's own neighbors among the nearest by cosine.

    `own[query]` is the gallery's index of the query's own file, or -1. `nearest` proposes candidates where not all
    pictures are to be compared.
    """
    points, width = gallery.points, min(max(QUERY_LISTED, 2 * top), len(gallery))
    indices = np.full((len(queries), width), -1, np.int32)
    cosines = np.full((len(queries), width), -np.inf, np.float32)
    for start in range(0, len(queries), 64):
        block = np.arange(start, min(start + 64, len(queries)))
        proposed = np.arange(len(gallery)) if nearest is None else nearest(queries, block, width)
        products = queries.points.products(block, points if nearest is None else points.take(proposed))
        products[own[block, None] == proposed] = -np.inf
        order, listed = best_columns(products, width)
        part = (block[:, None], np.arange(order.shape[1]))
        indices[part], cosines[part] = proposed[order], listed
    indices[cosines == -np.inf] = -1
    found = Neighbors(indices=indices, cosines=cosines, bound=np.full(len(queries), -np.inf, np.float32))
    nearby = np.unique(indices[indices >= 0])
    empty = Neighbors(
        indices=np.full((len(gallery), CSLS_NEIGHBORS), -1, np.int32),
        cosines=np.full((len(gallery), CSLS_NEIGHBORS), -np.inf, np.float32),
        bound=np.where(np.isin(np.arange(len(gallery)), nearby), np.inf, -np.inf).astype(np.float32),
    )
    # Only those that may be listed are looked at, and not all of the gallery.
    theirs = hubness(refill(empty, points, np.ones(len(gallery), bool), CSLS_NEIGHBORS))
    ranked = _by_csls(found, theirs, top)
    return Found(
        left=queries,
        right=gallery,
        pairs=_listed(ranked),
        lists=ranked,
        back=None,
        kept=np.arange(len(queries) + len(gallery)),
        random=random_cosines(points),
    )


class Nearest:
    """Candidates of queries by a table's index, instead of all pictures of a gallery."""

    def __init__(self, table: Table, gallery: Side) -> None:
        self.table, self.gallery = table, gallery
        self.places = {str(content): at for at, content in enumerate(gallery.contents)}

    def __call__(self, queries: Side, block: np.ndarray, k: int) -> np.ndarray:
        """Sorted indices of the pictures near any query of a block."""
        rows, _ = queries.points.rows_of(block)
        ids, _ = self.table.nearest(queries.points.block(rows), k)
        contents = {one.rpartition("-")[0] for listed in ids for one in listed}
        return np.array(sorted(self.places[content] for content in contents if content in self.places), np.int64)

    def recall(self, k: int) -> tuple[float, int]:
        """The share of the exact `k` nearest that the index finds, and of how many pictures of the gallery."""
        chosen = draw(len(self.gallery), RECALL_QUERIES)
        hits = []
        for one in chosen:
            values = self.gallery.points.cosines(np.array([one]), self.gallery.points)[0]
            values[one] = -np.inf
            exact = np.argsort(-values, kind="stable")[:k]
            hits.append(np.isin(exact, self(self.gallery, np.array([one]), k + 1)).mean())
        return float(np.mean(hits)), len(chosen)


def _by_csls(found: Neighbors, theirs: np.ndarray, top: int) -> Ranked:
    relative = np.where(found.indices >= 0, found.cosines - theirs[found.indices] / 2, -np.inf)
    order = np.argsort(-relative, axis=1, kind="stable")[:, :top]
    indices, cosines = (np.take_along_axis(values, order, axis=1) for values in (found.indices, found.cosines))
    own = hubness(found)[:, None] / 2
    return Ranked(
        indices=indices, cosines=cosines, scores=np.take_along_axis(relative, order, axis=1).astype(np.float64) - own
    )


def _listed(ranked: Ranked) -> Pairs:
    """Pairs of all neighbor lists, list by list."""
    left, place = np.nonzero(ranked.indices >= 0)
    return Pairs(
        left=left,
        right=ranked.indices[left, place].astype(np.int64),
        cosine=ranked.cosines[left, place],
        score=ranked.scores[left, place],
    )


def _once(pairs: Pairs, *, is_within: bool) -> Pairs:
    """Pairs without repetition, best first, equal ones by index. Within a side the smaller index is the left one."""
    left, right = pairs.left, pairs.right
    if is_within:
        left, right = np.minimum(left, right), np.maximum(left, right)
    order = np.lexsort((right, left, -pairs.score))
    pairs = Pairs(left=left, right=right, cosine=pairs.cosine, score=pairs.score).take(order)
    _, first = np.unique(pairs.left.astype(np.int64) << 32 | pairs.right, return_index=True)
    return pairs.take(np.sort(first))


def random_cosines(points: Points) -> Float32[np.ndarray, " pairs"]:
    """Cosines of all pairs of pictures that are drawn, ascending."""
    some = points.take(draw(len(points), RANDOM_PICTURES))
    return np.sort(some.cosines(np.arange(len(some)), some)[np.triu_indices(len(some), 1)])


def random_cosines_across(left: Side, right: Side) -> Float32[np.ndarray, " pairs"]:
    """Cosines of all pairs of a left and a right picture that are drawn and differ, ascending."""
    drawn, theirs = (draw(len(side), RANDOM_PICTURES // 2) for side in (left, right))
    values = left.points.cosines(drawn, right.points.take(theirs))
    return np.sort(values[left.contents[drawn][:, None] != right.contents[theirs]])


def draw(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` numbers, at random and always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, most, replace=False))


def kinds_of(found: Found) -> np.ndarray:
    """The kind of each pair, as an index into `KINDS`."""
    pairs = found.pairs
    same = found.left.contents[pairs.left] == found.right.contents[pairs.right]
    near = are_near(found.left.hashes[pairs.left], found.right.hashes[pairs.right])
    return np.where(same, 0, np.where(near, 1, 2)).astype(np.int8)
