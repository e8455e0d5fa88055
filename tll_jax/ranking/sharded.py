"""Ranks and nearest neighbors in a gallery that is sharded over devices and processes."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32

from tll_jax.devices import DATA_AXIS, batch_sharded, replicated
from tll_jax.errors import InvalidValue
from tll_jax.ranking import blocked
from tll_jax.ranking.blocked import Score, negative_squared_distance

MAX_CANDIDATES = 2**31 - 1
"""Largest gallery: columns and counts are int32."""


@runtime_checkable
class Vectors(Protocol):
    """Vectors that can be read in slices of rows: an array, a memory map, or a gallery's folder."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, dim)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class ShardedGallery(NamedTuple):
    """Gallery vectors sharded over the mesh by rows.

    `rows` is `[num_rows, dim]` with a multiple of the number of devices as `num_rows`; the first `num_candidates` rows
    are the gallery, the rest is padding.
    """

    rows: Array
    num_candidates: int


def shard_gallery(vectors: Vectors, *, mesh: Mesh) -> ShardedGallery:
    """Shard gallery vectors over the devices as float32, in equal runs of rows.

    With several processes, each process reads only the rows of its own devices, one device at a time.

    Raises:
      ValueError: the gallery is empty, or larger than int32 can count.
    """
    num_candidates, dim = vectors.shape
    part = -(-num_candidates // mesh.size)
    if not 1 <= num_candidates <= part * mesh.size <= MAX_CANDIDATES:
        raise InvalidValue(f"the gallery holds {num_candidates:,} vectors; it must hold from 1 to {MAX_CANDIDATES:,}")
    shape, sharding, parts = (part * mesh.size, dim), batch_sharded(mesh), []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        start, stop, _ = index[0].indices(shape[0])
        # The last devices may have fewer rows, or none.
        found = np.asarray(vectors[min(start, num_candidates) : min(stop, num_candidates)], np.float32)
        if len(found) < part:
            found = np.pad(found, ((0, part - len(found)), (0, 0)))
        parts.append(jax.device_put(found, device).block_until_ready())
        del found  # The host never holds two parts.
    rows = jax.make_array_from_single_device_arrays(shape, sharding, parts)
    return ShardedGallery(rows, num_candidates)


def sharded_ranks(
    queries: Float32[np.ndarray | Array, "queries dim"],
    gallery: ShardedGallery,
    positives: Int[np.ndarray | Array, " queries"],
    *,
    mesh: Mesh,
    score: Score = negative_squared_distance,
) -> Int32[np.ndarray, " queries"]:
    """`embedding_ranks` over a sharded gallery; `positives` are its row numbers, and ties and NaN rank last.

    Every process passes all queries and gets all ranks. Communication per query is the score of its positive and a
    count of rows that are not strictly worse; the origin of `negative_squared_distance` is communicated once for each
    block of queries. Equal rows tie only if all devices are of one kind: others may sum in another order.
    """
    return _by_replicated_blocks(_ranks_of_parts, gallery, queries, np.asarray(positives), mesh=mesh, score=score)


def sharded_top_k(
    queries: Float32[np.ndarray | Array, "queries dim"],
    gallery: ShardedGallery,
    k: int,
    *,
    mesh: Mesh,
    score: Score = negative_squared_distance,
) -> Int32[np.ndarray, "queries top"]:
    """`embedding_top_k` over a sharded gallery.

    Every process passes all queries and gets all neighbors. Communication per query is the scores and columns of the
    `k` best of each device.
    """
    k = min(k, gallery.num_candidates)
    return _by_replicated_blocks(_top_k_of_parts, gallery, queries, mesh=mesh, score=score, k=k)


def _by_replicated_blocks(
    measure: Callable[..., Array],
    gallery: ShardedGallery,
    *by_query: np.ndarray | Array,
    mesh: Mesh,
    **options: Any,
) -> np.ndarray:
    """`measure` on equal blocks of queries, concatenated; each block is replicated on all devices."""
    num_queries = len(by_query[0])
    size = -(-num_queries // max(1, -(-num_queries // blocked.QUERY_BLOCK)))
    options["num_candidates"] = gallery.num_candidates
    return blocked.in_blocks(measure, gallery.rows, by_query, size, rows_at=replicated(mesh), **options)


def _own_part(part: Array, num_candidates: int) -> tuple[Array, Array]:
    """Column of the part's first row, and the number of its rows that are not padding."""
    first = lax.axis_index(DATA_AXIS) * len(part)
    return first, jnp.clip(num_candidates - first, 0, len(part))


def _ranks_of_parts(part: Array, queries: Array, positives: Array, *, score: Score, num_candidates: int) -> Array:
    first, num_own = _own_part(part, num_candidates)
    # As in `_local_ranks`, positives are scored by a product of the usual shape, which needs a row for each query.
    part = jnp.pad(part, ((0, max(0, len(queries) - len(part))), (0, 0)))
    split = blocked.split_score(score, blocked.middle_of_parts(part, num_own))
    is_here = (positives >= first) & (positives < first + num_own)
    layout = blocked.block_layout(len(part), len(queries), size=blocked.QUERY_BLOCK)
    rows = part[jnp.resize(jnp.where(is_here, positives - first, 0), (layout.num_rows,))]
    own = lax.psum(jnp.where(is_here, blocked.own_scores(split, queries, rows), 0), DATA_AXIS)
    return lax.psum(blocked.local_counts(part, queries, own, split=split, num_candidates=num_own), DATA_AXIS)


def _top_k_of_parts(part: Array, queries: Array, *, score: Score, num_candidates: int, k: int) -> Array:
    first, num_own = _own_part(part, num_candidates)
    split = blocked.split_score(score, blocked.middle_of_parts(part, num_own))
    values, found = blocked.local_best(part, queries, split=split, num_candidates=num_own, k=min(k, len(part)))
    # Columns increase from device to device, and top_k keeps the first of equal scores.
    values = lax.all_gather(values, DATA_AXIS, axis=1, tiled=True)
    found = lax.all_gather(found + first, DATA_AXIS, axis=1, tiled=True)
    return jnp.take_along_axis(found, lax.top_k(values, k)[1], axis=1)
