"""Loops over the images of a batch in chunks, whose intermediate arrays fit a processor's cache."""

from collections.abc import Callable

import jax
from jax import lax

CHUNK_BYTES = 4 * 2**20
"""Size aimed at for the largest intermediate array of a chunk, about twice the second-level cache of a core."""


def num_chunks(batch: int, image_bytes: int, shared_bytes: int) -> int:
    """Number of equal chunks for `batch` images whose intermediate arrays take `image_bytes` each.

    A chunk has `CHUNK_BYTES`, or `shared_bytes` if that is more, the size of what every chunk reads or writes whole. A
    batch that cannot be split evenly into about that many chunks is one chunk.
    """
    fewest = -(-batch * image_bytes // max(CHUNK_BYTES, shared_bytes))
    fitting = (count for count in range(fewest, min(2 * fewest, batch) + 1) if batch % count == 0)
    return next(fitting, batch if fewest > batch else 1)


def map_chunks(
    function: Callable[[jax.Array], jax.Array], chunks: int, zeros: jax.Array, images: jax.Array
) -> jax.Array:
    """`function` of the images, in a loop over `chunks` parts, written into `zeros`.

    The parts are interleaved, so that each has images of all devices that share the batch.
    """
    if chunks == 1:
        return function(images)

    def with_chunk(index: jax.Array, results: jax.Array) -> jax.Array:
        # Fused into the update in place, the last step of the function would run on one thread.
        result = lax.optimization_barrier(function(_chunk(parts, index)))
        return lax.dynamic_update_index_in_dim(results, result, index, 1)

    parts = _parts(images, chunks)
    return lax.fori_loop(0, chunks, with_chunk, _parts(zeros, chunks)).reshape(zeros.shape)


def sum_of_chunks(function: Callable[..., jax.Array], chunks: int, zeros: jax.Array, *arrays: jax.Array) -> jax.Array:
    """Sum of `function` over `chunks` parts of the arrays, in a loop that begins with `zeros`; see `map_chunks`."""
    if chunks == 1:
        return function(*arrays)

    def with_chunk(index: jax.Array, total: jax.Array) -> jax.Array:
        return total + function(*(_chunk(part, index) for part in parts))

    parts = [_parts(array, chunks) for array in arrays]
    return lax.fori_loop(0, chunks, with_chunk, zeros)


def _parts(array: jax.Array, chunks: int) -> jax.Array:
    return array.reshape(-1, chunks, *array.shape[1:])


def _chunk(parts: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(parts, index, 1, keepdims=False)
