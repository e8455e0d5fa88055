"""Saliency maps of the similarity of two images; one file per family of methods.

A method is a function `(score, image) -> heatmap`. `score` maps an image, float32 `[height, width, 3]` in [0, 1], to a
scalar; `targets` makes such scores from an embedding. The CAM methods use the feature maps of a stage, so their score
needs a method `split(image, stage)` (see `tll_jax.typing.SplitScore`): an `EmbeddedScore` of a `ModuleEmbedding`, which
is any Flax module, or of a `NetworkEmbedding`, one of this package. `pair_attributions` explains two images together.

Examples:
  >>> import jax.numpy as jnp
  >>> from tll_jax import saliency
  >>> heatmap = saliency.integrated_gradients(lambda image: jnp.sum(image[:2]), jnp.ones((4, 4, 3)))
  >>> [f"{row:.1f}" for row in heatmap.sum(axis=1)]
  ['6.0', '6.0', '0.0', '0.0']
"""

from tll_jax.saliency import baselines, curves, faithfulness, targets
from tll_jax.saliency.attention import attention_rollout, gradient_x_attention
from tll_jax.saliency.cam import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from tll_jax.saliency.decomposition import Decomposition, decompose
from tll_jax.saliency.gradients import (
    gradient,
    gradient_x_input,
    smooth_gradient,
    smoothed,
    square_gradient,
    variance_gradient,
)
from tll_jax.saliency.integrated_gradients import completeness_error, expected_gradients, integrated_gradients
from tll_jax.saliency.networks import ModuleEmbedding, NetworkEmbedding
from tll_jax.saliency.pair_attributions import PairAttributions, layer_integrated_gradients, pair_attributions
from tll_jax.saliency.perturbation import occlusion, rise, sbsm
from tll_jax.saliency.targets import EmbeddedScore

__all__ = [
    "Decomposition",
    "EmbeddedScore",
    "ModuleEmbedding",
    "NetworkEmbedding",
    "PairAttributions",
    "attention_rollout",
    "baselines",
    "completeness_error",
    "curves",
    "decompose",
    "expected_gradients",
    "faithfulness",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradient",
    "gradient_x_attention",
    "gradient_x_input",
    "hires_cam",
    "integrated_gradients",
    "layer_cam",
    "layer_integrated_gradients",
    "occlusion",
    "pair_attributions",
    "rise",
    "sbsm",
    "smooth_gradient",
    "smoothed",
    "square_gradient",
    "targets",
    "variance_gradient",
]
