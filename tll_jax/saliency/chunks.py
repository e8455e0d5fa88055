"""Sums over many evaluations of a function, a few at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def map_sum(
    function: Callable[[Any], Float[Array, "*shape"]], inputs: Any, weights: Float[Array, " count"], *, chunk: int
) -> Float[Array, "*shape"]:
    """The sum of `weights[i] * function(inputs[i])`, at most `chunk` of them at once and the chunks one after another.

    `inputs` is a tree of arrays with `count` rows. Memory grows with the chunk, never with the count.
    """
    count = len(weights)
    num_chunks = -(-count // chunk)
    # No larger than so many chunks need, so that little is computed for nothing.
    chunk = -(-count // num_chunks)
    # The last chunk is filled up with first inputs, which weigh nothing.
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
