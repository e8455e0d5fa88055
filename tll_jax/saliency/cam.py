"""The CAM family: heat maps from the feature maps of a stage, weighted by gradients of the score.

All heat maps are at least 0 and show positive evidence for the score. They have the resolution of the stage and are
resized to that of the image by linear interpolation. The score must be a `tll_jax.typing.SplitScore` that is larger for
more similar images. A
stage is a number or any layer by its path, see `saliency.networks`; of a transformer's tokens the patches are the maps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.typing import Score, SplitScore

__all__ = ["grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam"]


def grad_cam(score: Score, image: Float[Array, "height width 3"], *, stage: int | str) -> Float[Array, "height width"]:
    """Grad-CAM: ReLU of the channels' sum, each weighted by its mean gradient.

    Source: Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2.
    """
    maps, gradients = _maps_and_gradients(score, image, stage)
    return _enlarged(maps @ jnp.mean(gradients, axis=(0, 1)), image)


def grad_cam_plus_plus(
    score: Score, image: Float[Array, "height width 3"], *, stage: int | str
) -> Float[Array, "height width"]:
    """Grad-CAM++: ReLU of the channels' sum, weighted by a weighted sum of positive gradients.

    Source: Chattopadhay et al. 2018 (arXiv 1710.11063), equations 7 and 19, for the exponential of the score, whose
    second and third derivatives are powers of the first.
    """
    maps, gradients = _maps_and_gradients(score, image, stage)
    denominator = 2 * gradients**2 + jnp.sum(maps, axis=(0, 1)) * gradients**3
    shares = gradients**2 / jnp.where(denominator == 0, 1, denominator)
    weights = jnp.sum(shares * jax.nn.relu(gradients), axis=(0, 1))
    return _enlarged(maps @ weights, image)


def hires_cam(score: Score, image: Float[Array, "height width 3"], *, stage: int | str) -> Float[Array, "height width"]:
    """HiResCAM: ReLU of activations times gradients, summed over channels.

    The products are exact contributions to the score if the rest of the network is linear.

    Source: Draelos and Carin 2020 (arXiv 2011.08891), equation 4.
    """
    maps, gradients = _maps_and_gradients(score, image, stage)
    return _enlarged(jnp.sum(maps * gradients, axis=-1), image)


def layer_cam(score: Score, image: Float[Array, "height width 3"], *, stage: int | str) -> Float[Array, "height width"]:
    """LayerCAM: ReLU of activations times positive gradients, summed over channels; suited to early stages too.

    Source: Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization".
    """
    maps, gradients = _maps_and_gradients(score, image, stage)
    return _enlarged(jnp.sum(maps * jax.nn.relu(gradients), axis=-1), image)


def _maps_and_gradients(
    score: Score, image: Float[Array, "height width 3"], stage: int | str
) -> tuple[Float[Array, "h w channels"], Float[Array, "h w channels"]]:
    if not isinstance(score, SplitScore):
        raise InvalidValue("the CAM methods look at the maps of a stage: they need a tll_jax.typing.SplitScore")
    maps, rest = score.split(image, stage)
    return maps, jax.grad(rest)(maps)


def _enlarged(heatmap: Float[Array, "h w"], image: Float[Array, "height width 3"]) -> Float[Array, "height width"]:
    return jax.image.resize(jax.nn.relu(heatmap), image.shape[:2], "linear")
