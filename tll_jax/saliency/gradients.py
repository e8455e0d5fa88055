"""Heat maps from the gradient of a score to the pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tll_jax.contracts import Saliency, Score
from tll_jax.saliency.chunks import map_sum

CHUNK = 5
"""How many noisy images, or points of a path, pass the network together."""


def gradient(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """The largest absolute derivative of the score over a pixel's channels, at least 0.

    It says how much the score would move with the pixel, not in which direction.

    Source: Simonyan, Vedaldi and Zisserman 2013, section 3.1.
    """
    return jnp.max(jnp.abs(jax.grad(score)(image)), axis=-1)


def signed_gradient(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """The sum of the derivatives over a pixel's channels: how the score moves as the pixel grows brighter."""
    return jnp.sum(jax.grad(score)(image), axis=-1)


def gradient_x_input(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """The derivatives times the pixel's own values, summed over channels: each pixel's share in a linear score.

    Source: Shrikumar et al. 2016 (arXiv 1605.01713), as the method that DeepLIFT is compared with.
    """
    return jnp.sum(image * jax.grad(score)(image), axis=-1)


def smoothed(
    method: Saliency, *, key: PRNGKeyArray, noise: float = 0.15, samples: int = 25, chunk: int = CHUNK
) -> Saliency:
    """A method averaged over noisy copies of the image: SmoothGrad.

    `noise` is the standard deviation in units of the image range [0, 1]; noisy images are not clipped. The
    same key, so the same noise, serves every image.

    Source: Smilkov et al. 2017, equation 1. Two departures: the noise is relative to the range images may
    have, not to the range of this one, and it is heat maps that are averaged, for `gradient` absolute ones.
    """
    return _over_noise(method, lambda mean, _: mean, key=key, noise=noise, samples=samples, chunk=chunk)


def squared(
    method: Saliency, *, key: PRNGKeyArray, noise: float = 0.15, samples: int = 25, chunk: int = CHUNK
) -> Saliency:
    """The mean of a method's squares over noisy copies, as in `smoothed`: SquareGrad.

    Source: Hooker et al. 2019 (arXiv 1806.10758), section 3.
    """
    return _over_noise(method, lambda _, mean_square: mean_square, key=key, noise=noise, samples=samples, chunk=chunk)


def varied(
    method: Saliency, *, key: PRNGKeyArray, noise: float = 0.15, samples: int = 25, chunk: int = CHUNK
) -> Saliency:
    """The variance of a method over noisy copies, as in `smoothed`: VarGrad.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), appendix.
    """

    def variance(
        mean: Float[Array, "height width"], mean_square: Float[Array, "height width"]
    ) -> Float[Array, "height width"]:
        return jnp.maximum(mean_square - mean**2, 0)

    return _over_noise(method, variance, key=key, noise=noise, samples=samples, chunk=chunk)


def _over_noise(
    method: Saliency,
    reduce: Callable[[Array, Array], Array],
    *,
    key: PRNGKeyArray,
    noise: float,
    samples: int,
    chunk: int,
) -> Saliency:
    def explain(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
        def moments(sample_key: PRNGKeyArray) -> Float[Array, "2 height width"]:
            heatmap = method(score, image + noise * jax.random.normal(sample_key, image.shape, image.dtype))
            return jnp.stack([heatmap, heatmap**2])

        keys = jax.random.split(key, samples)
        return reduce(*map_sum(moments, keys, jnp.full(samples, 1 / samples), chunk=chunk))

    return explain
