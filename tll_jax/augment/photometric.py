"""Changes of color and sharpness to one image, as pure functions without branches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LUMA = (0.2989, 0.587, 0.114)

Image = Float[Array, "height width 3"]
Scalar = Float[Array, ""] | float


def luminance(image: Image) -> Float[Array, "height width 1"]:
    """ITU-R 601 luma, the weights of torchvision and PIL."""
    red, green, blue = (image[..., channel] for channel in range(3))
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[..., None]


def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """The image times `factor`, clipped to [0, 1]; 1 changes nothing, 0 gives black."""
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Moved away from the mean luminance, clipped to [0, 1]; 1 changes nothing, 0 gives one gray."""
    mean = jnp.mean(luminance(image))
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
    sextant = sextant + 6 * turns

    def channel(offset: int) -> jax.Array:
        position = sextant + offset
        position = position - 6 * jnp.floor(position / 6)
        return value - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def solarize(image: Image, *, threshold: float = 0.5) -> Image:
    """Values from `threshold` on inverted."""
    return jnp.where(image >= threshold, 1 - image, image)


def gaussian_blur(image: Image, sigma: Scalar) -> Image:
    """Convolved with a Gaussian of `sigma` pixels above 0, its weights renormalized where it leaves the
    image.

    Each axis is one matrix product: under `jax.vmap` a depthwise convolution with a kernel of its own for
    every image is ten times slower on CPUs.
    """
    height, width, channels = image.shape
    rows = blur_matrix(height, sigma) @ image.reshape(height, width * channels)
    return jnp.einsum("vw,hwc->hvc", blur_matrix(width, sigma), rows.reshape(image.shape))


def blur_matrix(size: int, sigma: Scalar) -> Float[Array, "size size"]:
    """Row i holds the weights, of sum 1, with which position i of a line of `size` pixels gathers all."""
    position = jnp.arange(size, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * ((position[:, None] - position[None, :]) / sigma) ** 2)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
