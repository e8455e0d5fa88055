"""Ranks and nearest neighbors from embeddings, in blocks of queries and gallery, without a whole score matrix."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float32, Int, Int32

from tll_jax.devices import (
    DATA_AXIS,
    batch_sharded,
    place,
    platform_of,
    replicated,
    traced_platform,
    tracing_for,
)
from tll_jax.processes import gathered

QUERY_BLOCK = 1024
"""Queries that a device scores at once, and the gallery block of counts."""

CANDIDATE_BLOCK = 4096
"""Gallery block of top-k searches. Score matrices of both block sizes (16 MiB) fit the cache of a CPU."""

FEW_QUERIES = 64
"""Up to this number of queries, reading the gallery into the cache costs more than the products."""

FEW_ROWS = 512
"""Gallery rows of one product for few queries: 1 MiB at 512 dimensions, which fits the cache of a core."""

PAIR_BLOCK = 2048
"""Pairs of a square score block (16 MiB) in `pair_ranks`."""

GROUP = 16
"""Candidates of a group, of which a search reads only the maximum first."""

EXTRACTING = 256
"""Queries that a CPU extracts neighbors for at once: their maxima stay beside a core, and few wait for the slowest."""

MOST_EXTRACTED = 64
"""Largest `k` for which neighbors are extracted one by one; sorting is faster for a larger one."""

NUM_SAMPLED = 15
"""Sampled candidates whose median is the new origin: cheap, and robust to a few broken embeddings."""

TwoWays = tuple[Array, Array]
"""(left to right, right to left)."""

Score = Callable[[Array, Array], Array]
"""(queries `[q, dim]`, candidates `[c, dim]`) -> float32 scores `[c, q]`, larger for more similar vectors.

The candidates are the leading axis because reductions over it are fast.
"""

SplitScore = Callable[[Array, Array], tuple[Array, Array]]
"""A score as (products `[c, q]`, offset of each candidate `[c, 1]`), which is products - offset. The consumer
subtracts, which saves a pass over the matrix."""


class Block(NamedTuple):
    """A block of candidates and its scores, `products - losses`."""

    products: Array
    """`[c, q]`."""
    losses: Array
    """Offset of each candidate, `[c, 1]`."""
    columns: Array
    """Column indices `[c]`, increasing over the candidates that count."""
    counts: Array
    """`[c]`: False for padding and for candidates that an earlier block holds too."""


def inner_product(
    queries: Float32[Array, "queries dim"], gallery: Float32[Array, "gallery dim"]
) -> Float32[Array, "gallery queries"]:
    """Inner products, at full float32 precision on every platform."""
    return jnp.matmul(gallery, queries.T, precision="highest")


def negative_squared_distance(
    queries: Float32[Array, "queries dim"], gallery: Float32[Array, "gallery dim"]
) -> Float32[Array, "gallery queries"]:
    """Half the negative squared Euclidean distance plus |q|^2 / 2, that is q . c - |c|^2 / 2.

    The added term is the same for all candidates of a query, so ranks are those of the distance. Cancellation costs
    digits where vectors are long compared with their distances, so ranks and searches first move the origin to a median
    of the candidates, which changes no distance.
    """
    return inner_product(queries, gallery) - jnp.sum(gallery**2, axis=1, keepdims=True) / 2


def embedding_ranks(
    queries: Float32[np.ndarray | Array, "queries dim"],
    gallery: Float32[np.ndarray | Array, "gallery dim"],
    positives: Int[np.ndarray | Array, " queries"],
    *,
    mesh: Mesh,
    score: Score = negative_squared_distance,
) -> Int32[np.ndarray, " queries"]:
    """`ranks` from embeddings, in blocks, without holding the whole score matrix; ties and NaN rank last.

    Queries are split over the devices, and each device has the whole gallery. Equal gallery rows have equal scores at
    any position, because the positive is scored by a product of the same shape as the others.

    With `negative_squared_distance`, ranks are those of double precision except among distances that differ by less
    than about 1e-6 of the candidates' mean squared distance from their median, however far that is from the origin.
    """
    options = {"score": score, "num_candidates": len(gallery)}
    return _by_query_blocks(_local_ranks, gallery, queries, np.asarray(positives), mesh=mesh, **options)


def pair_ranks(
    left: Float32[np.ndarray, "pairs dim"], right: Float32[np.ndarray, "pairs dim"], *, mesh: Mesh
) -> Int32[np.ndarray, "2 pairs"]:
    """`embedding_ranks` of pairs by `negative_squared_distance`, left to right and right to left.

    Both directions use the same products. Each device holds its part of the left sides and all right sides; devices
    exchange the scores of the positives and the counts.
    """
    num_pairs = len(left)
    num_blocks = max(1, -(-num_pairs // (PAIR_BLOCK * mesh.size)))
    size = -(-num_pairs // (num_blocks * mesh.size))
    num_rows = num_blocks * size * mesh.size
    rows_at = batch_sharded(mesh)
    placed = place(np.pad(right, ((0, num_rows - num_pairs), (0, 0))), replicated(mesh))
    options: dict[str, Any] = {"num_pairs": num_pairs, "size": size}
    return in_blocks(_ranks_of_pairs, placed, (left,), num_rows, rows_at=rows_at, **options).T


def embedding_top_k(
    queries: Float32[np.ndarray | Array, "queries dim"],
    gallery: Float32[np.ndarray | Array, "gallery dim"],
    k: int,
    *,
    mesh: Mesh,
    score: Score = negative_squared_distance,
) -> Int32[np.ndarray, "queries top"]:
    """`top_k` from embeddings, in blocks as in `embedding_ranks`; a score of -inf is treated as NaN."""
    options = {"score": score, "num_candidates": len(gallery), "k": min(k, len(gallery))}
    return _by_query_blocks(_local_top_k, gallery, queries, mesh=mesh, **options)


def _by_query_blocks(
    measure: Callable[..., Array],
    gallery: np.ndarray | Array,
    *by_query: np.ndarray | Array,
    mesh: Mesh,
    **options: Any,
) -> np.ndarray:
    """`measure(candidates, *block, **options)` on equal blocks of queries, concatenated."""
    num_queries = len(by_query[0])
    num_blocks = max(1, -(-num_queries // (QUERY_BLOCK * mesh.size)))
    num_rows = -(-num_queries // (num_blocks * mesh.size))
    placed, size = place(gallery, replicated(mesh)), num_rows * mesh.size
    return in_blocks(measure, placed, by_query, size, rows_at=batch_sharded(mesh), **options)


def in_blocks(
    measure: Callable[..., Array],
    gallery: Array,
    by_query: tuple[np.ndarray | Array, ...],
    num_rows: int,
    *,
    rows_at: NamedSharding,
    **options: Any,
) -> np.ndarray:
    """`measure(candidates, *block, **options)` on blocks of `num_rows` queries, placed by `rows_at`, concatenated."""
    num_queries, found = len(by_query[0]), []
    layout = {"candidates_at": gallery.sharding, "rows_at": rows_at}
    for start in range(0, num_queries, num_rows):
        blocks = [np.asarray(rows[start : start + num_rows]) for rows in by_query]
        padded = [np.pad(rows, [(0, num_rows - len(rows))] + [(0, 0)] * (rows.ndim - 1)) for rows in blocks]
        rows = place(padded, [rows_at] * len(padded))
        found.append(_on_devices(gallery, rows, measure=measure, options=tuple(options.items()), **layout))
    return np.concatenate([gathered(rows) for rows in found])[:num_queries]


@partial(jax.jit, static_argnames=("measure", "candidates_at", "rows_at", "options"))
def _on_devices(
    gallery: Array,
    rows: list[Array],
    *,
    measure: Callable[..., Array],
    candidates_at: NamedSharding,
    rows_at: NamedSharding,
    options: tuple[tuple[str, Any], ...],
) -> Array:
    # Without shard_map the compiler gathers the queries of all devices for every top_k.
    measured = jax.shard_map(
        lambda gallery, rows: measure(gallery, *rows, **dict(options)),
        mesh=rows_at.mesh,
        in_specs=(candidates_at.spec, rows_at.spec),
        out_specs=rows_at.spec,
        check_vma=False,
    )
    assert isinstance(rows_at.mesh, Mesh)
    with tracing_for(platform_of(rows_at.mesh)):
        return measured(gallery, rows)


def _middle(gallery: Array, num_candidates: int | Array) -> Array:
    """Coordinate-wise median `[dim]` of a few candidates, 0 where it is not finite: the new origin of distances."""
    rows = jnp.arange(NUM_SAMPLED) * jnp.maximum(1, num_candidates // NUM_SAMPLED) % jnp.maximum(1, num_candidates)
    middle = jnp.sort(gallery[rows], axis=0)[NUM_SAMPLED // 2]
    return jnp.where(jnp.isfinite(middle), middle, 0)


def middle_of_parts(part: Array, num_own: Array) -> Array:
    """`_middle` of the first device's candidates, for all devices; only the first device always has some."""
    return lax.psum(jnp.where(lax.axis_index(DATA_AXIS) == 0, _middle(part, num_own), 0), DATA_AXIS)


def split_score(score: Score, middle: Array) -> SplitScore:
    """The score in its split form, with the origin at `middle` for `negative_squared_distance`.

    Another score may depend on the origin, so its origin is unchanged.
    """

    def split_distance(queries: Array, gallery: Array) -> tuple[Array, Array]:
        gallery = gallery - middle
        return inner_product(queries - middle, gallery), jnp.sum(gallery**2, axis=1, keepdims=True) / 2

    def split(queries: Array, gallery: Array) -> tuple[Array, Array]:
        return score(queries, gallery), jnp.zeros((len(gallery), 1))

    return split_distance if score is negative_squared_distance else split


def _local_ranks(gallery: Array, queries: Array, positives: Array, *, score: Score, num_candidates: int) -> Array:
    split = split_score(score, _middle(gallery, num_candidates))
    if len(gallery) <= CANDIDATE_BLOCK:
        products, losses = split(queries, gallery)
        own = products[positives, jnp.arange(len(queries))] - losses[positives, 0]
        return _num_not_worse(products - losses, own, jnp.arange(len(gallery)) < num_candidates)
    layout = block_layout(len(gallery), len(queries), size=QUERY_BLOCK)
    own = own_scores(split, queries, gallery[jnp.resize(positives, (layout.num_rows,))])
    return local_counts(gallery, queries, own, split=split, num_candidates=num_candidates)


def own_scores(split: SplitScore, queries: Array, positives: Array) -> Array:
    """Score of each query with the positive in the same row.

    `positives` has the layout's `num_rows` rows, because a product of another shape may sum in another order, and then
    a duplicate of the positive would not tie with it.
    """
    products, losses = split(queries, positives)
    return jnp.diagonal(products) - losses[: len(queries), 0]


def _num_not_worse(scores: Array, own: Array, counts: Array) -> Array:
    """Number `[q]` of counted candidates whose score (`scores` is `[c, q]`) is not strictly worse than `own`."""
    return _num_true(counts[:, None] & ~(scores < own), axis=0)


def _num_true(values: Array, *, axis: int) -> Array:
    """Number of True values along `axis`, at most one block; XLA:CPU sums int16 twice as fast as int32."""
    return jnp.sum(values, axis=axis, dtype=jnp.int16).astype(jnp.int32)


def local_counts(
    gallery: Array, queries: Array, own: Array, *, split: SplitScore, num_candidates: int | Array
) -> Array:
    """Number of candidates that are not strictly worse than each query's `own` score."""

    def count(rank: Array, block: Block) -> Array:
        return rank + _num_not_worse(block.products - block.losses, own, block.counts)

    nothing, layout = jnp.zeros_like(own, jnp.int32), block_layout(len(gallery), len(queries), size=QUERY_BLOCK)
    return _over_candidates(
        count, nothing, gallery, partial(split, queries), num_candidates=num_candidates, layout=layout
    )


def _ranks_of_pairs(right: Array, left: Array, *, num_pairs: int, size: int) -> Array:
    """Ranks `[left, 2]` of this device's left sides and, summed over devices, of the right sides of the same rows.

    Pairs are scored in square blocks, diagonal blocks (the positives) first. With origins a for the left sides l and b
    for the right sides r, -|l - r|^2 / 2 is (l - a) . (r - b) - (|r - b|^2 / 2 - (a - b) . (r - b)) plus a term in l
    only, and correspondingly for the other direction.
    """
    num_blocks, num_all = len(left) // size, len(right) // size
    first = lax.axis_index(DATA_AXIS) * num_blocks
    middle = middle_of_parts(left, jnp.clip(num_pairs - first * size, 0, len(left))), _middle(right, num_pairs)
    left, right, apart = left - middle[0], right - middle[1], middle[0] - middle[1]
    left_losses = jnp.sum(left**2, axis=1) / 2 + jnp.matmul(left, apart, precision="highest")
    right_losses = jnp.sum(right**2, axis=1) / 2 - jnp.matmul(right, apart, precision="highest")

    def block_of(rows: Array, block: Array) -> Array:
        return lax.dynamic_slice_in_dim(rows, block * size, size)

    def products(row: Array, column: Array) -> Array:
        return inner_product(block_of(left, row), block_of(right, column))

    def add(ranks: TwoWays, scored: Array, at: tuple[Array, Array], own: TwoWays) -> TwoWays:
        """Add the counts of one block in both directions; `at` is its row and column, `own` the positives' scores."""
        row, column = at
        is_right, is_left = (start * size + jnp.arange(size) < num_pairs for start in (column, first + row))
        found = _num_not_worse(scored - block_of(right_losses, column)[:, None], own[0], is_right)
        worse = scored - block_of(left_losses, row) < own[1][:, None]
        back = _num_true(is_left & ~worse, axis=1)
        return (
            lax.dynamic_update_slice_in_dim(ranks[0], block_of(ranks[0], row) + found, row * size, 0),
            lax.dynamic_update_slice_in_dim(ranks[1], block_of(ranks[1], column) + back, column * size, 0),
        )

    def positives(row: Array, state: tuple[TwoWays, TwoWays]) -> tuple[TwoWays, TwoWays]:
        ranks, own = state
        scored = products(row, first + row)
        found = jnp.diagonal(scored) - block_of(right_losses, first + row)
        back = jnp.diagonal(scored) - block_of(left_losses, row)
        own = (
            lax.dynamic_update_slice_in_dim(own[0], found, row * size, 0),
            lax.dynamic_update_slice_in_dim(own[1], back, row * size, 0),
        )
        return add(ranks, scored, (row, first + row), (found, back)), own

    def others(index: Array, ranks: TwoWays) -> TwoWays:
        row = index // (num_all - 1)
        column = (first + row + 1 + index % (num_all - 1)) % num_all
        return add(ranks, products(row, column), (row, column), (block_of(own[0], row), block_of(own[1], column)))

    ranks = jnp.zeros(len(left), jnp.int32), jnp.zeros(len(right), jnp.int32)
    ranks, own = lax.fori_loop(0, num_blocks, positives, (ranks, (jnp.zeros(len(left)), jnp.zeros(len(left)))))
    if num_all > 1:
        own = own[0], lax.all_gather(own[1], DATA_AXIS, tiled=True)
        ranks = lax.fori_loop(0, num_blocks * (num_all - 1), others, ranks)
    return jnp.stack([ranks[0], lax.psum_scatter(ranks[1], DATA_AXIS, tiled=True)], axis=1)


def _local_top_k(gallery: Array, queries: Array, *, score: Score, num_candidates: int, k: int) -> Array:
    split = split_score(score, _middle(gallery, num_candidates))
    return local_best(gallery, queries, split=split, num_candidates=num_candidates, k=k)[1]


def local_best(
    gallery: Array, queries: Array, *, split: SplitScore, num_candidates: int | Array, k: int
) -> tuple[Array, Array]:
    """Sortable scores and columns of the best candidates, each `[queries, k]`; -inf where there are fewer than k."""
    num_queries = len(queries)
    if len(gallery) < CANDIDATE_BLOCK:
        gallery = jnp.pad(gallery, ((0, -len(gallery) % GROUP), (0, 0)))
    merge = _merge_by_extraction if k <= min(MOST_EXTRACTED, len(gallery) // 8) else _merge_by_sorting
    nothing = jnp.full((k, num_queries), -jnp.inf), jnp.zeros((k, num_queries), jnp.int32)
    size = CANDIDATE_BLOCK * (max(1, QUERY_BLOCK // num_queries) if num_queries <= FEW_QUERIES else 1)
    layout = block_layout(len(gallery), num_queries, size=size)
    values, columns = _over_candidates(
        merge, nothing, gallery, partial(split, queries), num_candidates=num_candidates, layout=layout
    )
    return jnp.where(values == 0, 0, values).T, columns.T  # Another top_k would take -0 for less than 0.


def _merge_by_sorting(best: tuple[Array, Array], block: Block) -> tuple[Array, Array]:
    """Merge a block into the best scores and columns `[k, q]` so far, by sorting both together."""
    values, columns = best
    scores = jnp.where(block.counts[:, None], _sortable(block.products - block.losses), -jnp.inf)
    # Columns increase from left to right, and top_k keeps the first of equal scores.
    found, winners = lax.top_k(jnp.concatenate([values, scores]).T, len(values))
    all_columns = jnp.concatenate([columns, jnp.broadcast_to(block.columns[:, None], scores.shape)])
    return found.T, jnp.take_along_axis(all_columns, winners.T, axis=0)


def _merge_by_extraction(best: tuple[Array, Array], block: Block) -> tuple[Array, Array]:
    """`_merge_by_sorting` by repeated extraction of the block's maximum, until no query improves.

    The maximum of each group of candidates is kept up to date, so that the next extraction reads little. Equal scores
    are extracted in column order. Each step is vectorized over queries, which is fast on CPUs, where XLA's sort is
    slow.
    """
    num_queries = block.products.shape[1]
    num_parts = -(-num_queries // EXTRACTING) if traced_platform() == "cpu" else 1
    edges = [num_queries * part // num_parts for part in range(num_parts + 1)]
    # A candidate that does not count loses NaN, and one whose own loss is NaN everything.
    losses = jnp.where(jnp.isnan(block.losses[:, 0]), jnp.inf, block.losses[:, 0])
    losses = jnp.where(block.counts, losses, jnp.nan)
    block, group_best = block._replace(losses=losses), _best_of_groups(block.products, losses)
    parts = [
        _extract((best[0][:, start:stop], best[1][:, start:stop]), block, group_best[:, start:stop], first_query=start)
        for start, stop in pairwise(edges)
    ]
    return jnp.concatenate([values for values, _ in parts], 1), jnp.concatenate([columns for _, columns in parts], 1)


def _best_of_groups(products: Array, losses: Array) -> Array:
    """Sortable maxima `[c / GROUP, q]` of the groups' scores, -inf where no candidate of a group counts."""
    shape = (len(losses) // GROUP, GROUP)
    scores = products - losses[:, None]
    # Without NaN, a comparison finds the maximum; XLA:CPU takes four times as long for `max`, which minds NaN.
    numbers = jnp.where(scores > -jnp.inf, scores, -jnp.inf).reshape(*shape, -1)
    found = lax.reduce(numbers, -jnp.inf, lambda one, other: lax.select(other > one, other, one), (1,))
    empty = jnp.isnan(losses).reshape(shape).all(1)[:, None]
    return jnp.where(empty, -jnp.inf, jnp.maximum(found, jnp.finfo(found.dtype).min))


def _extract(best: tuple[Array, Array], block: Block, group_best: Array, *, first_query: int) -> tuple[Array, Array]:
    """`_merge_by_extraction` of some queries, with the block's `losses` as `[c]`, NaN where a candidate does not count.

    A query that gains nothing more reads the first group, like its neighbors, which is in the cache.
    """
    num_groups, num_queries = group_best.shape
    # float32, whose minimum XLA:CPU finds faster; it is exact because blocks have fewer than 2^24 groups.
    group_numbers = jnp.arange(num_groups, dtype=jnp.float32)[:, None]
    places, each_query = jnp.arange(GROUP, dtype=jnp.int32)[:, None], first_query + jnp.arange(num_queries)

    def first_best(values: Array, group_best: Array) -> tuple[Array, Array]:
        value = group_best.max(0)
        group = jnp.min(jnp.where(group_best == value, group_numbers, num_groups), axis=0)
        return value, jnp.where(value > values[-1], group, 0)

    def members_of(rows: Array) -> Array:
        """Scores `[GROUP, q]` of these candidates, computed again."""
        losses = block.losses[rows]
        scores = block.products[rows, each_query] - losses
        return jnp.where(jnp.isnan(losses), -jnp.inf, _sortable(scores))

    def gains(state: tuple[Any, ...]) -> Array:
        (values, _), _, (value, _), _ = state
        return jnp.any(value > values[-1])

    def extract(state: tuple[Any, ...]) -> tuple[Any, ...]:
        (values, columns), group_best, (value, group), (last_value, last_row) = state
        rows = group.astype(jnp.int32) * GROUP + places
        members = members_of(rows)
        is_left = (members < value) | ((members == value) & ((value != last_value) | (rows > last_row)))
        row = jnp.min(jnp.where(is_left & (members == value), rows, len(block.products) - 1), axis=0)
        remaining = jnp.max(jnp.where(is_left & (rows != row), members, -jnp.inf), axis=0)
        stays = values >= value
        group_best = jnp.where((group_numbers == group) & ~stays[-1], remaining, group_best)
        is_next = jnp.concatenate([jnp.ones_like(stays[:1]), stays[:-1]])

        def insert(known: Array, new: Array) -> Array:
            moved = jnp.concatenate([known[:1], known[:-1]])
            return jnp.where(stays, known, jnp.where(is_next, new, moved))

        values, columns = insert(values, value), insert(columns, block.columns[row])
        return (values, columns), group_best, first_best(values, group_best), (value, row)

    nobody = jnp.full(num_queries, jnp.inf), jnp.full(num_queries, -1, jnp.int32)
    return lax.while_loop(gains, extract, (best, group_best, first_best(best[0], group_best), nobody))[0]


def _sortable(scores: Array) -> Array:
    """Scores with NaN and -inf replaced by the lowest finite number, so that -inf marks padding, and -0 by 0."""
    lowest = jnp.finfo(scores.dtype).min
    return jnp.where(scores > lowest, jnp.where(scores == 0, 0, scores), lowest)


class Layout(NamedTuple):
    """Division of the candidates: a block is scored by `num_products` products of `num_rows` candidates each."""

    num_rows: int
    num_products: int


def block_layout(num_candidates: int, num_queries: int, *, size: int) -> Layout:
    """Layout of equal blocks of at most about `size` candidates, in whole groups.

    A product has at least as many rows as there are queries, if there are that many candidates, because the positives
    of all queries are scored by one product.
    """
    num_blocks = -(-num_candidates // size)
    num_in_block = -(-num_candidates // (num_blocks * GROUP)) * GROUP
    num_rows = FEW_ROWS if num_queries <= FEW_QUERIES else num_in_block
    num_rows = min(max(min(num_rows, num_in_block), num_queries), num_candidates)
    return Layout(num_rows, -(-num_in_block // num_rows))


def _over_candidates(
    update: Callable[[Any, Block], Any],
    state: Any,
    gallery: Array,
    score: Callable[[Array], tuple[Array, Array]],
    *,
    num_candidates: int | Array,
    layout: Layout,
) -> Any:
    """Fold `update` over blocks of candidates, whose products `score` computes one at a time.

    The last product starts early enough to be full, so that it may overlap the one before.
    """
    num_rows, num_products = layout

    def part(first: Array) -> Block:
        start = jnp.minimum(first, len(gallery) - num_rows)
        columns = start + jnp.arange(num_rows, dtype=jnp.int32)
        products, losses = score(lax.dynamic_slice_in_dim(gallery, start, num_rows))
        return Block(products, losses, columns, (columns >= first) & (columns < num_candidates))

    def body(index: Array, state: Any) -> Any:
        firsts = (index * num_products + jnp.arange(num_products, dtype=jnp.int32)) * num_rows
        if num_products == 1:
            return update(state, part(firsts[0]))
        parts = lax.map(part, firsts)
        return update(state, Block(*(values.reshape(-1, *values.shape[2:]) for values in parts)))

    return lax.fori_loop(0, -(-num_candidates // (num_products * num_rows)), body, state)
