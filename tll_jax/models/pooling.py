"""Adaptive average pooling of feature maps to a coarser or finer grid, by area."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def adaptive_avg_pool(
    maps: Float[Array, "batch height width channels"], grid: int
) -> Float[Array, "batch {grid} {grid} channels"]:
    """Average pooling to `grid` x `grid` bins of equal size; a position in two bins is weighted by its area in each."""
    height, width = maps.shape[1:3]
    rows, columns = (jnp.asarray(pooling_weights(side, grid), maps.dtype) for side in (height, width))
    return jnp.einsum("gh,khwc,fw->kgfc", rows, maps, columns, precision="highest")


def pooling_weights(length: int, grid: int) -> Float[np.ndarray, "{grid} {length}"]:
    """Weight of each of `length` positions in the mean of each of `grid` bins; rows sum to 1.

    Examples:
      >>> pooling_weights(3, 2).round(2).tolist()
      [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    starts = np.arange(grid)[:, None] * length / grid
    positions = np.arange(length)[None]
    overlap = np.minimum(positions + 1, starts + length / grid) - np.maximum(positions, starts)
    return np.maximum(overlap, 0) * grid / length
