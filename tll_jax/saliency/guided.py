"""ReLUs with modified gradients, for Guided Backprop and the Deconvnet.

Pass one to `Backbone.build(activation=...)` and compute the gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def guided_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """ReLU that backpropagates positive gradients only, and only where its input was positive.

    Source: Springenberg et al. 2015 (arXiv 1412.6806), section 3.4.
    """
    return jnp.maximum(x, 0)


@jax.custom_vjp
def deconvnet_relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """ReLU that backpropagates positive gradients, whatever its input was.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901), section 2.1.
    """
    return jnp.maximum(x, 0)


def _forward(x: Array) -> tuple[Array, Array]:
    return jnp.maximum(x, 0), x


def _guided_back(x: Array, back: Array) -> tuple[Any]:
    return (jnp.where((x > 0) & (back > 0), back, 0),)


def _deconvnet_back(x: Array, back: Array) -> tuple[Any]:
    return (jnp.maximum(back, 0),)


guided_relu.defvjp(_forward, _guided_back)
deconvnet_relu.defvjp(_forward, _deconvnet_back)
