"""Changes of color and sharpness to one image, as pure functions without branches."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tll_jax.devices import by_platform

LUMA = (0.2989, 0.587, 0.114)

Image = Float[Array, "height width 3"]
Scalar = Float[Array, ""] | float


def luminance(image: Image) -> Float[Array, "height width 1"]:
    """ITU-R 601 luma, the weights of torchvision and PIL.

    CPUs get it channel by channel, for XLA:CPU sums slowly; on a TPU that moves a third more memory than a sum.
    """
    return by_platform(image, cpu=luminance_by_channel, default=luminance_by_sum)


def luminance_by_channel(image: Image) -> Float[Array, "height width 1"]:
    """`luminance` as three weighted channels."""
    red, green, blue = (image[..., channel] for channel in range(3))
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[..., None]


def luminance_by_sum(image: Image) -> Float[Array, "height width 1"]:
    """`luminance` as a sum over the channels."""
    return jnp.sum(image * jnp.asarray(LUMA, image.dtype), axis=-1, keepdims=True)


def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """The image times `factor`, clipped to [0, 1]; 1 changes nothing, 0 gives black."""
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Moved away from the mean luminance, clipped to [0, 1]; 1 changes nothing, 0 gives one gray."""
    height, width, _ = image.shape
    # As one product, for XLA:CPU sums a reduction's terms one by one: 20 times slower.
    row_sums = jnp.dot(image.reshape(height, -1), jnp.tile(jnp.asarray(LUMA), width), precision=lax.Precision.HIGHEST)
    mean = jnp.mean(row_sums) / width
    return jnp.clip(mean + factor * (image - mean), 0, 1)


def adjust_saturation(image: Image, factor: Scalar) -> Image:
    """Moved away from each pixel's luminance, clipped to [0, 1]; 1 changes nothing, 0 gives a gray image."""
    gray = luminance(image)
    return jnp.clip(gray + factor * (image - gray), 0, 1)


def adjust_hue(image: Image, turns: Scalar) -> Image:
    """Hue moved by `turns` of the color circle with HSV's value and saturation kept; 1/3 makes red green."""
    red, green, blue = (image[..., channel] for channel in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    per_chroma = 1 / jnp.where(chroma > 0, chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) * per_chroma,
        jnp.where(value == green, 2 + (blue - red) * per_chroma, 4 + (red - green) * per_chroma),
    )
    # All channels by one broadcast formula, and the barrier before it: where they are stacked, or its inputs computed
    # anew for every channel, XLA:CPU is four times slower.
    sextant, value, chroma = lax.optimization_barrier((sextant + 6 * turns, value, chroma))
    position = sextant[..., None] + jnp.array([5.0, 3.0, 1.0])
    position = position - 6 * jnp.floor(position / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)


def solarize(image: Image, *, threshold: float = 0.5) -> Image:
    """Values from `threshold` on inverted."""
    return jnp.where(image >= threshold, 1 - image, image)


def gaussian_blur(image: Image, sigma: Scalar, *, radius: int) -> Image:
    """Convolved with a Gaussian of `sigma` pixels above 0, cut off beyond `radius` pixels along each axis, its weights
    renormalized where it leaves the image.

    Each axis is a sum of shifted images; CPUs get the flattened one.
    """
    flattened, plain = partial(blur_flattened, radius=radius), partial(blur_plainly, radius=radius)
    return by_platform(image, jnp.asarray(sigma), cpu=flattened, default=plain)


def blur_plainly(image: Image, sigma: Scalar, *, radius: int) -> Image:
    """`gaussian_blur` of the image as it is, which on a TPU moves two thirds of the memory that flattening does."""
    height, width, _ = image.shape
    weights = _gaussian(sigma, radius)
    padded = jnp.pad(image, ((radius, radius), (0, 0), (0, 0)))
    rows = sum(weights[k] * padded[k : k + height] for k in range(2 * radius + 1))
    rows = rows / _inside(weights, height)[:, None, None]
    padded = jnp.pad(rows, ((0, 0), (radius, radius), (0, 0)))
    columns = sum(weights[k] * padded[:, k : k + width] for k in range(2 * radius + 1))
    return columns / _inside(weights, width)[:, None]


def blur_flattened(image: Image, sigma: Scalar, *, radius: int) -> Image:
    """`gaussian_blur` with columns and channels as one axis.

    Under `jax.vmap`, at 224 pixels on 2 cores, that takes 0.3 ms an image, matrix products 1.2, and a depthwise
    convolution with a kernel of its own for every image ten times more.
    """
    height, width, channels = image.shape
    weights = _gaussian(sigma, radius)
    # Padded at once along both axes: a sum between two paddings would be computed anew for each of its uses.
    padded = jnp.pad(image, ((radius, radius), (radius, radius), (0, 0))).reshape(height + 2 * radius, -1)
    rows = sum(weights[k] * padded[k : k + height] for k in range(2 * radius + 1)) / _inside(weights, height)[:, None]
    flat = sum(weights[k] * rows[:, k * channels : (k + width) * channels] for k in range(2 * radius + 1))
    return (flat / jnp.repeat(_inside(weights, width), channels)).reshape(image.shape)


def _gaussian(sigma: Scalar, radius: int) -> Float[Array, " reach"]:
    """The weights from `radius` pixels before to `radius` pixels after, 1 in the middle."""
    return jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / sigma) ** 2)


def _inside(weights: Float[Array, " reach"], size: int) -> Float[Array, " size"]:
    """The sum of the weights that fall on a line of `size` pixels, for each of its positions."""
    radius = len(weights) // 2
    positions = jnp.arange(size)[:, None] + jnp.arange(-radius, radius + 1)
    return jnp.sum(jnp.where((positions >= 0) & (positions < size), weights, 0), axis=1)
