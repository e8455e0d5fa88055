"""Baseline images for attribution methods."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tll_jax.augment.photometric import gaussian_blur

Baseline = Callable[[Float[Array, "height width 3"]], Float[Array, "height width 3"]]
"""image in [0, 1] -> baseline image of the same shape, in [0, 1]."""


def flat(level: float) -> Baseline:
    """Uniform gray of one level: 0 is black, 0.5 middle gray, 1 white."""
    return lambda image: jnp.full_like(image, level)


GRAY = flat(0.5)
"""The default baseline: middle gray."""


def blurred(sigma: float) -> Baseline:
    """The image after a Gaussian blur with a standard deviation of `sigma` pixels."""
    return lambda image: gaussian_blur(image, jnp.asarray(sigma, image.dtype), radius=int(3 * sigma))


def noise(key: PRNGKeyArray) -> Baseline:
    """Uniform noise in [0, 1), the same for every image."""
    return lambda image: jax.random.uniform(key, image.shape, image.dtype)


def constant(picture: Float[Array, "height width 3"]) -> Baseline:
    """A fixed picture, such as the mean of a data set."""
    return lambda image: jnp.broadcast_to(picture, image.shape).astype(image.dtype)
