"""Sums over the images of a batch, computed in chunks whose intermediate arrays fit a processor's cache."""

from collections.abc import Callable

import jax
from jax import lax

CHUNK_BYTES = 4 * 2**20
"""Size aimed at for the largest intermediate array of a chunk, about twice the second-level cache of a core."""


def num_chunks(batch: int, image_bytes: int, sum_bytes: int) -> int:
    """Number of equal chunks for `batch` images whose intermediate arrays take `image_bytes` each.

    A chunk has `CHUNK_BYTES`, or four times `sum_bytes` if that is more, for each chunk also reads and writes the sum.
    A batch that cannot be split evenly into about that many chunks is one chunk.
    """
    fewest = -(-batch * image_bytes // max(CHUNK_BYTES, 4 * sum_bytes))
    fitting = (count for count in range(fewest, min(2 * fewest, batch) + 1) if batch % count == 0)
    return next(fitting, batch if fewest > batch else 1)


def sum_of_chunks(function: Callable[..., jax.Array], chunks: int, zeros: jax.Array, *arrays: jax.Array) -> jax.Array:
    """Sum of `function` over `chunks` parts of the arrays' first axis, in a loop that begins with `zeros`.

    The parts are interleaved, so that each has images of all devices that share the batch.
    """
    if chunks == 1:
        return function(*arrays)
    parts = [array.reshape(-1, chunks, *array.shape[1:]) for array in arrays]

    def with_chunk(index: jax.Array, total: jax.Array) -> jax.Array:
        return total + function(*(lax.dynamic_index_in_dim(part, index, 1, keepdims=False) for part in parts))

    return lax.fori_loop(0, chunks, with_chunk, zeros)
