"""What a heat map explains: scores of one image against the embedding of another."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tll_jax.contracts import Saliency, Score

Embed = Callable[[Float[Array, "height width 3"]], Float[Array, " dim"]]
"""image `[h, w, 3]` in [0, 1] -> embedding."""


def mse_to(embed: Embed, other: Float[Array, " dim"]) -> Score:
    """The mean squared difference between an image's embedding and `other`: smaller for more alike.

    Its gradient is 2 (z - other)^T J / dim, which vanishes as a pair converges and weighs the dimensions in
    which the two differ.

    Source: the paper, whose saliency maps are gradients of MSE(z_left, z_right).
    """

    def score(image: Float[Array, "height width 3"]) -> Float[Array, ""]:
        return jnp.mean((embed(image) - other) ** 2)

    return score


def cosine_to(embed: Embed, other: Float[Array, " dim"]) -> Score:
    """The cosine between an image's embedding and `other`, in [-1, 1]: larger for more alike."""

    def score(image: Float[Array, "height width 3"]) -> Float[Array, ""]:
        # The epsilon keeps score and gradient finite at a zero vector.
        return optax.losses.cosine_similarity(embed(image), other, epsilon=1e-8)

    return score


def explain_pair(
    embed: Embed,
    left: Float[Array, "height width 3"],
    right: Float[Array, "height width 3"],
    method: Saliency,
    *,
    target: Callable[[Embed, Float[Array, " dim"]], Score] = mse_to,
) -> tuple[Float[Array, "height width"], Float[Array, "height width"]]:
    """One heat map for each image of a pair, the other image's embedding held constant.

    With `method=gradient` and `target=mse_to` this is the paper's saliency, the gradient of
    MSE(z_left, z_right) to both images: holding the other side constant changes neither partial derivative.
    `jax.jit(jax.vmap(...))` of it compiles once for any number of pairs of one size.
    """
    z_left, z_right = embed(left), embed(right)
    return method(target(embed, z_right), left), method(target(embed, z_left), right)
