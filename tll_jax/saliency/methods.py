"""Registry of saliency methods, by their names in the literature and with their usual settings."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.saliency import cam, perturbation
from tll_jax.saliency.attention import Pooling, attention_rollout, gradient_x_attention
from tll_jax.saliency.baselines import GRAY, Baseline, blurred, constant, flat, noise
from tll_jax.saliency.gradients import (
    gradient,
    gradient_x_input,
    smooth_gradient,
    smoothed,
    square_gradient,
    variance_gradient,
)
from tll_jax.saliency.guided import deconvnet_relu, guided_relu
from tll_jax.saliency.integrated_gradients import expected_gradients, integrated_gradients
from tll_jax.saliency.pair_attributions import layer_integrated_gradients
from tll_jax.saliency.targets import Target, cosine, dot, mse, squared_l2
from tll_jax.typing import Activation, Saliency

SAMPLES = 25
PAIR_ATTRIBUTIONS = "pair-attributions"
DECOMPOSITION = "decomposition"
DECOMPOSITION_DESCRIPTION = "what each pair of places adds to the cosine"
TARGETS: Mapping[str, Target] = {"cosine": cosine, "dot": dot, "mse": mse, "squared-l2": squared_l2}


DEFAULT_METHODS = ("integrated-gradients", "expected-gradients", "gradient", "grad-cam", "occlusion")
"""One method of each family."""

_NEED_RELU = ("guided-backprop", "deconvnet")
_NEED_ATTENTION = ("attention-rollout", "gradient-x-attention")
_NEED_REFERENCES = ("expected-gradients", "integrated-gradients-mean")


class Method(NamedTuple):
    """A saliency method with its settings bound."""

    saliency: Saliency
    description: str
    """One line about its heat map."""
    activation: Activation = nn.relu
    """ReLU to build the backbone with."""


def baselines(
    *, size: int, key: jax.Array, references: Float[Array, "references size size 3"] | None
) -> dict[str, Baseline]:
    """Baseline images by name, for images of `size` pixels; "mean" only with `references`."""
    known = {"gray": GRAY, "black": flat(0.0), "blurred": blurred(size / 16), "noise": noise(key)}
    return known if references is None else known | {"mean": constant(jnp.mean(references, axis=0))}


def make_methods(
    *,
    size: int,
    stage: int,
    references: Float[Array, "references size size 3"] | None = None,
    seed: int = 0,
    pooling: str | None = None,
    has_relu: bool = True,
) -> dict[str, Method]:
    """All methods that apply, by name, for images of `size` pixels and the maps of `stage`; see `inapplicable`.

    Occlusion windows are the usual 50 pixels with stride 20 at 224 pixels, scaled to `size`.

    Args:
      references: images from the distribution of the explained ones, for Expected Gradients and the mean baseline.
      pooling: how a backbone with visible attention weights pools its tokens; None for other backbones.
      has_relu: whether the backbone has ReLUs, whose gradient Guided Backpropagation and deconvnets replace.
    """
    key = jax.random.key(seed)
    window, stride = max(2, round(size * 50 / 224)), max(1, round(size * 20 / 224))
    windows: dict[str, Any] = {"window": window, "stride": stride, "baseline": flat(0.5)}
    over_noise: dict[str, Any] = {"key": key, "samples": SAMPLES}
    methods = {
        "gradient": Method(gradient, "how much a small change of a pixel would move the score"),
        "gradient-x-input": Method(gradient_x_input, "each pixel's share in the score, were the network linear"),
        "smoothgrad": Method(partial(smooth_gradient, **over_noise), "the gradient, averaged over noisy copies"),
        "smoothgrad-absolute": Method(
            smoothed(gradient, **over_noise), "the gradient without its signs, averaged over noisy copies"
        ),
        "squaregrad": Method(
            partial(square_gradient, **over_noise), "the gradient squared, averaged over noisy copies"
        ),
        "vargrad": Method(partial(variance_gradient, **over_noise), "how much the gradient varies over noisy copies"),
    }
    for name, baseline in baselines(size=size, key=key, references=references).items():
        path_method = partial(integrated_gradients, baseline=baseline, steps=SAMPLES)
        description = f"each pixel's share in the score's rise from a baseline: {name}"
        methods["integrated-gradients" if name == "gray" else f"integrated-gradients-{name}"] = Method(
            path_method, description
        )
    if references is not None:
        expected = partial(expected_gradients, references=references, **over_noise)
        methods["expected-gradients"] = Method(expected, "each pixel's share in the score's rise from other images")
    methods |= _of_backbone(pooling, has_relu)
    methods[PAIR_ATTRIBUTIONS] = Method(
        partial(layer_integrated_gradients, stage=stage),
        f"what each place of stage {stage} adds to the score's rise from a gray picture, with all places of the other "
        "picture together",
    )
    cams = {
        "grad-cam": cam.grad_cam,
        "grad-cam++": cam.grad_cam_plus_plus,
        "hires-cam": cam.hires_cam,
        "layer-cam": cam.layer_cam,
    }
    for name, method in cams.items():
        methods[name] = Method(partial(method, stage=stage), f"where the maps of stage {stage} speak for the score")
    occluded = "how much the score falls when a square is grayed out"
    return methods | {
        "occlusion": Method(partial(perturbation.occlusion, **windows), occluded),
        "sbsm": Method(partial(perturbation.sbsm, **windows), f"{occluded}, falls only"),
        "rise": Method(
            partial(perturbation.rise, key=key), "how much better randomly dimmed images score where a pixel was left"
        ),
    }


def _of_backbone(pooling: str | None, has_relu: bool) -> dict[str, Method]:
    """Methods that need ReLUs or attention weights."""
    methods: dict[str, Method] = {}
    if has_relu:
        methods |= {
            "guided-backprop": Method(gradient, "the gradient along paths of positive influence only", guided_relu),
            "deconvnet": Method(gradient, "the stages run backwards, positive signals only", deconvnet_relu),
        }
    if pooling is not None:
        # Attention pooling uses a learned query over all last tokens, so they are weighted equally here.
        tokens: Pooling = "class" if pooling == "class" else "mean"
        methods |= {
            "attention-rollout": Method(
                partial(attention_rollout, pooling=tokens),
                "where the network looks through all blocks, whatever the score",
            ),
            "gradient-x-attention": Method(
                partial(gradient_x_attention, pooling=tokens), "what attention, through all blocks, adds to the score"
            ),
        }
    return methods


def inapplicable(methods: Mapping[str, Method]) -> dict[str, str]:
    """Methods that `make_methods` left out, and the reason for each."""
    reasons = {
        _NEED_RELU: "needs a backbone with ReLUs, whose gradient it changes",
        _NEED_ATTENTION: "needs a backbone whose attention weights can be seen, such as VisionTransformer",
        _NEED_REFERENCES: "needs other images of the same kind, which a run folder without its study's pictures lacks",
    }
    return {name: reason for names, reason in reasons.items() for name in names if name not in methods}
