"""Ranks and neighbors among the vectors of a gallery that is split over devices and processes."""

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
"""Columns and counts are int32."""


@runtime_checkable
class Vectors(Protocol):
    """Rows that are read a part at a time: an array, a memory map, a gallery's folder."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, dim)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class ShardedGallery(NamedTuple):
    """Candidates of which each device holds a part: `rows` `[a multiple of the devices, dim]`, split over the mesh, of
    which the first `num_candidates` count."""

    rows: Array
    num_candidates: int


def shard_gallery(vectors: Vectors, *, mesh: Mesh) -> ShardedGallery:
    """Spreads candidates over the devices, in equal runs of rows, as float32.

    Of a program of several processes, each reads the rows of its own devices alone, a device's at a time.

    Raises:
      ValueError: there are none, or more than int32 counts.
    """
    num_candidates, dim = vectors.shape
    part = -(-num_candidates // mesh.size)
    if not 1 <= num_candidates <= part * mesh.size <= MAX_CANDIDATES:
        raise InvalidValue(f"the gallery holds {num_candidates:,} vectors; it must hold from 1 to {MAX_CANDIDATES:,}")
    shape, sharding, parts = (part * mesh.size, dim), batch_sharded(mesh), []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        start, stop, _ = index[0].indices(shape[0])
        # The last devices may have fewer candidates, or none.
        found = np.asarray(vectors[min(start, num_candidates) : min(stop, num_candidates)], np.float32)
        if len(found) < part:
            found = np.pad(found, ((0, part - len(found)), (0, 0)))
        parts.append(jax.device_put(found, device).block_until_ready())
        del found  # So that the host never holds two.
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
    """`embedding_ranks` over a gallery that is split over the devices; `positives` are its columns.

    Every process passes all queries and gets all ranks. What devices tell each other of a query is the score of its
    positive and how many of their rows are not strictly worse; and, once, the origin of `negative_squared_distance`.
    Equal rows tie on devices of one kind alone: others may add in another order.
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
    """`embedding_top_k` over a gallery that is split over the devices.

    Every process passes all queries and gets all neighbors. What devices tell each other of a query are the scores and
    columns of the `k` best on each.
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
    """`measure` of equal blocks of queries, put together; each device has all of a block."""
    num_queries = len(by_query[0])
    size = -(-num_queries // max(1, -(-num_queries // blocked.QUERY_BLOCK)))
    options["num_candidates"] = gallery.num_candidates
    return blocked.in_blocks(measure, gallery.rows, by_query, size, rows_at=replicated(mesh), **options)


def _own_part(part: Array, num_candidates: int) -> tuple[Array, Array]:
    """The column of the part's first row, and how many of its rows are candidates."""
    first = lax.axis_index(DATA_AXIS) * len(part)
    return first, jnp.clip(num_candidates - first, 0, len(part))


def _ranks_of_parts(part: Array, queries: Array, positives: Array, *, score: Score, num_candidates: int) -> Array:
    first, num_own = _own_part(part, num_candidates)
    # As in `_local_ranks`, matches are scored in a block like any other, which has room for all queries.
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
    # Columns rise from device to device, and top_k keeps the first of equals.
    values = lax.all_gather(values, DATA_AXIS, axis=1, tiled=True)
    found = lax.all_gather(found + first, DATA_AXIS, axis=1, tiled=True)
    return jnp.take_along_axis(found, lax.top_k(values, k)[1], axis=1)
