"""Saliency maps from gradients of the score with respect to pixels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tll_jax.saliency.chunks import map_sum
from tll_jax.typing import Saliency, Score

CHUNK = 5
"""Noisy images, or points of a path, in one batch."""


def gradient(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """Gradient saliency: the largest absolute derivative of the score over a pixel's channels, at least 0.

    It is the sensitivity of the score to the pixel, without the sign of the change.

    Source: Simonyan, Vedaldi and Zisserman 2013, section 3.1.
    """
    return jnp.max(jnp.abs(jax.grad(score)(image)), axis=-1)


def gradient_x_input(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """Gradient times input, summed over channels: the pixel's contribution if the score is linear; signed.

    Source: Shrikumar et al. 2016 (arXiv 1605.01713), where DeepLIFT is compared with it.
    """
    return jnp.sum(image * jax.grad(score)(image), axis=-1)


def _over_noise(statistic: Callable[[Array, Array], Array]) -> Callable[..., Float[Array, "height width"]]:
    """Saliency method from a statistic of the mean and mean square of the gradient over noisy copies of the image."""

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
    """SmoothGrad: the gradient averaged over noisy copies of the image, then its largest absolute value over channels.

    Derivatives of opposite sign cancel; `smoothed(gradient, key=key)` averages absolute values instead. `noise` is the
    standard deviation in units of the image range [0, 1]; noisy images are not clipped. All images get the same noise
    from the same key.

    Source: Smilkov et al. 2017 (arXiv 1706.03825), equation 1. Departure: the noise is relative to the range [0, 1],
    not to the range of the given image.
    """
    return jnp.abs(mean)


@_over_noise
def square_gradient(mean: Array, mean_square: Array) -> Array:
    """SquareGrad: the mean squared gradient over noisy copies, as in `smooth_gradient`; the maximum over channels.

    Source: Hooker et al. 2019 (arXiv 1806.10758), section 3.
    """
    return mean_square


@_over_noise
def variance_gradient(mean: Array, mean_square: Array) -> Array:
    """VarGrad: the variance of the gradient over noisy copies, as in `smooth_gradient`; the maximum over channels.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), appendix.
    """
    return jnp.maximum(mean_square - mean**2, 0)


def smoothed(
    method: Saliency, *, key: PRNGKeyArray, noise: float = 0.15, samples: int = 25, chunk: int = CHUNK
) -> Saliency:
    """A method whose heat maps are averaged over noisy copies of the image, as in `smooth_gradient`.

    With `gradient` it averages absolute values, like captum's NoiseTunnel, whereas SmoothGrad averages signed ones.
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
    """Mean and mean square, `[2, ...]`, of a method's output over noisy copies of the image, one copy for each key."""

    def moments(sample_key: PRNGKeyArray) -> Array:
        found = method(score, image + noise * jax.random.normal(sample_key, image.shape, image.dtype))
        return jnp.stack([found, found**2])

    return map_sum(moments, keys, jnp.full(len(keys), 1 / len(keys)), chunk=chunk)
