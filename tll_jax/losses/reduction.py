"""Masks and masked reductions of losses."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Mean of the values whose mask is True; 0 if there are none."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def on_diagonal(matrix: Float[Array, "dim dim"]) -> Bool[Array, "dim dim"]:
    """True where row and column are equal.

    Use this mask rather than `jnp.diagonal`, whose gradient is scattered into a matrix of zeros: several more passes
    over memory.
    """
    return jnp.eye(matrix.shape[0], dtype=bool)
