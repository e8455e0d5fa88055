"""Winograd's algorithm for 3x3 convolutions of stride 1: tile transforms, and one matrix product for each tile entry.

A tile of `size` x `size` outputs needs `(size + 2)^2` multiplications for each pair of channels, the direct convolution
`9 size^2`: for tiles of 4 a quarter of them.
Source: Lavin and Gray 2015 (arXiv 1509.09308).
"""

import functools
import operator
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tll_jax.models.ops.chunks import map_chunks, num_chunks, sum_of_chunks

Matrix = Sequence[Sequence[float]]

OUTPUT: dict[int, Matrix] = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}
"""A^T of Lavin and Gray 2015 by tile size: transforms products into outputs."""

INPUT: dict[int, Matrix] = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
"""B^T of Lavin and Gray 2015 by tile size: transforms input tiles."""

KERNEL: dict[int, Matrix] = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
"""G of Lavin and Gray 2015 by tile size: transforms kernels."""


def convolve_by_tiles(
    images: Float[Array, "batch height width channels"], kernel: Float[Array, "3 3 channels features"], *, size: int
) -> Float[Array, "batch height width features"]:
    """Cross-correlation with zero padding of 1, in tiles of `size` x `size` outputs (2 or 4), computed in fp32.

    With tiles of 4 the rounding error is several times that of a direct fp32 convolution.
    """
    return _convolved(images, _kernel_tiles(kernel, size), size, contracted=1)


def image_gradient_by_tiles(
    kernel: Float[Array, "3 3 channels features"],
    gradient: Float[Array, "batch height width features"],
    *,
    size: int,
) -> Float[Array, "batch height width channels"]:
    """Gradient of `convolve_by_tiles` with respect to its images, given that of its outputs."""
    return _convolved(gradient, _kernel_tiles(jnp.flip(kernel, (0, 1)), size), size, contracted=2)


def _convolved(maps: jax.Array, kernel_tiles: jax.Array, size: int, *, contracted: int) -> jax.Array:
    """Convolution with transformed kernels; axis `contracted` of the kernel tiles is summed with the channels."""
    features = kernel_tiles.shape[3 - contracted]
    chunks = num_chunks(
        maps.shape[0],
        image_bytes=_bytes_of_tiles(maps, size, max(maps.shape[3], features)),
        shared_bytes=4 * kernel_tiles.size,
    )
    zeros = jnp.zeros((*maps.shape[:3], features), maps.dtype)
    return map_chunks(partial(_chunk_convolved, kernel_tiles, size, contracted), chunks, zeros, maps)


def _chunk_convolved(kernel_tiles: jax.Array, size: int, contracted: int, maps: jax.Array) -> jax.Array:
    batch, height, width, _ = maps.shape
    rows, columns = -(-height // size), -(-width // size)
    side = size + 2
    products = lax.dot_general(_image_tiles(maps, size), kernel_tiles, (((2,), (contracted,)), ((0,), (0,))))
    products = products.reshape(side, side, batch, rows, columns, -1)
    half = _kept(_combined(OUTPUT[size], list(products), axis=0))
    outputs = _combined(OUTPUT[size], [half[:, column] for column in range(side)], axis=4)
    whole = jnp.moveaxis(outputs, 0, 2).reshape(batch, rows * size, columns * size, -1)
    return whole[:, :height, :width].astype(maps.dtype)


def kernel_gradient_by_tiles(
    images: Float[Array, "batch height width channels"],
    gradient: Float[Array, "batch height width features"],
    *,
    size: int,
) -> Float[Array, "3 3 channels features"]:
    """Gradient of `convolve_by_tiles` with respect to its kernel, given that of its outputs."""
    side, channels, features = size + 2, images.shape[3], gradient.shape[3]
    zeros = jnp.zeros((side**2, channels, features), jnp.float32)
    chunks = num_chunks(
        images.shape[0],
        image_bytes=_bytes_of_tiles(images, size, max(channels, features)),
        # Each chunk computes its products, and reads and writes the sums.
        shared_bytes=4 * 4 * zeros.size,
    )
    sums = sum_of_chunks(partial(_products_of_tiles, size), chunks, zeros, images, gradient)
    sums = sums.reshape(side, side, channels, features)
    back = _transposed(KERNEL[size])
    half = _kept(_combined(back, list(sums), axis=0))
    return _combined(back, [half[:, column] for column in range(side)], axis=1).astype(images.dtype)


def _bytes_of_tiles(maps: jax.Array, size: int, channels: int) -> int:
    """Size of the transformed tiles of one image, in fp32."""
    _, height, width, _ = maps.shape
    return 4 * (size + 2) ** 2 * -(-height // size) * -(-width // size) * channels


def _products_of_tiles(size: int, images: jax.Array, gradient: jax.Array) -> jax.Array:
    """Products of transformed tiles of images and gradients, summed over all tiles: `[side**2, channels, features]`."""
    return lax.dot_general(_image_tiles(images, size), _gradient_tiles(gradient, size), (((1,), (1,)), ((0,), (0,))))


def _image_tiles(images: jax.Array, size: int) -> jax.Array:
    """Transformed overlapping tiles of `side = size + 2` pixels, `[side * side, tiles, channels]`."""
    height, width = images.shape[1:3]
    padded = ((0, 0), (1, -height % size + 1), (1, -width % size + 1), (0, 0))
    return _tiles(jnp.pad(images.astype(jnp.float32), padded), INPUT[size], size)


def _gradient_tiles(gradient: jax.Array, size: int) -> jax.Array:
    """Tiles of `size` output gradients, transformed by the adjoint of `OUTPUT`, `[side * side, tiles, features]`."""
    height, width = gradient.shape[1:3]
    padded = ((0, 0), (0, -height % size), (0, -width % size), (0, 0))
    return _tiles(jnp.pad(gradient.astype(jnp.float32), padded), _transposed(OUTPUT[size]), size)


def _tiles(maps: jax.Array, matrix: Matrix, size: int) -> jax.Array:
    """Tiles at every `size` pixels, with sides of `matrix`'s columns, transformed by `matrix` along both axes."""
    taken = len(matrix[0])
    half = _kept(_combined(matrix, [_every(maps, start, taken, size, axis=1) for start in range(taken)], axis=0))
    whole = _combined(matrix, [_every(half, start, taken, size, axis=3) for start in range(taken)], axis=1)
    return whole.reshape(len(matrix) ** 2, -1, maps.shape[-1])


def _every(maps: jax.Array, start: int, taken: int, size: int, *, axis: int) -> jax.Array:
    """Pixel `start` of every tile."""
    last = maps.shape[axis] - taken
    return lax.slice_in_dim(maps, start, start + last + 1, stride=size, axis=axis)


def _kernel_tiles(kernel: jax.Array, size: int) -> jax.Array:
    """Transformed kernels, `[side * side, channels, features]`."""
    half = _combined(KERNEL[size], list(kernel.astype(jnp.float32)), axis=0)
    whole = _combined(KERNEL[size], [half[:, column] for column in range(3)], axis=1)
    return whole.reshape(-1, *kernel.shape[2:])


def _combined(matrix: Matrix, parts: Sequence[jax.Array], *, axis: int) -> jax.Array:
    """`matrix` times the stacked parts, as sums without the zero terms."""
    sums = []
    for row in matrix:
        terms = [factor * part for factor, part in zip(row, parts, strict=True) if factor]
        sums.append(functools.reduce(operator.add, terms))
    return jnp.stack(sums, axis=axis)


def _kept(half: jax.Array) -> jax.Array:
    """Materialize an array: fused into its consumer, it would be recomputed for every entry and compile slowly."""
    return lax.optimization_barrier(half)


def _transposed(matrix: Matrix) -> Matrix:
    return list(zip(*matrix, strict=True))
