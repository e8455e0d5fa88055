"""Convolution and max pooling with fast lowerings for CPUs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tll_jax.devices import by_platform, traced_platform
from tll_jax.models.ops.chunks import num_chunks, sum_of_chunks
from tll_jax.models.ops.winograd import convolve_by_tiles, image_gradient_by_tiles, kernel_gradient_by_tiles

LARGEST_UNFOLDED_MAP = 16
"""Number of output positions up to which convolutions without tiles are unfolded (im2col). XLA:CPU needs 1,100 ms for a
3x3 convolution of 512 channels on 128 maps of 2x2, unfolding and a matrix product 13 ms."""

WIDEST_FOLDED_STEM = 64
"""Number of features from which folding does not speed up a 7x7 stem. For 64 images of 64x64, the plain and the folded
one take 29 and 10 ms with 32 features, 72 and 8 ms with 24."""

FEWEST_CONVOLVED_CHANNELS = 8
"""Number of channels below which 3x3 convolutions of stride 2 are unfolded. For 32 images of 224x224 with 3 channels
and 32 features, the plain one takes 67 ms, the unfolded one 36."""

Convolve = Callable[[jax.Array, jax.Array], jax.Array]
"""(images, kernel) -> feature maps."""

Gradient = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(images, kernel, gradient of the maps) -> gradient of the images, or of the kernel."""


def convolve(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Cross-correlation with `(size - 1) // 2` zeros on either side of each axis, as PyTorch models pad.

    On CPUs the lowering is that of `lowering_for`, forward and backward; other platforms use the plain convolution (see
    `devices.by_platform`). There is no forward-mode derivative.
    """
    return _convolve(images, kernel, strides)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(images: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    return folding(partial(_lowered, "forward", strides))(images, kernel)


def _lowered(part: str, strides: int, *arrays: jax.Array) -> jax.Array:
    """Call a field of the platform's `Lowering`."""
    return _traced_once(traced_platform(), part, strides, *arrays)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _traced_once(platform: str | None, part: str, strides: int, *arrays: jax.Array) -> jax.Array:
    """Jitted `_lowered`, traced and lowered once for all convolutions of equal shapes; the compiler inlines it."""
    del platform
    on_cpu = lowering_for(arrays[0].shape, arrays[1].shape, strides)
    return by_platform(*arrays, cpu=getattr(on_cpu, part), default=getattr(plain(strides), part))


def _forward(images: jax.Array, kernel: jax.Array, strides: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(images, kernel, strides), (images, kernel)


def _backward(strides: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    return _image_gradient(images, kernel, gradient, strides), _kernel_gradient(images, kernel, gradient, strides)


_convolve.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _image_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: int) -> jax.Array:
    return folding(partial(_lowered, "image_gradient", strides))(images, kernel, gradient)


def _image_gradient_forward(
    images: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _image_gradient(images, kernel, gradient, strides), (kernel, gradient)


def _image_gradient_backward(
    strides: int, saved: tuple[jax.Array, jax.Array], back: jax.Array
) -> tuple[None, jax.Array, jax.Array]:
    # The gradient is linear in both arguments; its transpose is the convolution itself.
    kernel, gradient = saved
    return None, _kernel_gradient(back, kernel, gradient, strides), _convolve(back, kernel, strides)


_image_gradient.defvjp(_image_gradient_forward, _image_gradient_backward)


def _kernel_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array, strides: int) -> jax.Array:
    return _lowered("kernel_gradient", strides, images, kernel, gradient)


def folding(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wrap a function of (images, kernel, further batches) so that `vmap` over images folds its axis into the batch.

    Code on single images under `vmap`, such as saliency, then uses the lowering for the whole batch; that for a single
    image is several times slower. A `vmap` over kernels is not folded.
    """
    folded = jax.custom_batching.custom_vmap(function)

    @folded.def_vmap
    def fold(
        axis_size: int, is_mapped: Sequence[bool], images: jax.Array, kernel: jax.Array, *others: jax.Array
    ) -> tuple[jax.Array, bool]:
        if is_mapped[1]:
            axes = tuple(0 if mapped else None for mapped in is_mapped)
            return jax.vmap(function, in_axes=axes)(images, kernel, *others), True
        of_images = [
            array if mapped else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, mapped in zip((images, *others), (is_mapped[0], *is_mapped[2:]), strict=True)
        ]
        batch = of_images[0].shape[1]
        first, *rest = (array.reshape(axis_size * batch, *array.shape[2:]) for array in of_images)
        found = folded(first, kernel, *rest)
        return found.reshape(axis_size, batch, *found.shape[1:]), True

    return folded


class Lowering(NamedTuple):
    """Implementation of a convolution and its gradients."""

    forward: Convolve
    image_gradient: Gradient
    kernel_gradient: Gradient


def differentiated(forward: Convolve) -> Lowering:
    """Lowering of `forward`, with gradients derived by JAX."""

    def image_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda images: forward(images, kernel), images)[1](gradient)[0]

    def kernel_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: forward(images, kernel), kernel)[1](gradient)[0]

    return Lowering(forward, image_gradient, kernel_gradient)


def plain(strides: int) -> Lowering:
    """Lowering by XLA's convolution."""
    return differentiated(partial(convolve_plainly, strides=strides))


def plain_on_cpus(strides: int) -> Lowering:
    """Lowering by XLA's convolution, with an image gradient that is fast inside loops."""
    return plain(strides)._replace(image_gradient=partial(image_gradient_plainly, strides=strides))


def unfolded(strides: int) -> Lowering:
    """Lowering by unfolding: windows times the flattened kernel."""
    return differentiated(partial(convolve_unfolded, strides=strides))


def by_tiles(size: int) -> Lowering:
    """Lowering by Winograd's algorithm, for 3x3 kernels of stride 1."""

    def image_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        del images
        return image_gradient_by_tiles(kernel, gradient, size=size)

    def kernel_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        del kernel
        return kernel_gradient_by_tiles(images, gradient, size=size)

    return Lowering(partial(convolve_by_tiles, size=size), image_gradient, kernel_gradient)


def lowering_for(image_shape: tuple[int, ...], kernel_shape: tuple[int, ...], strides: int) -> Lowering:
    """The CPU lowering for these shapes, from the timings in the table of `benchmarks/convolution_lowerings.py`."""
    batch, height, width, channels = image_shape
    size, features = kernel_shape[0], kernel_shape[3]
    if kernel_shape[:2] == (1, 1):
        narrowing = unfolded(strides)._replace(kernel_gradient=partial(kernel_gradient_of_narrowing, strides=strides))
        return narrowing if channels > features else unfolded(strides)
    kernel_gradient = partial(kernel_gradient_unfolded, strides=strides)
    if kernel_shape[:2] == (7, 7) and strides == 2 and features >= WIDEST_FOLDED_STEM:
        return plain_on_cpus(strides)._replace(kernel_gradient=kernel_gradient)
    if kernel_shape[:2] == (7, 7) and strides == 2 and not height % 2 | width % 2:
        return differentiated(convolve_folded)
    positions = _output_size(height, size, strides) * _output_size(width, size, strides)
    untiled = unfolded(strides) if positions <= LARGEST_UNFOLDED_MAP else plain_on_cpus(strides)
    if kernel_shape[:2] != (3, 3) or strides > 2 or positions == 1:
        return untiled
    if strides == 2 and channels < FEWEST_CONVOLVED_CHANNELS:
        return untiled._replace(forward=unfolded(2).forward, kernel_gradient=kernel_gradient)
    if strides == 2:
        return untiled._replace(image_gradient=unfolded(2).image_gradient, kernel_gradient=kernel_gradient)
    tile = 2 if max(height, width) <= 2 else 4
    tiles = batch * -(-height // tile) * -(-width // tile)
    # For few images, the transform of the kernel costs more than the multiplications it saves.
    return untiled if 8 * tiles < max(channels, features) else by_tiles(tile)


def convolve_plainly(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """`convolve` as one XLA convolution, on every platform."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(strides, strides),
        padding=[_padding(size) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def image_gradient_plainly(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch height width channels"]:
    """Gradient of `convolve_plainly` with respect to its images, as one convolution with the rotated kernel.

    JAX derives the same convolution, with the kernel's axes relabeled instead of transposed. Outside of loops XLA:CPU
    transposes them itself; inside a loop it computes such a convolution naively: the gradient of a ResNet-18 at 64
    pixels then takes 39 ms an image, with this function 6 ms.
    """
    padding = []
    for size, length, outputs in zip(kernel.shape[:2], images.shape[1:3], gradient.shape[1:3], strict=True):
        before = size - 1 - _padding(size)[0]
        padding.append((before, length + size - 2 - (outputs - 1) * strides - before))
    return lax.conv_general_dilated(
        gradient,
        lax.rev(kernel, (0, 1)).swapaxes(2, 3),
        window_strides=(1, 1),
        padding=padding,
        lhs_dilation=(strides, strides),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_unfolded(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """`convolve` as one matrix product (im2col): each output's flattened window times the flattened kernel."""
    batch, height, width, channels = images.shape
    new_height = _output_size(height, kernel.shape[0], strides)
    new_width = _output_size(width, kernel.shape[1], strides)
    padding = [_padding(size) for size in kernel.shape[:2]]
    # On maps of one row or column, the kernel's edges are multiplied with padding only.
    for axis, size in enumerate((height, width)):
        if size == 1:
            kernel = lax.slice_in_dim(kernel, padding[axis][0], padding[axis][0] + 1, axis=axis)
            padding[axis] = (0, 0)
    rows, columns, _, features = kernel.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
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


def kernel_gradient_unfolded(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
    *,
    strides: int = 1,
) -> Float[Array, "rows columns channels features"]:
    """Gradient of `convolve_plainly` with respect to its kernel: transposed windows times the gradient, in fp32.

    XLA:CPU computes that gradient as a convolution of transposed copies with the batch as channels. For a 7x7 stem of
    64 features on 512 images of 96x96 that takes 1,700 ms, this function 400.
    """
    rows, columns, channels, features = kernel.shape
    batch, new_height, new_width, _ = gradient.shape
    window = rows * columns * channels
    zeros = jnp.zeros((window, features), jnp.promote_types(images.dtype, jnp.float32))

    def products(images: jax.Array, gradient: jax.Array) -> jax.Array:
        padded = jnp.pad(images, ((0, 0), _padding(rows), _padding(columns), (0, 0)))
        # Materialized after the columns, for the rows' slices are then longer.
        wide = lax.optimization_barrier(_unfolded_axis(padded, columns, new_width, strides, axis=2))
        windows = _unfolded_axis(wide, rows, new_height, strides, axis=1).reshape(-1, window)
        return lax.dot_general(
            windows,
            gradient.reshape(-1, features),
            (((0,), (0,)), ((), ())),
            preferred_element_type=zeros.dtype,
        )

    # Each chunk computes its products, and reads and writes the sum.
    chunks = num_chunks(batch, image_bytes=4 * new_height * new_width * window, shared_bytes=4 * 4 * zeros.size)
    return sum_of_chunks(products, chunks, zeros, images, gradient).reshape(kernel.shape).astype(kernel.dtype)


def kernel_gradient_of_narrowing(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "1 1 channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
    *,
    strides: int = 1,
) -> Float[Array, "1 1 channels features"]:
    """Gradient of a 1x1 kernel with fewer features than channels.

    It is the transpose of the transposed gradient times the images. In the other order, which XLA:CPU would choose,
    that product takes 21 instead of 13 ms for 32 images of 56x56 with 256 channels and 64 features.
    """
    features = gradient.reshape(-1, gradient.shape[-1])
    channels = images[:, ::strides, ::strides].reshape(-1, images.shape[-1])
    return lax.optimization_barrier(features.T @ channels).T.reshape(kernel.shape)


def _unfolded_axis(maps: jax.Array, size: int, outputs: int, strides: int, *, axis: int) -> jax.Array:
    """The `size` values of each output's window along an axis, as consecutive channels."""
    span = (outputs - 1) * strides + 1
    shifted = [lax.slice_in_dim(maps, start, start + span, strides, axis) for start in range(size)]
    return jnp.concatenate(shifted, axis=-1)


def convolve_folded(
    images: Float[Array, "batch height width channels"], kernel: Float[Array, "7 7 channels features"]
) -> Float[Array, "batch new_height new_width features"]:
    """`convolve` of a 7x7 kernel with stride 2 on images of even size, as a 4x4 convolution with stride 1.

    Blocks of 2x2 pixels become the channels of one pixel (space to depth).
    """
    batch, height, width, channels = images.shape
    images = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    images = images.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
    # Windows start at odd pixels, hence the leading row and column of zeros.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding=[(2, 1), (2, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_pixels(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Float[Array, "batch new_height new_width features"]:
    """`lax.conv_general_dilated` of a 3x3 stem with stride 2, as `nn.Conv` calls it; on CPUs by `convolve`."""

    def on_cpu(images: jax.Array, kernel: jax.Array) -> jax.Array:
        before = lax.padtype_to_pads(images.shape[1:3], (3, 3), (2, 2), padding) if padding == "SAME" else padding
        (top, _), (left, _) = before
        # `convolve` starts its windows at -1, 1, 3; with another row of zeros in front, the second starts at 0.
        padded = jnp.pad(images, ((0, 0), (1 - top, 1 - top), (1 - left, 1 - left), (0, 0)))
        return convolve(padded, kernel, strides=2)[:, 1 - top :, 1 - left :]

    plainly = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    return by_platform(images, kernel, cpu=on_cpu, default=plainly)


def convolve_depthwise(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns 1 channels"],
    *,
    strides: int = 1,
    symmetric: bool = False,
) -> Float[Array, "batch new_height new_width channels"]:
    """Depthwise convolution: cross-correlation of each channel with its own kernel.

    The padding is TensorFlow's SAME, or that of `convolve` if `symmetric`; they differ at stride 2. On CPUs it is a sum
    of shifted images, which XLA fuses into one loop; XLA's convolution is many times slower there.
    """
    return by_platform(
        images,
        kernel,
        cpu=partial(convolve_depthwise_shifted, strides=strides, symmetric=symmetric),
        default=partial(convolve_depthwise_plainly, strides=strides, symmetric=symmetric),
    )


def convolve_depthwise_plainly(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns 1 channels"],
    *,
    strides: int = 1,
    symmetric: bool = False,
) -> Float[Array, "batch new_height new_width channels"]:
    """`convolve_depthwise` as one XLA convolution, on every platform."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(strides, strides),
        padding=_depthwise_padding(images, kernel, strides, symmetric),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


def convolve_depthwise_shifted(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns 1 channels"],
    *,
    strides: int = 1,
    symmetric: bool = False,
) -> Float[Array, "batch new_height new_width channels"]:
    """`convolve_depthwise` as a sum of shifted images, one term for each kernel position."""
    rows, columns = kernel.shape[:2]
    batch, height, width, channels = images.shape
    padding = _depthwise_padding(images, kernel, strides, symmetric)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    new_height, new_width = -(-height // strides), -(-width // strides)
    total = jnp.zeros((), images.dtype)
    for row in range(rows):
        for column in range(columns):
            shifted = lax.slice(
                padded,
                (0, row, column, 0),
                (batch, row + (new_height - 1) * strides + 1, column + (new_width - 1) * strides + 1, channels),
                (1, strides, strides, 1),
            )
            total = total + shifted * kernel[row, column, 0]
    return total


def _depthwise_padding(
    images: jax.Array, kernel: jax.Array, strides: int, symmetric: bool
) -> Sequence[tuple[int, int]]:
    if symmetric:
        return [_padding(size) for size in kernel.shape[:2]]
    return lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (strides, strides), "SAME")


@jax.custom_vjp
def max_pool(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch new_height new_width channels"]:
    """3x3 max pooling with stride 2 and padding 1.

    If several values of a window are equal to its maximum, the first in row-major order gets the whole gradient on
    every platform, as in PyTorch. CPUs use maxima of shifted slices.
    """
    return by_platform(images, cpu=max_pool_shifted, default=max_pool_plainly)


def _max_pool_forward(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return max_pool(images), images


def _max_pool_backward(images: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def backward(pool: Callable[[jax.Array], jax.Array], images: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(pool, images)[1](gradient)[0]

    on_cpu, elsewhere = partial(backward, max_pool_shifted), partial(backward, max_pool_plainly)
    return (by_platform(images, gradient, cpu=on_cpu, default=elsewhere),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def max_pool_plainly(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch new_height new_width channels"]:
    """`max_pool` as one windowed maximum, on every platform."""
    return nn.max_pool(images, (3, 3), (2, 2), ((1, 1), (1, 1)))


def max_pool_shifted(
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch new_height new_width channels"]:
    """`max_pool` as maxima of shifted slices along each axis.

    The gradient of the windowed maximum is 20 times slower on CPUs (41 against 2 ms for 64 maps of 32x32x32); on a TPU
    this version has 4 times the memory traffic.
    """
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    # Columns within each row first, then rows: ties are broken in row-major order.
    return _max_of_three(_max_of_three(padded, axis=2), axis=1)


def _max_of_three(padded: jax.Array, *, axis: int) -> jax.Array:
    span = (padded.shape[axis] - 3) // 2 * 2 + 1
    first, middle, last = (lax.slice_in_dim(padded, start, start + span, stride=2, axis=axis) for start in range(3))
    return _first_largest(_first_largest(first, middle), last)


def _first_largest(first: jax.Array, second: jax.Array) -> jax.Array:
    """Maximum, NaN if either is; unlike `jnp.maximum`, it passes the gradient of equal values to the first one only."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)


def _padding(size: int) -> tuple[int, int]:
    return ((size - 1) // 2, (size - 1) // 2)


def _output_size(size: int, window: int, strides: int) -> int:
    return (size + 2 * ((window - 1) // 2) - window) // strides + 1


class Convolution(nn.Module):
    """Convolution computed in `dtype`, with fp32 parameters.

    They are "kernel" `[rows, columns, channels, features]` and, if `use_bias`, "bias". The kernel is initialized
    normally with variance `2 / (rows * columns * features)`.
    Source: He et al. 2015 (arXiv 1502.01852), the "fan out" form.
    """

    features: int
    kernel_size: int
    strides: int = 1
    use_bias: bool = False
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
        maps = convolve(images.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides)
        if self.use_bias:
            maps += self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        return maps


class DepthwiseConvolution(nn.Module):
    """Depthwise convolution computed in `dtype`, with fp32 parameters.

    They are "kernel" `[rows, columns, 1, channels]` and, if `use_bias`, "bias". The kernel is initialized normally with
    variance `2 / (rows * columns)`.
    """

    kernel_size: int
    strides: int = 1
    symmetric: bool = False
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width channels"]:
        kernel = self.param(
            "kernel",
            nn.initializers.normal((2 / self.kernel_size**2) ** 0.5),
            (self.kernel_size, self.kernel_size, 1, images.shape[-1]),
            jnp.float32,
        )
        maps = convolve_depthwise(
            images.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides, symmetric=self.symmetric
        )
        if self.use_bias:
            maps += self.param("bias", nn.initializers.zeros_init(), (images.shape[-1],), jnp.float32).astype(
                self.dtype
            )
        return maps
