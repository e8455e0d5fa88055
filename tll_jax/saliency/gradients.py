"""Heat maps from the gradient of a score to the pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tll_jax.contracts import Saliency, Score


def gradient(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    """The largest absolute derivative of the score over a pixel's channels, at least 0.

    It says how much the score would move with the pixel, not in which direction.

    Source: Simonyan, Vedaldi and Zisserman 2013, section 3.1.
    """
    return jnp.max(jnp.abs(jax.grad(score)(image)), axis=-1)


def smoothed(method: Saliency, *, key: PRNGKeyArray, noise: float, samples: int) -> Saliency:
    """A method averaged over noisy copies of the image. 0.15 and 25 are usual.

    `noise` is the standard deviation in units of the image range [0, 1]; noisy images are not clipped. The
    same key, so the same noise, serves every image. Copies run one after another: memory stays that of one.

    Source: Smilkov et al. 2017, equation 1. Two departures: the noise is relative to the range images may
    have, not to the range of this one, and it is heat maps that are averaged, for `gradient` absolute ones.
    """

    def explain(score: Score, image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
        def once(sample_key: PRNGKeyArray) -> Float[Array, "height width"]:
            return method(score, image + noise * jax.random.normal(sample_key, image.shape, image.dtype))

        return jnp.mean(jax.lax.map(once, jax.random.split(key, samples)), axis=0)

    return explain
