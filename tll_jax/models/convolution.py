"""Convolution and max pooling that XLA also runs fast on CPUs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

LARGEST_UNFOLDED_MAP = 16
"""Output positions up to which a CPU convolves by unfolding. XLA:CPU needs 41 ms for a 3x3 convolution of 256
channels on 2x2 maps, batch 64, where unfolding and a dot need 1.7; from about 6x6 on the two are alike or the
convolution is faster (measured on 2 cores, forward and both gradients)."""

WIDEST_FOLDED_STEM = 64
"""Features from which a 7x7 stem gains nothing from folding. With 32 it takes 29 ms plain and 10 folded, for
64 images of 64x64; with 24 it takes 72 and 8."""


def convolve(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Cross-correlation with `(size - 1) // 2` zeros on either side of each axis, as PyTorch models pad.

    CPUs get dots instead where those are faster: for 1x1 kernels and for small output maps; and a narrow stem
    on folded images. The choice of platform is made when the program is lowered, so one compiled elsewhere
    for a GPU or TPU holds the plain convolution.
    """
    rows, columns = kernel.shape[:2]
    new_height = _output_size(images.shape[1], rows, strides)
    new_width = _output_size(images.shape[2], columns, strides)
    if rows * columns == 1 or new_height * new_width <= LARGEST_UNFOLDED_MAP:
        on_cpu: Callable[..., jax.Array] = partial(convolve_unfolded, strides=strides)
    elif strides == 2 and kernel.shape[:2] == (7, 7) and kernel.shape[3] < WIDEST_FOLDED_STEM and _is_even(images):
        on_cpu = convolve_folded
    else:
        return convolve_plainly(images, kernel, strides=strides)
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=partial(convolve_plainly, strides=strides))


def convolve_plainly(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """`convolve` as one convolution, whatever the platform."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(strides, strides),
        padding=[_padding(size) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_unfolded(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """`convolve` as one dot: the window of every output position, flattened, times the flattened kernel."""
    rows, columns, channels, features = kernel.shape
    batch, height, width, _ = images.shape
    new_height, new_width = _output_size(height, rows, strides), _output_size(width, columns, strides)
    padded = jnp.pad(images, ((0, 0), _padding(rows), _padding(columns), (0, 0)))
    shifted = [
        lax.slice(
            padded,
            (0, row, column, 0),
            (batch, row + (new_height - 1) * strides + 1, column + (new_width - 1) * strides + 1, channels),
            (1, strides, strides, 1),
        )
        for row in range(rows)
        for column in range(columns)
    ]
    windows = jnp.concatenate(shifted, axis=-1).reshape(-1, rows * columns * channels)
    return (windows @ kernel.reshape(-1, features)).reshape(batch, new_height, new_width, features)


def convolve_folded(
    images: Float[Array, "batch height width channels"], kernel: Float[Array, "7 7 channels features"]
) -> Float[Array, "batch new_height new_width features"]:
    """`convolve` with stride 2 for images of even size, as a 4x4 convolution with stride 1.

    Each pixel of the folded images holds 2x2 of the old ones as channels.
    """
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    images = images.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
    # Windows start at odd pixels, so that a row and a column of zeros come first.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding=[(2, 1), (2, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def max_pool(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch new_height new_width channels"]:
    """3x3 maximum with stride 2 over maps padded by one, as maxima of shifted slices along each axis.

    `lax.reduce_window` computes the same, but its gradient is 20 times slower on CPUs (measured: 41 ms
    against 2 for 64 maps of 32x32x32). Equal maxima share the gradient.
    """
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return _max_of_three(_max_of_three(padded, axis=1), axis=2)


def _max_of_three(padded: jax.Array, *, axis: int) -> jax.Array:
    span = (padded.shape[axis] - 3) // 2 * 2 + 1
    first, middle, last = (lax.slice_in_dim(padded, start, start + span, stride=2, axis=axis) for start in range(3))
    return jnp.maximum(jnp.maximum(first, middle), last)


def _is_even(images: jax.Array) -> bool:
    return images.shape[1] % 2 == 0 and images.shape[2] % 2 == 0


def _padding(size: int) -> tuple[int, int]:
    return ((size - 1) // 2, (size - 1) // 2)


def _output_size(size: int, window: int, strides: int) -> int:
    return (size + 2 * ((window - 1) // 2) - window) // strides + 1


class Convolution(nn.Module):
    """A convolution without bias, fp32 parameter "kernel" `[rows, columns, channels, features]`, computed in
    `dtype`.

    The kernel starts normal with variance `2 / (rows * columns * features)`.
    Source: He et al. 2015 (arXiv 1502.01852), the "fan out" form.
    """

    features: int
    kernel_size: int
    strides: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            (self.kernel_size, self.kernel_size, images.shape[-1], self.features),
            jnp.float32,
        )
        return convolve(images.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides)
