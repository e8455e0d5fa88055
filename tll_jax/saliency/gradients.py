"""Heat maps from the gradient of a score to the pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tll_jax.saliency.chunks import map_sum
from tll_jax.typing import Saliency, Score

CHUNK = 5
"""How many noisy images, or points of a path, pass the network together."""


def gradient(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """The largest absolute derivative of the score over a pixel's channels, at least 0.

    It says how much the score would move with the pixel, not in which direction.

    Source: Simonyan, Vedaldi and Zisserman 2013, section 3.1.
    """
    return jnp.max(jnp.abs(jax.grad(score)(image)), axis=-1)


def gradient_x_input(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """The derivatives times the pixel's own values, summed over channels: each pixel's share in a linear score.

    Source: Shrikumar et al. 2016 (arXiv 1605.01713), as the method that DeepLIFT is compared with.
    """
    return jnp.sum(image * jax.grad(score)(image), axis=-1)


def _over_noise(statistic: Callable[[Array, Array], Array]) -> Callable[..., Float[Array, "height width"]]:
    """A saliency method from a statistic of the mean and the mean square of the derivatives over noisy copies."""

    def method(
        score: Score,
        image: Float[Array, "height width 3"],
        *,
        key: PRNGKeyArray,
        noise: float = 0.15,
        samples: int = 25,
        chunk: int = CHUNK,
    ) -> Float[Array, "height width"]:
        keys = jax.random.split(key, samples)
        moments = _moments(_derivatives, score, image, keys=keys, noise=noise, chunk=chunk)
        return jnp.max(statistic(*moments), axis=-1)

    method.__name__, method.__qualname__, method.__doc__ = statistic.__name__, statistic.__name__, statistic.__doc__
    return method


@_over_noise
def smooth_gradient(mean: Array, mean_square: Array) -> Array:
    """SmoothGrad: the derivatives averaged over noisy copies of the image, then the largest absolute one over channels.

    Where derivatives point this way and that, they cancel; `smoothed(gradient, key=key)` adds up how strong they are
    instead. `noise` is the standard deviation in units of the image range [0, 1]; noisy images are not clipped. The
    same key, so the same noise, serves every image.

    Source: Smilkov et al. 2017 (arXiv 1706.03825), equation 1. The noise is relative to the range that images may
    have, not to the range of this one.
    """
    return jnp.abs(mean)


@_over_noise
def square_gradient(mean: Array, mean_square: Array) -> Array:
    """SquareGrad: the mean square of the derivatives over noisy copies, as in `smooth_gradient`, largest over channels.

    Source: Hooker et al. 2019 (arXiv 1806.10758), section 3.
    """
    return mean_square


@_over_noise
def variance_gradient(mean: Array, mean_square: Array) -> Array:
    """VarGrad: the variance of the derivatives over noisy copies, as in `smooth_gradient`, largest over channels.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), appendix.
    """
    return jnp.maximum(mean_square - mean**2, 0)


def smoothed(
    method: Saliency, *, key: PRNGKeyArray, noise: float = 0.15, samples: int = 25, chunk: int = CHUNK
) -> Saliency:
    """The heat maps of any method averaged over noisy copies of the image, as in `smooth_gradient`.

    Of `gradient` these are absolute, as captum's NoiseTunnel averages them, where SmoothGrad averages signed ones.
    """

    def explain(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
        return _moments(method, score, image, keys=jax.random.split(key, samples), noise=noise, chunk=chunk)[0]

    return explain


def _derivatives(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width 3"]:
    return jax.grad(score)(image)


def _moments(
    method: Callable[[Score, Array], Array],
    score: Score,
    image: Float[Array, "height width 3"],
    *,
    keys: Array,
    noise: float,
    chunk: int,
) -> Array:
    """The mean and the mean square, `[2, ...]`, of what a method gives for noisy copies of the image, one a key."""

    def moments(sample_key: PRNGKeyArray) -> Array:
        found = method(score, image + noise * jax.random.normal(sample_key, image.shape, image.dtype))
        return jnp.stack([found, found**2])

    return map_sum(moments, keys, jnp.full(len(keys), 1 / len(keys)), chunk=chunk)
