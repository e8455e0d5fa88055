"""Weighted sums of a function over many inputs, in chunks of bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def map_sum(
    function: Callable[[Any], Float[Array, "*shape"]], inputs: Any, weights: Float[Array, " count"], *, chunk: int
) -> Float[Array, "*shape"]:
    """Sum of `weights[i] * function(inputs[i])` over i, with at most `chunk` evaluations at once.

    `inputs` is a tree of arrays with `count` rows. Memory grows with `chunk`, not with `count`.
    """
    count = len(weights)
    num_chunks = -(-count // chunk)
    # The smallest chunk for this number of chunks, so that little padding is computed.
    chunk = -(-count // num_chunks)
    # The last chunk is padded with the first inputs, at weight 0.
    positions = jnp.arange(num_chunks * chunk) % count
    weights = jnp.where(jnp.arange(num_chunks * chunk) < count, weights[positions], 0).reshape(num_chunks, chunk)
    parts = jax.tree.map(lambda rows: rows[positions].reshape(num_chunks, chunk, *rows.shape[1:]), inputs)

    def part_sum(part: Any, part_weights: Float[Array, " chunk"]) -> Float[Array, "*shape"]:
        return jnp.tensordot(part_weights, jax.vmap(function)(part), 1)

    if num_chunks == 1:
        return part_sum(jax.tree.map(lambda rows: rows[0], parts), weights[0])
    shape = jax.eval_shape(part_sum, jax.tree.map(lambda rows: rows[0], parts), weights[0])
    total, _ = jax.lax.scan(
        lambda total, part: (total + part_sum(*part), None), jnp.zeros(shape.shape, shape.dtype), (parts, weights)
    )
    return total
