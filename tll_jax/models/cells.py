"""Maps of one resolution brought to another by areas."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cell_means(
    maps: Float[Array, "batch height width channels"], grid: int
) -> Float[Array, "batch {grid} {grid} channels"]:
    """Averages over `grid` x `grid` cells of equal size; a position that two cells share counts in part for each."""
    height, width = maps.shape[1:3]
    rows, columns = (jnp.asarray(cell_shares(side, grid), maps.dtype) for side in (height, width))
    return jnp.einsum("gh,khwc,fw->kgfc", rows, maps, columns, precision="highest")


def cell_shares(length: int, cells: int) -> Float[np.ndarray, "{cells} {length}"]:
    """How much each of `length` positions counts in the mean of each cell; each row sums to 1.

    >>> cell_shares(3, 2).round(2).tolist()
    [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    starts = np.arange(cells)[:, None] * length / cells
    positions = np.arange(length)[None]
    overlap = np.minimum(positions + 1, starts + length / cells) - np.maximum(positions, starts)
    return np.maximum(overlap, 0) * cells / length
