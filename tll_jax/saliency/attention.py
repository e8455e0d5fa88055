"""Heat maps from the attention weights of transformers.

The score needs a method `attention(image)`, such as an `EmbeddedScore` of a `NetworkEmbedding` has. Maps have one value
for each patch and are resized to the image by linear interpolation.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.saliency.networks import Attention
from tll_jax.typing import Score

__all__ = ["Pooling", "attention_rollout", "gradient_x_attention"]

Pooling = Literal["class", "mean"]
"""Tokens that the embedding is made of: the class token, which is the first, or all patches."""


def attention_rollout(
    score: Score, image: Float[Array, "height width 3"], *, pooling: Pooling = "class"
) -> Float[Array, "height width"]:
    """Attention rollout: the attention of the pooled tokens to each patch through all blocks; at least 0.

    It is the product over blocks of (A + I) / 2, where A is the mean of a block's attention weights over heads and I is
    for the residual connection. The map does not depend on the score.

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928), section 3.
    """
    attention = _attention(score, image)
    identity = jnp.eye(attention.weights[0].shape[-1])
    flow = identity
    for weights in attention.weights:
        flow = jnp.matmul((jnp.mean(weights, axis=0) + identity) / 2, flow, precision="highest")
    return _map(flow, attention, image, pooling)


def gradient_x_attention(
    score: Score, image: Float[Array, "height width 3"], *, pooling: Pooling = "class"
) -> Float[Array, "height width"]:
    """Gradient times attention: the relevance of each patch for the score through all blocks; at least 0.

    The relevance matrix R is initialized to I, and every block adds E R, where E is the mean over heads of
    max(0, A * dscore/dA) for attention weights A.

    Source: Chefer, Gur and Wolf 2021 (arXiv 2103.15679), equations 5 and 6.
    """
    attention = _attention(score, image)
    none = [jnp.zeros_like(weights) for weights in attention.weights]
    gradients = jax.grad(attention.rest)(none)
    flow = jnp.eye(none[0].shape[-1])
    for weights, gradient in zip(attention.weights, gradients, strict=True):
        speaking = jnp.mean(jax.nn.relu(weights * gradient), axis=0)
        flow = flow + jnp.matmul(speaking, flow, precision="highest")
    return _map(flow, attention, image, pooling)


def _attention(score: Any, image: Array) -> Attention:
    if not hasattr(score, "attention"):
        raise InvalidValue(
            "attention maps look at the attention weights of a network: they need a score with attention(image), such "
            "as an EmbeddedScore of a NetworkEmbedding"
        )
    attention: Attention = score.attention(image)
    return attention


def _map(flow: Float[Array, "tokens tokens"], attention: Attention, image: Array, pooling: Pooling) -> Array:
    height, width = attention.grid
    others = len(flow) - height * width
    if pooling == "class" and not others:
        raise InvalidValue("this network has no class token; its pooling is 'mean'")
    row = flow[0] if pooling == "class" else jnp.mean(flow[others:], axis=0)
    return jax.image.resize(row[others:].reshape(height, width), image.shape[:2], "linear")
