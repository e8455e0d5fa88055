"""Exact nearest neighbors of all pictures of a gallery among each other, and their correction for hubs (CSLS).

Cosines are rounded to `UNIT`, and equal ones ordered by index, so that results do not depend on how work was cut.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

UNIT = 1e-6
"""Rounding unit of cosines and scores."""
TILE = 2048
"""Rows and columns of the products that are looked at together."""
LEAST_COMPILED = 2**20
"""Products below which the program is not worth compiling."""
MOST_KEPT = 2**26
"""Numbers that are kept at unit length in single precision (256 MB); of more, blocks are made when they are needed."""
CSLS_NEIGHBORS = 20
"""By whose mean cosine a picture's hubness is measured."""
_ROW_BITS, _COLUMN_BITS = 10, 32
_STRIPE = 2**_ROW_BITS
"""Rows sorted together: a key of 64 bits holds a row of a stripe, a score and a column."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Embeddings of pictures, of which each has one, or as an animation several, next to each other."""

    vectors: Float[np.ndarray, "rows dim"]
    """Vectors of any length but zero; usually float16."""
    starts: Int32[np.ndarray, " pictures"]
    """The first row of each picture."""

    @classmethod
    def of(cls, vectors: np.ndarray, owners: np.ndarray | None = None) -> "Points":
        """Points of the embeddings `vectors`, by default one row a picture.

        Args:
          owners: sorted numbers of the pictures of the rows; rows of equal ones are frames of one picture.
        """
        if owners is None:
            return cls(vectors=vectors, starts=np.arange(len(vectors), dtype=np.int32))
        first = np.ones(len(vectors), bool)
        first[1:] = owners[1:] != owners[:-1]
        return cls(vectors=vectors, starts=np.flatnonzero(first).astype(np.int32))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def owners(self) -> Int32[np.ndarray, " rows"]:
        """The picture of each row."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.counts)

    @property
    def counts(self) -> Int32[np.ndarray, " pictures"]:
        """Rows of each picture."""
        return np.diff(self.starts, append=len(self.vectors)).astype(np.int32)

    def block(self, rows: slice | np.ndarray) -> Float32[np.ndarray, "block dim"]:
        """Selected rows, normalized to unit length."""
        return self._unit[rows] if self.vectors.size <= MOST_KEPT else _unit_rows(self.vectors[rows])

    @cached_property
    def _unit(self) -> Float32[np.ndarray, "rows dim"]:
        return _unit_rows(self.vectors)

    def rows_of(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some pictures, and where each picture's begin among them."""
        counts = self.counts[pictures]
        starts = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) - np.repeat(starts, counts) + np.repeat(self.starts[pictures], counts)
        return rows, starts

    def take(self, pictures: np.ndarray) -> "Points":
        """Selected pictures, in the order given."""
        rows, starts = self.rows_of(pictures)
        return Points(vectors=self.vectors[rows], starts=starts.astype(np.int32))

    def cosines(self, pictures: np.ndarray, others: "Points") -> Float32[np.ndarray, "pictures others"]:
        """Cosines of some pictures with all others; of animations the best frames count."""
        return _rounded(self.products(pictures, others))

    def products(self, pictures: np.ndarray, others: "Points") -> Float32[np.ndarray, "pictures others"]:
        """The cosines before they are rounded."""
        rows, starts = self.rows_of(pictures)
        ours = self.block(rows)
        found = np.empty((len(pictures), len(others)), np.float32)
        owners, bounds = others.starts, range(0, len(others), 8 * TILE)
        for first in bounds:
            last = min(first + 8 * TILE, len(others))
            end = owners[last] if last < len(others) else len(others.vectors)
            products = _products(ours, others.block(slice(owners[first], end)))
            if len(rows) > len(pictures):
                products = np.maximum.reduceat(products, starts, axis=0)
            if end - owners[first] > last - first:
                products = np.maximum.reduceat(products, owners[first:last] - owners[first], axis=1)
            found[:, first:last] = products
        return found


def _rounded(cosines: np.ndarray) -> np.ndarray:
    return np.round(cosines / np.float32(UNIT)) / np.float32(1 / UNIT)


def _products(left: Float32[np.ndarray, "left dim"], right: Float32[np.ndarray, "right dim"]) -> np.ndarray:
    """Products of all rows of two sides, `[left, right]`; not to be written to.

    JAX takes a third of NumPy's time (OpenBLAS on two cores), but compiles a program for each pair of shapes.
    """
    is_small = len(left) * len(right) < LEAST_COMPILED
    return left @ right.T if is_small else np.asarray(_compiled_products()(left, right))


@cache
def _compiled_products() -> Callable[[np.ndarray, np.ndarray], Any]:
    # Not at the top: what only reads results needs no JAX.
    import jax

    # By default accelerators would round the factors to fewer bits.
    return jax.jit(lambda left, right: jax.numpy.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST))


def _unit_rows(vectors: np.ndarray) -> Float32[np.ndarray, "rows dim"]:
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The nearest pictures of each picture, nearest first."""

    indices: Int32[np.ndarray, "pictures k"]
    """-1 where there are no more."""
    cosines: Float32[np.ndarray, "pictures k"]
    """-inf where there are no more."""
    bound: Float32[np.ndarray, " pictures"]
    """No picture that is not listed has a larger cosine; -inf where all are listed."""

    @property
    def lengths(self) -> Int32[np.ndarray, " pictures"]:
        return np.asarray(np.sum(self.indices >= 0, axis=1), np.int32)

    def keep(self, chosen: Bool[np.ndarray, " others"]) -> "Neighbors":
        """Lists without the pictures that are not chosen."""
        listed = (self.indices >= 0) & chosen[self.indices]
        # Stable: what stays keeps its order.
        order = np.argsort(~listed, axis=1, kind="stable")
        stays = np.take_along_axis(listed, order, axis=1)
        return replace(
            self,
            indices=np.where(stays, np.take_along_axis(self.indices, order, axis=1), -1).astype(np.int32),
            cosines=np.where(stays, np.take_along_axis(self.cosines, order, axis=1), -np.inf).astype(np.float32),
        )


def within(points: Points, k: int, *, tell: Callable[[float], None] = lambda share: None) -> Neighbors:
    """The `k` nearest others of every picture. Each block of cosines is computed once, for both its directions."""
    best = _Best(len(points.vectors), k)
    owners = points.owners

    def visit(row: int, column: int) -> None:
        rows, columns = _span(row, len(owners)), _span(column, len(owners))
        products = _products(points.block(rows), points.block(columns))
        if owners[columns.start] <= owners[rows.stop - 1]:
            products = np.where(owners[rows, None] == owners[columns], -np.inf, products)
        # The diagonal serves both directions as it is.
        _enter_products(products, (best, row, rows.start), None if row == column else (best, column, columns.start))

    num = -(-len(owners) // TILE)
    _visit_all(visit, [(row, column) for row in range(num) for column in range(row, num)], tell)
    return _of_pictures(best.finish(), points, points)


def across(
    left: Points,
    right: Points,
    k: int,
    *,
    own: np.ndarray | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> tuple[Neighbors, Neighbors]:
    """The `k` nearest right pictures of every left one, and the nearest left ones of every right one.

    `own[left]` is the right picture that is the same file, and so no neighbor; -1 without one.
    """
    ways = _Best(len(left.vectors), k), _Best(len(right.vectors), k)
    excluded = None if own is None else own[left.owners]
    owners = right.owners

    def visit(row: int, column: int) -> None:
        rows, columns = _span(row, len(left.vectors)), _span(column, len(right.vectors))
        products = _products(left.block(rows), right.block(columns))
        if excluded is not None:
            products = np.where(excluded[rows, None] == owners[columns], -np.inf, products)
        _enter_products(products, (ways[0], row, rows.start), (ways[1], column, columns.start))

    nums = (-(-len(points.vectors) // TILE) for points in (left, right))
    num_rows, num_columns = nums
    _visit_all(visit, [(row, column) for row in range(num_rows) for column in range(num_columns)], tell)
    return _of_pictures(ways[0].finish(), left, right), _of_pictures(ways[1].finish(), right, left)


def _span(tile: int, num_rows: int) -> slice:
    return slice(tile * TILE, min((tile + 1) * TILE, num_rows))


def _visit_all(visit: Callable[[int, int], None], tiles: list[tuple[int, int]], tell: Callable[[float], None]) -> None:
    # BLAS has threads of its own; two of ours keep it busy while one looks through what it has computed.
    with ThreadPoolExecutor(2 if (os.cpu_count() or 1) > 1 else 1) as pool:
        for done, _ in enumerate(pool.map(lambda tile: visit(*tile), tiles), 1):
            tell(done / len(tiles))


class _Best:
    """The best columns of every row so far, as keys of 64 bits: row of the tile, distance of the score from the best,
    and column. What tiles add is gathered, and sorted with the rest when it is much."""

    def __init__(self, num_rows: int, k: int) -> None:
        self.k = k
        self.keys = np.full((num_rows, k), _NOTHING, np.uint64)
        self.least = np.full(num_rows, -np.inf, np.float32)
        """Least cosine that is listed."""
        num_tiles = -(-num_rows // TILE)
        self.pending: list[list[np.ndarray]] = [[] for _ in range(num_tiles)]
        self.locks = [threading.Lock() for _ in range(num_tiles)]

    def least_of(self, tile: int, products: np.ndarray, *, axis: int) -> np.ndarray:
        """Least products that are listed along an axis: for the rows of a tile, or of its transpose."""
        least = self.least[_span(tile, len(self.least))]
        size, num_groups = products.shape[axis], min(products.shape[axis], 4 * self.k)
        if np.isfinite(least).all() or size <= 2 * self.k:
            return least
        # So many groups have one at least as good as the k-th best of the groups' best.
        width = size // num_groups
        if axis == 1:
            # Of columns far apart: NumPy is slow in maxima of a few numbers next to each other.
            bests = products[:, : num_groups * width].reshape(len(products), width, num_groups).max(axis=1)
        else:
            bests = products[: num_groups * width].reshape(num_groups, width, -1).max(axis=1).T
        kth = np.partition(bests, num_groups - self.k, axis=1)[:, num_groups - self.k]
        return np.maximum(least, kth - 2 * np.float32(UNIT))

    def add(self, tile: int, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Candidates of a tile's rows."""
        distances = np.round((1 - np.clip(values, -1, 1)) / UNIT).astype(np.uint64)
        keys = rows.astype(np.uint64) << _ROW_SHIFT | distances << _COLUMN_SHIFT | columns.astype(np.uint64)
        with self.locks[tile]:
            self.pending[tile].append(keys)
            if sum(map(len, self.pending[tile])) > TILE * self.k // 2 or not np.isfinite(self.least[tile * TILE]):
                self._merge(tile)

    def _merge(self, tile: int) -> None:
        span = _span(tile, len(self.least))
        there = self.keys[span]
        keys = np.concatenate([there[there != _NOTHING], *self.pending[tile]])
        self.pending[tile].clear()
        if not len(keys):
            return
        keys.sort()
        ends = np.searchsorted(keys >> _ROW_SHIFT, np.arange(len(there) + 1, dtype=np.uint64))
        positions = ends[:-1, None] + np.arange(self.k)
        listed = positions < ends[1:, None]
        self.keys[span] = np.where(listed, keys[np.minimum(positions, len(keys) - 1)], _NOTHING)
        self.least[span] = np.where(listed[:, -1], _cosines(self.keys[span][:, -1]) - 2 * UNIT, -np.inf)

    def finish(self) -> Neighbors:
        """The lists, whose keys are given up."""
        for tile in range(len(self.pending)):
            self._merge(tile)
        listed = self.keys != _NOTHING
        indices = np.where(listed, (self.keys & _COLUMNS).astype(np.int64), -1).astype(np.int32)
        cosines = np.where(listed, _cosines(self.keys), -np.inf).astype(np.float32)
        return Neighbors(indices=indices, cosines=cosines, bound=cosines[:, -1].copy())


_NOTHING = np.uint64(2**64 - 1)
_ROW_SHIFT, _COLUMN_SHIFT, _COLUMNS = np.uint64(53), np.uint64(32), np.uint64(2**32 - 1)
"""Layout of the keys of `_Best`: 11 bits for the row of a tile, 21 for the score, 32 for the column."""


def _cosines(keys: np.ndarray) -> np.ndarray:
    distances = (keys >> _COLUMN_SHIFT) & np.uint64(2**21 - 1)
    return (1 / UNIT - distances.astype(np.float64)) / (1 / UNIT)


def _enter_products(products: np.ndarray, rows: tuple[_Best, int, int], columns: tuple[_Best, int, int] | None) -> None:
    """Enters the products of two tiles into the lists of their rows and, unless None, those of their columns.

    Args:
      rows, columns: the lists, the tile in them, and the first row or column of the tile.
    """
    best, tile, first_row = rows
    least = best.least_of(tile, products, axis=1)
    lowest, other_least = least.min(), None
    if columns is not None:
        other_least = columns[0].least_of(columns[1], products, axis=0)
        lowest = min(lowest, other_least.min())
    # One pass over all products; what passes is little, and looked at twice.
    flat = np.flatnonzero(products >= lowest if lowest > -np.inf else products > lowest)
    at, across_at = np.divmod(flat, products.shape[1])
    values = products.ravel()[flat]
    first_column = 0 if columns is None else columns[2]
    chosen = values >= least[at]
    best.add(tile, at[chosen], across_at[chosen] + (first_row if columns is None else first_column), values[chosen])
    if columns is not None and other_least is not None:
        chosen = values >= other_least[across_at]
        columns[0].add(columns[1], across_at[chosen], at[chosen] + first_row, values[chosen])


def best_of_rows(
    rows: np.ndarray, scores: np.ndarray, columns: np.ndarray, num_rows: int, k: int
) -> tuple[Bool[np.ndarray, "rows k"], np.ndarray]:
    """Positions of the `k` best of each of at most `_STRIPE` rows, by score (from 0 to 2^22) and then by column, and
    which of the positions count."""
    keys = (rows.astype(np.uint64) << np.uint64(64 - _ROW_BITS)) | (
        (np.uint64(2**22 - 1) - scores.astype(np.uint64)) << np.uint64(_COLUMN_BITS)
    )
    order = np.argsort(keys | columns.astype(np.uint64))
    ends = np.searchsorted(rows[order], np.arange(num_rows + 1))
    positions = ends[:-1, None] + np.arange(k)
    kept = positions < ends[1:, None]
    if not len(order):
        return kept, np.zeros(positions.shape, np.int64)
    return kept, order[np.minimum(positions, len(order) - 1)]


def _of_pictures(found: Neighbors, rows: Points, columns: Points) -> Neighbors:
    """Lists of rows as lists of pictures; the best frames count."""
    if len(rows) == len(rows.vectors) and len(columns) == len(columns.vectors):
        return found
    k = found.indices.shape[1]
    # Of a picture's unlisted neighbors none is nearer than the farthest that one of its frames lists.
    bound = np.maximum.reduceat(found.bound, rows.starts).astype(np.float32)
    row_owners, column_owners = rows.owners, columns.owners
    indices, cosines = np.full((len(rows), k), -1, np.int32), np.full((len(rows), k), -np.inf, np.float32)
    for first in range(0, len(rows), _STRIPE):
        size = min(_STRIPE, len(rows) - first)
        inside = slice(np.searchsorted(row_owners, first), np.searchsorted(row_owners, first + size))
        at, place = np.nonzero(found.indices[inside] >= 0)
        owners = row_owners[inside][at] - first
        others = column_owners[found.indices[inside][at, place]]
        values = found.cosines[inside][at, place]
        listed = values >= bound[first + owners]
        owners, others, values = owners[listed], others[listed], values[listed]
        # Of equal pairs the best comes first, and stays.
        order = np.lexsort((-values, others, owners))
        pairs = np.stack([owners[order], others[order]])
        fresh = np.ones(len(order), bool)
        fresh[1:] = np.any(pairs[:, 1:] != pairs[:, :-1], axis=0)
        chosen = order[fresh]
        owners, others, values = owners[chosen], others[chosen], values[chosen]
        scores = np.round((np.clip(values, -1, 1) + 1) / UNIT).astype(np.int64)
        kept, order = best_of_rows(owners, scores, others, size, k)
        if len(others):
            indices[first : first + size] = np.where(kept, others[order], -1)
            cosines[first : first + size] = np.where(kept, values[order], -np.inf)
            full = np.bincount(owners, minlength=size) > k
            bound[first : first + size][full] = cosines[first : first + size][full, -1]
    return Neighbors(indices=indices, cosines=cosines, bound=bound)


def refill(found: Neighbors, points: Points, chosen: Bool[np.ndarray, " pictures"], need: int) -> Neighbors:
    """Searches anew, among the chosen pictures, for those whose lists are shorter than `need` though more are there."""
    own = np.flatnonzero(chosen)
    short = chosen & (found.lengths < min(need, len(own) - 1)) & (found.bound > -np.inf)
    if not short.any():
        return found
    indices, cosines, bound = found.indices.copy(), found.cosines.copy(), found.bound.copy()
    k, candidates = indices.shape[1], points if chosen.all() else points.take(own)
    for block in _blocks(np.flatnonzero(short), len(own)):
        values = points.products(block, candidates)
        values[np.arange(len(block)), np.searchsorted(own, block)] = -np.inf
        top, listed = best_columns(values, k)
        width = top.shape[1]
        indices[block], cosines[block] = -1, -np.inf
        indices[block, :width] = np.where(listed > -np.inf, own[top], -1)
        cosines[block, :width] = listed
        bound[block] = cosines[block, -1] if len(own) > k else -np.inf
    return Neighbors(indices=indices, cosines=cosines, bound=bound)


def updated(old: Neighbors, places: Int32[np.ndarray, " old"], points: Points) -> Neighbors:
    """Lists of the present pictures from those of former ones, without comparing all with all.

    Args:
      places: where each former picture is among `points`, in the same order; -1 of one that is gone.
    """
    k, stays = old.indices.shape[1], places >= 0
    kept = old.keep(stays)
    indices = np.full((len(points), k), -1, np.int32)
    cosines = np.full((len(points), k), -np.inf, np.float32)
    bound = np.full(len(points), -np.inf, np.float32)
    indices[places[stays]] = np.where(kept.indices[stays] >= 0, places[kept.indices[stays]], -1)
    cosines[places[stays]], bound[places[stays]] = kept.cosines[stays], old.bound[stays]
    is_new = np.ones(len(points), bool)
    is_new[places[stays]] = False
    found = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))]
    for block in _blocks(np.flatnonzero(is_new), len(points)):
        values = points.products(block, points)
        values[np.arange(len(block)), block] = -np.inf
        top, listed = best_columns(values, k)
        indices[block, : top.shape[1]] = np.where(listed > -np.inf, top, -1)
        cosines[block, : top.shape[1]] = listed
        bound[block] = listed[:, -1] if len(points) - 1 > k else -np.inf
        values[:, is_new] = -np.inf
        near, rows = np.nonzero((values >= bound - np.float32(UNIT)) & (values > -np.inf))
        cosines_near = _rounded(values[near, rows])
        listed = cosines_near >= bound[rows]
        found.append((rows[listed].astype(np.int32), block[near[listed]].astype(np.int32), cosines_near[listed]))
    rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows, kind="stable")
    return _inserted(
        Neighbors(indices=indices, cosines=cosines, bound=bound), rows[order], columns[order], values[order]
    )


def _inserted(lists: Neighbors, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Neighbors:
    """Lists with further pairs, which are sorted by row."""
    indices, cosines, bound = lists.indices, lists.cosines, lists.bound
    k = indices.shape[1]
    ends = np.searchsorted(rows, np.arange(0, len(indices) + _STRIPE, _STRIPE))
    for stripe, first in enumerate(range(0, len(indices), _STRIPE)):
        more = slice(ends[stripe], ends[stripe + 1])
        if more.start == more.stop:
            continue
        part = slice(first, min(first + _STRIPE, len(indices)))
        there, place = np.nonzero(indices[part] >= 0)
        all_rows = np.concatenate([there, rows[more] - first])
        all_columns = np.concatenate([indices[part][there, place], columns[more]])
        all_values = np.concatenate([cosines[part][there, place], values[more]])
        size = part.stop - part.start
        kept, order = best_of_rows(all_rows, _in_units(all_values), all_columns, size, k)
        indices[part] = np.where(kept, all_columns[order], -1)
        cosines[part] = np.where(kept, all_values[order], -np.inf)
        cut = np.bincount(all_rows, minlength=size) > k
        bound[part] = np.where(cut, np.maximum(bound[part], cosines[part][:, -1]), bound[part])
    return Neighbors(indices=indices, cosines=cosines, bound=bound)


def _blocks(pictures: np.ndarray, num_others: int) -> Iterator[np.ndarray]:
    """Blocks of pictures whose cosines with all others take at most 256 MB."""
    size = max(1, 2**26 // max(1, num_others))
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def best_columns(
    products: Float32[np.ndarray, "rows columns"],
    k: int,
    penalty: Float32[np.ndarray, " columns"] | None = None,
    least: Float32[np.ndarray, " rows"] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The columns with the `k` largest cosines less `penalty` in each row, best first, equal ones by column.

    Args:
      least: a score of each row that at least `k` columns reach, where such are known.

    Returns:
      The columns and their cosines, `[rows, min(k, columns)]`.
    """
    k = min(k, products.shape[1])
    scores = products if penalty is None else products - penalty
    if not k:
        return np.zeros((len(products), 0), np.int64), np.zeros((len(products), 0), np.float32)
    if least is None:
        least = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
    # Few are left, which are rounded as everywhere.
    rows, columns = np.nonzero(scores >= least[:, None] - np.float32(2 * UNIT))
    cosines = _rounded(products[rows, columns])
    exact = _rounded(cosines - (0 if penalty is None else penalty[columns]))
    order = np.lexsort((columns, -exact, rows))
    chosen = order[np.searchsorted(rows, np.arange(len(products)))[:, None] + np.arange(k)]
    return columns[chosen], cosines[chosen]


def hubness(found: Neighbors, num_neighbors: int = CSLS_NEIGHBORS) -> Float32[np.ndarray, " pictures"]:
    """The mean cosine of each picture to its nearest; 0 where it has none.

    Source: Conneau et al. 2018 (arXiv 1710.04087), equation 6.
    """
    cosines = found.cosines[:, :num_neighbors]
    listed = cosines > -np.inf
    sums = np.sum(np.where(listed, cosines, 0), axis=1, dtype=np.float64)
    return (sums / np.maximum(listed.sum(axis=1), 1)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Lists ordered by CSLS, best first: the cosine less half of the hubness of both pictures."""

    indices: Int32[np.ndarray, "pictures k"]
    """-1 where there are no more."""
    cosines: Float32[np.ndarray, "pictures k"]
    scores: Float[np.ndarray, "pictures k"]


def csls(found: Neighbors, points: Points, chosen: Bool[np.ndarray, " pictures"], top: int) -> Ranked:
    """The `top` pictures of each list by CSLS, among all chosen ones and not only among those listed."""
    return _by_csls((found, found), (points, points), (np.arange(len(points)), np.flatnonzero(chosen)), top)


def csls_across(
    lists: tuple[Neighbors, Neighbors], sides: tuple[Points, Points], own: Int32[np.ndarray, " pictures"], top: int
) -> Ranked:
    """The `top` pictures of the second side for each of the first, by CSLS; `lists` and `own` are those of `across`."""
    return _by_csls(lists, sides, (own, np.arange(len(sides[1]))), top)


def _by_csls(
    lists: tuple[Neighbors, Neighbors], sides: tuple[Points, Points], allowed: tuple[np.ndarray, np.ndarray], top: int
) -> Ranked:
    """A pair is looked at if one of its pictures lists the other. Of all other pairs the cosine is at most the bound of
    this list, and at most that of the other picture to its last neighbor that counts: pictures whose last place is
    worse than the best score that so remains possible are searched for anew.

    Source: Conneau et al. 2018 (arXiv 1710.04087), equation 7, halved.
    """
    (found, back), (points, others), (excluded, candidates) = lists, sides, allowed
    own, their = hubness(found) / 2, hubness(back) / 2
    indices, values, scores = (np.full((len(points), top), fill, kind) for fill, kind in _EMPTY)
    for part, (rows, columns, cosines) in _listed_pairs(found, back):
        relative = cosines - their[columns]
        kept, order = best_of_rows(rows, _in_units(relative), columns, part.stop - part.start, top)
        if len(rows):
            indices[part] = np.where(kept, columns[order], -1)
            values[part] = np.where(kept, cosines[order], -np.inf)
    last = np.where(indices[:, -1] >= 0, values[:, -1] - their[indices[:, -1]], -np.inf)
    possible = _best_unlisted(found.bound, back, their)
    doubtful = np.flatnonzero((found.bound > -np.inf) & (last < possible + 2 * UNIT) & (found.lengths > 0))
    among = others if len(candidates) == len(others) else others.take(candidates)
    for block in _blocks(doubtful, len(candidates)):
        products = points.products(block, among)
        place = np.minimum(np.searchsorted(candidates, excluded[block]), len(candidates) - 1)
        itself = np.flatnonzero(candidates[place] == excluded[block])
        products[itself, place[itself]] = -np.inf
        least = last[block] if np.isfinite(last[block]).all() else None
        order, listed = best_columns(products, top, their[candidates], least)
        indices[block, : order.shape[1]] = np.where(listed > -np.inf, candidates[order], -1)
        values[block, : order.shape[1]] = listed
    listed = indices >= 0
    # The sum of both halves is the same from both sides.
    scores[listed] = (values - (own[:, None] + their[indices]))[listed]
    return Ranked(indices=indices, cosines=values, scores=np.round(scores / UNIT) * UNIT)


def _best_unlisted(bound: np.ndarray, back: Neighbors, their: np.ndarray) -> np.ndarray:
    """The largest that `min(bound, farthest) - their` can be for each bound, over all pictures' farthest neighbors."""
    column = min(CSLS_NEIGHBORS, back.indices.shape[1]) - 1
    farthest = np.where(back.indices[:, column] >= 0, back.cosines[:, column], back.bound)
    order = np.argsort(farthest, kind="stable")
    farthest, their = farthest[order], their[order]
    # Of pictures from a place on the bound counts, of those before it their own farthest neighbor.
    least = np.append(np.minimum.accumulate(their[::-1])[::-1], np.inf)
    most = np.append(-np.inf, np.maximum.accumulate(farthest - their))
    at = np.searchsorted(farthest, bound)
    return np.maximum(bound - least[at], most[at])


_EMPTY = ((-1, np.int32), (-np.inf, np.float32), (-np.inf, np.float64))


def _in_units(scores: np.ndarray) -> np.ndarray:
    """Scores from -2 to 2 as integers from 0 to 4,000,000."""
    return np.round((np.clip(scores, -2, 2) + 2) / UNIT).astype(np.int64)


def _listed_pairs(
    found: Neighbors, back: Neighbors
) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Stripes of rows, and the row, column and cosine of each pair that one of its pictures lists, once each."""
    parts = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))]
    for column in range(min(CSLS_NEIGHBORS, back.indices.shape[1])):
        their = np.flatnonzero(back.indices[:, column] >= 0).astype(np.int32)
        ours, cosines = back.indices[their, column], back.cosines[their, column]
        # The others are listed on this side, too, except for ties at a list's end.
        missing = cosines <= found.bound[ours]
        parts.append((ours[missing], their[missing], cosines[missing]))
    ours, theirs, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(ours, kind="stable")
    ours, theirs, cosines = ours[order], theirs[order], cosines[order]
    for first in range(0, len(found.indices), _STRIPE):
        part = slice(first, min(first + _STRIPE, len(found.indices)))
        more = slice(*np.searchsorted(ours, (part.start, part.stop)))
        rows, place = np.nonzero(found.indices[part] >= 0)
        rows_of = np.concatenate([rows, ours[more] - first])
        columns = np.concatenate([found.indices[part][rows, place], theirs[more]])
        values = np.concatenate([found.cosines[part][rows, place], cosines[more]])
        _, once = np.unique(rows_of.astype(np.int64) << 32 | columns, return_index=True)
        yield part, (rows_of[once], columns[once], values[once])
